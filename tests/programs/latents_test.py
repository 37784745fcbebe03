"""Training on latents of every layout: models of a few thousand weights, and what is refused."""

import json
import shutil

import support
from support import ProgramTest

FAILED, USAGE = 1, 2
LAYOUTS = support.GOLDEN / "latents"
SHAPE = ["--hidden", "32", "--depth", "2", "--heads", "2", "--patch", "2"]
SMALL = ["--global-batch-size", "8", "--dtype", "f32", "--lr", "1e-3"]


class LatentsBase(ProgramTest):
    def train(self, data, *flags, results="results"):
        self.run_ok("train", "--data-path", data, *SHAPE, *SMALL, "--results-dir", results, *flags)
        return sorted((self.work / results).iterdir())[-1]


class TrainingTest(LatentsBase):
    def test_every_layout_is_trained_on_and_evaluated(self):
        for layout in ("packed", "fastdit", "repa", "mar", "lightningdit"):
            with self.subTest(layout):
                run = self.train(LAYOUTS / layout, "--total-train-steps", "2", results=layout)
                model = run / "checkpoints/0000002.safetensors"
                config = json.loads(support.load(model)[1]["config"])
                self.assertEqual((config["in_channels"], config["input_size"]), (4, 4))
                said = self.run_json("evaluate", "--loss", "--model", model, "--data-path", LAYOUTS / layout, "--seeds", "1")
                self.assertGreater(said["all"]["mse"], 0)
                self.assertEqual(self.run_json("inspect", LAYOUTS / layout)["shape"], [4, 4, 4])

    def test_a_run_resumes_bit_for_bit(self):
        flags = ["--ckpt-every", "3"]
        whole = self.train(LAYOUTS / "packed", *flags, "--total-train-steps", "6", results="whole")
        self.train(LAYOUTS / "packed", *flags, "--total-train-steps", "3")
        cut = self.train(LAYOUTS / "packed", *flags, "--total-train-steps", "6", "--resume")
        for suffix in (".safetensors", ".state"):
            a, b = (support.load(run / f"checkpoints/0000006{suffix}")[0] for run in (whole, cut))
            self.assertEqual(set(a), set(b))
            for name in a:
                self.assertEqual(a[name].tobytes(), b[name].tobytes(), name)
        shutil.copytree(LAYOUTS / "packed", self.work / "moved")
        self.run_ok("train", "--data-path", "moved", *SHAPE, *SMALL, *flags, "--total-train-steps", "7", "--results-dir", "results", "--resume")
        self.expect_error(["train", "--data-path", LAYOUTS / "fastdit", *SHAPE, *SMALL, *flags, "--total-train-steps", "8",
                           "--results-dir", "results", "--resume"], FAILED, "resume")

    def test_threads_and_epochs_do_not_matter(self):
        runs = [self.train(LAYOUTS / "packed", "--total-train-steps", "4", "--threads", threads, results=f"run{threads}")
                for threads in ("1", "2")]
        a, b = (support.load(run / "checkpoints/0000004.safetensors")[0] for run in runs)
        for name in a:
            self.assertEqual(a[name].tobytes(), b[name].tobytes(), name)

    def test_classes_are_the_models(self):
        run = self.train(LAYOUTS / "packed", "--total-train-steps", "1")
        model = run / "checkpoints/0000001.safetensors"
        tune = ["train", "--model", model, *SMALL, "--total-train-steps", "1", "--data-path"]
        self.expect_error([*tune, LAYOUTS / "mar"], FAILED, "class0")
        said = self.run_program(*tune, LAYOUTS / "mar", "--match-classes", "position", "-q")
        self.assertEqual(said.returncode, 0, said.stderr)
        for line in ("dydit: warning: the model was trained on other latents: its latent_scale is", '"class0" -> 0'):
            self.assertIn(line, said.stderr)
        said = self.run_program(*tune, LAYOUTS / "fastdit")
        self.assertEqual(said.returncode, 0, said.stderr)
        for line in ("none is flipped", "nothing is drawn", "by position"):
            self.assertIn(line, said.stderr)

    def test_refusals(self):
        train = ["train", *SHAPE, *SMALL, "--total-train-steps", "1", "--data-path"]
        self.expect_error([*train, LAYOUTS / "packed", "--image-size", "8"], FAILED, "holds latents of 4x4x4, 4x8x8 are wanted")
        self.expect_error([*train, LAYOUTS / "packed", "--skip-broken"], USAGE, "--skip-broken: needs images; these are latents")
        self.expect_error([*train, LAYOUTS / "packed", "--sample-every", "1"], USAGE, "--sample-every 1: needs a model of pixels")
        self.expect_error([*train, LAYOUTS / "packed", "--split", "train"], USAGE, "holds latents, which have no --split")
        self.expect_error(["train", "--model", support.CIFAR, *SMALL, "--total-train-steps", "1", "--data-path", LAYOUTS / "packed"],
                          FAILED, "holds latents of 4x4x4, 3x32x32 are wanted; take the latents that the model was made for")
        self.expect_error(["finetune", "--model", support.CIFAR, "--data-path", LAYOUTS / "packed", "--total-train-steps", "1"],
                          FAILED, "holds latents of 4x4x4")
        self.expect_error(["evaluate", "--loss", "--model", support.CIFAR, "--data-path", LAYOUTS / "packed"], FAILED, "holds latents of 4x4x4")
        self.expect_error(["inspect", LAYOUTS / "packed", "--plan-steps", "3"], USAGE, "packed is none")
        shutil.copytree(LAYOUTS / "packed", self.work / "set")
        shard = self.work / "set/latents-00002-of-00003.safetensors"
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        for args in ([*train, "set"], ["inspect", "set"]):
            self.expect_error(args, FAILED, "latents-00002-of-00003.safetensors: has the SHA-256", "it was changed")
        shard.unlink()
        self.expect_error([*train, "set"], FAILED, "latents-00002-of-00003.safetensors: is missing")
        (self.work / "set/latents.json").unlink()
        self.expect_error([*train, "set"], FAILED, "is not finished: it has 2 shards")


if __name__ == "__main__":
    support.main()
