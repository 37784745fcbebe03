"""The signature: one hash over small runs of the program, so that a change which moves a bit says so.

    signature_test.py PROGRAM TESTS_DIR                       holds the fixed runs to tests/golden/signature.json
    signature_test.py PROGRAM TESTS_DIR --record              writes that file anew: for a commit that means to change images
    signature_test.py PROGRAM TESTS_DIR --all --out FILE      hashes of all runs, at this processor's own level
    signature_test.py PROGRAM TESTS_DIR --all --compare FILE  the same of another build, against FILE: before and after

Of a run of generate are hashed its samples (float32) and labels, the work it counted, and the pixels of what it drew; of
convert and the trainer the tensors they write. Fixed are the runs whose bits are the same on every processor: CPU engine,
float32, DYDIT_ISA=avx2, and MKL, which multiplies a few small matrices, told to take one path for all (MKL_CBWR; without it
every such run differs between its instruction sets). Left out of them are bfloat16, the reference engine and training,
which are made of libraries that choose by processor. Another compiler, LibTorch or C library may round otherwise: there the
test is skipped.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

import numpy as np

import support
from support import CIFAR, GOLDEN, PROGRAM, ROOT, TINY, TINY_PT, ProgramTest, environment, read_png

RECORDED = GOLDEN / "signature.json"
CIFAR_DYNAMIC = ROOT / "models" / "dydit-cifar10-0.5.safetensors"
DIFFUSERS = GOLDEN / "diffusers"
FIXED_FLAGS = ["--engine", "cpu", "--dtype", "f32"]
FIXED_ENVIRONMENT = {"DYDIT_ISA": "avx2", "MKL_CBWR": "COMPATIBLE"}
PROCESSES = 2  # at a time

DDIM, DPM = ["--sampler", "ddim"], ["--sampler", "dpm++"]
UNGUIDED, STATIC, REFERENCE = ["--cfg-scale", "1"], ["--mode", "static"], ["--engine", "reference", "--dtype", "f32"]


@dataclasses.dataclass
class Run:
    """`verb` on `source` with `flags`; `fixed`: its bits are the same on every processor."""
    name: str
    source: pathlib.Path
    flags: list
    fixed: bool = True
    verb: str = "generate"


def fixed(name, model, *flags):
    return Run(name, model, [*FIXED_FLAGS, *flags])


def varying(name, model, *flags):
    return Run(name, model, list(flags), fixed=False)


RUNS = [
    # The tiny DyDiT of 4-channel latents: samplers, guidance, batches, timesteps, classes, seeds, noise.
    fixed("tiny ddpm", TINY, "--steps", "6", "-n", "3", "-c", "7,2", "--seed", "1"),
    fixed("tiny ddpm unguided", TINY, "--steps", "5", "-n", "2", *UNGUIDED, "--seed", "18446744073709551615"),
    fixed("tiny ddpm 2 channels", TINY, "--steps", "4", "-n", "2", "--cfg-scale", "2.5", "--cfg-channels", "2"),
    fixed("tiny ddpm all channels", TINY, "--steps", "4", "-n", "2", "--cfg-scale", "1.5", "--cfg-channels", "all"),
    fixed("tiny ddim", TINY, *DDIM, "--steps", "7", "-n", "2", "-c", "0,9"),
    fixed("tiny ddim eta .5", TINY, *DDIM, "--eta", ".5", "--steps", "5", "-n", "3", "--batch", "2"),
    fixed("tiny ddim eta 1", TINY, *DDIM, "--eta", "1", "--steps", "4", "-n", "2", "--seed", "5"),
    fixed("tiny dpm++", TINY, *DPM, "--steps", "8", "-n", "2", "-c", "3"),
    fixed("tiny dpm++ unguided", TINY, *DPM, "--steps", "2", "-n", "1", *UNGUIDED),
    fixed("tiny timesteps", TINY, "--timesteps", "900,7,0,500,431", "-n", "2"),
    fixed("tiny timesteps eta 1", TINY, *DDIM, "--timesteps", "870,0", "--eta", "1", "-n", "2"),
    fixed("tiny batches of 2", TINY, "--steps", "3", "-n", "5", "--batch", "2", "-t", "1"),
    fixed("tiny batches of 3", TINY, "--steps", "3", "-n", "7", "--batch", "3", "-t", "2", "-c", "1,1,8"),
    fixed("tiny batches of 1", TINY, *DPM, "--steps", "3", "-n", "3", "--batch", "1"),
    fixed("tiny static", TINY, "--steps", "4", "-n", "3", "--batch", "2", *STATIC),
    fixed("tiny torch noise", TINY, "--steps", "4", "-n", "3", "--noise", "torch", "--seed", "3"),
    fixed("tiny torch noise eta 1", TINY, *DDIM, "--eta", "1", "--steps", "3", "-n", "2", "--noise", "torch", *UNGUIDED),
    fixed("tiny .pt", TINY_PT, "--steps", "3", "-n", "2"),
    fixed("tiny .pt model", TINY_PT, "--weights", "model", *DDIM, "--steps", "12", "-n", "1"),
    varying("tiny reference", TINY, *REFERENCE, "--steps", "4", "-n", "3", "--batch", "2", "-t", "2"),
    varying("tiny reference static", TINY, *REFERENCE, *STATIC, *DPM, "--steps", "4", "-n", "2"),
    varying("tiny bf16", TINY, "--engine", "cpu", "--dtype", "bf16", "--steps", "4", "-n", "3", "--batch", "2"),
    varying("tiny bf16 reference", TINY, "--engine", "reference", "--dtype", "bf16", *DDIM, "--steps", "3", "-n", "2"),

    # A static DiT computed as diffusers does.
    fixed("diffusers ddpm", DIFFUSERS, "--steps", "5", "-n", "3", "--batch", "2"),
    fixed("diffusers ddim 3 channels", DIFFUSERS, *DDIM, "--steps", "4", "-n", "2", "--cfg-channels", "3"),
    fixed("diffusers dpm++ unguided", DIFFUSERS, *DPM, "--steps", "6", "-n", "2", *UNGUIDED),
    varying("diffusers reference", DIFFUSERS, *REFERENCE, "--steps", "3", "-n", "2", "-t", "2"),
    varying("diffusers bf16", DIFFUSERS, "--dtype", "bf16", "--steps", "3", "-n", "2"),

    # The two models of pixels that ship, and the pictures they draw.
    fixed("cifar ddpm", CIFAR, "--steps", "4", "-n", "3", "--batch", "2", "-c", "cat,0", "--out", "grid.png"),
    fixed("cifar ddim previews", CIFAR, *DDIM, "--steps", "4", "-n", "2", "--preview-every", "2", "--out", "grid.png"),
    fixed("cifar dpm++ unguided", CIFAR, *DPM, "--steps", "3", "-n", "1", *UNGUIDED, "-t", "2", "--npz", "images.npz"),
    fixed("cifar dynamic ddpm", CIFAR_DYNAMIC, "--steps", "6", "-n", "3", "--batch", "2", "-c", "ship,4",
          "--out", "grid.png"),
    fixed("cifar dynamic ddim .5", CIFAR_DYNAMIC, *DDIM, "--eta", ".5", "--steps", "4", "-n", "2", "-t", "2"),
    fixed("cifar dynamic dpm++", CIFAR_DYNAMIC, *DPM, "--steps", "5", "-n", "2", *UNGUIDED, "--npz", "images.npz"),
    fixed("cifar dynamic cost map", CIFAR_DYNAMIC, *DDIM, "--steps", "3", "-n", "3", "--batch", "2",
          "--cost-map", "cost.png"),
    fixed("cifar dynamic static", CIFAR_DYNAMIC, *STATIC, "--steps", "2", "-n", "2"),
    varying("cifar bf16", CIFAR, "--dtype", "bf16", "--steps", "3", "-n", "3", "--batch", "2", "--out", "grid.png"),
    varying("cifar dynamic bf16", CIFAR_DYNAMIC, "--dtype", "bf16", "--steps", "5", "-n", "3", "--batch", "2", "-t", "2"),
    varying("cifar dynamic reference", CIFAR_DYNAMIC, *REFERENCE, "--steps", "3", "-n", "2", "-t", "2"),
    varying("cifar dynamic auto", CIFAR_DYNAMIC, *DPM, "--steps", "4", "-n", "3"),

    # What is written of weights.
    Run("convert", TINY_PT, [], verb="convert"),
    Run("convert to bf16 dynamic", CIFAR, ["--dtype", "bf16", "--to", "dynamic", "--seed", "7"], verb="convert"),
    Run("convert to f32 static", CIFAR_DYNAMIC, ["--to", "static"], verb="convert"),
    Run("train", None, ["--hidden", "32", "--depth", "2", "--heads", "2", "--patch", "4"], fixed=False, verb="train"),
    Run("finetune", CIFAR, ["--router-bias", "0,0"], fixed=False, verb="finetune"),
]


def digest(*parts):
    value = hashlib.sha256()
    for part in parts:
        value.update(part if isinstance(part, bytes) else f"{part.dtype.str}{part.shape}".encode() + part.tobytes())
    return value.hexdigest()[:16]


def of_tensors(path):
    """Names, types, shapes and bytes of a safetensors file, whatever its metadata say."""
    entries, data = support.header(path)
    entries.pop("__metadata__", None)
    return digest(json.dumps(entries, sort_keys=True).encode(), data)


def hashes_of(run, variables):
    """What `run` wrote -> hash. variables: of the environment."""
    with tempfile.TemporaryDirectory(prefix="dydit-signature-") as name:
        work = pathlib.Path(name)

        def program(*args):
            result = subprocess.run([PROGRAM, *map(str, args), "--json"], cwd=work, env=environment(variables),
                                    stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=support.TIMEOUT)
            if result.returncode != 0:
                raise RuntimeError(f"{run.name}: {args}: {result.stderr}")
            return json.loads(result.stdout)

        if run.verb == "generate":
            said = program("generate", "--model", run.source, *run.flags, "--latents", "samples.safetensors")
            counted = [[image[key] for key in ("class", "required_gmacs", "executed_gmacs")] for image in said["images"]]
            hashes = {"samples": of_tensors(work / "samples.safetensors"), "work": digest(json.dumps(counted).encode())}
            pictures = sorted(work.glob("*.png"))
            if pictures:
                hashes["pixels"] = digest(*(read_png(path) for path in pictures))
            for path in work.glob("*.npz"):
                hashes["npz"] = digest(np.load(path)["arr_0"])
            return hashes
        if run.verb == "convert":
            program("convert", run.source, "out.safetensors", *run.flags)
            return {"tensors": of_tensors(work / "out.safetensors")}
        return {"tensors": of_tensors(trained(run, work, program))}


def trained(run, work, program):
    """The checkpoint after three steps on 12 images of noise, in two classes of CIFAR."""
    for index, pixels in enumerate(np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3), np.uint8)):
        path = work / "images" / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(support.png_bytes(pixels))
    model = ["--model", run.source] if run.source else []
    program(run.verb, *model, *run.flags, "--data-path", "images", "--total-train-steps", "3", "--global-batch-size", "8",
            "--accumulate", "2", "--lr", "1e-3", "--dtype", "f32", "--results-dir", "results", "-t", "1")
    return max((work / "results").glob("*/checkpoints/*.safetensors"))


def hashes_of_all(runs, variables):
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        return dict(zip((run.name for run in runs), pool.map(lambda run: hashes_of(run, variables), runs)))


def fixed_hashes():
    return hashes_of_all([run for run in RUNS if run.fixed], FIXED_ENVIRONMENT)


def made_with():
    """What may round otherwise elsewhere: the compilers that the program names, LibTorch, the C library."""
    version = json.loads(subprocess.run([PROGRAM, "--version", "--json"], capture_output=True, text=True, check=True).stdout)
    compilers = set(re.findall(rb"GCC: \([^)]*\) ([0-9.]+)", PROGRAM.read_bytes()))
    return {"compiler": sorted(name.decode() for name in compilers), "libtorch": version["libtorch"],
            "libc": " ".join(platform.libc_ver())}


def signature(hashes):
    """One hash of all."""
    return digest(json.dumps(hashes, sort_keys=True).encode())


def differences(before, now):
    """Lines: which runs are new, gone or changed, and in what."""
    lines = []
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name, {}), now.get(name, {})
        changed = [part for part in {**old, **new} if old.get(part) != new.get(part)]
        if changed:
            lines.append(f"{name}: {'gone' if not new else 'new' if not old else ', '.join(changed)}")
    return lines


class SignatureTest(ProgramTest):
    def test_no_bit_has_changed(self):
        recorded = json.loads(RECORDED.read_text())
        if recorded["made_with"] != made_with():
            self.skipTest(f"recorded with {recorded['made_with']}; here: {made_with()}")
        now = fixed_hashes()
        print(f"signature {signature(now)}", file=sys.stderr)
        lines = differences(recorded["runs"], now)
        self.assertFalse(lines, "\n".join(["these runs give other bits than tests/golden/signature.json says; if that is "
                                           "meant, record them anew (--record) and say so in the commit:", *lines]))
        self.assertEqual(recorded["signature"], signature(now))

    def test_a_difference_is_named(self):
        before = {"a": {"samples": "1", "pixels": "2"}, "b": {"samples": "3"}, "c": {"samples": "4"}}
        now = {"a": {"samples": "1", "pixels": "5"}, "b": {"samples": "3"}, "d": {"samples": "4"}}
        self.assertEqual(differences(before, now), ["a: pixels", "d: new", "c: gone"])
        self.assertEqual(differences(now, now), [])
        self.assertNotEqual(signature(before), signature(now))

    def test_names_are_unique(self):
        self.assertEqual(len({run.name for run in RUNS}), len(RUNS))


def write(path, hashes):
    text = json.dumps({"signature": signature(hashes), "made_with": made_with(), "runs": hashes}, indent=1)
    pathlib.Path(path).write_text(text + "\n")
    print(f"{path}: {len(hashes)} runs, signature {signature(hashes)}")


def by_hand(arguments):
    parser = argparse.ArgumentParser(usage=__doc__, add_help=False)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--out")
    parser.add_argument("--compare")
    options = parser.parse_args(arguments)
    if options.record:
        write(RECORDED, fixed_hashes())
    if not options.all:
        return 0
    hashes = hashes_of_all(RUNS, {})
    if options.out:
        write(options.out, hashes)
    lines = differences(json.loads(pathlib.Path(options.compare).read_text())["runs"], hashes) if options.compare else []
    print(f"signature {signature(hashes)} of {len(hashes)} runs; {len(lines)} differ", *lines, sep="\n")
    return 1 if lines else 0


if __name__ == "__main__":
    if any(argument.startswith("--") for argument in sys.argv[3:]):
        sys.exit(by_hand(sys.argv[3:]))
    support.main()
