"""dydit inspect and dydit verify of autoencoders."""

import json
import shutil

import numpy as np

import support
from support import CIFAR, GOLDEN, SHARED, TINY, ProgramTest

FAILED, USAGE = 1, 2
VAE, VECTORS = GOLDEN / "vae/kl16", GOLDEN / "vae/kl16.safetensors"
WEIGHTS = VAE / "diffusion_pytorch_model.safetensors"
RECORDED = SHARED / "golden/vae"


class AutoencoderBase(ProgramTest):
    def bare(self):
        """The weights without their configuration."""
        return shutil.copy(WEIGHTS, self.work / "bare.safetensors")

    def folder(self, **changes):
        """The folder with these keys of config.json changed; None leaves a key out."""
        folder = shutil.copytree(VAE, self.work / "vae", dirs_exist_ok=True)
        config = {**json.loads((VAE / "config.json").read_text()), **changes}
        (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
        return folder

    def shared(self, name):
        path = RECORDED / name
        if not path.exists():
            self.skipTest(f"{path} is not there; set DYDIT_SHARED")
        return path


class InspectTest(AutoencoderBase):
    def test_a_folder(self):
        told = self.run_json("inspect", VAE)
        self.assertEqual((told["autoencoder"], told["latent_channels"], told["factor"]), ("AutoencoderKL", 16, 4))
        self.assertEqual((told["scaling_factor"], told["shift_factor"], told["dtype"]), (1.5305, 0.0609, "Half"))
        self.assertEqual(told["config"]["block_out_channels"], [8, 8, 16])
        tensors, _ = support.load(WEIGHTS)
        self.assertEqual(told["encoder"]["parameters"] + told["decoder"]["parameters"],
                         sum(tensor.size for tensor in tensors.values()))
        said = self.run_ok("inspect", VAE)
        self.assertRegex(said, r"(?m)^latents +16 channels, 1/4 of an image's sides; to a model: x = \(z - 0\.0609\) 1\.5305$")
        self.assertRegex(said, r"(?m)^decoder +0\.03 M parameters; decodes with [\d.]+ GMACs for 256x256$")

    def test_a_bare_file(self):
        path = self.bare()
        self.expect_error(["inspect", path], FAILED, "the usual 32 groups do not divide its 8 channels", "--vae-config")
        told = self.run_json("inspect", path, "--vae-config", VAE / "config.json")
        self.assertEqual(told["scaling_factor"], 1.5305)

    def test_published_sizes(self):
        told = self.run_json("inspect", "recipe:sd")
        self.assertEqual((told["encoder"]["parameters"], told["decoder"]["parameters"]), (34163664, 49490199))
        self.assertAlmostEqual(told["decoder"]["gmacs"], 311.1, delta=0.05)
        self.assertAlmostEqual(told["encoder"]["gmacs"], 136.4, delta=0.05)

    def test_half_an_autoencoder(self):
        decoder = SHARED / "data/taef2_decoder.pth"
        if not decoder.exists():
            self.skipTest(f"{decoder} is not there; set DYDIT_SHARED")
        told = self.run_json("inspect", decoder)
        self.assertNotIn("encoder", told)
        said = self.run_ok("inspect", decoder)
        self.assertRegex(said, r"(?m)^encoder +not in this file$")
        self.assertIn("with pooled blocks (taef2)", said)
        self.assertRegex(said, r"(?m)^latents +32 channels, 1/8 of an image's sides; to a model: x = z$")

    def test_notes_are_told(self):
        folder = self.folder(new_idea=1)
        result = self.run_program("inspect", folder)
        self.assertIn("passed over what is not known: new_idea", result.stderr)
        self.assertIn("new_idea", self.run_json("inspect", folder)["notes"][0])

    def test_a_pipeline_of_a_dit_is_a_dit(self):
        self.assertIn("model", self.run_json("inspect", GOLDEN / "diffusers"))
        self.assertIn("autoencoder", self.run_json("inspect", GOLDEN / "diffusers/vae"))


class VerifyTest(AutoencoderBase):
    def checks(self, *args):
        report = self.run_json("verify", *args)
        self.assertIs(report["passed"], True, report)
        return {check["name"]: check for check in report["checks"]}

    def failed(self, *args):
        result = self.run_program("verify", *args, "--json", "-q")
        self.assertEqual((result.returncode, result.stderr), (FAILED, ""), result.stdout)
        return {check["name"] for check in self.one_object(result.stdout)["checks"] if not check["ok"]}

    def test_kept_vectors(self):
        checks = self.checks("--vae", VAE, "--reference", VECTORS)
        self.assertLessEqual({"mean_odd", "logvar_odd", "decoded_odd", "mean_stage", "stage.decoded"}, set(checks))
        for check in checks.values():
            self.assertLessEqual(check["limit"], 1e-5)

    def test_kept_vectors_bf16(self):
        checks = self.checks("--vae", VAE, "--reference", VECTORS, "--dtype", "bf16")
        self.assertGreater(checks["decoded_odd"]["error"], 1e-5, "this was no bfloat16")
        self.assertIn("decoded_odd (rms)", checks)

    def test_a_file_without_its_folder(self):
        self.checks("--vae", self.bare(), "--vae-config", VAE / "config.json", "--reference", VECTORS)

    def test_every_recorded_value_counts(self):
        tensors, _ = support.load(VECTORS)
        for name, fails in (("moments_odd", "mean_odd"), ("decoded_odd", "decoded_odd"), ("stage.decoded", "stage.decoded"),
                            ("stage.enc.mid.attn", "stage.enc.mid.attn"), ("stage.dec.up0", "stage.dec.up0")):
            with self.subTest(name):
                changed = tensors[name].copy()
                changed.flat[1] += 1e-3 * np.abs(changed).max()
                path = self.save("moved.safetensors", {**tensors, name: changed})
                self.assertEqual(self.failed("--vae", VAE, "--reference", path), {fails})

    def test_another_configuration(self):
        folder = self.folder(norm_num_groups=8)
        self.assertLessEqual({"mean_odd", "decoded_odd"}, self.failed("--vae", folder, "--reference", VECTORS))

    def test_all_layouts_of_the_recorded_ones(self):
        formulas = {f"{name} of moments" for name in ("mean", "logvar", "std", "sample", "scaled_mode")}
        names = formulas | {"mean", "logvar", "z", "decoded", "pixels", "mean_odd", "decoded_odd", "mean_tiled", "tiled_decoded",
                            "untiled_decoded", "stage.enc.down1", "stage.dec.up2"}
        for vae, more in (("kl4/vae", []), ("kl4/vae_bin", []), ("kl4/ldm.ckpt", []),
                          ("kl16/vae", []), ("kl16/ae.safetensors", ["--vae-config", "kl16/vae/config.json"])):
            with self.subTest(vae):
                config = [self.shared(word) if "/" in word else word for word in more]
                vectors = self.shared(vae.split("/")[0]) / "vectors.safetensors"
                for dtype in ("f32", "bf16"):
                    checks = self.checks("--vae", self.shared(vae), *config, "--reference", vectors, "--dtype", dtype)
                    self.assertLessEqual(names - ({"pixels"} if dtype == "bf16" else set()), set(checks))

    def test_taef2(self):
        vae = f"{SHARED / 'data/taef2_encoder.pth'},{SHARED / 'data/taef2_decoder.pth'}"
        vectors = self.shared("taef2.safetensors")
        checks = self.checks("--vae", vae, "--reference", vectors)
        self.assertEqual(set(checks), {"latents", "latents_odd", "decoded", "decoded_u8", "decoded_u8 (levels)", "psnr (dB)"})
        self.checks("--vae", vae, "--reference", vectors, "--dtype", "bf16")
        half = self.checks("--vae", SHARED / "data/taef2_decoder.pth", "--reference", vectors)
        self.assertNotIn("latents", half)

    def test_the_full_size(self):
        checks = self.checks("--vae", "recipe:sd", "--reference", self.shared("full/vectors.safetensors"))
        self.assertEqual(set(checks), {"mean", "logvar", "decoded"})


class RefusedTest(AutoencoderBase):
    def refused(self, vae, *fragments, reference=VECTORS, exit_code=FAILED):
        self.expect_error(["verify", "--vae", vae, "--reference", reference], exit_code, *fragments)

    def test_inspect_and_verify_alike(self):
        for changes, said in (({"_class_name": "AutoencoderKLFlux2"}, 'is of "AutoencoderKLFlux2"; AutoencoderKL or'),
                              ({"scaling_factor": 0}, "scaling_factor is 0; a number above 0 is wanted"),
                              ({"latent_channels": 4}, "has shape (32, 16, 3, 3), expected (8, 16, 3, 3) by"),
                              ({"block_out_channels": [8, 8]}, "down_block_types is")):
            with self.subTest(said):
                folder = self.folder(**changes)
                self.refused(folder, str(folder), said)
                self.expect_error(["inspect", folder], FAILED, str(folder), said)

    def test_weights(self):
        tensors, _ = support.load(WEIGHTS)
        folder = self.folder()
        for change, said in (({"decoder.conv_out.bias": None}, "tensor decoder.conv_out.bias is missing"),
                             ({"more": np.zeros(3, np.float32)}, "tensor more belongs to no part of this autoencoder"),
                             ({"decoder.conv_out.bias": np.full(3, np.nan, np.float32)}, "decoder.conv_out.bias holds NaN or infinity"),
                             ({"encoder.mid_block.attentions.0.key.bias": np.zeros(16, np.float32)}, "both spellings")):
            with self.subTest(said):
                changed = {name: value for name, value in {**tensors, **change}.items() if value is not None}
                self.save("vae/diffusion_pytorch_model.safetensors", changed)
                self.refused(folder, str(folder), said)

    def test_cut_and_foreign_files(self):
        content = WEIGHTS.read_bytes()
        for size in (6, 60, len(content) // 2, len(content) - 1):
            path = self.write("cut.safetensors", content[:size])
            self.refused(path, str(path))
        self.refused(self.write("a.pt", "no weights here"), "not an autoencoder's weights; wanted")
        self.refused(self.work / "none.pt", "No such file")

    def test_models_and_autoencoders_for_each_other(self):
        for model in (TINY, CIFAR):
            self.refused(model, str(model), "is a DiT, which --model takes; an autoencoder is wanted")
        self.expect_error(["generate", "--model", VAE, "--latents", "x.safetensors"], FAILED, str(VAE),
                          'holds "AutoencoderKL"; a DiT is wanted', "an autoencoder goes to --vae")
        self.expect_error(["convert", WEIGHTS, "x.safetensors"], FAILED, "seems to be an autoencoder (VAE), which --vae takes")

    def test_references(self):
        tensors, _ = support.load(VECTORS)
        self.refused(VAE, "holds nothing of an autoencoder that verify can replay",
                     reference=self.save("odd.safetensors", {"odd": np.zeros(3, np.float32)}))
        self.refused("recipe:taesd", "records an AutoencoderKL, but recipe:taesd is taesd. Do they belong together?")
        self.refused("recipe:sd", "z_odd has shape (1, 16, 3, 5), this autoencoder takes (rows, 4, height, width)",
                     reference=self.save("z.safetensors", {"z_odd": tensors["z_odd"], "decoded_odd": tensors["decoded_odd"]}))
        self.refused(VAE, "reference tensor moments_odd has shape (1, 32, 5, 6), this autoencoder makes (1, 32, 5, 7)",
                     reference=self.save("m.safetensors", {"x_odd": tensors["x_odd"], "moments_odd": tensors["moments_odd"][..., :6]}))

    def test_flags(self):
        self.expect_error(["verify", "--reference", VECTORS], USAGE, "nothing to verify: give --model FILE, or --vae FILE")
        self.refused("recipe:xl", "sizes that have a recipe are sd and taesd", exit_code=USAGE)
        self.expect_error(["verify", "--vae", VAE, "--vae-config", VAE / "config.json", "--reference", VECTORS], USAGE,
                          "has a configuration of its own", "leave --vae-config out")


if __name__ == "__main__":
    support.main()
