"""SiT, U-ViT and Skip-DiT through every verb: recorded vectors, samplers, training, files and what is refused."""

import json
import unittest

import numpy as np

import support
from support import GOLDEN, TINY, ProgramTest

FAILED, USAGE = 1, 2
SIT, SKIP = GOLDEN / "sit/model.safetensors", GOLDEN / "skip_dit/model.safetensors"
COND, UNCOND = GOLDEN / "uvit/cond.safetensors", GOLDEN / "uvit/uncond.safetensors"
VECTORS = [(SIT, GOLDEN / f"sit/{kind}.safetensors") for kind in ("forward", "runs", "training")]
VECTORS += [(SKIP, GOLDEN / f"skip_dit/{kind}.safetensors") for kind in ("forward", "runs")]
VECTORS += [(model, GOLDEN / f"uvit/{model.stem}_{kind}.safetensors")
            for model in (COND, UNCOND) for kind in ("forward", "runs", "training")]
SAMPLERS = ["ddim", "dpm++", "euler", "heun", "midpoint", "em-sde", "heun-sde"]


def tensors_of(path):
    return support.load(path)[0]


def metadata_of(path):
    return support.load(path)[1]


class RecordedTest(ProgramTest):
    """What the authors' code computed, by both engines where there is one."""

    def checks(self, model, reference, *args):
        report = self.run_json("verify", "--model", model, "--reference", reference, *args)
        self.assertIs(report["passed"], True, report)
        return {check["name"]: check for check in report["checks"]}

    def test_all(self):
        for model, reference in VECTORS:
            with self.subTest(reference.name):
                self.assertTrue(self.checks(model, reference))

    def test_forwards_of_the_cpu_engine(self):
        for model, reference in VECTORS:
            if "forward" not in reference.name:
                continue
            for dtype in ("f32", "bf16"):
                with self.subTest(f"{reference.name} {dtype}"):
                    checks = self.checks(model, reference, "--engine", "cpu", "--dtype", dtype)
                    self.assertEqual(checks["out"]["limit"], 1e-5 if dtype == "f32" else 2e-2)

    def test_losses_of_a_skip_dit(self):
        """Its recorded gradients are not those of the recorded loss (docs/families.md)."""
        report = json.loads(self.run_program("verify", "--model", SKIP, "--reference", GOLDEN / "skip_dit/training.safetensors",
                                             "--json", "-q").stdout)
        losses = [check for check in report["checks"] if not check["name"].startswith("grad.")]
        self.assertEqual([(check["name"], check["ok"]) for check in losses], [("mse", True), ("vb", True), ("total", True)])

    def test_runs_are_those_of_both_engines(self):
        runs = json.loads(metadata_of(GOLDEN / "sit/runs.safetensors")["runs"])
        checks = self.checks(SIT, GOLDEN / "sit/runs.safetensors")
        wanted = {f"{engine} {name}.out" for engine in ("cpu", "reference") for name in runs if "dopri5" not in name}
        self.assertTrue(wanted <= set(checks), wanted - set(checks))
        self.assertTrue(all(check["limit"] <= 1e-4 for check in checks.values()))

    def test_the_adaptive_run_is_skipped_by_name(self):
        report = self.run_json("verify", "--model", SIT, "--reference", GOLDEN / "sit/runs.safetensors")
        self.assertEqual([skipped["name"] for skipped in report["skipped"]], ["ode_dopri5_linear"])

    def test_every_recorded_value_counts(self):
        for model, reference, name in [(SIT, VECTORS[0][1], "out"), (SIT, VECTORS[1][1], "sde_heun_sigma_mean.out"),
                                       (SIT, VECTORS[2][1], "gvp.grad.t_embedder.mlp.2.bias"),
                                       (SKIP, VECTORS[4][1], "n2_late.out"),
                                       (UNCOND, GOLDEN / "uvit/uncond_training.safetensors", "grad.pos_embed")]:
            tensors, metadata = support.load(reference)
            tensors[name].flat[0] += 0.01 * np.abs(tensors[name]).max()
            changed = self.save("changed.safetensors", tensors, metadata)
            result = self.run_program("verify", "--model", model, "--reference", changed, "-q")
            self.assertEqual(result.returncode, 1, f"{name}\n{result.stdout}")

    def test_noise_for_fewer_steps_than_are_noisy(self):
        tensors, metadata = support.load(VECTORS[1][1])
        tensors["sde_euler_sigma_mean.noise"] = tensors["sde_euler_sigma_mean.noise"][:5]
        changed = self.save("changed.safetensors", tensors, metadata)
        self.expect_error(["verify", "--model", SIT, "--reference", changed], FAILED,
                          "has noise for 5 steps, and more are noisy")


