"""dydit inspect and dydit convert: what a checkpoint is said to be, and what becomes of it."""

import json

import numpy as np

import support
from support import CIFAR, SHARED, TINY, TINY_PT, ProgramTest

STATIC_PT = SHARED / "data" / "dit-cifar10-static.pt"


class InspectTest(ProgramTest):
    TINY_CONFIG = {"hidden_size": 96, "depth": 2, "num_heads": 3, "patch_size": 2, "input_size": 16, "in_channels": 4,
                   "num_classes": 10, "learn_sigma": True}

    def inspect(self, *args):
        return self.run_json("inspect", *args)

    def test_dynamic(self):
        said = self.inspect(TINY)
        self.assertEqual((said["format"], said["weights"], said["tdw"], said["sdt"], said["dtype"]),
                         ("safetensors", "", True, True, "Float"))
        self.assertEqual({key: said["config"][key] for key in self.TINY_CONFIG}, self.TINY_CONFIG)
        tensors, _ = support.load(TINY)
        self.assertEqual(said["parameters"], sum(tensor.size for name, tensor in tensors.items() if name != "pos_embed"))
        self.assertGreater(said["router_gmacs"], 0)

    def test_plan(self):
        plan = self.inspect(TINY, "--plan-steps", "5")["plan"]
        self.assertEqual(len(plan["steps"]), 5)
        for step in plan["steps"]:
            self.assertEqual((len(step["heads"]), len(step["groups"])), (2, 2))
            self.assertTrue(all(1 <= heads <= 3 for heads in step["heads"] + step["groups"]), step)
            self.assertTrue(0 < step["work_share"] <= 1.1, step)
        self.assertEqual({plan["steps"][0]["timestep"], plan["steps"][-1]["timestep"]}, {0, 999})

    def test_torch_file(self):
        said = self.inspect(TINY_PT)
        self.assertEqual((said["format"], said["weights"]), ("torch zip", "ema"))
        self.assertEqual(said["config"], self.inspect(TINY)["config"])

    def test_static(self):
        said = self.inspect(CIFAR)
        self.assertEqual((said["tdw"], said["sdt"], said["router_gmacs"]), (False, False, 0))
        self.assertNotIn("plan", said)
        self.assertEqual((said["config"]["in_channels"], said["config"]["input_size"]), (3, 32))
        self.assertEqual((said["class_names"][3], len(said["class_names"])), ("cat", 10))

    def test_text(self):
        said = self.run_ok("inspect", TINY_PT)
        for part in ("torch zip, weights 'ema'", "64 tokens", "width (TDW) yes, token (SDT) yes", "width plan", "sha256"):
            self.assertIn(part, said)
        self.assertIn("airplane, automobile", self.run_ok("inspect", CIFAR))


class WeightsTest(ProgramTest):
    """A file with several sets of weights: golden/model.pt has ema and model, of which ema is half."""

    def test_every_verb_has_the_flag(self):
        for verb in ("generate", "inspect", "verify", "convert", "train", "finetune", "bench", "evaluate"):
            self.assertIn("--weights", self.run_ok(verb, "--help"), verb)

    def test_inspect_lists_the_choices(self):
        said = self.run_json("inspect", TINY_PT)
        self.assertEqual([choice["key"] for choice in said["choices"]], ["ema", "model"])
        self.assertEqual({(choice["tensors"], choice["parameters"] > 0) for choice in said["choices"]},
                         {(len(support.load(TINY)[0]), True)})
        self.assertIn("weights     model", self.run_ok("inspect", TINY_PT))
        self.assertNotIn("choices", self.run_json("inspect", TINY))

    def test_what_was_taken_is_said(self):
        said = self.run_program("inspect", TINY_PT).stderr
        self.assertIn("took the weights 'ema' of 'ema' (", said)
        self.assertEqual(self.run_program("inspect", TINY).stderr, "")

    def test_the_other_set(self):
        self.run_ok("convert", TINY_PT, "model.safetensors", "--weights", "model")
        original, converted = support.load(TINY)[0], support.load(self.work / "model.safetensors")[0]
        self.assertTrue(all(np.array_equal(original[name], converted[name]) for name in original))

    def test_unknown_key(self):
        self.expect_error(["inspect", TINY_PT, "--weights", "emma"], 2, "--weights emma", "'ema' (", "'model' (")
        self.expect_error(["inspect", TINY, "--weights", "ema"], 2, "one set of weights without a name")

    def test_names_behind_prefixes(self):
        tensors, metadata = support.load(TINY)
        for prefix in ("module.", "_orig_mod.module."):
            path = self.work / "wrapped.safetensors"
            support.save_file({prefix + name: tensor for name, tensor in tensors.items()}, path, metadata)
            result = self.run_program("inspect", path)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("names are read without ", result.stderr)

    def test_notes_of_other_programs(self):
        tensors, _ = support.load(TINY)
        path = self.work / "foreign.safetensors"
        support.save_file(tensors, path, {"config": "hidden: 8", "class_names": "cat, dog"})
        said = self.run_json("inspect", path)
        self.assertEqual((len(said["notes"]), said["class_names"]), (2, []))


