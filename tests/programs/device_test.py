"""--device cuda: refused with a way out where it cannot be, and the CPU's numbers where it can; and what a GPU's engine
computes on the CPU."""

import csv
import os
import pathlib
import unittest

import numpy as np

import support
from support import TINY, ProgramTest, png_bytes

FAILED, USAGE = 1, 2
NO_LIBRARY = 127  # of the loader
BUILT_WITH_CUDA = os.environ.get("BUILT_WITH_CUDA") == "1"
# A GPU of NVIDIA's driver; the program itself is what says whether CUDA can use it.
HAS_GPU = pathlib.Path("/proc/driver/nvidia/gpus").is_dir() or pathlib.Path("/dev/nvidia0").exists()
FLAGS = ["--global-batch-size", "8", "--dtype", "f32", "--lr", "1e-3"]


class DeviceTest(ProgramTest):
    def setUp(self):
        super().setUp()
        if BUILT_WITH_CUDA and self.run_program("--version").returncode == NO_LIBRARY:
            self.skipTest("the folder of LibTorch holds no cuDNN and the like (docs/training.md), so the program cannot start")
        noise = np.random.default_rng(1)
        for name in ("dark", "light"):
            (self.work / "images" / name).mkdir(parents=True)
            for index in range(4):
                pixels = noise.integers(0, 100, (8, 8, 3)) + (150 if name == "light" else 0)
                (self.work / "images" / name / f"{index}.png").write_bytes(png_bytes(pixels.astype(np.uint8)))

    def command(self, verb, device, *flags):
        return [verb, "--data-path", "images", "--results-dir", f"{verb}-{device}", *FLAGS, "--device", device, *flags]

    def rows(self, verb, device, *flags):
        """The log of a new run of ten steps."""
        self.run_ok(*self.command(verb, device, "--total-train-steps", "10", "--log-every", "1", *flags))
        with open(max((self.work / f"{verb}-{device}").iterdir()) / "log.csv", newline="") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]

    @unittest.skipIf(BUILT_WITH_CUDA, "this program was built with CUDA")
    def test_without_cuda_in_the_build(self):
        for verb in ("train", "finetune"):
            self.expect_error(self.command(verb, "cuda"), USAGE, "--device", "cuda is not available in this version",
                              "scripts/build cuda", "choose from cpu")
        for command in (["generate", "--model", TINY], ["bench", "--model", TINY], ["evaluate", "--model", TINY],
                        ["verify", "--model", TINY, "--reference", TINY], ["decode", "--latents", TINY, "--vae", TINY]):
            self.expect_error([*command, "--device", "cuda"], USAGE, "--device", "cuda is not available in this version",
                              "scripts/build cuda")

    @unittest.skipIf(not BUILT_WITH_CUDA or HAS_GPU, "wants a program built with CUDA and no GPU")
    def test_without_a_gpu(self):
        self.expect_error(self.command("train", "cuda", "--size", "DiT-S/4", "--total-train-steps", "1"), FAILED,
                          "--device cuda", "no GPU", "--device cpu")

    @unittest.skipIf(not BUILT_WITH_CUDA or not HAS_GPU, "wants a program built with CUDA and a GPU")
    def test_the_numbers_are_the_cpus(self):
        self.same_on_both("train", "--hidden", "32", "--depth", "2", "--heads", "2", "--patch", "2")
        model = next((self.work / "train-cpu").rglob("0000010.safetensors"))
        for rule in ("threshold", "capacity"):
            with self.subTest(rule=rule):
                self.same_on_both("finetune", "--model", model, "--router-bias", "0,0", "--anneal-start", "0", "--anneal-steps",
                                  "1", "--complete-steps", "5", "--gate-rule", rule)

    def same_on_both(self, verb, *flags):
        for a, b in zip(self.rows(verb, "cpu", *flags), self.rows(verb, "cuda", *flags), strict=True):
            for key in ("mse", "vb", "complete_mse", "ratio_training", "ratio_inference", "grad_norm"):
                self.assertAlmostEqual(a[key], b[key], delta=1e-3 * max(abs(a[key]), 1e-3), msg=(a["step"], key))