class SamplersTest(ProgramTest):
    """Of a SiT (latents, classes) and a U-ViT (pixels, no classes)."""

    def latents(self, name, *args):
        self.run_ok("generate", "--latents", name, *args)
        return tensors_of(self.work / name)["latents"]

    def test_every_sampler_makes_images_of_its_own(self):
        made = []
        for sampler in SAMPLERS:
            made.append(self.latents(f"{sampler}.safetensors", "--model", SIT, "-n", "2", "-c", "1", "--steps", "6",
                                     "--sampler", sampler, "--dtype", "f32"))
            self.assertTrue(np.isfinite(made[-1]).all(), sampler)
        # On the linear path DDIM without noise is Euler.
        np.testing.assert_allclose(made[SAMPLERS.index("ddim")], made[SAMPLERS.index("euler")], atol=2e-5)
        others = [image.tobytes() for sampler, image in zip(SAMPLERS, made) if sampler != "ddim"]
        self.assertEqual(len(set(others)), len(others))

    def test_a_uvit_has_one_more(self):
        for sampler in SAMPLERS + ["dpm-fast"]:
            image = self.latents(f"{sampler}.safetensors", "--model", UNCOND, "-n", "1", "--steps", "7", "--sampler",
                                 sampler)
            self.assertTrue(np.isfinite(image).all(), sampler)

    def test_an_image_depends_neither_on_the_batch_nor_on_the_threads(self):
        for sampler in ("heun", "heun-sde"):
            for model in (SIT, UNCOND):
                args = ["--model", model, "-n", "5", "--steps", "5", "--sampler", sampler, "--seed", "3"]
                alone = self.latents("alone.safetensors", *args, "--batch", "1", "--threads", "1")
                together = self.latents("together.safetensors", *args, "--batch", "5", "--threads", "2")
                self.assertEqual(alone.tobytes(), together.tobytes(), (sampler, model))

    def test_euler_is_the_default(self):
        args = ["--model", SIT, "-n", "1", "--steps", "5"]
        self.assertEqual(self.latents("a.safetensors", *args).tobytes(),
                         self.latents("b.safetensors", *args, "--sampler", "euler").tobytes())

    def test_caches_and_guidance_of_a_part_of_the_run(self):
        for model in (SIT, COND):
            full = self.run_json("generate", "--model", model, "-n", "1", "-c", "1", "--steps", "12", "--latents",
                                 "full.safetensors", "--cfg-scale", "2")
            cached = self.run_json("generate", "--model", model, "-n", "1", "-c", "1", "--steps", "12", "--latents",
                                   "cached.safetensors", "--cfg-scale", "2", "--cache", "taylor:3,1", "--guide-from",
                                   "800", "--guide-to", "300")
            self.assertLess(cached["images"][0]["required_gmacs"], 0.6 * full["images"][0]["required_gmacs"])

    def test_heun_counts_its_evaluations(self):
        run = self.run_json("generate", "--model", SIT, "-n", "1", "--steps", "5", "--sampler", "heun", "--latents",
                            "x.safetensors")
        self.assertEqual((run["steps"], run["evaluations"]), (5, 10))

    def test_a_picture_says_how_it_is_made_again(self):
        self.run_ok("generate", "--model", UNCOND, "-n", "1", "--steps", "5", "--sampler", "em-sde", "--diffusion-form",
                    "constant", "--diffusion-norm", "0.5", "--last-step", "tweedie", "--last-step-size", "0.05", "-o",
                    "a.png")
        command = next(line for line in self.run_ok("inspect", "a.png").splitlines() if "dydit generate" in line)
        for part in ("--sampler em-sde", "--diffusion-form constant", "--diffusion-norm 0.5", "--last-step tweedie",
                     "--last-step-size 0.05", "--steps 5"):
            self.assertIn(part, command)
        words = command.replace("uncond.safetensors", str(UNCOND)).split()
        self.run_ok(*words[words.index("generate"):], "-o", "b.png")
        np.testing.assert_array_equal(support.read_png(self.work / "a.png"), support.read_png(self.work / "b.png"))

    def test_the_command_of_a_cached_heun_makes_the_same_picture(self):
        self.run_ok("generate", "--model", UNCOND, "-n", "1", "--steps", "8", "--sampler", "heun", "--cache", "taylor:3,1",
                    "-o", "a.png")
        command = next(line for line in self.run_ok("inspect", "a.png").splitlines() if "dydit generate" in line)
        self.assertIn("--steps 8", command)
        words = command.replace("uncond.safetensors", str(UNCOND)).split()
        self.run_ok(*words[words.index("generate"):], "-o", "b.png")
        np.testing.assert_array_equal(support.read_png(self.work / "a.png"), support.read_png(self.work / "b.png"))

    def test_calibrated_plans_of_heun_and_of_an_sde(self):
        heun = ["--model", UNCOND, "--sampler", "heun", "--steps", "6", "--dtype", "f32"]
        self.run_ok("calibrate", *heun, "--images", "1", "--families", "fora,steps", "--out", "heun.json")
        self.run_ok("generate", *heun, "-n", "1", "--budget", "0.5", "--plans", "heun.json", "--latents", "x.safetensors")
        sde = ["--model", UNCOND, "--sampler", "em-sde", "--steps", "6", "--dtype", "f32"]
        self.run_ok("calibrate", *sde, "--diffusion-form", "linear", "--images", "1", "--families", "fora", "--out",
                    "sde.json")
        budget = ["-n", "1", "--budget", "0.9", "--plans", "sde.json", "--latents", "y.safetensors"]
        self.run_ok("generate", *sde, *budget, "--diffusion-form", "linear")
        self.expect_error(["generate", *sde, *budget], USAGE, "its plans are for SDE")

    def test_times_by_hand_are_the_networks(self):
        chosen = self.latents("a.safetensors", "--model", SIT, "-n", "1", "--steps", "4")
        by_hand = self.latents("b.safetensors", "--model", SIT, "-n", "1", "--timesteps", "0.25,0,0.75,0.5")
        self.assertEqual(chosen.tobytes(), by_hand.tobytes())

    def test_a_skip_dit_keeps_the_middle(self):
        args = ["--model", SKIP, "-n", "1", "-c", "1", "--sampler", "ddim", "--steps", "20", "--latents", "x.safetensors"]
        full, cached = self.run_json("generate", *args), self.run_json("generate", *args, "--cache", "skip:2,4")
        share = cached["images"][0]["required_gmacs"] / full["images"][0]["required_gmacs"]
        self.assertTrue(0.7 < share < 0.95, share)  # 8 of 12 blocks at every second step

    def test_what_makes_no_sense_is_refused(self):
        out = ["--latents", "x.safetensors", "--steps", "5"]
        for model, args, exit_code, said in [
                (SIT, ["--sampler", "ddpm"], USAGE, "needs the 1000 betas of a DiT"),
                (SIT, ["--sampler", "dopri5"], USAGE, "an adaptive solver"),
                (SIT, ["--sampler", "dpm-fast"], USAGE, "is for models of the path vp"),
                (SIT, ["--sampler", "em-sde", "--diffusion-form", "sbdm"], USAGE, "is infinite at noise on this path"),
                (SIT, ["--sampler", "heun-sde", "--last-step", "none"], USAGE, "the score is infinite"),
                (SIT, ["--diffusion-form", "linear"], USAGE, "--sampler em-sde or heun-sde"),
                (SIT, ["--sampler", "heun-sde", "--noise", "torch"], USAGE, "heun-sde draws before its first step"),
                (TINY, ["--sampler", "heun"], USAGE, "is for models of continuous time (SiT, U-ViT)"),
                (UNCOND, ["--cfg-scale", "2"], USAGE, "a null class to be guided away from"),
                (UNCOND, ["-c", "1"], USAGE, "uncond.safetensors has none")]:
            with self.subTest(said):
                self.expect_error(["generate", "--model", model, *out, *args], exit_code, said)
        for times, said in [("0.2,1.5", "1.5 is outside 0 to 1"), ("0.2,x", "'x' is not a number from 0 to 1"),
                            ("1,0.5", "takes noise shares that fall from")]:
            self.expect_error(["generate", "--model", SIT, "--latents", "x.safetensors", "--timesteps", times], USAGE,
                              said)


