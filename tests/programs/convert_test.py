"""dydit convert between safetensors and torch files, and from static to dynamic and back."""

import json
import subprocess

import numpy as np

import support
from support import CIFAR, ROOT, TINY, ProgramTest

USAGE = 2
TORCH_PYTHON = ROOT / "build" / "rivals" / "bin" / "python"  # one with PyTorch, where there is one

# Prints name, dtype, shape and sum of each tensor under "ema", and the configuration.
READ = """
import json, sys, torch
file = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
assert set(file) == {"ema", "cfg", "metadata"}, set(file)
print(json.dumps({"cfg": file["cfg"], "metadata": file["metadata"],
                  "ema": {name: [str(t.dtype), list(t.shape), t.double().sum().item()] for name, t in file["ema"].items()}}))
"""


class TorchFileTest(ProgramTest):
    def test_there_and_back(self):
        self.run_ok("convert", TINY, "tiny.pt")
        self.run_ok("convert", "tiny.pt", "back.safetensors")
        self.assertEqual(sorted(self.files()), ["back.safetensors", "tiny.pt"])
        original, before = support.load(TINY)
        back, after = support.load(self.work / "back.safetensors")
        self.assertEqual(set(back), set(original))
        for name, tensor in original.items():
            self.assertTrue(np.array_equal(back[name], tensor), name)
        for key in ("lambda", "gate_rule", "class_names", "keep_counts"):
            self.assertEqual(after.get(key), before.get(key, "threshold" if key == "gate_rule" else None), key)

    def test_class_names_survive(self):
        self.run_ok("convert", CIFAR, "cifar.pt", "--dtype", "bf16")
        self.assertEqual(self.run_json("inspect", "cifar.pt")["class_names"], self.run_json("inspect", CIFAR)["class_names"])
        self.assertEqual(self.run_json("inspect", "cifar.pt")["dtype"], "BFloat16")

    def test_sound_to_pytorch(self):
        if not TORCH_PYTHON.exists():
            self.skipTest(f"{TORCH_PYTHON} is not there: no PyTorch to read the file with")
        for dtype, name in ("f32", "torch.float32"), ("bf16", "torch.bfloat16"):
            self.run_ok("convert", TINY, "tiny.pt", "--dtype", dtype)
            said = json.loads(subprocess.run([TORCH_PYTHON, "-c", READ, self.work / "tiny.pt"], check=True,
                                             capture_output=True, text=True).stdout)
            self.assertEqual(said["cfg"]["num_heads"], 3)
            self.assertEqual(said["metadata"]["dydit_format"], "1")
            tensors, _ = support.load(TINY)
            self.assertEqual(set(said["ema"]), set(tensors))
            for key, tensor in tensors.items():
                got_dtype, shape, total = said["ema"][key]
                self.assertEqual((got_dtype, shape), ("torch.float32" if key == "pos_embed" else name, list(tensor.shape)))
                # bfloat16 keeps eight bits of each element.
                self.assertLessEqual(abs(total - tensor.astype(np.float64).sum()),
                                     1e-6 + (np.abs(tensor).sum() / 256 if dtype == "bf16" else 0), key)


# Loads a folder with diffusers and compares its forward with the recorded one.
DIFFUSERS = """
import sys, torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file
model, recorded = DiTTransformer2DModel.from_pretrained(sys.argv[1]).eval(), load_file(sys.argv[2])
with torch.no_grad():
    out = model(recorded["x"], timestep=recorded["t"], class_labels=recorded["y"]).sample
print(((out - recorded["out"]).abs().max() / recorded["out"].abs().max()).item())
"""


