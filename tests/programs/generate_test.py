"""dydit generate: its images, its numbers, and that nothing but what should matter changes a pixel."""

import json
import re
import shlex
import signal
import subprocess
import time

import numpy as np

import support
import vae_files
from support import CIFAR, TINY, ProgramTest, read_png

CANCELLED = 130
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGE_KEYS = {"index", "class", "class_name", "seconds", "required_gmacs", "executed_gmacs", "required_share", "executed_share"}
QUICK = ["--sampler", "ddim", "--steps", "3"]
PADDING, COLUMNS, SIDE = 2, 4, 32  # of a grid


class GenerateBase(ProgramTest):
    def cifar(self, *flags):
        return self.run_json("generate", "--model", CIFAR, *flags)

    def pixels(self, *flags):
        """Of a run with these flags, (n, 32, 32, 3)."""
        self.cifar(*flags, "--npz", "pixels.npz")
        return self.read_npz("pixels.npz")

    def latents(self, *flags, model=TINY):
        self.run_json("generate", "--model", model, *flags, "--latents", "latents.safetensors")
        return support.load(self.work / "latents.safetensors")[0]["latents"]

    def read_npz(self, name):
        with np.load(self.work / name) as file:
            self.assertEqual(file.files, ["arr_0"])
            return file["arr_0"]


class StitchTest(GenerateBase):
    """--stitch: another model takes the noisy steps."""

    def small(self):
        """The CIFAR-10 model with other weights: its blocks' MLPs do nothing."""
        self.run_ok("convert", CIFAR, "cifar-f32.safetensors", "--dtype", "f32")
        tensors, metadata = support.load(self.work / "cifar-f32.safetensors")
        for name in tensors:
            if ".mlp.fc2." in name:
                tensors[name] = tensors[name] * 0
        return self.save("small.safetensors", tensors, metadata)

    def test_is_said_and_recorded(self):
        flags = ["-n", "2", "--sampler", "ddim", "--steps", "10", "--cfg-scale", "2", "--dtype", "f32", "--out", "x.png"]
        small = self.small()
        said = self.run_program("generate", "--model", CIFAR, *flags, "--stitch", f"{small}:0.4").stderr
        self.assertIn("stitch   ", said)
        self.assertIn("4 steps (t 900 to 600)", said)
        self.assertIn("6 steps (t 500 to 0)", said)
        run = self.cifar(*flags, "--stitch", f"{small}:0.4")["stitch"]
        self.assertEqual((run["file"], run["ratio"], run["small"]["steps"], run["large"]["steps"]), ("small.safetensors", 0.4, 4, 6))
        self.assertAlmostEqual(run["required_share"], 1)
        self.assertIn("--stitch small.safetensors:0.4", self.run_ok("inspect", self.work / "x.png"))

    def test_changes_pixels_as_far_as_it_reaches(self):
        flags = ["-n", "2", *QUICK, "--dtype", "f32"]
        small, plain = self.small(), self.pixels(*flags)
        stitched = self.pixels(*flags, "--stitch", f"{small}:0.4")
        self.assertFalse(np.array_equal(stitched, plain))
        self.assertTrue(np.array_equal(stitched, self.pixels(*flags, "--stitch", f"{small}:0.4", "--batch", "1")))
        self.assertTrue(np.array_equal(plain, self.pixels(*flags, "--stitch", f"{CIFAR}:0.4")))

    def test_refusals(self):
        small = self.small()
        for given, said in ((small, "expected FILE:RATIO, e.g. small"), (f"{small}:x", "expected FILE:RATIO, e.g. small"), (f"{small}:1", "above 0 and below 1"),
                            (f"{TINY}:0.4", "must agree")):
            self.expect_error(["generate", "--model", CIFAR, "--stitch", given], 2, "--stitch", said)
        self.expect_error(["generate", "--model", CIFAR, "--stitch", f"{small}:0.4", "--cache", "fora:2"], 2, "leave out --stitch")


