"""dydit quantize and --dtype int8: what is written, how near its images are, what is refused."""

import hashlib
import json
import re

import numpy as np

import support
import vae_files
from support import CIFAR, GOLDEN, ROOT, TINY, ProgramTest

FAILED, USAGE = 1, 2
DYNAMIC = ROOT / "models" / "dydit-cifar10-0.5.safetensors"
QUICK = ["--sampler", "ddim", "--steps", "10", "--cfg-scale", "1.5", "--seed", "1"]
LAYER = "blocks.0.attn.proj"


def psnr(a, b):
    error = ((a.astype(float) - b.astype(float))**2).reshape(len(a), -1).mean(1)
    return 10 * np.log10(255**2 / np.maximum(error, 1e-9))


class QuantizeBase(ProgramTest):
    def quantize(self, model=TINY, *flags, out="q.safetensors"):
        self.said = self.run_json("quantize", "--model", model, "--out", out, *flags)
        return self.work / out

    def images(self, model, *flags):
        run = self.run_json("generate", "--model", model, *QUICK, *flags, "--npz", "x.npz")
        return run, np.load(self.work / "x.npz")["arr_0"]


    def needs_bytes(self):
        """Skips where the processor multiplies no bytes, once that is said as it should be."""
        tried = ["generate", "--model", TINY, "--dtype", "int8", "--steps", "1", "--latents", "x.safetensors"]
        if self.run_program(*tried).returncode != 0:
            self.expect_error(tried, USAGE, "dtype int8: this processor (", "has no dot products of bytes (VNNI); take f32 or bf16")
            self.skipTest("the processor has no dot products of bytes (VNNI)")


class FileTest(QuantizeBase):
    def test_layers_are_bytes_with_scales_and_the_rest_is_as_asked(self):
        tensors, metadata = support.load(self.quantize(CIFAR, "--calibrate", "2", "--dtype", "f32"))
        stated = json.loads(metadata["quantization"])
        self.assertEqual((stated["scheme"], stated["version"], stated["images"]), ("w8a8-dynamic", 1, 2))
        self.assertEqual(stated["parent_sha256"], hashlib.sha256(CIFAR.read_bytes()).hexdigest())
        self.assertEqual(stated["parent_sha256"], self.said["parent_sha256"])
        for layer, segments, smoothed in (("attn.qkv", 1, True), ("attn.proj", 8, False), ("mlp.fc1", 1, True), ("mlp.fc2", 8, False)):
            name = f"blocks.3.{layer}.weight"
            self.assertEqual(tensors[name].dtype, np.int8)
            self.assertEqual(np.abs(tensors[name]).max(), 127)
            self.assertEqual(tensors[name + ".scale"].shape, (len(tensors[name]), segments))
            self.assertEqual(name + ".smooth" in tensors, smoothed)
        self.quantize(CIFAR, "--calibrate", "0")
        self.assertLess(self.said["bytes"], 0.75 * CIFAR.stat().st_size)  # which is bfloat16

    def test_inspect_says_how_it_was_made(self):
        path = self.quantize(TINY, "--calibrate", "0")
        self.assertRegex(self.run_ok("inspect", path), r"quantised +w8a8-dynamic, version 1, not smoothed; of sha256 [0-9a-f]{64}")
        self.assertEqual(self.run_json("inspect", path)["dtype"], "int8")

    def test_factors_weigh_activations_against_weights(self):
        """SmoothQuant, equation 4: the exponent 0 leaves 1 / the weights' largest, 1 the activations', 1/2 the geometric mean."""
        names = [f"blocks.{block}.{layer}.weight" for block in range(2) for layer in ("attn.qkv", "mlp.fc1")]
        factors = {}
        for exponent in ("0", "0.5", "1"):
            tensors, _ = support.load(self.quantize(TINY, "--calibrate", "2", "--smoothing", exponent, "--dtype", "f32"))
            factors[exponent] = {name: tensors[name + ".smooth"] for name in names}
        parent, _ = support.load(TINY)
        for name in names:
            of_weights, both, of_inputs = (factors[exponent][name] for exponent in ("0", "0.5", "1"))
            self.assertTrue(np.allclose(of_weights, 1 / np.abs(parent[name]).max(0), rtol=1e-5))
            self.assertTrue(np.allclose(both**2, of_weights * of_inputs, rtol=1e-4))
            self.assertGreater(of_inputs.min(), 0.1)  # of normed rows
            self.assertLess(of_inputs.max(), 100)

    def test_the_same_again_is_the_same_file_whatever_batch_and_threads(self):
        one = self.quantize(TINY, "--calibrate", "3", "--batch", "1", "--threads", "1").read_bytes()
        self.assertEqual(one, self.quantize(TINY, "--calibrate", "3", "--batch", "3", "--threads", "3").read_bytes())


