"""dydit latents, and training on what it writes: the same bytes whatever stops it, and what is refused.

24 images of 32x32 in 4 classes, an autoencoder of random weights (4 channels, an eighth of the side), models of a few
thousand weights.
"""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import time

import numpy as np

import support
import vae_files
from support import PROGRAM, ProgramTest, environment, png_bytes

FAILED, USAGE = 1, 2
LAYOUTS = support.GOLDEN / "latents"
SHAPE = ["--hidden", "32", "--depth", "2", "--heads", "2", "--patch", "2"]
SMALL = ["--global-batch-size", "8", "--dtype", "f32", "--lr", "1e-3"]


class LatentsBase(ProgramTest):
    def setUp(self):
        super().setUp()
        self.vae = vae_files.write_kl(self.work / "vae", channels=(8, 8, 8, 16))
        self.images = self.work / "images"
        rng = np.random.default_rng(5)
        for name in ("blue", "gray", "green", "red"):
            (self.images / name).mkdir(parents=True)
            for index in range(6):
                small = rng.integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
                (self.images / name / f"{index}.png").write_bytes(png_bytes(small.astype(np.uint8)))

    def command(self, *flags, out="set", vae=None, images=None):
        return ["latents", "--vae", vae or self.vae, "--data-path", images or self.images, "--out", out, "--shard-size", "9", *flags]

    def pack(self, *flags, out="set"):
        return self.run_json(*self.command(*flags, out=out))

    def contents(self, out):
        return {path.name: path.read_bytes() for path in (self.work / out).iterdir()}

    def train(self, data, *flags, results="results"):
        self.run_ok("train", "--data-path", data, *SHAPE, *SMALL, "--results-dir", results, *flags)
        return sorted((self.work / results).iterdir())[-1]


