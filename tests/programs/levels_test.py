"""Patch sizes through the program: trained both ways, looked at, sampled by plans, served; what they do not go with."""

import json
import unittest

import numpy as np

import support
from support import ProgramTest, png_bytes

FAILED, USAGE = 1, 2
FLEXIDIT = support.SHARED / "golden/flexidit/flexidit.safetensors"
TINY = support.SHARED / "golden/tiny/model.safetensors"
SHAPE = ["--hidden", "32", "--depth", "2", "--heads", "2", "--patch", "2"]
SMALL = ["--global-batch-size", "4", "--dtype", "f32", "--lr", "1e-3", "--ema-decay", "0"]


class LevelsBase(ProgramTest):
    def setUp(self):
        super().setUp()
        for index, name in enumerate(("gray", "red")):
            (self.work / "images" / name).mkdir(parents=True)
            for image in range(4):
                noise = np.random.default_rng(10 * index + image).integers(0, 255, (8, 8, 3)).astype(np.uint8)
                (self.work / "images" / name / f"{image}.png").write_bytes(png_bytes(noise))

    def train(self, results, *flags, verb="train"):
        given = [word for flag, value in zip(SMALL[::2], SMALL[1::2]) if flag not in flags for word in (flag, value)]
        return self.run_json(verb, "--data-path", "images", "--results-dir", results, *given, *flags)["checkpoint"]

    def generate(self, model, out, *flags):
        """The record, and the samples (n, 3, 8, 8)."""
        record = self.run_json("generate", "--model", model, "--sampler", "ddim", "--steps", "6", "-n", "3", "--out", out + ".png", "--latents",
                               out + "-x.safetensors", "--dtype", "f32", *flags)
        return record, support.load(self.work / (out + "-x.safetensors"))[0]["latents"]


class UseLevelsTest(LevelsBase):
    def setUp(self):
        super().setUp()
        self.model = self.train("run", *SHAPE, "--total-train-steps", "4", "--levels", "2")

    def test_larger_patches_cost_less_and_are_others(self):
        full, x_full = self.generate(self.model, "full")
        weak, x_weak = self.generate(self.model, "weak", "--weak-steps", "3")
        share = weak["images"][0]["required_gmacs"] / full["images"][0]["required_gmacs"]
        self.assertLess(share, 0.75)
        self.assertGreater(share, 0.5)
        self.assertFalse(np.array_equal(x_full, x_weak))
        by_time, x_time = self.generate(self.model, "time", "--level-from", "500")
        self.assertEqual(by_time["images"][0]["required_gmacs"], weak["images"][0]["required_gmacs"])
        np.testing.assert_array_equal(x_time, x_weak)

    def test_an_image_is_the_same_in_any_batch(self):
        for name, flags in (("a", ["--weak-steps", "3"]), ("b", ["--weak-steps", "2", "--guide-weak", "--cfg-scale", "3", "--cache", "fora:2"])):
            _, together = self.generate(self.model, name, *flags)
            _, alone = self.generate(self.model, name + "1", *flags, "--batch", "1", "-t", "1")
            np.testing.assert_array_equal(together, alone)

    def test_engines_agree(self):
        flags = ["--weak-steps", "3", "--guide-weak", "--cfg-scale", "3"]
        _, cpu = self.generate(self.model, "cpu", *flags)
        _, reference = self.generate(self.model, "reference", *flags, "--engine", "reference")
        np.testing.assert_allclose(cpu, reference, atol=2e-3)

    def test_weak_guidance_is_cheaper_than_the_null_class(self):
        usual, _ = self.generate(self.model, "usual", "--cfg-scale", "3")
        weak, _ = self.generate(self.model, "weak", "--cfg-scale", "3", "--guide-weak")
        self.assertLess(weak["images"][0]["required_gmacs"], 0.75 * usual["images"][0]["required_gmacs"])

    def test_are_looked_at(self):
        said = self.run_ok("inspect", self.model, "--plan-steps", "6", "--weak-steps", "2", "--svg", "plan.svg")
        self.assertIn("patches (the darker, the smaller)", (self.work / "plan.svg").read_text())
        self.assertIn("level 0: 2x2, 16 tokens; level 1: 4x4, 4 tokens, trained at all t", said)
        losses = [self.run_json("evaluate", "--loss", "--model", self.model, "--data-path", "images", "--seeds", "1", "--level", level)
                  for level in ("0", "1")]
        self.assertLess(losses[1]["all"]["required_share"], 0.6)
        self.assertNotEqual(losses[0]["all"]["mse"], losses[1]["all"]["mse"])
        self.expect_error(["evaluate", "--loss", "--model", self.model, "--data-path", "images", "--level", "2"], USAGE, "has levels 0 to 1")

    def test_are_part_of_the_plans_of_a_budget(self):
        self.run_json("calibrate", "--model", self.model, "--sampler", "ddim", "--steps", "6", "--dtype", "f32", "--cfg-scale", "1", "--images", "2",
                      "--families", "fora,levels", "--out", "plans.json")
        plans = json.loads((self.work / "plans.json").read_text())["plans"]
        self.assertTrue(any("weak-steps" in plan["plan"]["name"] for plan in plans), [plan["plan"]["name"] for plan in plans])
        cheapest = min(plan["cost_max"] for plan in plans)
        self.generate(self.model, "cheap", "--cfg-scale", "1", "--budget", f"{cheapest + 1e-4}", "--plans", "plans.json")

    def test_what_cannot_be_is_refused(self):
        for flags, *words in ((["--weak-steps", "9"], "its number of steps is 9; 0 to 6 is wanted"), (["--level-from", "1000"], "0 to 999 is wanted"),
                              (["--weak-steps", "2,1"], "2 levels of larger patches: the model has 1"), (["--weak-steps", "x"], "is no whole number"),
                              (["--guide-weak", "--cfg-scale", "1"], "--cfg-scale above 1"), (["--weak-steps", "1", "--level-from", "5"], "--level-from")):
            self.expect_error(["generate", "--model", self.model, "--sampler", "ddim", "--steps", "6", *flags], USAGE, *words)
        self.expect_error(["train", "--data-path", "images", "--model", self.model, "--total-train-steps", "1", "--levels", "2", *SMALL], USAGE,
                          "has patch sizes already")
        plain = self.train("plain", *SHAPE, "--total-train-steps", "1")
        self.expect_error(["generate", "--model", plain, "--sampler", "ddim", "--steps", "6", "--weak-steps", "2"], USAGE, "the model has one")