class FilesTest(ProgramTest):
    def inspected(self, path, *args):
        return self.run_json("inspect", path, *args)

    def test_what_it_predicts_and_who_says_so(self):
        tensors = tensors_of(SIT)
        bare = self.save("bare.safetensors", tensors)
        self.assertEqual(self.inspected(SIT)["objective"],
                         {"path": "linear", "prediction": "velocity", "source": "metadata 'config'"})
        taken = self.inspected(bare, "--num-heads", "4")["objective"]
        self.assertEqual((taken["path"], taken["prediction"]), ("table", "noise"))
        self.assertIsNone(taken["source"])
        self.assertIn("--path and --prediction", self.run_ok("inspect", bare, "--num-heads", "4"))
        told = self.inspected(bare, "--num-heads", "4", "--path", "gvp")["objective"]
        self.assertEqual(told, {"path": "gvp", "prediction": "velocity", "source": "--path"})
        self.assertEqual(self.inspected(UNCOND)["objective"]["path"], "vp-999")

    def test_a_bare_sit_is_sampled_as_the_flags_say_and_recorded(self):
        bare = self.save("bare.safetensors", tensors_of(SIT))
        args = ["-n", "1", "--steps", "5", "--latents"]
        self.run_ok("generate", "--model", SIT, *args, "a.safetensors")
        run = self.run_json("generate", "--model", bare, "--num-heads", "4", "--path", "linear", *args, "b.safetensors")
        self.assertEqual(run["loading"], {"num_heads": 4, "path": "linear"})
        self.assertEqual(tensors_of(self.work / "a.safetensors")["latents"].tobytes(),
                         tensors_of(self.work / "b.safetensors")["latents"].tobytes())

    def test_what_is_said_twice_must_agree(self):
        self.expect_error(["inspect", SIT, "--path", "gvp"], FAILED, "but gvp is asked for; leave --path out")
        self.expect_error(["inspect", SIT, "--prediction", "noise"], FAILED, "leave --prediction out")
        for flags in (["--path", "linear"], ["--path", "table"], ["--prediction", "velocity"]):
            self.expect_error(["inspect", UNCOND, *flags], FAILED, "is a U-ViT, which predicts noise")

    def test_names_go_both_ways(self):
        for model, layout in ((COND, "uvit"), (UNCOND, "uvit"), (SKIP, "skip-dit")):
            self.run_ok("convert", model, "ours.safetensors")
            ours = tensors_of(self.work / "ours.safetensors")
            self.assertIn("blocks.2.attn.qkv.weight", ours)
            for target in ("theirs.safetensors", "theirs.pt"):
                self.run_ok("convert", "ours.safetensors", target, "--to", layout)
                flags = ["--num-heads", "4"] if target.endswith(".pt") else []
                self.run_ok("convert", target, "again.safetensors", *flags)
                again = tensors_of(self.work / "again.safetensors")
                self.assertEqual({name: value.tobytes() for name, value in again.items()},
                                 {name: value.tobytes() for name, value in ours.items()}, (model, target))
            theirs = tensors_of(self.work / "theirs.safetensors")
            self.assertEqual(set(theirs), set(tensors_of(model)))

    def test_others_args_mean_nothing(self):
        for args, predicts in (({"path": "/data/out"}, "noise"), ({"prediction": "a.csv"}, "noise"),
                               ({"path_type": "Linear", "prediction": "velocity"}, "velocity")):
            tensors, storages = support.pickled_weights(tensors_of(SIT))
            words = {key: support.pickled_text(value) for key, value in args.items()}
            root = support.pickled_dict({"ema": tensors, "args": support.pickled_dict(words)})
            support.torch_file(self.work / "args.pt", root, storages)
            self.assertEqual(self.inspected("args.pt", "--num-heads", "4")["objective"]["prediction"], predicts, args)

    def test_a_layout_of_another_family_is_refused(self):
        self.expect_error(["convert", SIT, "x.safetensors", "--to", "uvit"], USAGE, "which files of the layout uvit")
        self.expect_error(["convert", UNCOND, "x/", "--to", "uvit"], USAGE, "a folder of diffusers is a DiT's")
        self.expect_error(["convert", SIT, "x/"], USAGE, "a diffusers folder is a DiT's")

    def test_a_missing_tensor_has_the_files_name(self):
        for model, name in ((UNCOND, "out_blocks.0.skip_linear.weight"), (UNCOND, "mid_block.norm2.bias"),
                            (SKIP, "skip_norms.3.weight")):
            tensors, metadata = support.load(model)
            del tensors[name]
            damaged = self.save("damaged.safetensors", tensors, metadata)
            self.expect_error(["inspect", damaged], FAILED, f"tensor {name} is missing")

    def test_quantised_blocks(self):
        self.run_ok("quantize", "--model", UNCOND, "--out", "int8.safetensors")
        self.assertEqual(self.inspected("int8.safetensors")["dtype"], "int8")