class WriterTest(LatentsBase):
    def test_shards_and_index(self):
        result = self.pack()
        self.assertEqual((result["images"], result["shards"], result["written"], result["kept"]), (24, 3, 3, 0))
        index = json.loads((self.work / "set/latents.json").read_text())
        self.assertEqual([entry["images"] for entry in index["files"]], [9, 9, 6])
        self.assertEqual((index["dydit_latents"], index["flips"], index["image_side"]), ("1", "2", "32"))
        self.assertEqual(json.loads(index["class_names"]), ["blue", "gray", "green", "red"])
        lines = sorted(f"{i}.png\0{label}\n" for label in range(4) for i in range(6))
        self.assertEqual(json.loads(index["source"]), {"name": "images", "images": 24, "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()})
        tensors, metadata = support.load(self.work / "set/latents-00001-of-00003.safetensors")
        self.assertEqual((metadata["shard"], metadata["first_index"]), ("1", "9"))
        self.assertEqual((tensors["mean"].shape, tensors["mean"].dtype), ((9, 2, 4, 4, 4), np.float16))
        self.assertEqual(tensors["logvar"].shape, (9, 2, 4, 4, 4))
        self.assertTrue(-30 <= tensors["logvar"].min() and tensors["logvar"].max() <= 20)
        self.assertEqual(list(tensors["labels"]), [1] * 3 + [2] * 6)
        self.assertFalse(np.array_equal(tensors["mean"][:, 0], tensors["mean"][:, 1]))
        said = self.run_json("inspect", "set")
        self.assertEqual((said["layout"], said["images"], said["shape"], said["dtype"], said["flips"], said["logvar"]),
                         ("packed", 24, [4, 4, 4], "F16", 2, True))
        self.assertEqual(said["vae_sha256"], index["vae_sha256"])
        self.assertEqual(said["scale"], {"scaling": 0.18215, "shift": 0})
        self.assertIn("a distribution each", self.run_ok("inspect", "set"))

    def test_same_bytes_for_any_batch_and_threads(self):
        self.pack("--batch", "1", "--threads", "1", out="a")
        self.pack("--batch", "7", "--threads", "2", out="b")
        self.assertEqual(self.contents("a"), self.contents("b"))

    def test_other_forms(self):
        self.pack("--no-flip", "--dtype", "f32", "--image-size", "16", out="f32")
        tensors, metadata = support.load(self.work / "f32/latents-00000-of-00003.safetensors")
        self.assertEqual((tensors["mean"].shape, tensors["mean"].dtype), ((9, 1, 4, 2, 2), np.float32))
        self.assertEqual(metadata["encode_dtype"], "float32")
        self.pack("--no-flip", "--dtype", "bf16", "--vae-dtype", "bf16", out="bf16")
        self.assertEqual(self.run_json("inspect", "bf16")["dtype"], "BF16")

    def test_normalised_channels_have_mean_0_and_deviation_1(self):
        self.pack("--normalize")
        said = self.run_json("inspect", "set")
        self.assertEqual((said["scale"]["mean"], said["scale"]["std"]), (said["channel_mean"], said["channel_std"]))
        self.assertEqual(said["scale"]["scaling"], 1)

    def test_check_prints_how_well_images_survive(self):
        check = self.pack("--check")["check"]
        self.assertEqual(check["images"], 16)
        self.assertTrue(check["psnr_min"] <= check["psnr"] <= check["psnr_max"])
        self.assertIn("reconstruction PSNR ", self.run_ok(*self.command("--check")))

    def test_a_killed_writer_resumes_to_the_same_bytes(self):
        self.pack(out="whole")
        process = subprocess.Popen([PROGRAM, *map(str, self.command("--batch", "1", "-q"))], cwd=self.work, env=environment(),
                                   stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list((self.work / "set").glob("latents-00000*")) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.pack()
        self.assertEqual(self.contents("set"), self.contents("whole"))

    def test_a_cancelled_writer_ends_in_good_order(self):
        process = subprocess.Popen([PROGRAM, *map(str, self.command("--batch", "1", "-q"))], cwd=self.work, env=environment(),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not list((self.work / "set").glob("latents-00000*")) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        self.assertIn((process.returncode, said), ((130, b""), (0, b"")))  # or it was done
        self.assertEqual([name for name in self.contents("set") if name.startswith(".")], [])

    def test_a_full_disk_is_one_line_and_the_run_goes_on_later(self):
        self.pack("--dtype", "f32", out="whole")
        with support.small_disk(self, 28) as disk:
            flags = self.command("--dtype", "f32", out=disk / "set")
            result = self.run_program(*flags, "-q")
            self.assertEqual((result.returncode, result.stdout), (FAILED, ""))
            self.assertRegex(result.stderr, r"\Adydit: error: .*latents-0000\d-of-00003.safetensors: cannot write: No space left on device\n\Z")
            kept = {path.name for path in (disk / "set").iterdir()}
            self.assertTrue(kept and all(re.fullmatch(r"latents-0000\d-of-00003.safetensors", name) for name in kept), kept)
            subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
            self.assertEqual(self.run_json(*flags)["kept"], len(kept))
            self.assertEqual({path.name: path.read_bytes() for path in (disk / "set").iterdir()}, self.contents("whole"))

    def test_processes_write_the_same_bytes(self):
        if not shutil.which("mpirun") or not PROGRAM.with_name("libdydit_mpi.so").exists():
            self.skipTest("no mpirun or no libdydit_mpi.so: NOT TESTED on several processes")
        self.pack(out="one")
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        done = subprocess.run(["mpirun", "--bind-to", "none", "--oversubscribe", "-n", "2", PROGRAM, *map(str, self.command("-q"))],
                              cwd=self.work, env=environment(allowed), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=support.TIMEOUT)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count("wrote set: 24 images in 3 shards"), 1, done.stdout)
        self.assertEqual(self.contents("set"), self.contents("one"))

    def test_refusals(self):
        self.expect_error(self.command("--image-size", "30"), USAGE, "images of 30x30", "8 divides", "--image-size 24")
        self.expect_error(self.command(images=LAYOUTS / "packed"), USAGE, "holds latents already; name the images")
        self.expect_error(self.command(vae=self.work / "none"), FAILED, "none")
        self.expect_error(self.command(images=self.work / "none"), FAILED, "no such file or folder")
        self.write("file", "")
        self.expect_error(self.command(out="file"), FAILED, "file: cannot make the folder")
        (self.images / "red/odd.png").write_bytes(png_bytes(np.zeros((32, 32, 3), np.uint8))[:60])
        said = self.run_program(*self.command(), "-q")
        self.assertEqual((said.returncode, said.stdout, said.stderr.count("\n")), (FAILED, "", 1))
        self.assertIn("images/red/odd.png: broken PNG file", said.stderr)
        self.assertFalse((self.work / "set/latents.json").exists())
        shutil.rmtree(self.work / "set", ignore_errors=True)
        self.assertEqual(self.pack("--skip-broken")["left_out"], {"broken": 1})
        self.expect_error(self.command("--skip-broken", "--no-flip"), FAILED, "was packed otherwise: its flips is")
        self.expect_error([*self.command("--skip-broken")[:-3], "--shard-size", "24", "--skip-broken"], FAILED, "is of another set, of 3 shards")


class PipelineTest(LatentsBase):
    """Images -> latents -> a model and its fine-tuning."""

    def test_a_model_remembers_its_latents(self):
        self.pack("--normalize")
        run = self.train("set", "--total-train-steps", "2")
        _, notes = support.load(run / "checkpoints/0000002.safetensors")
        said = self.run_json("inspect", "set")
        self.assertEqual((notes["vae_sha256"], notes["vae_kind"]), (said["vae_sha256"], "AutoencoderKL"))
        self.assertEqual(json.loads(notes["latent_scale"]), said["scale"])
        self.assertEqual(json.loads(notes["class_names"]), ["blue", "gray", "green", "red"])
        model = run / "checkpoints/0000002.safetensors"
        self.run_ok("finetune", "--model", model, "--data-path", "set", *SMALL, "--total-train-steps", "1", "--results-dir", "tuned")
        _, tuned = support.load(next((self.work / "tuned").glob("*/checkpoints/*.safetensors")))
        self.assertEqual({key: tuned[key] for key in notes if "vae" in key or "latent" in key},
                         {key: notes[key] for key in notes if "vae" in key or "latent" in key})
        self.pack(out="other")
        result = self.run_program("train", "--model", model, "--data-path", "other", *SMALL, "--total-train-steps", "1", "-q")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("dydit: warning: the model was trained on other latents: its latent_scale is", result.stderr)


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