class TorchEngineTest(ProgramTest):
    """--engine torch on the CPU: what a GPU will run gives the CPU engine's images but for rounding."""

    MODEL = ["--model", TINY, "--dtype", "f32"]
    RUN = [*MODEL, "-n", "3", "--sampler", "ddim", "--steps", "6", "--cfg-scale", "2"]

    def latents(self, *flags):
        run = self.run_json("generate", *self.RUN, *flags, "--latents", "x.safetensors")
        return run, support.load(self.work / "x.safetensors")[0]["latents"]

    def test_images_are_the_cpu_engines(self):
        for plan in ([], ["--cache", "taylor:2,1"], ["--mode", "static"], ["--guide-from", "300"]):
            with self.subTest(plan=plan):
                cpu, wanted = self.latents(*plan)
                torch, got = self.latents(*plan, "--engine", "torch")
                self.assertEqual((torch["engine"], torch["device"]), ("torch", "cpu"))
                self.assertLess(np.abs(got - wanted).max(), 1e-3 * np.abs(wanted).max())
                for a, b in zip(torch["images"], cpu["images"], strict=True):
                    self.assertAlmostEqual(a["required_gmacs"], b["required_gmacs"], delta=1e-9 + 0.01 * b["required_gmacs"])

    def test_bench_says_what_it_copied_and_did_again(self):
        said = self.run_json("bench", *self.MODEL, "--engine", "torch", "--repeats", "2", "--steps", "4")
        self.assertEqual((said["engine"], said["device"]), ("torch", "cpu"))
        for contestant in ("static", "dynamic"):
            self.assertEqual({"forwards", "redone_forwards", "slot_bytes_copied"} - set(said[contestant]), set())
            self.assertNotIn("operators", said[contestant])
        self.assertEqual(said["static"]["slot_bytes_copied"], 0)
        self.assertLess(said["dynamic"]["executed_share"], 1)

    def test_the_loss_is_the_cpu_engines(self):
        random = np.random.default_rng(0)
        np.savez(self.work / "images.npz", arr_0=random.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), arr_1=np.arange(4))
        self.run_ok("train", "--data-path", "images.npz", "--hidden", "16", "--depth", "2", "--heads", "2", "--patch", "4",
                    "--total-train-steps", "1", "--global-batch-size", "2", "--results-dir", "r")
        model = next((self.work / "r").rglob("0000001.safetensors"))
        losses = [self.run_json("evaluate", "--loss", "--model", model, "--data-path", "images.npz", "--dtype", "f32",
                                "--engine", engine)["all"]["mse"] for engine in ("cpu", "torch")]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)

    def test_what_belongs_to_a_gpu_or_another_engine_is_refused(self):
        for flags, said in ((["--graphs", "on"], "needs --device cuda"), (["--no-batch-invariant"], "needs --device cuda"),
                            (["--dtype", "int8", "--engine", "torch"], "the torch engine has no 8-bit arithmetic")):
            for verb in (["generate", "--model", TINY, "--latents", "x.safetensors"], ["bench", "--model", TINY]):
                self.expect_error([*verb, *flags], USAGE, said)
        self.expect_error(["bench", "--model", TINY, "--engine", "reference", "--profile"], USAGE, "--profile", "--engine reference")

    def test_a_profile_tells_the_time_of_operators(self):
        said = self.run_json("bench", *self.MODEL, "--engine", "torch", "--profile", "--repeats", "1", "--steps", "2")
        operators = said["dynamic"]["operators"]
        times = operators["all"]
        self.assertTrue(all(times[name] > 0 for name in ("embed", "norm", "qkv", "attention", "proj", "router", "fc1", "fc2", "final")), times)
        self.assertLess(sum(times.values()), 1.1 * said["dynamic"]["ms_per_sample"])
        self.assertEqual(len(operators["blocks"]), 2)


if __name__ == "__main__":
    support.main()
