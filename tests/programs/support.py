"""What the tests of the program share: running it, expecting errors, small readers and writers of its files.

A test file is called as FILE PROGRAM TESTS_DIR [CLASS...]; tests/CMakeLists.txt makes a ctest entry of each class.
"""

import contextlib
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
import zipfile
import zlib

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

PROGRAM = pathlib.Path(sys.argv[1]).resolve()
TESTS = pathlib.Path(sys.argv[2]).resolve()
ROOT = TESTS.parent
SHARED = pathlib.Path(os.environ.get("DYDIT_SHARED", ROOT / ".." / "shared")).resolve()
GOLDEN = TESTS / "golden"
TINY = GOLDEN / "model.safetensors"  # a DyDiT of 4-channel latents
TINY_PT = GOLDEN / "model.pt"  # the same; its ema is half of it
CIFAR = ROOT / "models" / "dit-cifar10.safetensors"  # a static DiT of pixels, with class names

SKIPPED = 77  # exit code of a class of which every test was skipped
TIMEOUT = 120


def environment(extra=None):
    """Ours without DYDIT_* but DYDIT_ISA, which caps the whole suite, one thread (tests run side by side), `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DYDIT_") or name == "DYDIT_ISA"}
    return {**kept, "DYDIT_THREADS": "1", **(extra or {})}


class ProgramTest(unittest.TestCase):
    """Each test runs the program in an empty folder of its own, self.work."""

    def setUp(self):
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="dydit-test-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)

    def run_program(self, *args, env=None):
        return subprocess.run([PROGRAM, *map(str, args)], cwd=self.work, env=environment(env), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=TIMEOUT)

    def run_ok(self, *args, env=None):
        """Runs quietly: exit 0 and nothing on stderr. Returns stdout."""
        result = self.run_program(*args, "-q", env=env)
        self.assertEqual((result.returncode, result.stderr), (0, ""), args)
        return result.stdout

    def run_json(self, *args, env=None):
        """Runs with --json: stdout is exactly one object on one line."""
        return self.one_object(self.run_ok(*args, "--json", env=env))

    def one_object(self, stdout):
        self.assertEqual(stdout.count("\n"), 1, stdout)
        self.assertTrue(stdout.endswith("\n"), stdout)
        value = json.loads(stdout)
        self.assertIsInstance(value, dict)
        return value

    def expect_error(self, args, exit_code, *fragments, env=None, quiet=True):
        """One line on stderr that holds `fragments`, the exit code, no output, no file made, changed or removed."""
        before = self.files()
        result = self.run_program(*args, *(["-q"] if quiet else []), env=env)
        said = f"{args}\nexit {result.returncode}\nstderr: {result.stderr}\nstdout: {result.stdout}"
        self.assertEqual(result.returncode, exit_code, said)
        self.assertEqual(result.stdout, "", said)
        self.assertTrue(result.stderr.startswith("dydit: error: "), said)
        self.assertEqual(result.stderr.count("\n"), 1, said)
        self.assertTrue(result.stderr.endswith("\n"), said)
        for fragment in fragments:
            self.assertIn(fragment, result.stderr, said)
        self.assertEqual(self.files(), before, said)
        return result.stderr

    def files(self):
        """Everything below self.work, hidden files too: relative name -> bytes (None for a folder)."""
        return {str(path.relative_to(self.work)): path.read_bytes() if path.is_file() else None
                for path in sorted(self.work.rglob("*"))}

    def write(self, name, content):
        path = self.work / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def save(self, name, tensors, metadata=None):
        path = self.work / name
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata=metadata)
        return path


def main():
    """Runs the classes named after PROGRAM and TESTS_DIR, or all. Exits with 77 when all tests were skipped."""
    run = unittest.main(argv=[sys.argv[0], *sys.argv[3:]], exit=False, verbosity=2).result
    for test, reason in run.skipped:
        print(f"SKIPPED {test.id()}: {reason}", file=sys.stderr)
    if not run.wasSuccessful() or run.testsRun == 0:
        sys.exit(1)
    sys.exit(SKIPPED if len(run.skipped) == run.testsRun else 0)


# Checkpoints.

def load(path):
    """Tensors and metadata of a safetensors file (dtypes that numpy knows)."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def resnet56(seed=0):
    """Tensors of a CIFAR ResNet-56 with random weights."""
    random, tensors = np.random.default_rng(seed), {}

    def unit(conv, norm, inputs, outputs):
        tensors[f"{conv}.weight"] = random.normal(0, (2 / (9 * inputs)) ** 0.5, (outputs, inputs, 3, 3)).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = np.full(outputs, part in ("weight", "running_var"), np.float32)

    unit("conv1", "bn1", 3, 16)
    inputs = 16
    for layer in (1, 2, 3):
        for block in range(9):
            at = f"layer{layer}.{block}."
            unit(at + "conv1", at + "bn1", inputs, 8 << layer)
            unit(at + "conv2", at + "bn2", 8 << layer, 8 << layer)
            inputs = 8 << layer
    tensors["linear.weight"] = random.normal(0, 0.1, (10, 64)).astype(np.float32)
    tensors["linear.bias"] = np.zeros(10, np.float32)
    return tensors


def header(path):
    """Header of a safetensors file as it stands there, and the data after it."""
    content = pathlib.Path(path).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:8 + length]), content[8 + length:]


def safetensors_bytes(entries, data):
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(text)) + text + data


