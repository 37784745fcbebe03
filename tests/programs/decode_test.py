"""Pictures from latent models: generate --vae and dydit decode, against each other and against diffusers' pipeline."""

import re
import shlex
import shutil

import numpy as np

import support
import vae_files
from support import CIFAR, GOLDEN, TINY, ProgramTest, read_png

FAILED, USAGE = 1, 2
QUICK = ["--sampler", "ddim", "--steps", "3", "--dtype", "f32"]
SIDE = 32  # of TINY's latents of 16, decoded
PIPELINE = GOLDEN / "diffusers"


class DecodeBase(ProgramTest):
    def setUp(self):
        super().setUp()
        self.vae = vae_files.write_kl(self.work / "vae")

    def images(self, *flags, name="x.npz", model=TINY):
        run = self.run_json("generate", "--model", model, *QUICK, *flags, "--npz", name)
        return run, np.load(self.work / name)["arr_0"]


    def command_of(self, png):
        return re.search("make again +(.*)", self.run_ok("inspect", png))[1]


class GenerateTest(DecodeBase):
    def test_every_sink_shows_the_decoded_images(self):
        run, images = self.images("--vae", "vae", "-n", "3", "--classes", "2,5", "--out", "grid.png", "--latents", "x.safetensors",
                                  "--cost-map", "map.png")
        self.assertEqual(images.shape, (3, SIDE, SIDE, 3))
        self.assertGreater(images.std(), 5)
        self.assertEqual(len(np.unique(images.reshape(3, -1), axis=0)), 3)
        grid = read_png(self.work / "grid.png")
        self.assertTrue(np.array_equal(grid[2:2 + SIDE, 2:2 + SIDE], images[0]))
        self.assertEqual(support.load(self.work / "x.safetensors")[0]["latents"].shape, (3, 4, 16, 16))
        cells = read_png(self.work / "map.png")
        self.assertGreater(cells.shape[1], 3 * SIDE)
        self.assertEqual(run["size"], SIDE)
        self.assertEqual({"kind", "sha256", "gmacs", "dtype", "scale", "file"}, set(run["vae"]))
        for image in run["images"]:
            self.assertGreater(image["decode_seconds"], 0)

    def test_an_image_does_not_depend_on_batch_or_threads(self):
        _, one = self.images("--vae", "vae", "-n", "3", "--batch", "1", "--threads", "1")
        _, all_together = self.images("--vae", "vae", "-n", "3", "--batch", "3", "--threads", "3", name="y.npz")
        self.assertTrue(np.array_equal(one, all_together))

    def test_the_record_makes_them_again(self):
        self.run_ok("generate", "--model", TINY, *QUICK, "--vae", "vae", "--out", "a.png")
        shutil.copy(TINY, self.work / TINY.name)
        command = shlex.split(self.command_of("a.png"))[1:]
        self.assertEqual(command[command.index("--vae") + 1], "vae")
        self.run_ok(*command, "--out", "b.png")
        self.assertTrue(np.array_equal(read_png(self.work / "a.png"), read_png(self.work / "b.png")))

    def test_previews_are_decoded(self):
        other = vae_files.write_kl(self.work / "other", seed=1)
        flags = ["generate", "--model", TINY, *QUICK, "--vae", "vae", "--preview-every", "2", "--out"]
        self.run_ok(*flags, "a.png")
        self.run_ok(*flags, "b.png", "--preview-vae", other)
        ours, others = read_png(self.work / "a_step0002.png"), read_png(self.work / "b_step0002.png")
        self.assertEqual(ours.shape, (SIDE, SIDE, 3))
        self.assertFalse(np.array_equal(ours, others))
        self.assertTrue(np.array_equal(read_png(self.work / "a.png"), read_png(self.work / "b.png")))

    def test_people_are_told(self):
        result = self.run_program("generate", "--model", TINY, *QUICK, "--vae", "vae")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"decoding vae: AutoencoderKL, f32, [\d.]+ GMACs an image of 32x32")
        self.assertRegex(result.stdout, r"decoding an image: [\d.]+ s, [\d.]+ GMACs, beside that")
        self.assertIn("wrote samples.png", result.stdout)


