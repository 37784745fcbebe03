"""dydit evaluate of images from the outside: what is measured, resumed, shared by processes, and refused."""

import json
import random
import shutil
import signal
import subprocess
import time

import numpy as np

import support
from support import CIFAR, GOLDEN, PROGRAM, SHARED, TINY, ProgramTest, environment

FAILED, USAGE = 1, 2
RESNET56 = SHARED / "data" / "resnet56-4bfd9763.th"
CIFAR10 = SHARED / "data" / "cifar10.tar.gz"
EVAL = SHARED / "golden" / "eval"
VARYING = ("seconds", "seconds_per_image", "processes", "executed_gmacs_per_image")  # of a result, between runs of one evaluation


class ImagesBase(ProgramTest):
    """Images that lie somewhere; ResNet-20 with random weights takes the features."""

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(1)
        support.write_resnet20(self.work / "resnet20.safetensors")
        self.images = rng.integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
        np.savez(self.work / "a.npz", arr_0=self.images)
        np.savez(self.work / "b.npz", arr_0=rng.integers(0, 200, (100, 32, 32, 3), dtype=np.uint8))

    def evaluate(self, *args, extractor=True):
        network = ("--extractor", "resnet20", "--weights", "resnet20.safetensors") if extractor else ()
        return self.run_json("evaluate", *network, *args)

    def expect(self, code, *fragments, args):
        self.expect_error(["evaluate", "--extractor", "resnet20", "--weights", "resnet20.safetensors", *args], code, *fragments)


