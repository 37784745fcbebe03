"""Files between C++ and Python: what one side writes the other reads with equal values.

files_test.py TOOL WORKDIR, with numpy and safetensors installed; TOOL is files_tool of the build.
"""

import pathlib
import shutil
import subprocess
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

EXPECTED = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
    "doubles": np.arange(3, dtype=np.float64),
    "longs": np.arange(4, dtype=np.int64).reshape(2, 2),
    "bytes": np.arange(5, dtype=np.uint8),
    "bools": np.array([False, True, False]),
    "scalar": np.array(0, dtype=np.float32),
    "empty": np.zeros((0, 2), dtype=np.float32),
}


def check_safetensors_from_cpp(path):
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(EXPECTED), file.keys()
        assert file.metadata() == {"note": 'grüß "quoted"'}, file.metadata()
        for name, wanted in EXPECTED.items():
            got = file.get_tensor(name)
            assert got.dtype == wanted.dtype and got.shape == wanted.shape, (name, got.dtype, got.shape)
            assert np.array_equal(got, wanted), (name, got)


def check_npz_from_cpp(path):
    with np.load(path) as file:
        assert file.files == ["arr_0"], file.files
        images = file["arr_0"]
    assert images.dtype == np.uint8 and images.flags.c_contiguous, (images.dtype, images.flags)
    assert np.array_equal(images, np.arange(72, dtype=np.uint8).reshape(4, 2, 3, 3)), images


def check_safetensors_from_python(tool, path):
    tensors = {
        "a": np.arange(10, dtype=np.float32).reshape(5, 2),
        "b": np.array([-3, 1, 4], dtype=np.int16),
        "c": np.array([True, True, False]),
        "d": np.full((2, 1, 2), 0.25, dtype=np.float64),
        "e": np.zeros((0, 3), dtype=np.float32),
    }
    save_file(tensors, path, metadata={"config": '{"depth": 2}'})
    printed = subprocess.run([tool, "sums", path], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == [
        "a F32 (5, 2) 45",
        "b I16 (3) 2",
        "c BOOL (3) 2",
        "d F64 (2, 1, 2) 1",
        "e F32 (0, 3) 0",
        '# config {"depth": 2}',
    ], printed


def main():
    tool, workdir = sys.argv[1], pathlib.Path(sys.argv[2])
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    subprocess.run([tool, "write", workdir], check=True)
    check_safetensors_from_cpp(workdir / "cpp.safetensors")
    check_npz_from_cpp(workdir / "cpp.npz")
    check_safetensors_from_python(tool, workdir / "python.safetensors")


if __name__ == "__main__":
    main()
