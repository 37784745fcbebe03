"""Names from outside: classes on the command line and in files, files of images, and records that say how to make an
image again."""

import json
import os
import re
import shlex
import struct
import subprocess
import zlib

import numpy as np

import support
from support import TINY, ProgramTest, read_png

FAILED, USAGE = 1, 2
ONE_STEP = ["--steps", "1", "--dtype", "f32"]


class NamesBase(ProgramTest):
    @classmethod
    def setUpClass(cls):
        cls.tensors, cls.metadata = support.load(TINY)
        cls.config = json.loads(cls.metadata["config"])
        cls.classes = cls.config["num_classes"]

    def model(self, names=None, name="m.safetensors"):
        """The golden DyDiT cut to three channels, its classes called `names` and then class 5, class 6, ..."""
        tensors = dict(self.tensors)
        tensors["x_embedder.proj.weight"] = tensors["x_embedder.proj.weight"][:, :3]
        for part in ("weight", "bias"):  # rows (p, q, eps and variance of 4 channels)
            old = tensors[f"final_layer.linear.{part}"]
            tensors[f"final_layer.linear.{part}"] = old.reshape(4, 2, 4, *old.shape[1:])[:, :, :3].reshape(
                24, *old.shape[1:]) * np.float32(0.01)
        metadata = {"config": json.dumps({**self.config, "in_channels": 3})}
        if names is not None:
            metadata["class_names"] = json.dumps([*names, *(f"class {i}" for i in range(len(names), self.classes))])
        return self.save(name, tensors, metadata)

    def labels(self, model, *flags, env=None):
        return self.run_json("generate", "--model", model, *ONE_STEP, "--npz", "x.npz", *flags, env=env)["classes"]

    def command(self, image):
        said = self.run_ok("inspect", image)
        return shlex.split(re.search(r"^make again +(.*)$", said, re.MULTILINE).group(1))[1:]


class ClassesTest(NamesBase):
    def test_numbers_are_labels_and_the_image_is_made_again(self):
        for names, given in ((["2", "0", "1"], "0,2"), (["1", "10", "2"], "10"), (["3, 1", "3, 1", "a"], "1,2"),
                             (["2", "0", "1"], "name:0"), (["a, b", "a", "b", "0"], "3,\"a, b\"")):
            model = self.model(names)
            self.run_ok("generate", "--model", model, *ONE_STEP, "--classes", given, "--out", "first.png")
            self.run_ok(*self.command("first.png"), "--out", "again.png")
            self.assertTrue(np.array_equal(read_png(self.work / "first.png"), read_png(self.work / "again.png")), names)
        self.assertEqual(self.labels(self.model(["2", "0", "1"]), "--classes", "2"), [2])

    def test_names_with_commas(self):
        model = self.model(["perch, Perca fluviatilis", "pike", "crane", "crane, derrick"])
        for given, wanted in (("perch, Perca fluviatilis", [0]), ("Perca fluviatilis", [0]), ("pike,perch", [1, 0]),
                              ("derrick,\"perch, Perca fluviatilis\",1", [3, 0, 1])):
            self.assertEqual(self.labels(model, "--classes", given), wanted)
            self.assertEqual(self.labels(model, env={"DYDIT_CLASSES": given}), wanted)
        toml = self.write("run.toml", 'classes = ["perch, Perca fluviatilis", "pike", 3]\n')
        self.assertEqual(self.labels(model, "--config", toml), [0, 1, 3])
        toml = self.write("run.toml", 'classes = "perch, Perca fluviatilis"\n')
        self.assertEqual(self.labels(model, "--config", toml), [0])
        make = ["generate", "--model", model, *ONE_STEP]
        self.expect_error([*make, "--classes", "crane"], USAGE, "--classes: class 'crane' is a name of 2 classes", "2, 3")
        self.expect_error([*make, "--config", self.write("run.toml", 'classes = "crane"\n')], USAGE, "run.toml: --classes: ")

    def test_what_was_taken_is_told(self):
        said = self.run_program("generate", "--model", self.model(["1", "10"]), *ONE_STEP, "--classes", "1,0", "--npz", "x.npz")
        self.assertIn("classes  1 (10), 0 (1)\n", said.stderr)