class ShardTest(ProgramTest):
    """--shard K/N: the union of all shards is the whole, bit for bit."""

    RUN = ["generate", "--model", TINY, "-n", "7", "-c", "1,2,3", "--sampler", "ddim", "--steps", "3"]

    def test_the_union_is_the_whole(self):
        self.run_ok(*self.RUN, "--latents", "all.safetensors")
        whole = support.load(self.work / "all.safetensors")[0]
        for batch in ("2", "16"):
            for shard in range(3):
                run = self.run_json(*self.RUN, "--shard", f"{shard}/3", "--batch", batch, "--latents", f"{shard}.safetensors")
                part = support.load(self.work / f"{shard}.safetensors")[0]
                self.assertEqual((run["shard"], run["num_images"]), (f"{shard}/3", 7))
                self.assertEqual([image["index"] for image in run["images"]], list(range(shard, 7, 3)))
                for key in ("latents", "labels"):
                    self.assertTrue(np.array_equal(part[key], whole[key][shard::3]), key)

    def test_devices_share_the_images_out(self):
        flags = ["generate", "--model", CIFAR, "-n", "5", "--sampler", "ddim", "--steps", "2", "--dtype", "f32"]
        whole = self.run_json(*flags, "--npz", "a.npz", "--out", "a.png")
        shared = self.run_json(*flags, "--npz=b.npz", "-o", "b.png", "--devices", "cpu,cpu,cpu")
        with np.load(self.work / "a.npz") as a, np.load(self.work / "b.npz") as b:
            self.assertTrue(np.array_equal(a["arr_0"], b["arr_0"]))
        self.assertTrue(np.array_equal(read_png(self.work / "a.png"), read_png(self.work / "b.png")))
        for a, b in zip(whole["images"], shared["images"], strict=True):
            self.assertEqual((a["index"], a["class"]), (b["index"], b["class"]))
            self.assertAlmostEqual(a["required_gmacs"], b["required_gmacs"], places=6)
        self.assertEqual((shared["devices"], shared["device"], shared["dtype"]), (["cpu"] * 3, "cpu", "f32"))
        latent = ["generate", "--model", TINY, "-n", "3", "--sampler", "ddim", "--steps", "2", "--vae", vae_files.write_kl(self.work / "vae")]
        self.run_ok(*latent, "--npz", "a.npz")
        self.run_json(*latent, "-qo", "b/", "--npz", "b.npz", "--devices", "cpu,cpu")
        with np.load(self.work / "a.npz") as a, np.load(self.work / "b.npz") as b:
            self.assertTrue(np.array_equal(a["arr_0"], b["arr_0"]))
        broken = self.run_program(*flags, "--out", "c.png", "--devices", "cpu,cuda:3", "-q")
        self.assertEqual(broken.returncode, 1)
        self.assertIn("--devices: the process of cuda:3 ended with 2: --device: cuda:3 is not available", broken.stderr)
        self.expect_error([*flags, "--out", "c.png", "--devices", "cpu,gpu"], 2, "expected devices with commas between")
        self.expect_error([*flags, "--out", "c.png", "--devices", "cpu,,cpu"], 2, "expected devices with commas between, e.g. 0,1; got")
        for given in (["--devices", "cpu,cpu", "--shard", "0/2"], ["--devices", "cpu", "--preview-every", "1"]):
            self.expect_error([*flags, "--out", "c.png", *given], 2, "devices")
        self.write("run.toml", "steps = 2\n")
        self.expect_error([*flags, "--config", "run.toml", "--devices", "cpu,cpu"], 2, "its processes would write where --config says")

    def test_names_and_previews_are_the_images_own(self):
        run = self.run_json("generate", "--model", CIFAR, "-n", "5", "--sampler", "ddim", "--steps", "2", "--preview-every", "1",
                            "--shard", "1/2", "--out", "i/%02d.png")
        self.assertEqual(sorted(run["files"]), ["i/01.png", "i/01_step0001.png", "i/03.png", "i/03_step0001.png"])
        self.assertIn("--shard 1/2", self.run_ok("inspect", self.work / "i/01.png"))

    def test_refusals(self):
        for text in ("3/3", "a/b", "0", "1/0", "-1/2", "0/2/3"):
            self.expect_error([*self.RUN, f"--shard={text}", "--latents", "x.safetensors"], 2, "--shard", "expected K/N")
        self.expect_error([*self.RUN, "--shard", "8/9", "--latents", "x.safetensors"], 2, "that shard has none")
        self.expect_error([*self.RUN, "--shard", "0/2", "--noise", "torch", "--latents", "x.safetensors"], 2, "--noise torch")


