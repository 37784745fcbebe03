"""dydit evaluate from the outside: the loss by decile of t, as a table, JSON and CSV, and what is refused."""

import csv

import numpy as np

import support
from support import CIFAR, TINY, ProgramTest

USAGE = 2


class EvaluateTest(ProgramTest):
    def write_images(self, classes=10):
        """20 images of noise, 32x32x3, as npz."""
        rng = np.random.default_rng(3)
        labels = np.arange(20) % classes
        np.savez(self.work / "images.npz", images=rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), labels=labels)
        return self.work / "images.npz"

    def test_a_row_for_each_decile_and_one_for_all(self):
        result = self.run_json("evaluate", "--loss", "--model", CIFAR, "--data-path", self.write_images(), "--seeds", "2",
                               "--csv", "loss.csv")
        self.assertEqual([row["t"] for row in result["deciles"]], [f"{d}-{d + 99}" for d in range(0, 1000, 100)])
        self.assertAlmostEqual(result["all"]["mse"], np.mean([row["mse"] for row in result["deciles"]]), places=9)
        self.assertEqual(result["all"]["required_share"], 1)
        with open(self.work / "loss.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(rows[-1]["t"], "all")
        self.assertAlmostEqual(float(rows[3]["mse"]), result["deciles"][3]["mse"], places=4)

    def test_noise_is_hardest_to_tell_from_an_almost_clean_image(self):
        rows = self.run_json("evaluate", "--loss", "--model", CIFAR, "--data-path", self.write_images())["deciles"]
        self.assertGreater(rows[0]["mse"], 2 * rows[9]["mse"])

    def test_refusals(self):
        images = self.write_images()
        self.expect_error(["evaluate", "--model", CIFAR, "--data-path", images], USAGE, "--data-path", "--loss")
        self.expect_error(["evaluate", "--loss", "--model", CIFAR], USAGE, "--loss: needs --data-path")
        self.expect_error(["evaluate", "--loss", "--data-path", images], USAGE, "--loss: needs --model")
        self.expect_error(["evaluate", "--loss", "--model", CIFAR, "--data-path", images, "--images", "x.npz"], USAGE, "--images x.npz",
                          "a whole number from 1 on")
        self.expect_error(["evaluate", "--loss", "--model", CIFAR, "--data-path", images, "--steps", "3"], USAGE, "--steps",
                          "a run without --loss")
        self.expect_error(["evaluate", "--loss", "--model", TINY, "--data-path", images], USAGE, "4 are those of latents, which dydit latents makes")
        self.expect_error(["evaluate", "--loss", "--model", CIFAR, "--data-path", self.write_images(classes=11)], USAGE,
                          "label 10", "classes 0 to 9")


if __name__ == "__main__":
    support.main()
