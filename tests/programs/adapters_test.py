"""Adapters through the program: trained, looked at, merged, alone in a file; what they do not go with."""

import numpy as np

import support
from support import ProgramTest, png_bytes

FAILED, USAGE = 1, 2
CLASSES = ["gray", "red"]
SHAPE = ["--hidden", "32", "--depth", "2", "--heads", "2", "--patch", "2"]
SMALL = ["--global-batch-size", "4", "--dtype", "f32", "--lr", "1e-3", "--ema-decay", "0"]
ROUTED = ["--router-bias", "0,0", "--anneal-start", "0", "--anneal-steps", "1"]
LORA = ["--adapter", "lora", "--lora-rank", "3", "--lora-scale", "2"]
TD_LORA = ["--adapter", "td-lora", "--lora-rank", "3", "--lora-experts", "2"]


class AdaptersBase(ProgramTest):
    def setUp(self):
        super().setUp()
        for index, name in enumerate(CLASSES):
            (self.work / "images" / name).mkdir(parents=True)
            for image in range(4):
                noise = np.random.default_rng(10 * index + image).integers(0, 255, (8, 8, 3)).astype(np.uint8)
                (self.work / "images" / name / f"{image}.png").write_bytes(png_bytes(noise))
        self.base = self.train("base", "train", *SHAPE, "--total-train-steps", "2", "--lr", "0.01")

    def command(self, verb, results, *flags):
        values = dict(zip(SMALL[::2], SMALL[1::2]))
        given = [word for flag, value in values.items() if flag not in flags for word in (flag, value)]
        return [verb, "--data-path", "images", "--results-dir", results, *given, *flags]

    def train(self, results, verb, *flags):
        """The checkpoint at the end of the run."""
        return self.run_json(*self.command(verb, results, *flags))["checkpoint"]

    def finetune(self, results, *flags):
        return self.train(results, "finetune", "--model", self.base, *flags)

    def generate(self, model, out, *flags):
        """The samples, (2, 3, 8, 8)."""
        self.run_ok("generate", "--model", model, "--steps", "3", "-n", "2", "--out", out + ".png", "--latents", out + "-samples.safetensors",
                    "--dtype", "f32", *flags)
        return support.load(self.work / (out + "-samples.safetensors"))[0]["latents"]


class TrainAdaptersTest(AdaptersBase):
    def test_says_what_is_trained_and_what_rests(self):
        result = self.run_program(*self.command("finetune", "r", "--model", self.base, "--total-train-steps", "1", *TD_LORA, *ROUTED))
        self.assertEqual(result.returncode, 0, result.stderr)
        line = next(line for line in result.stderr.splitlines() if "trains" in line)
        # 2 blocks: rank 3 (7 x 2 + 9) 32, mixing 2 (32 + 1); routers 2 x 33 + 2 x 32 + 2 + 3
        self.assertRegex(line, r"trains +0\.004818 M of 0\.0[0-9]+ M parameters \([0-9.]+ %\): adapters 0\.004548 M \(TD-LoRA \(our form\), "
                               r"rank 3, 2 experts on A, scale 1\), routers 0\.00027 M; all else rests")

    def test_resumed_is_unbroken(self):
        flags = [*TD_LORA, *ROUTED, "--gate-rule", "capacity", "--ckpt-every", "2"]
        whole = self.finetune("whole", "--total-train-steps", "4", *flags)
        self.finetune("run", "--total-train-steps", "2", *flags)
        resumed = self.finetune("run", "--total-train-steps", "4", *flags, "--resume")
        a, b = support.load(self.work / whole)[0], support.load(self.work / resumed)[0]
        self.assertEqual(set(a), set(b))
        for name in a:
            self.assertEqual(a[name].tobytes(), b[name].tobytes(), name)

    def test_another_base_is_not_resumed(self):
        self.finetune("run", "--total-train-steps", "2", *LORA, "--static", "--importance", "none")
        other = self.train("other", "train", *SHAPE, "--total-train-steps", "1")
        self.expect_error(self.command("finetune", "run", "--model", other, "--total-train-steps", "4", *LORA, "--static",
                                       "--importance", "none", "--resume"), FAILED, "the SHA-256 of --model")

    def test_sample_grids(self):
        self.finetune("run", "--total-train-steps", "1", "--sample-every", "1", "--sample-steps", "2", *TD_LORA, *ROUTED)
        self.assertTrue(list((self.work / "run").glob("*/samples/*.png")))

    def test_trains_on_the_same_adapters(self):
        first = self.train("a", "train", "--model", self.base, "--total-train-steps", "1", *LORA)
        second = self.train("a", "train", "--model", first, "--total-train-steps", "1", *LORA)
        base, once, twice = (support.load(self.work / path)[0] for path in (self.base, first, second))
        for name in base:
            self.assertEqual(base[name].tobytes(), twice[name].tobytes(), name)
        self.assertNotEqual(once["blocks.0.mlp.fc1.lora.B"].tobytes(), twice["blocks.0.mlp.fc1.lora.B"].tobytes())
        self.expect_error(self.command("train", "a", "--model", first, "--total-train-steps", "1", *TD_LORA), USAGE,
                          "its adapters are LoRA, rank 3, scale 2, and TD-LoRA (our form), rank 3, 2 experts on A, scale 1 is asked for")
        self.expect_error(self.command("train", "a", "--model", first, "--total-train-steps", "1"), USAGE, "and none is asked for")

    def test_flags_that_do_nothing_are_refused(self):
        finetune = ["finetune", "--model", self.base, "--data-path", "images", "--total-train-steps", "1"]
        for flags, said in ((["--lora-rank", "3"], "--adapter lora or td-lora"),
                            (["--adapter", "lora", "--lora-experts", "3"], "--adapter td-lora"),
                            (["--adapter", "td-lora", "--lora-experts", "1"], "--lora-experts 1: TD-LoRA (our form) mixes two matrices or more"),
                            (["--adapter", "lora", "--lora-rank", "33"], "rank 33: the hidden size"),
                            (["--train", "routers", "--static"], "--static leaves out"),
                            (["--train", "routers", "--adapter", "lora"], "no --adapter"),
                            (["--train", "routers", "--complete-steps", "1"], "--train all")):
            self.expect_error([*finetune, *flags], USAGE, said)
        self.expect_error(["train", *SHAPE, "--data-path", "images", "--total-train-steps", "1", *LORA], USAGE, "--adapter lora: needs --model")

    def test_routers_alone(self):
        routed = self.finetune("run", "--total-train-steps", "2", "--train", "routers", "--importance", "none", *ROUTED)
        base, after = (support.load(self.work / path)[0] for path in (self.base, routed))
        for name in base:
            self.assertEqual(base[name].tobytes(), after[name].tobytes(), name)