class ClassNamesFileTest(NamesBase):
    def names(self, first, end="\n"):
        text = end.join([*first, *(f"class {i}" for i in range(len(first), self.classes))]) + end
        return text if isinstance(text, str) else text

    def test_marks_and_line_ends_are_no_part_of_a_name(self):
        for name, content in (("mark.txt", b"\xef\xbb\xbf" + self.names(["ant"]).encode()),
                              ("lines.txt", self.names(["ant"], "\r\n").encode()),
                              ("blank.txt", ("\n\n" + self.names(["ant"]) + "\n").encode())):
            run = self.run_json("generate", "--model", self.model(), *ONE_STEP, "--classes", "ant", "--npz", "x.npz",
                                "--class-names", self.write(name, content))
            self.assertEqual(run["images"][0]["class_name"], "ant")

    def test_what_is_no_text_names_file_and_line(self):
        for content, words in ((self.names(["a", "b"]).encode() + b"caf\xe9\n", ("line ", "caf\\xe9")),
                               (self.names(["a"]).encode("utf-16"), ("UTF-16",)), (b"a\0b\n", ("line 1", "byte 0")),
                               (self.names(["a", "\x1b[31mb"]).encode(), ("line 2", "\\x1b[31mb")),
                               (self.names(["a", "b"], "\r").encode(), ("line 1", "\\x0d"))):
            path = self.write("names.txt", content)
            for args in (["convert", TINY, "x.safetensors"], ["generate", "--model", self.model(), *ONE_STEP, "--npz", "x.npz"]):
                said = self.expect_error([*args, "--class-names", path], FAILED, "names.txt", *words)
                self.assertNotIn("exception", said)

    def test_names_of_several_classes_are_told(self):
        path = self.write("names.txt", self.names(["ant", "bee", "ant"]))
        said = self.run_program("convert", TINY, "x.safetensors", "--class-names", path)
        self.assertIn("classes 0, 2 are all called 'ant'", said.stderr)

    def test_a_pipe_is_read(self):
        done = subprocess.run(["bash", "-c", f"{shlex.quote(str(support.PROGRAM))} convert {shlex.quote(str(TINY))} x.safetensors -q "
                               f"--class-names <(printf %s {shlex.quote(self.names(['ant']))})"], cwd=self.work,
                              env=support.environment(), capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))