class TrainingTest(ProgramTest):
    """A few steps on images of 8 x 8, then what comes of them through the other verbs."""

    def setUp(self):
        super().setUp()
        draw = np.random.default_rng(0)
        self.images = self.work / "images.npz"
        np.savez(self.images, arr_0=draw.integers(0, 255, (24, 8, 8, 3), dtype=np.uint8), arr_1=np.arange(24) % 3)

    def command(self, verb, *args, results):
        return [verb, "--data-path", self.images, "--results-dir", results, "--global-batch-size", "8",
                *([] if "--lr" in args else ["--lr", "1e-2"]), "--ema-decay", "0", "--dtype", "f32",
                "--total-train-steps", "4", "--log-every", "1", *args]

    def trained(self, *args, depth=4, results="static"):
        self.run_ok(*self.command("train", "--hidden", "32", "--depth", depth, "--heads", "2", "--patch", "2", *args,
                                  results=results))
        return next((self.work / results).glob("*/checkpoints/0000004.safetensors"))

    def tuned(self, model, *args, results="dynamic"):
        self.run_ok(*self.command("finetune", "--model", model, "--router-bias", "0,0", "--anneal-start", "0",
                                  "--anneal-steps", "1", *args, results=results))
        return next((self.work / results).glob("*/checkpoints/0000004.safetensors"))

    def test_each_family_is_trained_tuned_and_used(self):
        for family, flags, depth, name in [("sit", [], 4, "SiT"), ("sit", ["--path", "gvp"], 4, "SiT"),
                                           ("uvit", ["--unconditional"], 5, "U-ViT"), ("uvit", [], 5, "U-ViT"),
                                           ("skip-dit", [], 4, "Skip-DiT")]:
            with self.subTest(f"{family} {flags}"):
                label = f"{family}{len(flags)}"
                static = self.trained("--family", family, *flags, depth=depth, results=f"{label}-static")
                dynamic = self.tuned(static, "--gate-rule", "capacity", "--lambda", "0.5", results=f"{label}-dynamic")
                said = self.run_json("inspect", dynamic)
                self.assertTrue(said["model"].startswith(f"Dy{name} ("), said["model"])
                self.assertTrue(said["tdw"] and said["sdt"])
                made = self.run_json("generate", "--model", dynamic, "--steps", "6", "-n", "1", "-o", "x.png",
                                     "--sampler", "ddim")
                self.assertLess(made["images"][0]["required_share"], 0.7)
                loss = self.run_json("evaluate", "--loss", "--model", dynamic, "--data-path", self.images, "--images",
                                     "10", "--seeds", "1")
                self.assertTrue(np.isfinite(loss["all"]["mse"]), loss["all"])
                self.run_json("bench", "--model", dynamic, "--steps", "2", "--repeats", "1", "--batch", "2")

    def test_learned_positions_are_trained_and_averaged(self):
        before = tensors_of(self.trained("--family", "uvit", "--unconditional", "--lr", "0", depth=5, results="a"))
        after = tensors_of(self.trained("--family", "uvit", "--unconditional", depth=5, results="b"))
        self.assertGreater(np.abs(after["pos_embed"] - before["pos_embed"]).max(), 0)

    def test_a_dit_becomes_a_sit(self):
        dit = self.trained("--label-dropout", "0.2")
        self.run_ok(*self.command("train", "--model", dit, "--path", "linear", "--prediction", "velocity",
                                  results="sit"))
        sit = next((self.work / "sit").glob("*/checkpoints/0000004.safetensors"))
        self.assertEqual(self.run_json("inspect", sit)["objective"]["prediction"], "velocity")

    def test_what_cannot_be_meant(self):
        new = ["--hidden", "32", "--heads", "2", "--patch", "2"]
        for args, said in [(["--family", "uvit", "--depth", "4"], "a U-ViT has an odd number of blocks"),
                           (["--family", "skip-dit", "--depth", "5"], "a Skip-DiT has an even number of blocks"),
                           (["--depth", "4", "--unconditional"], "has classes; --family uvit needs none"),
                           (["--depth", "4", "--prediction", "velocity"], "of which path? --path linear"),
                           (["--depth", "4", "--path", "vp-999", "--prediction", "velocity"], "of which path?"),
                           (["--depth", "4", "--family", "sit", "--path", "table"], "is a DiT's"),
                           (["--depth", "5", "--family", "uvit", "--path", "linear"], "another --family")]:
            with self.subTest(said):
                self.expect_error(self.command("train", *new, *args, results="none"), USAGE, said)


if __name__ == "__main__":
    support.main()