class OutputsTest(GenerateBase):
    """Every kind of target shows the same five images."""

    def test_all_targets(self):
        flags = ["-n", "5", "--classes", "cat,0", *QUICK, "--dtype", "f32"]
        run = self.cifar(*flags, "--out", "grid.png", "--npz", "deep/er/x.npz", "--latents", "x.safetensors")
        self.assertEqual(run["files"], ["grid.png", "deep/er/x.npz", "deep/er/x.npz.json", "x.safetensors"])
        self.assertEqual(set(self.files()), {*run["files"], "deep", "deep/er"})

        images = self.read_npz("deep/er/x.npz")
        self.assertEqual((images.shape, images.dtype), ((5, SIDE, SIDE, 3), np.uint8))
        self.assertEqual(len(np.unique(images.reshape(5, -1), axis=0)), 5)
        self.check_grid(images)
        self.check_samples(images)
        self.check_numbered(images, flags)
        sidecar = json.loads((self.work / "deep/er/x.npz.json").read_text())
        self.assertEqual([image["class"] for image in sidecar["images"]], [3, 0, 3, 0, 3])

    def check_grid(self, images):
        grid = read_png(self.work / "grid.png")
        cell = SIDE + PADDING
        self.assertEqual(grid.shape, (2 * cell + PADDING, COLUMNS * cell + PADDING, 3))
        wanted = np.zeros_like(grid)
        for i, image in enumerate(images):
            top, left = i // COLUMNS * cell + PADDING, i % COLUMNS * cell + PADDING
            wanted[top:top + SIDE, left:left + SIDE] = image
        self.assertTrue(np.array_equal(grid, wanted))

    def check_samples(self, images):
        tensors, metadata = support.load(self.work / "x.safetensors")
        self.assertEqual((tensors["latents"].shape, tensors["latents"].dtype), ((5, 3, SIDE, SIDE), np.float32))
        self.assertEqual((tensors["labels"].tolist(), tensors["labels"].dtype), ([3, 0, 3, 0, 3], np.int64))
        scaled = tensors["latents"] * np.float32(127.5) + np.float32(128)
        self.assertTrue(np.array_equal(np.clip(scaled, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1), images))
        self.assertEqual(json.loads(metadata["dydit"])["num_images"], 5)

    def check_numbered(self, images, flags):
        (self.work / "there").mkdir()
        for out, names in (("img_%03d.png", [f"img_{i:03}.png" for i in range(5)]),
                           ("a/%d.png", [f"a/{i}.png" for i in range(5)]),
                           ("new/", [f"new/{i:06}.png" for i in range(5)]),
                           ("there", [f"there/{i:06}.png" for i in range(5)])):
            run = self.cifar(*flags, "--out", out)
            self.assertEqual(run["files"], names)
            self.assertEqual([image["file"] for image in run["images"]], names)
            for name, image in zip(names, images):
                self.assertTrue(np.array_equal(read_png(self.work / name), image), name)

    def test_one_image_is_no_grid(self):
        self.cifar(*QUICK, "--out", "one.png", "--npz", "one.npz")
        self.assertTrue(np.array_equal(read_png(self.work / "one.png")[None], self.read_npz("one.npz")))

    def test_two_images_are_two_columns(self):
        self.cifar("-n", "2", *QUICK, "--out", "two.png")
        self.assertEqual(read_png(self.work / "two.png").shape, (SIDE + 2 * PADDING, 2 * SIDE + 3 * PADDING, 3))

    def test_latents_of_a_latent_model(self):
        run = self.run_json("generate", "--model", TINY, *QUICK, "-n", "3", "--classes", "7,2", "--latents", "x.safetensors")
        tensors, _ = support.load(self.work / "x.safetensors")
        self.assertEqual(run["files"], ["x.safetensors"])
        self.assertEqual((tensors["latents"].shape, tensors["latents"].dtype), ((3, 4, 16, 16), np.float32))
        self.assertTrue(np.isfinite(tensors["latents"]).all())
        self.assertEqual(tensors["labels"].tolist(), [7, 2, 7])

    def test_an_old_target_is_replaced(self):
        self.write("x.png", "old")
        self.cifar("--steps", "1", "--out", "x.png")
        self.assertEqual(read_png(self.work / "x.png").shape, (SIDE, SIDE, 3))
        self.assertEqual(list(self.files()), ["x.png"])


