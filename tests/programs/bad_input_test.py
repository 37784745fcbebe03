"""Bad inputs and bad targets: one line that says what is wrong, the right exit code, nothing left behind."""

import re
import struct

import numpy as np

import support
from support import CIFAR, GOLDEN, TINY, ProgramTest

FAILED, USAGE = 1, 2
ONE_STEP = ["--steps", "1", "--threads", "1"]


class BrokenFileTest(ProgramTest):
    """Files that are not what they should be, given to every verb that reads a model."""

    def expect_refused(self, path, *fragments):
        """By inspect, generate and convert alike, naming the file."""
        for args in (["inspect", path], ["generate", "--model", path, "--latents", "x.safetensors", *ONE_STEP],
                     ["convert", path, "x.safetensors"]):
            self.expect_error(args, FAILED, str(path), *fragments)

    def test_missing(self):
        self.expect_refused(self.work / "none.safetensors", "No such file")
        self.expect_error(["verify", "--model", "none.pt", "--reference", GOLDEN / "forward.safetensors"], FAILED, "none.pt")
        self.expect_error(["verify", "--model", TINY, "--reference", "none.safetensors"], FAILED, "none.safetensors")

    def test_folder(self):
        self.expect_refused(self.work, "is an empty folder, not a folder of weights")

    def test_empty(self):
        self.expect_refused(self.write("empty.pt", b""), "is empty")

    def test_truncated(self):
        for model in (TINY, support.TINY_PT):
            content = model.read_bytes()
            for size in (5, 40, len(content) // 2, len(content) - 1):
                with self.subTest(model=model.name, size=size):
                    path = self.write("cut" + model.suffix, content[:size])
                    self.expect_error(["inspect", path], FAILED, str(path))

    def test_not_weights(self):
        self.expect_refused(self.write("text.pt", "These are no weights.\n" * 50), "not a weight file")
        self.expect_refused(self.write("image.png.safetensors", b"\xff\xd8\xff\xe0 a JPEG"), "not a weight file")

    def test_png_as_model(self):
        path = self.write("image.png", support.tiny_png())
        for args in (["generate", "--model", path, *ONE_STEP], ["convert", path, "x.safetensors"],
                     ["verify", "--model", path, "--reference", GOLDEN / "forward.safetensors"]):
            self.expect_error(args, FAILED, str(path), "not a weight file")

    def test_broken_png(self):
        self.expect_error(["inspect", self.write("cut.png", support.tiny_png()[:40])], FAILED, "cut.png")

    def test_old_torch_format(self):
        self.expect_error(["inspect", self.write("old.pt", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")], FAILED,
                          "legacy format")


class SafetensorsTest(ProgramTest):
    """Safetensors headers that lie."""

    def expect_refused(self, entries, data, *fragments):
        path = self.write("lie.safetensors", support.safetensors_bytes(entries, data))
        self.expect_error(["inspect", path], FAILED, str(path), *fragments)

    @staticmethod
    def entry(begin, end, shape, dtype="F32"):
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    def test_huge_header(self):
        path = self.write("huge.safetensors", struct.pack("<Q", 1 << 60) + b'{"a":{}}' * 8)
        self.expect_error(["inspect", path], FAILED, str(path), str(1 << 60))

    def test_overlap(self):
        self.expect_refused({"a": self.entry(0, 8, [2]), "b": self.entry(4, 12, [2])}, bytes(12), '"b"', "inside")

    def test_hole(self):
        self.expect_refused({"a": self.entry(0, 8, [2]), "b": self.entry(12, 20, [2])}, bytes(20), "8 to 12", "no tensor")

    def test_hole_at_the_end(self):
        self.expect_refused({"a": self.entry(0, 8, [2])}, bytes(12), "8", "12")

    def test_past_the_end(self):
        self.expect_refused({"a": self.entry(0, 400, [100])}, bytes(8), '"a"', "400")

    def test_shape_against_bytes(self):
        self.expect_refused({"a": self.entry(0, 8, [3])}, bytes(8), '"a"', "takes 12")

    def test_uncountable_shape(self):
        self.expect_refused({"a": self.entry(0, 8, [1 << 40, 1 << 40])}, bytes(8), '"a"', "more elements")

    def test_unknown_dtype(self):
        self.expect_refused({"a": self.entry(0, 8, [2], "F31")}, bytes(8), '"a"', "F31", "BF16")

    def test_not_json(self):
        self.expect_refused('{"a": nonsense}', bytes(8), "not valid JSON")


class WeightsTest(ProgramTest):
    """Well-formed files whose weights are not those of a DiT."""

    @classmethod
    def setUpClass(cls):
        cls.tensors, cls.metadata = support.load(TINY)

    def expect_refused(self, change, *fragments, metadata=None):
        """`change` edits the tensors of the golden model."""
        tensors = dict(self.tensors)
        change(tensors)
        path = self.save("wrong.safetensors", tensors, {**self.metadata, **(metadata or {})})
        self.expect_error(["generate", "--model", path, "--latents", "x.safetensors", *ONE_STEP], FAILED, str(path), *fragments)

    def test_unchanged_is_accepted(self):
        self.run_ok("inspect", self.save("same.safetensors", self.tensors, self.metadata))

    def test_missing_tensor(self):
        self.expect_refused(lambda w: w.pop("blocks.1.attn.proj.bias"), "blocks.1.attn.proj.bias is missing",
                            "nearest present: blocks.0.attn.proj.bias")

    def test_missing_block(self):
        def drop(tensors):
            for name in [name for name in tensors if name.startswith("blocks.0.")]:
                del tensors[name]
        self.expect_refused(drop, "blocks.0.", "is missing")

    def test_nothing_known(self):
        self.expect_error(["inspect", self.save("other.safetensors", {"bert.layer": np.zeros(3, np.float32)})], FAILED,
                          "is missing", "bert.layer", "DiT or DyDiT")

    def test_unknown_tensor(self):
        self.expect_refused(lambda w: w.update({"lora.down": np.zeros(2, np.float32)}), "lora.down")

    def test_wrong_rank(self):
        name = "x_embedder.proj.weight"
        self.expect_refused(lambda w: w.update({name: w[name].reshape(w[name].shape[0], -1)}), name, "2 dimensions")
        name = "blocks.1.attn.qkv.weight"
        self.expect_refused(lambda w: w.update({name: w[name].reshape(-1)}), name, "1 dimensions")

    def test_wrong_shape(self):
        name = "blocks.1.attn.qkv.bias"
        self.expect_refused(lambda w: w.update({name: w[name][:-1]}), name, f"({rows_of(self.tensors[name]) - 1})",
                            f"({rows_of(self.tensors[name])})")

    def test_whole_numbers(self):
        name = "blocks.1.attn.qkv.bias"
        self.expect_refused(lambda w: w.update({name: w[name].astype(np.int32)}), name, "I32")

    def test_nan(self):
        for value in (np.nan, np.inf):
            name = "blocks.1.mlp.fc2.weight"
            broken = self.tensors[name].copy()
            broken[3, 5] = value
            self.expect_refused(lambda w: w.update({name: broken}), name, "NaN")

    def test_newer_format(self):
        self.expect_refused(lambda w: None, "dydit_format 3", metadata={"dydit_format": "3"})

    def test_other_gate_rule(self):
        self.expect_refused(lambda w: None, "gate rule 'topk'", metadata={"gate_rule": "topk"})

    def test_broken_metadata(self):
        self.expect_refused(lambda w: None, "'config' is not JSON", metadata={"config": "{", "dydit_format": "1"})
        self.expect_refused(lambda w: None, "class_names", metadata={"class_names": '["one"]', "dydit_format": "1"})

    def test_heads_contradict(self):
        for model in (TINY, CIFAR):
            self.expect_error(["inspect", model, "--num-heads", "4"], FAILED, str(model), "4", "heads")


def rows_of(tensor):
    return tensor.shape[0]


class PickleTest(ProgramTest):
    """Torch files are data: nothing in them is ever called."""

    @classmethod
    def setUpClass(cls):
        cls.weights, cls.storages = support.pickled_weights(support.load(TINY)[0])

    def test_built_by_hand_is_accepted(self):
        path = support.torch_file(self.work / "good.pt", support.pickled_dict({"model": self.weights}), self.storages)
        self.assertEqual(self.run_json("inspect", path)["weights"], "model")

    def system_call(self):
        return support.pickled_call("os", "system", support.pickled_text(f"touch {self.work}/called"))

    def test_system_call_among_weights(self):
        path = support.torch_file(self.work / "evil.pt",
                                  support.pickled_dict({"ema": support.pickled_dict({"pos_embed": self.system_call()})}), {})
        self.expect_error(["inspect", path], FAILED, str(path), "os.system", "pos_embed")

    def test_system_call_as_the_whole(self):
        path = support.torch_file(self.work / "evil.pt", self.system_call(), {})
        self.expect_error(["convert", path, "x.safetensors"], FAILED, str(path), "os.system")

    def test_system_call_beside_weights_is_never_made(self):
        path = support.torch_file(self.work / "evil.pt",
                                  support.pickled_dict({"model": self.weights, "args": self.system_call()}), self.storages)
        self.run_ok("inspect", path)
        self.assertEqual(list(self.files()), ["evil.pt"])

    def expect_refused(self, tensor, *fragments):
        path = support.torch_file(self.work / "large.pt", support.pickled_dict({"pos_embed": tensor}), {"0": bytes(16)})
        self.expect_error(["inspect", path], FAILED, str(path), "pos_embed", *fragments)

    def test_tensor_of_a_trillion_elements(self):
        trillion = 10**12
        self.expect_refused(support.pickled_tensor("0", [trillion], [1], trillion), str(trillion))
        self.expect_refused(support.pickled_tensor("0", [trillion], [1], 4), str(trillion))
        self.expect_refused(support.pickled_tensor("0", [trillion], [0], 4), str(trillion))

    def test_tensor_past_its_storage(self):
        self.expect_refused(support.pickled_tensor("0", [2, 2], [3, 1], 4), "passes the end")

    def test_storage_that_is_not_there(self):
        self.expect_refused(support.pickled_tensor("7", [4], [1], 4), "model/data/7")

    def test_broken_opcodes(self):
        path = support.torch_file(self.work / "odd.pt", b"tR", {})
        self.expect_error(["inspect", path], FAILED, str(path))


class FlagValueTest(ProgramTest):
    """Values that cannot be meant."""

    def expect_usage(self, flags, *fragments, model=CIFAR, exit_code=USAGE):
        given = [str(flag) for flag in flags]
        steps = [] if any("steps" in flag for flag in given) else ["--steps", "1"]
        self.expect_error(["generate", "--model", model, "--threads", "1", *steps, *given], exit_code, *fragments)

    def test_class_out_of_range(self):
        self.expect_usage(["--classes", "10"], "class 10", "0 to 9")
        self.expect_usage(["--classes", "3,10"], "class 10")
        self.expect_usage(["--classes=-1"], "class -1", "0 to 9")

    def test_unknown_class_name(self):
        self.expect_usage(["--classes", "frgo"], "'frgo'", "nearest: 'frog'")
        self.expect_usage(["--classes", "cat"], "no class names", "--class-names", model=TINY)

    def test_steps(self):
        for steps in ("0", "1001", "-1", "many"):
            self.expect_usage(["--steps", steps], "--steps", steps)
        self.expect_usage(["--num-sampling-steps", "1001"], "1001", "1000")

    def test_other_numbers(self):
        self.expect_usage(["-n", "0"], "--num-images")
        self.expect_usage(["--batch", "0"], "--batch")
        self.expect_usage(["--threads", "0"], "--threads")
        for seed in ("-1", str(1 << 64), "1e3"):
            self.expect_usage([f"--seed={seed}"], "--seed", seed)
        for scale in ("-1", "nan", "inf"):
            self.expect_usage([f"--cfg-scale={scale}"], "--cfg-scale", scale)
        self.expect_usage(["--cfg-channels", "0"], "--cfg-channels 0")
        self.expect_usage(["--cfg-channels", "some"], "--cfg-channels some", "'all'")
        self.expect_usage(["--sampler", "ddim", "--eta", "1.5"], "--eta")
        self.expect_usage(["--sampler", "ddim", "--eta", "nan"], "--eta", "nan")

    def test_eta_needs_ddim(self):
        self.expect_usage(["--eta", "0.5"], "--eta 0.5", "ddim")

    def test_dynamic_needs_routers(self):
        self.expect_usage(["--mode", "dynamic"], "--mode dynamic", str(CIFAR), "static")

    def test_class_names_file(self):
        three = self.write("three.txt", "a\nb\nc\n")
        self.expect_usage(["--class-names", three], str(three), "3 class names", "10 classes", exit_code=FAILED)
        self.expect_usage(["--class-names", "none.txt"], "none.txt", exit_code=FAILED)
        self.expect_error(["convert", CIFAR, "x.safetensors", "--class-names", three], FAILED, str(three))

    def test_out_names(self):
        for out in ("image.jpg", "img_%d_%d.png", "img_%s.png", "img_%3.2f.png", "100%.png", "img_%03x.png"):
            self.expect_usage(["--out", out], f"--out {out}", ".png" if out == "image.jpg" else "%d")

    def test_latents_are_no_pixels(self):
        for flags in (["--out", "x.png"], ["--npz", "x.npz"], ["--out", "x.png", "--latents", "x.safetensors"],
                      ["--npz", "x.npz", "--latents", "x.safetensors"], []):
            self.expect_usage(flags, "4 channels", "--latents", model=TINY)

    def test_convert_target(self):
        for name in ("x.pth", "x", "x.safetensors.bak"):
            self.expect_error(["convert", TINY, name], USAGE, name, ".safetensors")

    def test_isa(self):
        for verb in (["generate", "--model", CIFAR], ["inspect", TINY]):
            self.expect_error(verb, USAGE, "DYDIT_ISA=sse", "AVX2", env={"DYDIT_ISA": "sse"})
            self.expect_error(verb, USAGE, "DYDIT_ISA=avx9", "avx512_bf16", env={"DYDIT_ISA": "avx9"})


class TargetTest(ProgramTest):
    """Targets that cannot be written: found before sampling, and whatever lay there stays."""

    def generate(self, *flags):
        return ["generate", "--model", CIFAR, "-n", "2", *ONE_STEP, *flags]

    def test_below_a_file(self):
        file = self.write("file", "old")
        self.expect_error(self.generate("--out", f"{file}/x.png"), FAILED, str(file))
        self.expect_error(self.generate("--out", f"{file}/folder/"), FAILED, str(file))
        self.expect_error(self.generate("--npz", f"{file}/x.npz"), FAILED, str(file))
        self.expect_error(self.generate("--latents", f"{file}/x.safetensors"), FAILED, str(file))
        self.expect_error(["convert", TINY, f"{file}/x.safetensors"], FAILED, str(file))

    def test_folder_as_file(self):
        (self.work / "x.npz").mkdir()
        (self.work / "x.safetensors").mkdir()
        self.expect_error(self.generate("--npz", "x.npz"), FAILED, "x.npz", "is a directory")
        self.expect_error(self.generate("--latents", "x.safetensors"), FAILED, "x.safetensors", "is a directory")
        self.expect_error(["convert", TINY, "x.safetensors"], FAILED, "x.safetensors", "is a directory")

    def test_second_target(self):
        file = self.write("file", "old")
        self.expect_error(self.generate("--out", "x.png", "--latents", f"{file}/x.safetensors"), FAILED, str(file))
        self.expect_error(self.generate("--out", "x.png", "--npz", f"{file}/x.npz"), FAILED, str(file))

    def test_full_device(self):
        for flag in ("--out", "--npz", "--latents"):
            self.expect_error(self.generate(flag, "/dev/full"), FAILED, "/dev/full", "No space left")

    def test_failed_reading_keeps_the_old_target(self):
        self.write("x.safetensors", "old")
        self.expect_error(["convert", self.write("bad.pt", "bad"), "x.safetensors"], FAILED, "bad.pt")


class FullDiskTest(ProgramTest):
    """A small tmpfs with a little room left; needs the right to mount."""

    def expect_full(self, args, target):
        with support.small_disk(self, 64) as disk:
            (disk / target).write_bytes(b"old")
            (disk / "filling").write_bytes(bytes(56 * 1024))
            self.expect_error(args, FAILED, f"disk/{target}: ", "No space left")
            (disk / "filling").unlink()

    def generate(self, *flags):
        return ["generate", "--model", CIFAR, "-n", "8", *ONE_STEP, *flags]

    def test_png(self):
        self.expect_full(self.generate("--out", "disk/grid.png"), "grid.png")

    def test_npz(self):
        self.expect_full(self.generate("--npz", "disk/x.npz"), "x.npz")

    def test_latents(self):
        self.expect_full(self.generate("--latents", "disk/x.safetensors"), "x.safetensors")

    def test_convert(self):
        self.expect_full(["convert", TINY, "disk/x.safetensors"], "x.safetensors")

    def test_folder_keeps_whole_images(self):
        with support.small_disk(self, 64) as disk:
            (disk / "filling").write_bytes(bytes(48 * 1024))
            result = self.run_program(*self.generate("--out", "disk/"), "-q")
            self.assertEqual(result.returncode, FAILED)
            self.assertRegex(result.stderr, r"\Adydit: error: .*/?disk/0000\d\d\.png: cannot write: No space left.*\n\Z")
            images = sorted(path.name for path in disk.iterdir() if path.name != "filling")
            self.assertEqual(images, [f"{i:06}.png" for i in range(len(images))])
            self.assertTrue(images, "room for some images was left")
            self.assertEqual(re.findall(r"^wrote disk/(.*)$", result.stdout, re.M), images)
            for image in images:
                self.assertEqual(support.read_png(disk / image).shape, (32, 32, 3))


if __name__ == "__main__":
    support.main()