class EvaluateImagesTest(ImagesBase):
    def test_a_set_has_no_distance_to_itself_and_one_to_another(self):
        same = self.evaluate("--images", "a.npz", "--reference", "a.npz")
        self.assertLess(abs(same["fid_raw"]), 1e-9)
        self.assertEqual((same["precision"], same["recall"]), (1, 1))
        self.assertEqual((same["n"], same["reference_n"]), (120, 120))
        other = self.evaluate("--images", "a.npz", "--reference", "b.npz")
        self.assertGreater(other["fid"], 10 * abs(same["fid_raw"]) + 1e-3)
        self.assertGreater(other["kid"], 3 * other["kid_error"])
        for key in ("fid_error", "is", "weights_sha256", "reference_sha256", "images_sha256", "protocol", "resize", "nearest"):
            self.assertIn(key, other)
        self.assertTrue(any("120 images against 100" in warning for warning in other["warnings"]))

    def test_the_number_depends_neither_on_threads_nor_on_batches(self):
        whole = self.evaluate("--images", "a.npz", "--reference", "b.npz")
        parts = self.evaluate("--images", "a.npz", "--reference", "b.npz", "--threads", "2", "--batch", "7")
        self.assertEqual({k: v for k, v in whole.items() if k not in VARYING}, {k: v for k, v in parts.items() if k not in VARYING})

    def test_statistics_stand_for_the_images_that_they_are_of(self):
        straight = self.evaluate("--images", "a.npz", "--reference", "b.npz")
        self.evaluate("--images", "b.npz", "--write-stats", "b.stats.safetensors")
        again = self.evaluate("--images", "a.npz", "--reference", "b.stats.safetensors")
        for key in ("fid", "kid", "precision", "recall", "reference_n"):
            self.assertEqual(straight[key], again[key], key)
        self.evaluate("--images", "b.npz", "--write-stats", "b_stats.npz")
        foreign = self.evaluate("--images", "a.npz", "--reference", "b_stats.npz")
        self.assertAlmostEqual(foreign["fid"], straight["fid"], places=9)
        self.assertNotIn("kid", foreign)
        self.assertNotIn("reference_n", foreign)

    def test_folders_flat_or_of_classes_and_gray_images_among_colour_ones(self):
        from_npz = self.evaluate("--images", "a.npz", "--reference", "b.npz")["fid"]
        for folder in ("flat", "classes/x", "classes/y"):
            (self.work / folder).mkdir(parents=True)
        for i, image in enumerate(self.images):
            (self.work / "flat" / f"{i:03}.png").write_bytes(support.png_bytes(image))
            (self.work / "classes" / ("x" if i < 60 else "y") / f"{i:03}.png").write_bytes(support.png_bytes(image))
        self.assertEqual(self.evaluate("--images", "flat", "--reference", "b.npz")["fid"], from_npz)
        self.assertEqual(self.evaluate("--images", "classes", "--reference", "b.npz")["fid"], from_npz)
        (self.work / "flat" / "119.png").write_bytes(support.png_bytes(self.images[119][:, :, :1]))
        self.assertNotEqual(self.evaluate("--images", "flat", "--reference", "b.npz")["fid"], from_npz)

    def test_images_of_several_sizes_are_measured_and_said(self):
        (self.work / "flat").mkdir()
        for i, image in enumerate(self.images[:60]):
            (self.work / "flat" / f"{i:03}.png").write_bytes(support.png_bytes(image[:20, :24] if i == 7 else image))
        warnings = self.evaluate("--images", "flat", "--reference", "b.npz")["warnings"]
        self.assertTrue(any("2 sizes" in warning for warning in warnings), warnings)

    def test_classes_that_stand_together_are_warned_of(self):
        np.savez(self.work / "sorted.npz", arr_0=self.images, arr_1=np.repeat(np.arange(10), 12))
        warnings = self.evaluate("--images", "sorted.npz", "--reference", "b.npz")["warnings"]
        self.assertTrue(any("come by class" in warning for warning in warnings), warnings)

    def test_refusals(self):
        self.expect(USAGE, "nothing to compare with", args=["--images", "a.npz"])
        self.expect(USAGE, "nothing to measure", args=["--reference", "a.npz"])
        self.expect(USAGE, "no such file", args=["--images", "none.npz", "--reference", "a.npz"])
        self.expect(USAGE, "--reference none.npz: no such file", args=["--images", "a.npz", "--reference", "none.npz"])
        self.expect(USAGE, "holds 120 images, 121 are asked for", args=["--images", "a.npz", "--reference", "b.npz", "-n", "121"])
        (self.work / "empty").mkdir()
        self.expect(FAILED, "empty", args=["--images", "empty", "--reference", "a.npz"])
        self.expect(USAGE, "--steps", "--model", args=["--images", "a.npz", "--reference", "b.npz", "--steps", "3"])
        self.expect(USAGE, "--seeds", "--loss", args=["--images", "a.npz", "--reference", "b.npz", "--seeds", "3"])
        self.expect(USAGE, "--resize", "inception", args=["--images", "a.npz", "--reference", "b.npz", "--resize", "clean-fid"])
        self.expect(USAGE, "is the input a.npz itself", args=["--images", "a.npz", "--write-stats", "a.npz"])

    def test_weights_of_another_network_are_refused(self):
        for weights, fragments in ((TINY, ("no tensor", "these are no weights of")), (GOLDEN, ("no weights of inception",)),
                                   (self.write("x.pth", b"x"), ("not the weights of the FID Inception",))):
            self.expect_error(["evaluate", "--images", "a.npz", "--reference", "b.npz", "--weights", weights],
                              USAGE if weights == GOLDEN else FAILED, *fragments)
        self.expect_error(["evaluate", "--images", "a.npz", "--reference", "b.npz"], USAGE, "no weights of inception",
                          "pt_inception-2015-12-05-6726825d.pth", "--weights")
        self.save("torchvision.safetensors", {"AuxLogits.fc.weight": np.zeros((1000, 768), np.float32)})
        self.expect_error(["evaluate", "--images", "a.npz", "--reference", "b.npz", "--weights", "torchvision.safetensors"],
                          FAILED, "torchvision's Inception-v3, whose features are others")

    def test_statistics_of_another_extractor_are_refused(self):
        self.evaluate("--images", "b.npz", "--write-stats", "b.stats.safetensors")
        tensors, metadata = support.load(self.work / "b.stats.safetensors")
        self.save("other.stats.safetensors", tensors, {**metadata, "weights_sha256": "0" * 64})
        self.expect(FAILED, "other.stats.safetensors", args=["--images", "a.npz", "--reference", "other.stats.safetensors"])

    def test_a_recorded_reference_of_adm(self):
        if not EVAL.exists():
            self.skipTest("no vectors of evaluation in DYDIT_SHARED: NOT TESTED on a file as ADM has it")
        self.expect_error(["evaluate", "--extractor", "resnet20", "--weights", "resnet20.safetensors", "--images", EVAL / "samples.npz",
                           "--reference", EVAL / "reference.npz", "-n", "1"], FAILED)
        result = self.evaluate("--images", EVAL / "samples.npz", "--reference", EVAL / "reference.npz")
        self.assertIn("fid", result)