class NumbersTest(GenerateBase):
    """The JSON object and what it says of work, classes and spacing."""

    def test_keys(self):
        run = self.cifar("-n", "3", "--classes", "dog,2", *QUICK, "--seed", "18446744073709551615", "--batch", "2")
        self.assertLessEqual({"model", "classes", "num_images", "seed", "noise", "steps", "spacing", "sampler", "eta",
                              "cfg_scale", "cfg_channels", "mode", "dtype", "engine", "device", "batch", "threads", "seconds",
                              "load_seconds", "images", "files", "version"}, set(run))
        self.assertEqual(run["seed"], (1 << 64) - 1)
        self.assertEqual([image["index"] for image in run["images"]], [0, 1, 2])
        self.assertEqual([(image["class"], image["class_name"]) for image in run["images"]],
                         [(5, "dog"), (2, "bird"), (5, "dog")])
        for image in run["images"]:
            self.assertEqual(set(image), IMAGE_KEYS | {"file"})
            self.assertGreater(image["seconds"], 0)

    def test_number_of_images(self):
        # One an image class given, else one; classes round-robin.
        for flags, classes in ([], [0]), (["--classes", "4,1"], [4, 1]), (["-n", "3"], [0, 1, 2]), (["-c", "9", "-n", "2"], [9, 9]):
            run = self.cifar(*flags, "--steps", "1", "--cfg-scale", "1", "--out", "x.png")
            self.assertEqual([image["class"] for image in run["images"]], classes)

    def test_work_of_a_static_model(self):
        guided = self.cifar(*QUICK, "--out", "x.png")["images"][0]
        plain = self.cifar(*QUICK, "--cfg-scale", "1", "--out", "x.png")["images"][0]
        self.assertEqual(guided["required_gmacs"], 2 * plain["required_gmacs"])
        for image in (guided, plain):
            self.assertEqual((image["required_share"], image["executed_share"]), (1, 1))
            self.assertEqual(image["executed_gmacs"], image["required_gmacs"])
        self.assertAlmostEqual(plain["required_gmacs"], 3 * self.run_json("inspect", CIFAR)["static_gmacs"], places=9)

    def test_work_of_a_dynamic_model(self):
        flags = ["--model", TINY, *QUICK, "--latents", "x.safetensors"]
        dynamic = self.run_json("generate", *flags)
        self.assertEqual(dynamic["mode"], "dynamic")
        self.assertLess(dynamic["images"][0]["required_share"], 0.95)
        # The CPU engine leaves out what is off; the reference engine multiplies everything, routers too.
        self.assertLess(dynamic["images"][0]["executed_share"], 0.95)
        self.assertGreaterEqual(dynamic["images"][0]["executed_share"], dynamic["images"][0]["required_share"])
        reference = self.run_json("generate", *flags, "--engine", "reference")
        self.assertGreater(reference["images"][0]["executed_share"], 1)
        static = self.run_json("generate", *flags, "--mode", "static")
        self.assertEqual(static["mode"], "static")
        self.assertEqual(static["images"][0]["required_share"], 1)
        for run in (dynamic, static):
            image = run["images"][0]
            self.assertAlmostEqual(image["required_gmacs"] / run["static_gmacs"], image["required_share"], places=9)
            self.assertAlmostEqual(image["executed_gmacs"] / run["static_gmacs"], image["executed_share"], places=9)
        plain = self.run_json("generate", *flags, "--cfg-scale", "1")["images"][0]
        self.assertAlmostEqual(plain["required_gmacs"] / dynamic["images"][0]["required_gmacs"], 0.5, delta=0.1)

    def test_spacing(self):
        flags = ["--model", TINY, "--cfg-scale", "1", "--latents", "x.safetensors"]
        spacing = {(sampler, steps): self.run_json("generate", *flags, "--sampler", sampler, "--steps", str(steps))["spacing"]
                   for sampler, steps in (("ddim", 37), ("ddim", 50), ("ddpm", 50))}
        self.assertIn("even sections", spacing["ddim", 37])
        self.assertIn("37", spacing["ddim", 37])
        self.assertIn("fixed stride 20", spacing["ddim", 50])
        self.assertIn("even sections", spacing["ddpm", 50])

    def test_cfg_channels(self):
        runs = {channels: self.run_json("generate", "--model", TINY, *QUICK, "--dtype", "f32", "--cfg-channels", channels,
                                        "--latents", f"{channels}.safetensors") for channels in ("3", "4", "all")}
        self.assertEqual({channels: run["cfg_channels"] for channels, run in runs.items()}, {"3": 3, "4": 4, "all": 4})
        samples = {channels: support.load(self.work / f"{channels}.safetensors")[0]["latents"] for channels in runs}
        self.assertTrue(np.array_equal(samples["all"], samples["4"]))
        self.assertFalse(np.array_equal(samples["all"], samples["3"]))