class UseAdaptersTest(AdaptersBase):
    def test_lora_is_sampled_merged_and_unmerged(self):
        lora = self.finetune("run", "--total-train-steps", "2", *LORA, *ROUTED)
        self.run_ok("convert", lora, "merged.safetensors", "--merge")
        tensors, metadata = support.load(self.work / "merged.safetensors")
        self.assertFalse([name for name in tensors if "lora" in name])
        self.assertEqual((metadata["dydit_format"], "adapter" in metadata), ("1", False))
        images = self.generate("merged.safetensors", "merged")
        self.assertTrue(np.array_equal(images, self.generate(lora, "cpu")))
        side = self.generate(lora, "side", "--engine", "reference")
        self.assertLess(np.abs(images - side).max(), 1e-3 * np.abs(images).max())

    def test_td_lora_needs_the_reference_engine(self):
        td_lora = self.finetune("run", "--total-train-steps", "2", *TD_LORA, *ROUTED)
        self.expect_error(["generate", "--model", td_lora, "--steps", "2"], USAGE, "TD-LoRA (our form)", "take --engine reference")
        self.expect_error(["evaluate", "--loss", "--model", td_lora, "--data-path", "images"], USAGE, "take --engine reference")
        self.expect_error(["convert", td_lora, "m.safetensors", "--merge"], FAILED, "other weights at every timestep")
        self.expect_error(["quantize", "--model", td_lora, "--out", "q.safetensors", "--calibrate", "0"], FAILED, "adapters")
        self.assertEqual(len(self.generate(td_lora, "out", "--engine", "reference")), 2)
        said = self.run_json("inspect", td_lora)["adapter"]
        mixing = said.pop("mixing")
        self.assertEqual([0 < entropy <= 1 for entropy in mixing["entropy"]], [True] * 4)
        base = self.run_json("inspect", self.base)["sha256"]
        self.assertEqual(said, {"kind": "td-lora", "rank": 3, "experts": 2, "scale": 1, "mix": "A", "parameters": 4548, "base_sha256": base})
        self.assertRegex(self.run_ok("inspect", td_lora), r"adapters +TD-LoRA \(our form\), rank 3, 2 experts on A, scale 1")

    def test_alone_in_a_file_and_onto_the_base_again(self):
        whole = self.finetune("run", "--total-train-steps", "2", *TD_LORA, *ROUTED, "--gate-rule", "capacity")
        self.run_ok("convert", whole, "alone.safetensors", "--adapters-only")
        self.assertLess((self.work / "alone.safetensors").stat().st_size, (self.work / whole).stat().st_size / 2)
        self.run_ok("convert", "alone.safetensors", "again.safetensors", "--base", self.base)
        a, b = support.load(self.work / whole), support.load(self.work / "again.safetensors")
        self.assertEqual(set(a[0]), set(b[0]))
        for name in a[0]:
            self.assertEqual(a[0][name].tobytes(), b[0][name].tobytes(), name)
        for key in "adapter", "keep_counts", "gate_rule", "lambda", "config":
            self.assertEqual(a[1][key], b[1][key], key)
        other = self.train("other", "train", *SHAPE, "--total-train-steps", "1")
        self.expect_error(["convert", "alone.safetensors", "no.safetensors", "--base", other], FAILED, "they fit no other base")
        self.expect_error(["inspect", "alone.safetensors"], FAILED, "adapters without their model; dydit convert --base")
        self.expect_error(["convert", self.base, "no.safetensors", "--adapters-only"], USAGE, "has no adapters")
        self.expect_error(["convert", whole, "no.pt", "--adapters-only"], USAGE, "--adapters-only", "ends in .safetensors")
        self.expect_error(["convert", self.base, "no.safetensors", "--merge"], FAILED, "has no adapters to merge")


if __name__ == "__main__":
    support.main()