class TrainLevelsTest(LevelsBase):
    def test_by_time_with_routers_resumed_is_unbroken(self):
        base = self.train("base", *SHAPE, "--total-train-steps", "1")
        flags = ["--model", base, "--level-from", "500", "--router-bias", "0,0", "--anneal-start", "0", "--anneal-steps", "1", "--gate-rule", "capacity",
                 "--ckpt-every", "2"]
        whole = self.train("whole", *flags, "--total-train-steps", "4", verb="finetune")
        self.train("run", *flags, "--total-train-steps", "2", verb="finetune")
        resumed = self.train("run", *flags, "--total-train-steps", "4", "--resume", verb="finetune")
        (a, stated), (b, _) = support.load(self.work / whole), support.load(self.work / resumed)
        for name in a:
            self.assertEqual(a[name].tobytes(), b[name].tobytes(), name)
        self.assertEqual(json.loads(stated["config"])["level_from"], [500])
        self.assertEqual(stated["dydit_format"], "2")
        self.assertEqual(len(json.loads(stated["keep_counts"])["tokens"]), 4)

    def test_long_skips_begin_as_nothing(self):
        base = self.train("base", *SHAPE, "--total-train-steps", "2")
        skips = self.train("skips", "--model", base, "--long-skips", "--total-train-steps", "1", "--lr", "0")
        _, x = self.generate(base, "base")
        _, same = self.generate(skips, "skips")
        np.testing.assert_array_equal(x, same)
        self.expect_error(["generate", "--model", skips, "--steps", "6", "--cache", "skip:2"], USAGE, "2 blocks leave none between")

    def test_what_does_not_go_together(self):
        base = self.train("base", *SHAPE, "--total-train-steps", "1")
        common = ["--data-path", "images", "--model", base, "--total-train-steps", "1", *SMALL]
        for verb, flags, *words in (("train", ["--level-from", "500", "--timesteps", "uniform"], "needs --timesteps stratified"),
                                    ("train", ["--level-from", "0"], "--levels trains all sizes at all t"),
                                    ("train", ["--levels", "4"], "which do not fill 8x8"), ("train", ["--levels", "2", "--level-from", "5"], "--levels"),
                                    ("finetune", ["--level-from", "600", "--gate-rule", "capacity"], "take a multiple of 250"),
                                    ("train", ["--levels", "2", "--adapter", "lora"], "no --adapter"),
                                    ("train", ["--levels", "2", "--plr", "0.1"], "one patch size"),
                                    ("train", ["--distill", "lcm", "--teacher", base, "--plr", "0.1"], "its loss is the consistency alone"),
                                    ("train", ["--distill", "lcm", "--teacher", base, "--levels", "2"], "one patch size")):
            self.expect_error([verb, *common, *flags], USAGE, *words)


@unittest.skipUnless(FLEXIDIT.exists(), f"{FLEXIDIT} is not there; set DYDIT_SHARED")
class VectorsTest(ProgramTest):
    """golden/flexidit of the shared folder."""

    def replay(self, **changed):
        tensors, stated = support.load(FLEXIDIT)
        path = self.save("flexidit.safetensors", {**tensors, **changed}, stated)
        result = self.run_program("verify", "--model", TINY, "--reference", path, "-q", "--json")
        self.assertEqual(result.stderr, "")
        return result.returncode, {check["name"]: check["ok"] for check in self.one_object(result.stdout)["checks"]}

    def test_agree(self):
        code, checks = self.replay()
        self.assertEqual(code, 0, [name for name, ok in checks.items() if not ok])
        self.assertGreater(len(checks), 30)

    def test_every_part_is_compared(self):
        tensors, _ = support.load(FLEXIDIT)
        for changed in ("out_level1", "guided_eps", "init.levels.1.x_embedder.proj.weight", "pos_embed_centre", "grad.levels.1.embedding",
                        "distill_mse", "ppflow_out_weak", "ppflow_out_strong"):
            code, checks = self.replay(**{changed: tensors[changed] * 1.5})
            self.assertEqual(code, FAILED, changed)
            self.assertTrue(all(name.startswith(changed) for name, ok in checks.items() if not ok), checks)


if __name__ == "__main__":
    support.main()