class ImagesTest(QuantizeBase):
    def test_images_are_near_those_of_float32(self):
        self.needs_bytes()
        for model, least in ((CIFAR, 44), (DYNAMIC, 36)):
            flags = ["-n", "10", "--classes", "0,1,2,3,4,5,6,7,8,9"]
            _, exact = self.images(model, *flags, "--dtype", "f32")
            _, at_load = self.images(model, *flags, "--dtype", "int8")
            run, smoothed = self.images(self.quantize(model, "--calibrate", "16"), *flags)
            self.assertEqual(run["dtype"], "int8")  # auto's
            self.assertRegex(run["arithmetic"], r"int8 \(int8-(f32|bf16)\)")
            self.assertGreater(np.median(psnr(exact, smoothed)), least)
            self.assertGreater(np.median(psnr(exact, at_load)), least - 2)
            self.assertFalse(np.array_equal(exact, smoothed))

    def test_batch_and_threads_change_nothing(self):
        path = self.quantize(DYNAMIC, "--calibrate", "0")
        _, one = self.images(path, "-n", "5", "--batch", "1", "--threads", "1")
        _, together = self.images(path, "-n", "5", "--batch", "5", "--threads", "3")
        self.assertTrue(np.array_equal(one, together))

    def test_a_processor_without_bytes_multiplies_what_they_mean(self):
        path = self.quantize(CIFAR, "--calibrate", "4")
        reference, of_weights = self.images(path, "-n", "2", "--engine", "reference", "--dtype", "f32")
        self.assertEqual(reference["dtype"], "f32")
        self.assertGreater(psnr(of_weights, self.images(path, "-n", "2", "--dtype", "f32")[1]).min(), 60)

    def test_plans_and_the_reference_engine_take_it(self):
        self.needs_bytes()
        path = self.quantize(CIFAR, "--calibrate", "4")
        cached, _ = self.images(path, "-n", "1", "--cache", "fora:2")
        self.assertEqual(cached["dtype"], "int8")
        cache = ["-n", "3", "--cache", "taylor:2,1"]
        together = self.images(path, *cache, "--batch", "3")[1]
        self.assertTrue(np.array_equal(together, self.images(path, *cache, "--batch", "1")[1]))
        self.assertGreater(psnr(self.images(CIFAR, *cache, "--dtype", "f32")[1], together).min(), 40)
        of_weights = self.images(path, "-n", "2", "--engine", "reference", "--dtype", "f32")[1]
        self.assertGreater(psnr(of_weights, self.images(path, "-n", "2")[1]).min(), 44)

    def test_the_record_makes_them_again(self):
        self.needs_bytes()
        self.run_ok("generate", "--model", CIFAR, *QUICK, "--dtype", "int8", "--out", "a.png")
        self.assertIn("--dtype int8", re.search("make again +(.*)", self.run_ok("inspect", "a.png"))[1])