class CostMapTest(GenerateBase):
    """--cost-map: images beside their tokens' shares."""

    FLAGS = ["-n", "5", "--sampler", "ddim", "--steps", "20", "--dtype", "f32", "--latents", "x.safetensors"]

    def pixel_model(self):
        """The golden DyDiT cut to three channels."""
        tensors, metadata = support.load(TINY)
        config = json.loads(metadata["config"])
        tensors["x_embedder.proj.weight"] = tensors["x_embedder.proj.weight"][:, :3]
        for name in ("weight", "bias"):  # rows (p, q, eps and variance of 4 channels)
            old = tensors[f"final_layer.linear.{name}"]
            kept = old.reshape(4, 2, 4, *old.shape[1:])[:, :, :3].reshape(24, *old.shape[1:])
            tensors[f"final_layer.linear.{name}"] = kept * np.float32(0.01)
        return self.save("pixels.safetensors", tensors, {"config": json.dumps({**config, "in_channels": 3})})

    def record(self, name):
        return self.run_json("inspect", name)["record"]

    def test_latents_get_maps_only(self):
        run = self.run_json("generate", "--model", TINY, *self.FLAGS, "--cost-map", "map.png")
        self.assertEqual(run["files"], ["map.png", "x.safetensors"])
        map_ = read_png(self.work / "map.png")
        self.assertEqual(map_.shape, (2 * 66 + 2, 4 * 66 + 2, 3))  # cells of 64, two rows of four
        first = map_[2:66, 2:66]
        tokens = first[::8, ::8]  # an 8 x 8 grid of blocks of 8 pixels
        self.assertTrue(np.array_equal(np.kron(tokens, np.ones((8, 8, 1), np.uint8)), first))
        self.assertGreater(len(np.unique(tokens.reshape(-1, 3), axis=0)), 2)

    def test_record(self):
        run = self.run_json("generate", "--model", TINY, *self.FLAGS, "--cost-map", "map.png")
        record = self.record("map.png")
        low, high = record["cost_map"]["min"], record["cost_map"]["max"]
        self.assertTrue(0 <= low < high <= 1, record["cost_map"])
        for image, recorded in zip(run["images"], record["images"]):
            self.assertEqual(image["token_share"], recorded["token_share"])
            self.assertTrue(low <= image["token_share"] <= high)

    def test_pixels_stand_beside_their_maps(self):
        model = self.pixel_model()
        run = self.run_json("generate", "--model", model, "-n", "2", *QUICK, "--out", "x.png", "--npz", "x.npz",
                            "--cost-map", "map.png")
        self.assertEqual(run["files"], ["x.png", "map.png", "x.npz", "x.npz.json"])
        map_ = read_png(self.work / "map.png")
        width = 64 + PADDING + 64  # an image of 16 pixels, enlarged four times, a gap, its map
        self.assertEqual(map_.shape, (64 + 2 * PADDING, 2 * width + 3 * PADDING, 3))
        for i, image in enumerate(self.read_npz("x.npz")):
            left = PADDING + i * (width + PADDING)
            shown = map_[PADDING:PADDING + 64, left:left + 64]
            self.assertTrue(np.array_equal(np.kron(image, np.ones((4, 4, 1), np.uint8)), shown), i)

    def test_map_alone_is_enough_for_latents(self):
        run = self.run_json("generate", "--model", TINY, *QUICK, "--cost-map", "map.png")
        self.assertEqual((run["files"], list(self.files())), (["map.png"], ["map.png"]))
        self.assertEqual(read_png(self.work / "map.png").shape, (64, 64, 3))

    def test_absent_without_the_flag(self):
        run = self.run_json("generate", "--model", TINY, *self.FLAGS)
        self.assertNotIn("token_share", run["images"][0])

    def test_refusals(self):
        usage = 2
        self.expect_error(["generate", "--model", CIFAR, "--cost-map", "map.png"], usage, "--cost-map map.png",
                          str(CIFAR), "no token routers")
        latent = ["generate", "--model", TINY, *QUICK, "--latents", "x.safetensors"]
        self.expect_error([*latent, "--mode", "static", "--cost-map", "map.png"], usage, "--mode static", "--mode dynamic")
        self.expect_error([*latent, "--cost-map", "map.jpg"], usage, "--cost-map map.jpg", ".png")
        self.expect_error([*latent, "--cost-map", ""], usage, "--cost-map", "got nothing")
        self.write("none", "a file, not a folder")
        self.expect_error([*latent, "--cost-map", "none/map.png"], 1, "none")
        self.expect_error(["generate", "--model", self.pixel_model(), "--out", "a.png", "--cost-map", "a.png"], usage,
                          "--cost-map a.png", "--out")


