"""TensorBoard reads our event files: scalars and images come back, also after a resume took steps away.

events_test.py TOOL WORKDIR, with tensorboard installed; TOOL is data_tool of the build.
"""

import pathlib
import shutil
import subprocess
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util


def events(folder):
    files = sorted(folder.glob("events.out.tfevents.*"))
    assert len(files) == 1, files
    return list(EventFileLoader(str(files[0])).Load())


def scalars(folder, tag):
    return [(event.step, float(tensor_util.make_ndarray(value.tensor)))
            for event in events(folder) for value in event.summary.value if value.tag == tag]


def images(folder):
    """(step, width, height, encoded) as the loader's new form has them: a tensor of strings."""
    for event in events(folder):
        for value in event.summary.value:
            if value.tag == "sample":
                width, height, *encoded = value.tensor.string_val
                yield event.step, int(width), int(height), encoded[0]


def check(folder, last_step):
    steps = [step for step in range(10) if step <= last_step]
    got = scalars(folder, "loss")
    assert [step for step, _ in got] == steps, got
    assert all(abs(value - 1 / (step + 1)) < 1e-6 for step, value in got), got
    png = (folder / "image.png").read_bytes()
    assert list(images(folder)) == [(step, 3, 2, png) for step in steps if step % 5 == 0]


def main():
    tool, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run([tool, "events", folder], check=True)
    assert events(folder)[0].file_version == "brain.Event:2"
    check(folder, 9)
    assert scalars(folder, "late") == [(2**40, -1.5)]

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    assert [scalar.step for scalar in accumulator.Scalars("loss")] == list(range(10))
    assert [(image.step, image.width, image.height) for image in accumulator.Images("sample")] == [(0, 3, 2), (5, 3, 2)]

    subprocess.run([tool, "truncate", folder, "6"], check=True)
    check(folder, 6)
    assert scalars(folder, "late") == []


if __name__ == "__main__":
    main()