class EvaluateModelTest(ImagesBase):
    """Images of a model, sampled and measured without being written."""

    def command(self, *args):
        return ("evaluate", "--extractor", "resnet20", "--weights", "resnet20.safetensors", "--model", CIFAR, "-n", "48", "--steps", "3",
                "--sampler", "ddim", "--cfg-scale", "1.5", "--batch", "4", "--reference", "a.npz", *args)

    def numbers(self, result):
        return {key: value for key, value in result.items() if key not in VARYING}

    def test_what_it_saves_is_what_it_measured(self):
        result = self.run_json(*self.command("--save", "made.npz"))
        for key in ("gmacs_per_image", "seconds_per_image", "model_sha256", "sampler", "steps", "cfg_scale", "seed", "labels"):
            self.assertIn(key, result)
        again = self.evaluate("--images", "made.npz", "--reference", "a.npz")
        for key in ("fid", "kid", "is", "precision", "recall"):
            self.assertEqual(result[key], again[key], key)

    def test_images_are_those_of_generate(self):
        self.run_json(*self.command("--labels", "balanced", "--save", "made.npz"))
        made = np.load(self.work / "made.npz")["arr_0"]
        labels = [i for i in range(10) if (self.of_class(i) == made[0]).all()]
        self.assertEqual(len(labels), 1, "image 0 is that of generate for one class")

    def of_class(self, label):
        self.run_ok("generate", "--model", CIFAR, "-c", str(label), "-n", "1", "--steps", "3", "--sampler", "ddim", "--cfg-scale", "1.5",
                    "--npz", f"{label}.npz")
        return np.load(self.work / f"{label}.npz")["arr_0"][0]

    def test_balanced_labels_and_cached_plans(self):
        plain = self.run_json(*self.command("--labels", "balanced"))
        cached = self.run_json(*self.command("--labels", "balanced", "--cache", "taylor:2,1"))
        self.assertLess(cached["gmacs_per_image"], .8 * plain["gmacs_per_image"])
        self.assertIn("plan", cached)

    def test_killed_at_any_moment_it_goes_on_and_ends_at_the_same_number(self):
        wanted = self.numbers(self.run_json(*self.command()))
        moments = random.Random(5)
        for _ in range(10):
            process = subprocess.Popen([PROGRAM, *map(str, self.command("--features", "kept", "-q"))], cwd=self.work, env=environment(),
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(.05, 1.2))
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.assertEqual(self.numbers(self.run_json(*self.command("--features", "kept"))), wanted)
        self.expect_error(self.command("--features", "kept", "--seed", "2"), FAILED, "another evaluation (seed is 0 there and 2 here)")
        self.expect_error(self.command("--features", "kept", "--save", "x.npz"), USAGE, "--save", "not the images")

    def test_more_images_go_on_from_fewer(self):
        self.run_json(*self.command("--features", "kept"))
        more = [str(96) if part == "48" else part for part in self.command()]
        straight = self.numbers(self.run_json(*more))
        self.assertEqual(self.numbers(self.run_json(*more, "--features", "kept")), straight)

    def test_processes_share_the_images(self):
        if not shutil.which("mpirun") or not PROGRAM.with_name("libdydit_mpi.so").exists():
            self.skipTest("no mpirun or no libdydit_mpi.so: NOT TESTED on several processes")
        wanted = self.numbers(self.run_json(*self.command()))
        for processes in (2, 3):
            done = subprocess.run(["mpirun", "--allow-run-as-root", "--bind-to", "none", "--oversubscribe", "-n", str(processes), PROGRAM,
                                   *map(str, self.command("--features", f"kept{processes}", "-q", "--json"))], cwd=self.work,
                                  env=environment(), capture_output=True, text=True, timeout=support.TIMEOUT)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(self.numbers(json.loads(done.stdout)), wanted)
        done = subprocess.run(["mpirun", "--allow-run-as-root", "--bind-to", "none", "--oversubscribe", "-n", "2", PROGRAM,
                               *map(str, self.command("-q"))], cwd=self.work, env=environment(), capture_output=True, text=True,
                              timeout=support.TIMEOUT)
        self.assertIn("several processes share a folder: give --features", done.stderr)
        done = subprocess.run(["mpirun", "--allow-run-as-root", "--bind-to", "none", "--oversubscribe", "-n", "2", PROGRAM,
                               *map(str, self.command("-q", "--features", "kept", "--save", "x.npz"))], cwd=self.work, env=environment(),
                              capture_output=True, text=True, timeout=support.TIMEOUT)
        self.assertIn("--save: needs one process; several make images in no order", done.stderr)

    def test_a_latent_model_says_that_it_needs_an_autoencoder(self):
        self.expect_error([str(TINY) if part == CIFAR else part for part in self.command()], USAGE, "makes latents", "--vae")


class EvaluateCifarTest(ProgramTest):
    def test_resnet56_has_its_published_accuracy(self):
        if not RESNET56.exists() or not CIFAR10.exists():
            self.skipTest("no ResNet-56 and CIFAR-10 in DYDIT_SHARED: NOT TESTED on real images")
        noise = np.random.default_rng(1).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)  # any reference will do
        np.savez(self.work / "noise.npz", arr_0=noise)
        result = self.run_json("evaluate", "--images", CIFAR10, "--images-split", "test", "--extractor", "resnet56", "--weights", RESNET56,
                               "--reference", "noise.npz", "--no-pairs", env={"DYDIT_THREADS": "2"})
        self.assertEqual(result["n"], 10000)
        self.assertAlmostEqual(result["class_agreement"], .9339, places=6)


if __name__ == "__main__":
    support.main()