class PreviewTest(GenerateBase):
    """--preview-every: predicted images beside the output."""

    FLAGS = ["--sampler", "dpm++", "--steps", "4", "--preview-every", "2"]

    def test_grid_grows_over_batches(self):
        run = self.cifar(*self.FLAGS, "-n", "3", "--batch", "2", "--out", "x.png")
        self.assertEqual(run["files"], ["x_step0002.png", "x.png"])
        self.assertEqual(set(self.files()), set(run["files"]))
        preview, image = read_png(self.work / "x_step0002.png"), read_png(self.work / "x.png")
        self.assertEqual(preview.shape, image.shape)
        self.assertFalse(np.array_equal(preview, image))
        record = self.run_json("inspect", "x_step0002.png")["record"]
        self.assertEqual(record["preview_step"], 2)
        self.assertEqual([shown["class_name"] for shown in record["images"]], NAMES[:3])

    def test_numbered(self):
        run = self.cifar(*self.FLAGS, "-n", "2", "--out", "a_%d.png")
        self.assertEqual(run["files"], ["a_0_step0002.png", "a_1_step0002.png", "a_0.png", "a_1.png"])
        self.assertEqual(set(self.files()), set(run["files"]))

    def test_refusals(self):
        usage = 2
        self.expect_error(["generate", "--model", CIFAR, "--steps", "4", "--preview-every", "4"], usage,
                          "--preview-every 4", "4 steps", "1 to 3")
        self.expect_error(["generate", "--model", CIFAR, *self.FLAGS, "--npz", "x.npz"], usage, "--preview-every 2", "--out")
        self.expect_error(["generate", "--model", TINY, *self.FLAGS, "--latents", "x.safetensors"], usage,
                          "--preview-every 2", "latents")
        self.expect_error(["generate", "--model", CIFAR, "--preview-every", "0"], usage, "--preview-every")


class TimestepsTest(GenerateBase):
    """--timesteps: which ones, by hand."""

    def test_same_as_those_chosen(self):
        for sampler, timesteps in (("ddpm", "0,500,999"), ("ddim", "0,334,668"), ("dpm++", "333,999,666")):
            flags = ["--sampler", sampler, "-n", "2"]
            chosen, by_hand = self.latents(*flags, "--steps", "3"), self.latents(*flags, "--timesteps", timesteps)
            self.assertTrue(np.array_equal(chosen, by_hand), sampler)

    def test_record_and_make_again(self):
        self.cifar("--timesteps", "40,999,700,300", "--sampler", "dpm++", "--out", "x.png")
        record = self.run_json("inspect", "x.png")["record"]
        self.assertEqual((record["timesteps"], record["steps"], record["spacing"]), ([999, 700, 300, 40], 4, "by hand"))
        self.assertIn("--timesteps 999,700,300,40 --sampler dpm++", self.run_ok("inspect", "x.png"))

    def test_refusals(self):
        for text in ("1000", "-1", "5,5", "x", "1.5", "1,,2", "1,"):
            self.expect_error(["generate", "--model", CIFAR, f"--timesteps={text}"], 2, "--timesteps")
        self.expect_error(["generate", "--model", CIFAR, "--timesteps", "5", "--steps", "1"], 2, "--timesteps", "--steps")
        self.expect_error(["generate", "--model", CIFAR, "--sampler", "dpm++", "--steps", "1000"], 2, "--steps 1000", "999")