class DiffusersTest(ProgramTest):
    FOLDER = ROOT / "tests" / "golden" / "diffusers"

    def test_says_what_differs_and_keeps_the_semantics(self):
        said = self.run_program("convert", self.FOLDER, "kept.safetensors").stderr
        for part in ("10000^(-i/127)", "1e-5", "all channels", "variance", "in diffusers's way"):
            self.assertIn(part, said)
        self.assertIn("as diffusers does", self.run_ok("inspect", "kept.safetensors"))
        config = self.run_json("inspect", "kept.safetensors")["config"]
        self.assertEqual((config["semantics"], config["num_heads"]), ("diffusers", 3))

    def test_original_semantics_by_a_switch(self):
        self.run_ok("convert", self.FOLDER, "original.safetensors", "--semantics", "original")
        self.assertNotIn("semantics", self.run_json("inspect", "original.safetensors")["config"])
        options = ("--classes", "1", "--steps", "2", "--latents")
        self.run_ok("generate", "--model", "original.safetensors", *options, "a.safetensors")
        self.run_ok("generate", "--model", self.FOLDER, *options, "b.safetensors")
        (a, _), (b, _) = (support.load(self.work / name) for name in ("a.safetensors", "b.safetensors"))
        self.assertTrue(any(not np.array_equal(a[name], b[name]) for name in a if a[name].ndim == 4))

    def test_there_and_back(self):
        self.run_ok("convert", self.FOLDER, "a.safetensors")
        self.run_ok("convert", "a.safetensors", "folder/")
        self.run_ok("convert", "folder", "b.safetensors")
        (a, _), (b, _) = (support.load(self.work / name) for name in ("a.safetensors", "b.safetensors"))
        self.assertEqual(set(a), set(b))
        self.assertTrue(all(np.array_equal(a[name], b[name]) for name in a))

    def test_sound_to_diffusers(self):
        self.run_ok("convert", self.FOLDER, "a.safetensors")
        self.run_ok("convert", "a.safetensors", "folder/")
        if not TORCH_PYTHON.exists() or subprocess.run([TORCH_PYTHON, "-c", "import diffusers"], capture_output=True).returncode:
            self.skipTest(f"{TORCH_PYTHON} has no diffusers")
        run = subprocess.run([TORCH_PYTHON, "-c", DIFFUSERS, self.work / "folder", self.FOLDER / "forward.safetensors"],
                             check=True, capture_output=True, text=True)
        self.assertLess(float(run.stdout), 1e-6)

    def test_routers_have_no_place(self):
        self.run_ok("convert", self.FOLDER, "dynamic.safetensors", "--to", "dynamic")
        self.expect_error(["convert", "dynamic.safetensors", "folder/"], USAGE, "--to static drops them")
        self.run_ok("convert", "dynamic.safetensors", "folder/", "--to", "static")


class RoutersTest(ProgramTest):
    def test_to_static_drops_the_routers_alone(self):
        self.run_ok("convert", TINY, "static.safetensors", "--to", "static")
        dynamic, _ = support.load(TINY)
        static, metadata = support.load(self.work / "static.safetensors")
        self.assertEqual(set(dynamic) - set(static), {name for name in dynamic if "router" in name or "token_sel" in name})
        self.assertTrue(all(np.array_equal(static[name], dynamic[name]) for name in static))
        self.assertTrue(set(metadata).isdisjoint({"lambda", "gate_rule", "keep_counts"}))
        said = self.run_json("inspect", "static.safetensors")
        self.assertEqual((said["tdw"], said["sdt"], said["config"]["num_heads"]), (False, False, 3))

    def test_to_dynamic_begins_with_everything_on(self):
        # A long-trained timestep embedding may outweigh a bias of 15 here and there; that of the tiny model does not.
        self.run_ok("convert", TINY, "static.safetensors", "--to", "static")
        self.run_ok("convert", "static.safetensors", "dynamic.safetensors", "--to", "dynamic")
        tensors, metadata = support.load(self.work / "dynamic.safetensors")
        self.assertEqual(metadata["gate_rule"], "threshold")
        for name, tensor in tensors.items():
            if name.endswith("router.bias"):
                self.assertTrue(np.all(tensor == 15), name)
            if name.endswith("mlp_head.2.bias"):
                self.assertTrue(np.all(tensor == 35), name)
        said = self.run_json("inspect", "dynamic.safetensors", "--plan-steps", "3")
        self.assertEqual((said["tdw"], said["sdt"]), (True, True))
        heads = said["config"]["num_heads"]
        self.assertTrue(all(set(step["heads"] + step["groups"]) == {heads} for step in said["plan"]["steps"]))

    def test_wrong_direction(self):
        self.expect_error(["convert", CIFAR, "x.safetensors", "--to", "static"], USAGE, "has no routers")
        self.expect_error(["convert", TINY, "x.safetensors", "--to", "dynamic"], USAGE, "has routers already")


if __name__ == "__main__":
    support.main()