class FetchedTest(ProgramTest):
    """What fetching leaves in place of weights."""

    def test_pointers_and_pages(self):
        for name, content, what in (("m.pt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
                                    ("m.pt", "\n<!DOCTYPE html>\n<html>", "a web page"),
                                    ("m.gguf", "GGUF\x03", "GGUF")):
            path = self.write(name, content)
            for args in (["inspect", path], ["generate", "--model", path], ["convert", path, "x.safetensors"]):
                self.expect_error(args, 1, what)

    def test_folders(self):
        (self.work / "empty").mkdir()
        self.expect_error(["inspect", self.work / "empty"], 1, "is an empty folder")
        (self.work / "unpacked/archive").mkdir(parents=True)
        self.write("unpacked/archive/data.pkl", b"x")
        self.expect_error(["inspect", self.work / "unpacked"], 1, "an unpacked torch file", "zip -0 -r")


class ConvertTest(ProgramTest):
    def test_torch_file(self):
        said = self.run_json("convert", TINY_PT, "half.safetensors")
        self.assertEqual((said["weights"], said["dtype"], said["out"]), ("ema", "f32", "half.safetensors"))
        self.assertEqual(list(self.files()), ["half.safetensors"])
        converted, metadata = support.load(self.work / "half.safetensors")
        original, _ = support.load(TINY)
        self.assertEqual(set(converted), set(original))
        for name, tensor in original.items():
            self.assertEqual(converted[name].dtype, np.float32)
            self.assertTrue(np.array_equal(converted[name], 0.5 * tensor), name)
        self.assertEqual(metadata["dydit_format"], "1")
        self.assertEqual(json.loads(metadata["config"])["num_heads"], 3)
        self.assertEqual(metadata["parent_sha256"], self.run_json("inspect", TINY_PT)["sha256"])

    def test_bf16(self):
        self.run_ok("convert", TINY, "small.safetensors", "--dtype", "bf16")
        entries, data = support.header(self.work / "small.safetensors")
        for name, tensor in support.load(TINY)[0].items():
            begin, end = entries[name]["data_offsets"]
            self.assertEqual(entries[name]["shape"], list(tensor.shape))
            if name == "pos_embed":
                self.assertEqual((entries[name]["dtype"], data[begin:end]), ("F32", tensor.tobytes()))
            else:
                self.assertEqual((entries[name]["dtype"], data[begin:end]), ("BF16", support.bfloat16_bits(tensor).tobytes()), name)
        self.assertEqual(self.run_json("inspect", "small.safetensors")["dtype"], "BFloat16")

    def test_again_changes_nothing(self):
        self.run_ok("convert", TINY_PT, "one.safetensors")
        self.run_ok("convert", "one.safetensors", "two.safetensors")
        one, two = (support.load(self.work / f"{name}.safetensors")[0] for name in ("one", "two"))
        self.assertTrue(all(np.array_equal(one[name], two[name]) for name in one) and one.keys() == two.keys())

    def test_onto_itself(self):
        path = self.work / "model.safetensors"
        path.write_bytes(TINY.read_bytes())
        self.expect_error(["convert", path, path], 2, "is the input", "name another file")
        self.assertEqual(path.read_bytes(), TINY.read_bytes())

    def test_class_names(self):
        names = [f"number {i}" for i in range(10)]
        self.run_ok("convert", TINY, "named.safetensors", "--class-names", self.write("names.txt", "\r\n".join(names)))
        self.assertEqual(self.run_json("inspect", "named.safetensors")["class_names"], names)
        run = self.run_json("generate", "--model", "named.safetensors", "--classes", "number 8", "--steps", "1",
                            "--latents", "x.safetensors")
        self.assertEqual((run["images"][0]["class"], run["images"][0]["class_name"]), (8, "number 8"))

    def test_samples_stay_the_same(self):
        self.run_ok("convert", TINY_PT, "copy.safetensors")
        samples = []
        for model in (TINY_PT, "copy.safetensors"):
            self.run_ok("generate", "--model", model, "--steps", "2", "--latents", "x.safetensors")
            samples.append(support.load(self.work / "x.safetensors")[0]["latents"])
        self.assertTrue(np.array_equal(*samples))


class TrainedStaticTest(ProgramTest):
    """The torch file that the shipped CIFAR-10 model comes from, or one like it."""

    def test_convert(self):
        if not STATIC_PT.exists():
            self.skipTest(f"{STATIC_PT} is not there; set DYDIT_SHARED to the folder that holds data/")
        said = self.run_json("convert", STATIC_PT, "static.safetensors", "--dtype", "bf16")
        self.assertEqual(said["dtype"], "bf16")
        converted, _ = support.header(self.work / "static.safetensors")
        shipped, _ = support.header(CIFAR)
        ours, theirs = converted.pop("__metadata__"), shipped.pop("__metadata__")
        self.assertEqual({name: (entry["dtype"], entry["shape"]) for name, entry in converted.items()},
                         {name: (entry["dtype"], entry["shape"]) for name, entry in shipped.items()})
        self.assertEqual((json.loads(ours["config"]), ours["dydit_format"]),
                         (json.loads(theirs["config"]), theirs["dydit_format"]))
        self.run_ok("generate", "--model", "static.safetensors", "--steps", "1")
        self.assertEqual(support.read_png(self.work / "samples.png").shape, (32, 32, 3))


if __name__ == "__main__":
    support.main()