class TorchNoiseTest(GenerateBase):
    """--noise torch: the whole batch's stream."""

    def test_depends_on_the_number_of_images(self):
        two, three = (self.latents(*QUICK, "--noise", "torch", "--seed", "3", "-n", n, "--classes", "1") for n in "23")
        self.assertTrue(np.array_equal(two, self.latents(*QUICK, "--noise", "torch", "--seed", "3", "-n", "2", "--batch", "2",
                                                         "--classes", "1")))
        self.assertEqual((len(two), len(three)), (2, 3))
        self.assertFalse(np.array_equal(two, self.latents(*QUICK, "--seed", "3", "-n", "2", "--classes", "1")))

    def test_one_batch_only(self):
        self.expect_error(["generate", "--model", CIFAR, "--noise", "torch", "-n", "5", "--batch", "4"], 2, "--noise torch",
                          "--batch 5")


class SameImageTest(GenerateBase):
    """Image i of a seed depends on nothing but what was asked for."""

    SPLITS = [("1", "1"), ("3", "2"), ("8", "3"), ("1", "3")]  # batch, threads

    def expect_equal(self, make, *flags):
        first = None
        for batch, threads in self.SPLITS:
            made = make(*flags, "-n", "5", "--batch", batch, "--threads", threads)
            first = made if first is None else first
            self.assertTrue(np.array_equal(made, first), (flags, batch, threads))

    def test_ddim(self):
        self.expect_equal(self.pixels, *QUICK)

    def test_ddim_f32(self):
        self.expect_equal(self.pixels, *QUICK, "--dtype", "f32")

    def test_ddpm(self):
        self.expect_equal(self.pixels, "--steps", "4")

    def test_samples_of_a_dynamic_model(self):
        for dtype in ("bf16", "f32"):
            self.expect_equal(self.latents, *QUICK, "--eta", "1", "--dtype", dtype)

    def test_number_of_images(self):
        few, many = (self.pixels("--steps", "3", "-n", n, "--classes", "1") for n in ("2", "5"))
        self.assertTrue(np.array_equal(few, many[:2]))
        self.assertFalse(np.array_equal(many[0], many[1]))

    def test_class_by_name(self):
        named = self.pixels(*QUICK, "--classes", ",".join(NAMES))
        numbered = self.pixels(*QUICK, "--classes", "0,1,2,3,4,5,6,7,8,9")
        self.assertTrue(np.array_equal(named, numbered))
        self.assertTrue(np.array_equal(named, self.pixels(*QUICK, "-n", "10")))

    def test_class_names_file(self):
        names = self.write("names.txt", "\n".join(f"number {i}" for i in range(10)) + "\n\n")
        run = self.cifar(*QUICK, "--class-names", names, "--classes", "number 3", "--npz", "a.npz")
        self.assertEqual((run["images"][0]["class"], run["images"][0]["class_name"]), (3, "number 3"))
        self.assertTrue(np.array_equal(self.read_npz("a.npz"), self.pixels(*QUICK, "--classes", "cat")))

    def test_what_should_change_it(self):
        changes = (["--sampler", "ddpm"], [], ["--eta", "1"], ["--seed", "1"], ["--cfg-scale", "2"], ["--cfg-channels", "1"],
                   ["--num-sampling-steps", "4"], ["--classes", "4"])
        base = ["--sampler", "ddim", "--num-sampling-steps", "3"]
        seen = {self.pixels(*(flags if flags[:1] == ["--sampler"] else base[:2] + flags),
                            *([] if "--num-sampling-steps" in flags else base[2:])).tobytes() for flags in changes}
        self.assertEqual(len(seen), len(changes))


