"""cmake --install into a prefix that is then moved: the program runs from there, and the examples build as outside
projects. Called as FILE PROGRAM TESTS_DIR BUILD_DIR CMAKE [CLASS...]."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BUILD, CMAKE = pathlib.Path(sys.argv.pop(3)), sys.argv.pop(3)
sys.path.insert(0, str(pathlib.Path(sys.argv[2]) / "programs"))
import support  # noqa: E402
from support import CIFAR, ROOT  # noqa: E402

STEPS = 3


def run(*command, **environment):
    return subprocess.run([*map(str, command)], capture_output=True, text=True,
                          env=support.environment({"OMP_NUM_THREADS": "1", **environment}))


def run_ok(*command):
    done = run(*command)
    if done.returncode:
        raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


class InstallTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="dydit-test-"))
        cls.addClassCleanup(shutil.rmtree, cls.work)
        first, cls.prefix = cls.work / "first", cls.work / "moved"
        run_ok(CMAKE, "--install", BUILD, "--prefix", first)
        first.rename(cls.prefix)

    def configure(self, example, build, **environment):
        return run(CMAKE, "-G", "Ninja", "-S", ROOT / "examples" / example, "-B", self.work / build,
                   f"-DCMAKE_PREFIX_PATH={self.prefix}", "-DCMAKE_BUILD_TYPE=Release", **environment)

    def build(self, example):
        configured = self.configure(example, example)
        self.assertEqual(configured.returncode, 0, configured.stderr)
        run_ok(CMAKE, "--build", self.work / example)
        return self.work / example / example

    def pixels_of_program(self, *args):
        path = self.work / "program.png"
        run_ok(self.prefix / "bin" / "dydit", "generate", "--model", CIFAR, "--classes", 3, "--steps", STEPS,
               "--seed", 7, "--dtype", "f32", "--out", path, "-q", *args)
        return support.read_png(path)

    def test_program_runs(self):
        self.assertRegex(run_ok(self.prefix / "bin" / "dydit", "--version"), r"\Adydit \d")

    def test_mpi_module_lies_where_the_program_looks(self):
        self.assertEqual((self.prefix / "bin" / "libdydit_mpi.so").exists(), (BUILD / "libdydit_mpi.so").exists())

    def test_package_names_neither_source_nor_prefix(self):
        names = [(self.work / "first", "the first prefix"), (ROOT / "dydit", "the source")]
        files = list(self.prefix.rglob("*.cmake"))
        self.assertGreaterEqual(len(files), 4)
        for file in files:
            for path, what in names:
                self.assertNotIn(str(path), file.read_text(), f"{file.name} names {what}")

    def test_no_kernel_headers(self):
        headers = {path.name for path in self.prefix.rglob("*.h")}
        self.assertIn("dydit.h", headers)
        self.assertFalse(headers & {"kernels.h", "op_kernels.h", "kernel_math.h"})

    def test_generate_gives_the_programs_image(self):
        program = self.build("generate")
        png = self.work / "example.png"
        done = run(program, CIFAR, 3, STEPS, png)
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
        self.assertEqual(done.stderr.splitlines()[-1], f"step {STEPS} of {STEPS}")
        self.assertTrue((support.read_png(png) == self.pixels_of_program()).all())
        self.assertIn("--seed 7", run_ok(self.prefix / "bin" / "dydit", "inspect", png))

        bad = run(program, CIFAR, 10, STEPS, png)
        self.assertEqual((bad.returncode, bad.stderr), (1, "class 10: this model has classes 0 to 9\n"))

    def test_custom_sampler_is_ddim(self):
        program = self.build("custom_sampler")
        png = self.work / "example.png"
        self.assertRegex(run_ok(program, CIFAR, 3, STEPS, png), r"\A\d+\.\d+ GMACs needed, \d+\.\d+ executed\n\Z")
        wanted = self.pixels_of_program("--sampler", "ddim", "--cfg-scale", 1).astype(int)
        worst = abs(support.read_png(png).astype(int) - wanted).max()
        self.assertLessEqual(worst, 1)  # another order of roundings: at most one level
        self.assertGreater(wanted.std(), 5)

    def test_libtorch_elsewhere_is_one_clear_error(self):
        done = self.configure("generate", "none", DYDIT_LIBTORCH="/nowhere")
        self.assertNotEqual(done.returncode, 0)
        said = re.sub(r"\s+", " ", done.stderr)
        self.assertIn("no LibTorch in /nowhere (torch/lib/libtorch_cpu.so is missing): set DYDIT_LIBTORCH", said)
        self.assertEqual(done.stderr.count("CMake Error"), 1, done.stderr)


if __name__ == "__main__":
    support.main()