def bfloat16_bits(values):
    """Upper 16 bits of float32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


# Torch zip files, opcode by opcode (protocol 2), with whatever an honest writer would not put there.

def pickled_text(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def pickled_number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def pickled_tuple(*items):
    return b"(" + b"".join(items) + b"t"


def pickled_dict(items):
    return b"}(" + b"".join(pickled_text(key) + value for key, value in items.items()) + b"u"


def pickled_call(module, name, *arguments):
    return f"c{module}\n{name}\n".encode() + pickled_tuple(*arguments) + b"R"


def pickled_tensor(key, sizes, strides, numel):
    storage = pickled_tuple(pickled_text("storage"), b"ctorch\nFloatStorage\n", pickled_text(key), pickled_text("cpu"),
                            pickled_number(numel)) + b"Q"
    return pickled_call("torch._utils", "_rebuild_tensor_v2", storage, pickled_number(0),
                        pickled_tuple(*map(pickled_number, sizes)), pickled_tuple(*map(pickled_number, strides)),
                        b"\x89", b"}")


def torch_file(path, root, storages):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("model/data.pkl", b"\x80\x02" + root + b".")
        archive.writestr("model/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"model/data/{key}", content)
        archive.writestr("model/version", "3\n")
    return path


def pickled_weights(tensors):
    """A dict of float32 tensors, and their storages."""
    entries, storages = {}, {}
    for index, (name, tensor) in enumerate(tensors.items()):
        strides = [int(np.prod(tensor.shape[axis + 1:])) for axis in range(tensor.ndim)]
        entries[name] = pickled_tensor(str(index), tensor.shape, strides, tensor.size)
        storages[str(index)] = tensor.astype("<f4").tobytes()
    return pickled_dict(entries), storages


# Images.

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3}  # of the colour types gray and RGB


def read_png(path):
    """Pixels (height, width, channels) uint8 of an 8-bit, non-interlaced PNG; every checksum is checked."""
    content = pathlib.Path(path).read_bytes()
    assert content.startswith(PNG_SIGNATURE), path
    chunks, at = [], len(PNG_SIGNATURE)
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at:at + 8])
        body = content[at + 8:at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length:at + 12 + length])[0] == zlib.crc32(kind + body), (path, kind)
        chunks.append((kind, body))
        at += 12 + length
    assert chunks[0][0] == b"IHDR" and chunks[-1][0] == b"IEND", (path, chunks)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    assert depth == 8 and not interlaced, (path, depth, interlaced)
    channels = PNG_CHANNELS[colour]
    rows = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    return unfilter(np.frombuffer(rows, np.uint8).reshape(height, 1 + width * channels), channels).reshape(
        height, width, channels)


def unfilter(rows, channels):
    """PNG's five filters, undone byte by byte."""
    above, out = [0] * (rows.shape[1] - 1 + channels), []  # with a border of zeros on the left
    for kind, *values in rows.tolist():
        line = [0] * channels
        for x, value in enumerate(values, start=channels):
            left, up, corner = line[x - channels], above[x], above[x - channels]
            if kind == 4:  # Paeth: whichever of the three is nearest to left + up - corner
                distances = (abs(up - corner), abs(left - corner), abs(left + up - 2 * corner))
                predicted = (left, up, corner)[distances.index(min(distances))]
            else:
                predicted = (0, left, up, (left + up) // 2)[kind]
            line.append((value + predicted) % 256)
        out.append(line[channels:])
        above = line
    return np.array(out, np.uint8)


def png_bytes(pixels):
    """An 8-bit PNG of uint8 pixels (height, width, 1 or 3), no filter."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    height, width, channels = pixels.shape
    colour = {1: 0, 3: 2}[channels]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return (PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def write_resnet20(path, seed=1):
    """A ResNet-20 of CIFAR-10 with random weights, whose features are as good as any to compare sets of images with."""
    rng = np.random.default_rng(seed)
    tensors = {"linear.weight": rng.normal(0, .2, (10, 64)).astype(np.float32), "linear.bias": np.zeros(10, np.float32)}

    def unit(conv, norm, outputs, inputs):
        tensors[f"{conv}.weight"] = rng.normal(0, (2 / (9 * inputs)) ** .5, (outputs, inputs, 3, 3)).astype(np.float32)
        for part in ("weight", "running_var"):
            tensors[f"{norm}.{part}"] = np.ones(outputs, np.float32)
        for part in ("bias", "running_mean"):
            tensors[f"{norm}.{part}"] = rng.normal(0, .1, outputs).astype(np.float32)

    unit("conv1", "bn1", 16, 3)
    inputs = 16
    for layer, outputs in enumerate((16, 32, 64), 1):
        for j in range(3):
            at = f"layer{layer}.{j}."
            unit(at + "conv1", at + "bn1", outputs, inputs)
            unit(at + "conv2", at + "bn2", outputs, outputs)
            inputs = outputs
    save_file(tensors, path)
    return path


def tiny_png():
    """One red pixel."""
    return png_bytes(np.array([[[255, 0, 0]]], np.uint8))


@contextlib.contextmanager
def small_disk(test, kilobytes):
    """A file system of that size in test.work / "disk"; skips the test where mounting is not permitted."""
    disk = test.work / "disk"
    disk.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk],
                                 capture_output=True, text=True)
    except FileNotFoundError:
        test.skipTest("no mount program here")
    if mounted.returncode != 0:
        test.skipTest(f"mounting a small tmpfs is not permitted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)
        disk.rmdir()