class RecordTest(GenerateBase):
    """A PNG says how to make it again."""

    FLAGS = ["--classes", "ship,1", "-n", "3", "--seed", "7", "--sampler", "ddim", "--steps", "4", "--eta", "0.3",
             "--cfg-scale", "2.7", "--cfg-channels", "2", "--dtype", "f32", "--batch", "2"]

    def make_again(self, name):
        said = self.run_ok("inspect", name)
        command = shlex.split(re.search(r"^make again +(.*)$", said, re.MULTILINE).group(1))
        self.assertEqual(command[:2], ["dydit", "generate"])
        self.assertEqual(command[command.index("--model") + 1], CIFAR.name)
        command[command.index("--model") + 1] = str(CIFAR)
        return self.run_json(*command[1:], "--out", "again/")

    def test_record(self):
        run = self.cifar(*self.FLAGS, "--out", "grid.png")
        shown = self.run_json("inspect", "grid.png")
        self.assertEqual((shown["format"], shown["width"], shown["height"], shown["channels"]), ("png", 104, 36, 3))
        record = shown["record"]
        self.assertEqual([{key: image[key] for key in IMAGE_KEYS} for image in run["images"]], record["images"])
        for key in set(record) - {"images"}:
            self.assertEqual(record[key], run[key], key)
        self.assertEqual(record["model"]["sha256"], self.run_json("inspect", CIFAR)["sha256"])
        self.assertEqual(json.loads(shown["text"]["dydit"]), record)
        parameters = shown["text"]["parameters"]
        for part in ("ship", "automobile", "Steps: 4", "Sampler: ddim", "CFG scale: 2.7", "Seed: 7", "Size: 32x32",
                     record["model"]["sha256"][:10]):
            self.assertIn(part, parameters)

    def test_make_again(self):
        self.cifar(*self.FLAGS, "--out", "first/")
        self.make_again("first/000002.png")
        for i in range(3):
            first, again = (read_png(self.work / folder / f"{i:06}.png") for folder in ("first", "again"))
            self.assertTrue(np.array_equal(first, again), i)

    def test_numbered_image_holds_its_own_record(self):
        self.cifar(*self.FLAGS, "--out", "first/")
        images = self.run_json("inspect", "first/000001.png")["record"]["images"]
        self.assertEqual([(image["index"], image["class_name"]) for image in images], [(1, "automobile")])

    def test_foreign_png(self):
        self.write("foreign.png", support.tiny_png())
        self.assertNotIn("record", self.run_json("inspect", "foreign.png"))
        self.assertIn("no record", self.run_ok("inspect", "foreign.png"))


class InterruptTest(GenerateBase):
    """Ctrl-C keeps the finished images and nothing half-written."""

    IMAGES = 400

    def interrupt(self, number, *flags):
        """Starts a long run and stops it once two images are there."""
        process = subprocess.Popen(
            [support.PROGRAM, "generate", "--model", CIFAR, "-n", str(self.IMAGES), "--batch", "1", "--steps", "8", "--out",
             "images/", "-q", "--json", *flags],
            cwd=self.work, env=support.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + support.TIMEOUT
            while not (self.work / "images/000001.png").exists():
                self.assertIsNone(process.poll(), "ended too early")
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.01)
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=support.TIMEOUT)
        finally:
            process.kill()
        self.assertEqual((process.returncode, stderr), (CANCELLED, ""))
        return self.one_object(stdout)

    def check(self, run, *more_files):
        done = len(run["images"])
        self.assertIs(run["cancelled"], True)
        self.assertTrue(2 <= done < self.IMAGES, done)
        names = [f"images/{i:06}.png" for i in range(done)]
        self.assertEqual(set(self.files()), {*names, *more_files, "images"})
        self.assertEqual(run["files"], [*names, *more_files])
        for name in (names[0], names[-1]):
            self.assertEqual(read_png(self.work / name).shape, (SIDE, SIDE, 3))
        return done, names

    def test_interrupt(self):
        self.check(self.interrupt(signal.SIGINT))

    def test_terminate_with_npz(self):
        done, names = self.check(self.interrupt(signal.SIGTERM, "--npz", "x.npz"), "x.npz", "x.npz.json")
        images = self.read_npz("x.npz")
        self.assertEqual(images.shape, (done, SIDE, SIDE, 3))
        self.assertTrue(np.array_equal(images[-1], read_png(self.work / names[-1])))


if __name__ == "__main__":
    support.main()