class RefusedTest(QuantizeBase):
    def damaged(self, change):
        tensors, metadata = support.load(self.quantize(TINY, "--calibrate", "2", "--dtype", "f32"))
        tensors = {name: np.array(values) for name, values in tensors.items()}
        change(tensors, metadata)
        return self.save("broken.safetensors", tensors, metadata)

    def test_scales_and_factors(self):
        scale, smooth = f"{LAYER}.weight.scale", "blocks.0.attn.qkv.weight.smooth"

        def put(name, value):
            def change(tensors, _):
                tensors[name].flat[0] = value
            return change

        for change, wanted in (
                (lambda t, _: t.pop(scale), f"{LAYER}.weight is int8 and has no {scale}"),
                (lambda t, _: t.update({scale: t[scale][:, :1].copy()}), f"{scale} is F32 of shape"),
                (lambda t, _: t.update({scale: t[scale].astype(np.float64)}), f"{scale} is F64 of shape"),
                (put(scale, np.nan), f"{scale} holds NaN or infinity"),
                (put(scale, -1), f"{scale} holds a negative scale"),
                (put(scale, 0), f"{scale} is 0 where the weights are not"),
                (put(smooth, 0), f"{smooth} holds a factor of 0 or less"),
                (put(smooth, np.inf), f"{smooth} holds NaN or infinity"),
                (put(f"{LAYER}.weight", -128), f"{LAYER}.weight holds -128, which symmetric rounding never gives; the checkpoint is broken"),
                (lambda t, _: t.update({"blocks.0.attn.odd.scale": t[scale]}), "belongs to no part of")):
            with self.subTest(wanted=wanted):
                self.expect_error(["inspect", self.damaged(change)], FAILED, wanted)

    def test_metadata(self):
        def stated(**changes):
            def change(_, metadata):
                metadata["quantization"] = json.dumps({**json.loads(metadata["quantization"]), **changes})
            return change

        for change, wanted in ((stated(version=2), "version 2, but this program reads w8a8-dynamic, version 1"),
                               (stated(scheme="gptq"), 'quantised by scheme "gptq"'), (stated(images=-1), "images is -1; 0 to"),
                               (stated(images=1e300), "images is 1e+300; a whole number"), (stated(seed=-1), "seed is -1; a whole number from 0"),
                               (stated(seed=2**70), "a whole number from 0 is wanted"), (stated(smoothing=2), "smoothing is 2; a number from 0 to 1"),
                               (stated(smoothing="much"), "a number from 0 to 1 is wanted"), (stated(parent_sha256=7), "parent_sha256 is 7"),
                               (stated(extra=1), 'key "extra" is unknown'),
                               (lambda _, m: m.update(quantization="[1]"), "metadata 'quantization' is [1]; an object {...} is wanted"),
                               (lambda _, m: m.update(quantization="[["), "metadata 'quantization' is not JSON"),
                               (lambda _, m: m.pop("quantization"), "is int8, and no metadata 'quantization'")):
            with self.subTest(wanted=wanted):
                self.expect_error(["inspect", self.damaged(change)], FAILED, wanted)

    def test_what_takes_the_parent(self):
        path = self.quantize(CIFAR, "--calibrate", "0")
        for verb, args in (("quantize", ["--model", path, "--out", "y.safetensors"]), ("convert", [path, "y.safetensors"]),
                           ("training", ["--model", path, "--data-path", "."])):
            with self.subTest(verb=verb):
                self.expect_error(["finetune" if verb == "training" else verb, *args], FAILED,
                                  f"{verb} takes the checkpoint that it was made of")

    def test_flags(self):
        for args, wanted in ((["--out", "x.pt"], "--out x.pt: expected a name that ends in .safetensors"),
                             (["--out", "x.safetensors", "--calibrate", "0", "--seed", "1"], "--calibrate above 0"),
                             ([], "--out")):
            with self.subTest(args=args):
                self.expect_error(["quantize", "--model", TINY, *args], USAGE, wanted)
        self.expect_error(["generate", "--model", CIFAR, "--dtype", "int8", "--engine", "reference"], USAGE,
                          "the reference engine has no 8-bit arithmetic")
        self.expect_error(["convert", TINY, "x.safetensors", "--dtype", "int8"], USAGE, "--dtype")
        self.expect_error(["verify", "--model", TINY, "--reference", GOLDEN / "forward.safetensors", "--dtype", "int8"], USAGE,
                          "--dtype int8: recordings are compared in f32 and bf16")
        vae = vae_files.write_kl(self.work / "vae")
        self.expect_error(["bench", "--vae", vae, "--dtype", "int8"], USAGE, "--vae takes f32 and bf16")


if __name__ == "__main__":
    support.main()
