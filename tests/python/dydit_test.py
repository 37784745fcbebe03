"""The Python module beside PyTorch. Called as FILE PROGRAM ROOT by a Python that has dydit (built by the tests, or pip
install .), torch and safetensors; skipped where it has not."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import unittest

SKIPPED = 77
for package in ("torch", "safetensors", "dydit"):
    if importlib.util.find_spec(package) is None:
        print(f"SKIPPED: {sys.executable} has no {package}")
        sys.exit(SKIPPED)

import dydit  # noqa: E402
import numpy  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

PROGRAM, ROOT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path.insert(0, str(ROOT / "benchmarks" / "rivals"))
import dit_torch  # noqa: E402

TINY = ROOT / "tests" / "golden" / "model.safetensors"  # a DyDiT of 4-channel latents
CIFAR = ROOT / "models" / "dit-cifar10.safetensors"


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


class DyditTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tiny, cls.cifar = dydit.load(str(TINY)), dydit.load(str(CIFAR))

    def test_one_libtorch(self):
        with open("/proc/self/maps") as maps:
            mapped = {line.split()[-1] for line in maps if "libtorch_cpu.so" in line}
        self.assertEqual(len(mapped), 1, mapped)
        self.assertTrue(mapped.pop().startswith(str(pathlib.Path(torch.__file__).parent)))

    def test_what_it_is(self):
        self.assertRegex(dydit.__version__, r"\A\d+\.\d+\.\d+\Z")
        self.assertEqual((self.cifar.config["input_size"], self.cifar.class_names[3]), (32, "cat"))
        self.assertGreater(self.cifar.num_parameters, 9_000_000)

    def test_classes_are_labels_or_names(self):
        make = lambda classes: self.cifar.generate(classes=classes, steps=1, cfg_scale=1.0, seed=7)
        for classes in (["cat", 8], ["cat", "ship"], "cat, ship", ["3,8"]):
            self.assertTrue(torch.equal(make(classes), make([3, 8])), classes)

    def test_generate_is_the_programs(self):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/x.safetensors"
            subprocess.run([PROGRAM, "generate", "--model", CIFAR, "--classes", "3,8", "--steps", "4", "--seed", "7",
                            "--cfg-scale", "2", "--sampler", "ddim", "--latents", path, "-q"],
                           check=True, capture_output=True)
            wanted = next(tensor for tensor in load_file(path).values() if tensor.dim() == 4)
        found = self.cifar.generate(classes=[3, 8], steps=4, seed=7, cfg_scale=2.0, sampler="ddim")
        self.assertTrue(torch.equal(found, wanted))

    def test_pictures_are_the_programs(self):
        pipeline = ROOT / "tests" / "golden" / "diffusers"
        model = dydit.load(str(pipeline))
        vae = dydit.load_vae(str(pipeline / "vae"), model)
        flags = {"steps": 4, "sampler": "ddim", "seed": 7, "dtype": torch.float32}
        latents = model.generate(classes=[1, 2], **flags)
        pictures = vae.decode(latents)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/x.npz"
            subprocess.run([PROGRAM, "generate", "--model", pipeline, "--classes", "1,2", "--steps", "4", "--sampler", "ddim",
                            "--seed", "7", "--dtype", "f32", "--npz", path, "-q"], check=True)
            wanted = torch.from_numpy(numpy.load(path)["arr_0"])
        self.assertTrue(torch.equal((pictures * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1), wanted))
        mean, logvar = vae.encode(pictures.clamp(-1, 1))
        self.assertEqual((mean.shape, logvar.shape), (latents.shape, latents.shape))
        self.assertEqual(vae.config["latent_channels"], 4)
        with self.assertRaisesRegex(ValueError, r"latents: expected \(rows, 4, height, width\) in float32"):
            vae.decode(latents[:, :3])

    def test_forward_is_pytorchs(self):
        """Rows of several timesteps in one call, with every router deciding."""
        model = dit_torch.load_model(TINY)
        x = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        t, y = torch.tensor([10, 500, 999, 500]), torch.tensor([0, 1, 2, 3])
        with torch.no_grad():
            wanted = torch.cat([model(x[i:i + 1], t[i:i + 1], y[i:i + 1], dit_torch.Gates(model.config))
                                for i in range(len(x))])
        self.tiny.prepare([10, 500, 999], dtype=torch.float32)
        self.assertLess(difference(self.tiny.forward(x, t, y), wanted), 1e-5)

    def test_families_take_their_networks_time(self):
        """Recorded forwards of SiT (t in 0..1) and of a U-ViT (999 times the noise share)."""
        for model, reference, factor in (("sit/model", "sit/forward", 1), ("uvit/uncond", "uvit/uncond_forward", 999)):
            vectors = load_file(str(TINY.parent / f"{reference}.safetensors"))
            made = dydit.load(str(TINY.parent / f"{model}.safetensors"))
            made.prepare([0.5], dtype=torch.float32)
            labels = vectors.get("y", torch.zeros(len(vectors["x"]), dtype=torch.int64))
            out = made.forward(vectors["x"], vectors["t"].double() * factor, labels)[:, :vectors["out"].shape[1]]
            self.assertLess(difference(out, vectors["out"]), 1e-5)
        self.assertEqual(dydit.load(str(TINY.parent / "uvit/uncond.safetensors")).generate(steps=2).shape, (1, 3, 8, 8))

    def test_forward_takes_numbers_lists_and_tensors(self):
        x = torch.randn(2, 3, 32, 32)
        wanted = self.cifar.forward(x, 7, 3)
        for t, y in ((torch.tensor(7), [3, 3]), ([7, 7], torch.tensor([3, 3], dtype=torch.int32))):
            self.assertTrue(torch.equal(self.cifar.forward(x, t, y), wanted))

    def test_forward_takes_views(self):
        x = torch.randn(2, 32, 32, 3)
        self.assertTrue(torch.equal(self.cifar.forward(x.permute(0, 3, 1, 2), 7, 3),
                                    self.cifar.forward(x.permute(0, 3, 1, 2).contiguous(), 7, 3)))

    def test_results_may_be_used_with_autograd(self):
        factor = torch.ones((), requires_grad=True)
        for result in (self.cifar.forward(torch.randn(1, 3, 32, 32), 7, 3), self.cifar.generate(steps=1)):
            (factor * result).sum().backward()

    def test_plan_is_the_programs(self):
        said = json.loads(subprocess.run([PROGRAM, "inspect", TINY, "--plan-steps", "3", "--json", "-q"], check=True,
                                         capture_output=True, text=True).stdout)["plan"]["steps"]
        timesteps = [step["timestep"] for step in said]
        plan = self.tiny.plan(timesteps)
        config = self.tiny.config
        self.assertEqual(plan["timesteps"], timesteps)
        for kind in ("heads", "groups"):
            self.assertEqual((plan[kind].dtype, tuple(plan[kind].shape)),
                             (torch.bool, (3, config["depth"], config["num_heads"])))
            self.assertEqual(plan[kind].sum(2).tolist(), [step[kind] for step in said])
        self.assertLess(plan["heads"].float().mean(), 1)
        self.assertEqual(self.tiny.plan(timesteps, mode="static")["heads"].float().mean(), 1)

    def test_errors(self):
        x = torch.zeros(1, 3, 32, 32)
        for error, words, call in (
            (ValueError, "'frgo' is unknown; nearest: 'frog'", lambda: self.cifar.generate(classes=["frgo"])),
            (ValueError, "class 10", lambda: self.cifar.generate(classes=[10])),
            (ValueError, "no class", lambda: self.cifar.generate(classes=[])),
            (ValueError, "ddpn", lambda: self.cifar.generate(sampler="ddpn")),
            (ValueError, "expected float32", lambda: self.cifar.generate(dtype=torch.float64)),
            (ValueError, "no 8-bit arithmetic", lambda: self.cifar.generate(steps=1, dtype=torch.int8, engine="reference")),
            (ValueError, "(rows, 3, 32, 32)", lambda: self.cifar.forward(x[:, :2], 0, 0)),
            (ValueError, "1000", lambda: self.cifar.forward(x, 1000, 0)),
            (ValueError, "1000", lambda: self.cifar.plan([1000])),
            (ValueError, "-1", lambda: self.cifar.prepare([-1])),
            (ValueError, "no timestep", lambda: self.cifar.prepare([])),
            (ValueError, "class 11", lambda: self.cifar.forward(x, 0, 11)),
            (ValueError, "2 numbers for 1 rows", lambda: self.cifar.forward(x, [0, 0], 0)),
            (RuntimeError, "none.safetensors", lambda: dydit.load("none.safetensors")),
        ):
            with self.assertRaises(error) as raised:
                call()
            self.assertIn(words.lower(), str(raised.exception).lower())
            self.assertNotIn("\n", str(raised.exception))

    def test_progress_and_its_exceptions(self):
        seen = []
        self.cifar.generate(steps=3, progress=lambda done, total: seen.append((done, total)))
        self.assertEqual(seen, [(1, 3), (2, 3), (3, 3)])

        def stop(done, total):
            raise KeyError("stop")

        with self.assertRaises(KeyError):
            self.cifar.generate(steps=3, progress=stop)

    def test_the_lock_is_released(self):
        """Another thread counts while an image is made."""
        counted, stop = [0], threading.Event()

        def count():
            while not stop.is_set():
                counted[0] += 1

        thread = threading.Thread(target=count)
        before = None

        def progress(done, total):
            nonlocal before
            before = counted[0] if done == 1 else before

        thread.start()
        try:
            self.cifar.generate(steps=8, progress=progress, threads=1, dtype=torch.float32)
            self.assertGreater(counted[0], before + 1000)
        finally:
            stop.set()
            thread.join()


if __name__ == "__main__":
    run = unittest.main(argv=[sys.argv[0], *sys.argv[3:]], exit=False, verbosity=2).result
    sys.exit(0 if run.wasSuccessful() and run.testsRun else 1)
