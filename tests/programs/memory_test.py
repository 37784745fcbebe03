"""What cannot fit is refused before it is allocated, with the need, the limit and a way out; what fits runs."""

import resource
import subprocess

import numpy as np
from support import CIFAR, PROGRAM, TIMEOUT, TINY, ProgramTest, environment, main, png_bytes

LIMIT = 5 << 30  # bytes of addresses: the same on every machine, and enough for what runs here


class MemoryTest(ProgramTest):
    def run_program(self, *args, env=None):
        return subprocess.run([PROGRAM, *map(str, args)], cwd=self.work, env=environment(env), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=TIMEOUT,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)))

    def refused(self, args, what, way_out):
        message = self.expect_error(args, 1, what, ": needs at least ", " of memory, ulimit -v allows 5.37 GB; ")
        self.assertTrue(message.endswith(f"; {way_out}\n"), message)

    def images(self):
        for name in ("ant", "bee"):
            (self.work / "data" / name).mkdir(parents=True)
            for i in range(2):
                (self.work / "data" / name / f"{i}.png").write_bytes(png_bytes(np.full((8, 8, 3), 40 * i, np.uint8)))
        return self.work / "data"

    def test_what_fits_runs(self):
        self.run_ok("generate", "--model", TINY, "--steps", 2, "--batch", 65536, "--latents", "l.safetensors")

    def test_a_batch_of_images(self):
        self.refused(["generate", "--model", CIFAR, "-n", 65536, "--batch", 65536, "--steps", 2, "--out", "i/"],
                     "a batch of 65536 images", "take a smaller --batch")

    def test_a_batch_that_would_fit_with_fewer_images_is_cut_to_them(self):
        self.run_ok("generate", "--model", CIFAR, "-n", 1, "--batch", 65536, "--steps", 2, "--out", "x.png")

    def test_images_that_are_kept_for_one_file(self):
        many = ["generate", "--model", CIFAR, "-n", 100_000_000, "--steps", 2]
        previews = ["--model", CIFAR, "-n", 7600, "--steps", 1000, "--preview-every", 1, "--out", "x.png"]
        self.refused(["generate", *previews], "7600 images kept until the last is made",
                     "make fewer in a run, or write each to a file of its own: --out folder/")
        self.refused([*many, "--latents", "x.safetensors"], "100000000 images kept", "make fewer in a run")
        self.refused([*many, "--npz", "x.npz"], "100000000 images kept", "make fewer in a run")

    def test_a_server(self):
        self.refused(["serve", "--model", CIFAR, "--port", 0, "--max-batch", 1_000_000], "a forward of 1000000 rows",
                     "take a smaller --max-batch")

    def test_a_model_to_be_timed(self):
        self.refused(["bench", "--size", "DiT-XL/2", "--input-size", 4096], "DiT-XL/2", "take a smaller model")
        self.refused(["bench", "--size", "DiT-S/8", "--input-size", 512, "--batch", 65536],
                     "a batch of 65536 samples", "take a smaller --batch, --input-size or model")
        self.refused(["bench", "--run", "--size", "DiT-S/8", "--input-size", 256, "--batch", 65536], "a batch of 65536 images",
                     "take a smaller --batch")

    def test_a_model_to_be_trained(self):
        data = self.images()
        train = ["train", "--data-path", data, "--image-size", 8, "--heads", 4, "--patch", 2, "--results-dir", "r",
                 "--total-train-steps", 1]
        self.refused([*train, "--hidden", 65536, "--depth", 1024], "DiT (1024 blocks, hidden 65536",
                     "take a smaller model")

    def test_a_batch_to_be_trained(self):
        data = self.images()
        train = ["train", "--data-path", data, "--image-size", 8, "--hidden", 256, "--depth", 8, "--heads", 4,
                 "--patch", 1, "--results-dir", "r", "--total-train-steps", 1, "--global-batch-size", 4096]
        self.refused(train, "a micro-batch of 4096 images",
                     "raise --accumulate or take a smaller --global-batch-size")
        self.refused([*train[:-1], 8192, "--accumulate", 2], "a micro-batch of 4096 images",
                     "raise --accumulate or take a smaller --global-batch-size")


if __name__ == "__main__":
    main()