class DecodeTest(DecodeBase):
    def test_saved_latents_give_the_same_images(self):
        _, images = self.images("--vae", "vae", "-n", "3", "--latents", "x.safetensors", "--out", "a%d.png")
        run = self.run_json("decode", "--latents", "x.safetensors", "--vae", "vae", "--npz", "y.npz", "--out", "b%d.png")
        self.assertTrue(np.array_equal(np.load(self.work / "y.npz")["arr_0"], images))
        self.assertEqual(run["files"], ["b0.png", "b1.png", "b2.png", "y.npz", "y.npz.json"])
        self.assertEqual(self.command_of("b1.png"), "dydit decode --latents x.safetensors --vae vae")
        self.assertEqual(self.run_json("inspect", "b1.png")["record"]["model"]["file"], TINY.name)

    def test_latents_of_anybody(self):
        latents = np.random.default_rng(0).standard_normal((2, 4, 5, 7)).astype(np.float16)
        support.save_file({"latents": latents}, self.work / "x.safetensors")
        self.run_ok("decode", "--latents", "x.safetensors", "--vae", "vae", "--out", "b%d.png")
        self.assertEqual(read_png(self.work / "b1.png").shape, (10, 14, 3))

    def refused(self, tensors, *fragments, metadata=None):
        support.save_file(tensors, self.work / "x.safetensors", metadata)
        self.expect_error(["decode", "--latents", "x.safetensors", "--vae", "vae"], FAILED, *fragments)

    def test_bad_latents(self):
        good = np.zeros((2, 4, 4, 4), np.float32)
        self.refused({"z": good}, 'holds no tensor "latents"')
        self.refused({"latents": good[0]}, "latents are F32 (4, 4, 4); wanted floating point of shape")
        self.refused({"latents": good, "labels": np.zeros(3, np.int64)}, "labels are I64 (3); wanted whole numbers, one for each of 2")
        self.refused({"latents": good}, "metadata 'dydit' is no record of a run", metadata={"dydit": "[1]"})
        self.refused({"latents": good}, "no dydit writes that", metadata={"dydit": '{"model": 1}'})
        self.refused({"latents": np.full((1, 4, 4, 4), np.nan, np.float32)}, "image 0", "NaN")


class RefusedTest(DecodeBase):
    def refused(self, flags, code, *fragments, model=TINY):
        self.expect_error(["generate", "--model", model, *QUICK, *flags], code, *fragments)

    def test_channels_that_do_not_fit(self):
        vae_files.write_kl(self.work / "three", latent_channels=3)
        self.refused(["--vae", "three"], USAGE, "is an autoencoder of 3 latent channels, the latents have 4")
        self.refused(["--vae", "vae"], USAGE, "is an autoencoder of 4 latent channels, the latents have 3", model=CIFAR)

    def test_flags_that_need_one(self):
        self.refused(["--vae", "vae", "--latents", "x.safetensors"], USAGE, "--vae vae: needs an output of pixels: --out or --npz")
        self.refused(["--vae-dtype", "bf16", "--latents", "x.safetensors"], USAGE, "--vae-dtype bf16: needs an autoencoder: --vae")
        self.refused(["--vae-config", "c.json", "--latents", "x.safetensors"], USAGE, "--vae-config c.json: needs --vae")
        self.refused(["--vae", "vae", "--preview-vae", "vae"], USAGE, "--preview-vae vae: needs --preview-every")
        self.refused(["--preview-vae", "vae", "--preview-every", "1"], USAGE, "--preview-vae vae: needs a model of latents", model=CIFAR)

    def test_nan_in_a_picture(self):
        tensors = vae_files.kl_tensors()
        tensors["decoder.conv_in.weight"] = tensors["decoder.conv_in.weight"] * np.float32(1e38)
        vae_files.write_kl(self.work / "broken", tensors=tensors)
        self.refused(["--vae", "broken"], FAILED, "image 0", "NaN or infinity")


