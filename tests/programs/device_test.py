"""--device cuda of train and finetune: refused with a way out where it cannot be, and the CPU's numbers where it can."""

import csv
import os
import pathlib
import unittest

import numpy as np

import support
from support import ProgramTest, png_bytes

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


if __name__ == "__main__":
    support.main()