class RecordTest(NamesBase):
    def png_with(self, record):
        body = b"tEXtdydit\0" + json.dumps(record).encode()
        image = support.tiny_png()
        return self.write("x.png", image[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
                          + image[33:])

    def record(self):
        self.run_ok("generate", "--model", self.model(["ant"]), *ONE_STEP, "--out", "made.png")
        return self.run_json("inspect", "made.png")["record"]

    def test_no_command_of_a_strangers_making(self):
        good = self.record()
        for key, value in (("sampler", "ddpm; touch OWNED #"), ("mode", "$(touch OWNED)"), ("classes", ["1; id"]),
                           ("num_images", 10**30), ("model", {"file": "\x1b]0;x\x07"}), ("noise", "a\nb")):
            result = self.run_program("inspect", self.png_with({**good, key: value}))
            self.assertEqual(result.returncode, FAILED, key)
            self.assertNotIn("make again", result.stdout)
            self.assertIn("no dydit writes that", result.stderr)
        command = self.command(self.png_with({**good, "model": {"file": "a b'$(id).pt"}}))
        self.assertEqual(command[command.index("--model") + 1], "a b'$(id).pt")

    def test_no_control_character_reaches_the_terminal(self):
        evil = "\x1b[31m\x9b31m\u202e"
        good = self.record()
        good["spacing"], good[evil], good["images"][0][evil] = evil, 1, evil
        for path in (self.png_with(good), self.png_with([evil])):
            for flags in ([], ["--json"]):
                said = self.run_program("inspect", path, *flags)
                for character in "\x1b\x9b":
                    self.assertNotIn(character, said.stdout + said.stderr)

    def test_names_that_are_no_text_lose_no_image(self):
        path = os.fsencode(self.work) + b"/caf\xe9.safetensors"
        os.rename(self.model(["ant"]), path)
        for out in ("one.png", "many/"):
            done = subprocess.run([support.PROGRAM, b"generate", b"--model", path, b"--steps", b"1", b"-n", b"2", b"--out",
                                   out.encode(), b"--npz", b"x.npz", b"--latents", b"x.safetensors"], cwd=self.work,
                                  env=support.environment(), capture_output=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            for image in self.work.rglob("*.png"):
                self.assertIn("caf", self.run_json("inspect", image)["record"]["model"]["file"])

    def test_a_preview_and_a_cost_map_are_made_again(self):
        self.run_ok("generate", "--model", self.model(), "--steps", "4", "--dtype", "f32", "--out", "a.png", "--preview-every", "2",
                    "--cost-map", "map.png")
        wanted = {name: read_png(self.work / name) for name in ("a_step0002.png", "map.png")}
        (self.work / "map.png").unlink()
        self.run_ok(*self.command("a_step0002.png"), "--out", "b.png")
        self.assertTrue(np.array_equal(read_png(self.work / "b_step0002.png"), wanted["a_step0002.png"]))
        self.run_ok("generate", "--model", self.model(), "--steps", "4", "--dtype", "f32", "--out", "a.png", "--cost-map", "map.png")
        self.run_ok(*self.command("map.png"), "--out", "b.png")
        self.assertTrue(np.array_equal(read_png(self.work / "cost-map.png"), wanted["map.png"]))

    def test_how_the_model_was_loaded_is_part_of_the_command(self):
        names = self.write("my names.txt", "".join(f"n{i}\n" for i in range(self.classes)))
        heads = self.config["num_heads"]
        self.run_ok("generate", "--model", self.model(), *ONE_STEP, "--num-heads", heads, "--class-names", names.name, "--out", "a.png")
        command = self.command("a.png")
        self.assertEqual(command[command.index("--num-heads") + 1], str(heads))
        self.assertEqual(command[command.index("--class-names") + 1], "my names.txt")
        self.run_ok(*command, "--out", "b.png")

    def test_a_large_grid_is_read(self):
        self.run_ok("generate", "--model", self.model(["caf\u00e9"]), *ONE_STEP, "-n", "5000", "--batch", "256", "--out", "a.png")
        self.assertGreater((self.work / "a.png").stat().st_size, 1 << 20)
        self.assertEqual(len(self.run_json("inspect", "a.png")["record"]["images"]), 5000)

    def test_a_larger_one_is_refused_before_sampling(self):
        make = ["generate", "--model", self.model(), *ONE_STEP]
        self.expect_error([*make, "-n", "50000", "--out", "a.png"], USAGE, "--out a.png: a grid of 50000 images", "65536", "folder")
        self.expect_error([*make, "-n", "50000", "--out", "a/", "--cost-map", "m.png"], USAGE, "--cost-map m.png: a grid of 50000")


class FileNamesTest(NamesBase):
    """A percent sign is a pattern's in the file's name only; no two outputs are one file."""

    def files_of(self, *flags):
        return self.run_json("generate", "--model", self.model(), *ONE_STEP, *flags)["files"]

    def test_percent_signs(self):
        for out, images, wanted in (("50%off/x.png", 1, ["50%off/x.png"]), ("100%/%d.png", 2, ["100%/0.png", "100%/1.png"]),
                                    ("%d/", 1, ["%d/000000.png"]), ("100%%.png", 1, ["100%.png"]),
                                    ("a%%d_%02d.png", 1, ["a%d_00.png"]), ("%%%d%%.png", 1, ["%0%.png"])):
            self.assertEqual(self.files_of("-n", images, "--out", out), wanted)
            self.assertTrue((self.work / wanted[0]).is_file())
        self.assertEqual(self.files_of("--npz", "%d.npz"), ["%d.npz", "%d.npz.json"])
        for out in ("5%/100%.png", "%d_%d.png", "%s.png", "%"):
            self.expect_error(["generate", "--model", self.model(), "--out", out], USAGE, f"--out {out}", "%% for a percent sign")

    def test_two_outputs_of_one_name(self):
        (self.work / "link").symlink_to(".")
        self.write("old.png", "old")
        (self.work / "also.png").symlink_to("old.png")
        for flags in (["--npz", "x", "--latents", "./x"], ["--npz", "x.npz", "--latents", "link/x.npz.json"],
                      ["--out", "old.png", "--cost-map", "also.png"], ["--out", "a/", "--cost-map", "a/000001.png"],
                      ["--out", "a_%d.png", "--cost-map", "./a_2.png"], ["--out", "x.png", "--cost-map", "x.png"],
                      ["--out", "x.png", "--preview-every", "1", "--cost-map", "x_step0001.png"],
                      ["--out", "a/", "--preview-every", "1", "--cost-map", "a/000002_step0001.png"]):
            self.expect_error(["generate", "--model", self.model(), "--steps", "2", "-n", "3", *flags], USAGE, "writes that file")
        self.assertEqual(len(self.files_of("-n", "3", "--out", "a_%d.png", "--cost-map", "a_3.png")), 4)


if __name__ == "__main__":
    support.main()