class PipelineTest(ProgramTest):
    """A folder of diffusers with its own autoencoder: the images of diffusers' own pipeline (tools/make_pipeline_vectors.py)."""

    FLAGS = ["--sampler", "ddim", "--steps", "8", "--classes", "0,3,4", "--cfg-scale", "4", "--seed", "5", "--noise", "torch",
             "--dtype", "f32"]

    def test_the_images_of_diffusers(self):
        wanted = support.load(PIPELINE / "pipeline.safetensors")[0]["images"].astype(int)
        for model in (PIPELINE, PIPELINE / "transformer"):
            run = self.run_json("generate", "--model", model, *self.FLAGS, "--npz", "x.npz")
            self.assertTrue(run["vae"]["own"])
            got = np.load(self.work / "x.npz")["arr_0"].astype(int)
            self.assertEqual(got.shape, wanted.shape)
            self.assertGreater(wanted.std(), 20)
            self.assertLessEqual(np.abs(got - wanted).max(), 1)

    def test_latents_alone_need_no_autoencoder(self):
        run = self.run_json("generate", "--model", PIPELINE, *self.FLAGS, "--latents", "x.safetensors")
        self.assertNotIn("vae", run)

    def test_another_autoencoder_can_be_given(self):
        vae_files.write_kl(self.work / "vae")
        run = self.run_json("generate", "--model", PIPELINE, *self.FLAGS, "--vae", "vae", "--npz", "x.npz")
        self.assertNotIn("own", run["vae"])


class PublishedTest(ProgramTest):
    """The README's commands on files of random weights with the published names and sizes."""

    def write_dit(self, name, width, depth):
        """A bare state dict, as the published DiT-XL-2-256x256.pt is."""
        import torch
        torch.manual_seed(0)
        draw = lambda *shape: torch.randn(*shape).mul_(0.02).half()
        shapes = {"x_embedder.proj": (width, 4, 2, 2), "t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width),
                  "final_layer.linear": (32, width), "final_layer.adaLN_modulation.1": (2 * width, width)}
        for i in range(depth):
            for layer, out, inputs in (("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("mlp.fc1", 4 * width, width),
                                       ("mlp.fc2", width, 4 * width), ("adaLN_modulation.1", 6 * width, width)):
                shapes[f"blocks.{i}.{layer}"] = (out, inputs)
        state = {"pos_embed": draw(1, 256, width).float(), "y_embedder.embedding_table.weight": draw(1001, width)}
        for layer, shape in shapes.items():
            state.update({f"{layer}.weight": draw(*shape), f"{layer}.bias": draw(shape[0])})
        torch.save(state, self.work / name)

    def test_four_commands(self):
        try:
            import torch  # noqa: F401
        except (ImportError, OSError) as error:
            self.skipTest(f"{support.sys.executable} cannot import torch: {error}")
        self.write_dit("DiT-XL-2-256x256.pt", 1152, 28)
        self.write_dit("DiT-S-2-256x256.pt", 384, 12)
        size = {"channels": (128, 256, 512, 512), "layers": 2}
        config = {**vae_files.kl_config(**size), "norm_num_groups": 32}
        vae_files.write_kl(self.work / "sd-vae-ft-ema", config=config, **size)
        quick = ["--sampler", "ddim", "--steps", "1", "--vae", "sd-vae-ft-ema"]
        run = self.run_json("generate", "--model", "DiT-XL-2-256x256.pt", *quick, "--classes", "207", "--out", "samples/")
        self.assertEqual(read_png(self.work / "samples/000000.png").shape, (256, 256, 3))
        self.assertAlmostEqual(run["static_gmacs"], 2 * 118.64, delta=0.2)
        self.assertAlmostEqual(run["vae"]["gmacs"], 311.1, delta=0.2)
        (self.work / "DiT-XL-2-256x256.pt").unlink()
        noise = np.random.default_rng(0)
        for name in ("n01440764", "n01443537"):
            (self.work / "train" / name).mkdir(parents=True)
            self.write(f"train/{name}/0.png", support.png_bytes(noise.integers(0, 255, (256, 256, 3), np.uint8)))
        self.run_ok("latents", "--vae", "sd-vae-ft-ema", "--data-path", "train", "--image-size", "256", "--out", "train-latents")
        self.run_ok("finetune", "--model", "DiT-S-2-256x256.pt", "--data-path", "train-latents", "--match-classes", "position",
                    "--lambda", "0.5", "--total-train-steps", "1", "--global-batch-size", "2", "--results-dir", "results")
        model = next((self.work / "results").glob("*/checkpoints/*.safetensors"))
        told = self.run_program("generate", "--model", model, *quick, "--classes", "0", "--out", "dynamic/")
        self.assertEqual(told.returncode, 0, told.stderr)
        self.assertNotIn("was trained with the autoencoder of", told.stderr)
        self.assertEqual(read_png(self.work / "dynamic/000000.png").shape, (256, 256, 3))


if __name__ == "__main__":
    support.main()
