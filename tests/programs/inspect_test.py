"""dydit inspect of files that are no checkpoints; --svg and --csv: the width plan as a picture and as rows."""

import csv
import json
import re
import shlex
import struct
import time
import xml.etree.ElementTree
import zlib

import numpy as np

import support
from support import CIFAR, TINY, ProgramTest

FAILED, USAGE = 1, 2
SAMPLE = ["generate", "--model", CIFAR, "--classes", "ship,1", "-n", "3", "--steps", "2", "--dtype", "f32"]


class PlanFilesTest(ProgramTest):
    def test_the_rows_are_the_plan_of_the_json(self):
        plan = self.run_json("inspect", TINY, "--plan-steps", "7", "--csv", "plan.csv")["plan"]
        with open(self.work / "plan.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 7)
        for row, step in zip(rows, plan["steps"], strict=True):
            self.assertEqual(int(row["timestep"]), step["timestep"])
            self.assertAlmostEqual(float(row["work_share"]), step["work_share"], places=5)
            for kind in ("heads", "groups"):
                self.assertEqual([int(row[f"{kind}_{block}"]) for block in range(len(step[kind]))], step[kind])

    def test_the_picture_is_xml(self):
        self.run_ok("inspect", TINY, "--svg", "plan.svg")
        root = xml.etree.ElementTree.parse(self.work / "plan.svg").getroot()
        self.assertEqual(root.tag, "{http://www.w3.org/2000/svg}svg")

    def test_a_static_model_has_no_plan_to_draw(self):
        for flag in ("--svg", "--csv"):
            self.expect_error(["inspect", CIFAR, flag, "plan.out"], USAGE, flag, "static DiT")
            self.assertFalse((self.work / "plan.out").exists())


class NpzTest(ProgramTest):
    """Samples, data sets and statistics."""

    samples = {}  # generated once: name -> bytes

    def generate(self):
        """x.npz with its record."""
        if not self.samples:
            self.run_ok(*SAMPLE, "--npz", "x.npz")
            self.samples.update(self.files())
        for name, content in self.samples.items():
            self.write(name, content)

    def savez(self, name="x.npz", save=np.savez, **arrays):
        save(self.work / name, **arrays)
        return name

    def arrays(self, name):
        said = self.run_json("inspect", name)["arrays"]
        return {array["name"]: (array["dtype"], tuple(array["shape"])) for array in said}

    def test_samples_are_counted(self):
        self.generate()
        self.assertEqual(self.run_json("inspect", "x.npz")["images"],
                         {"count": 3, "height": 32, "width": 32, "channels": 3})

    def test_samples_are_told_to_people(self):
        self.generate()
        self.assertRegex(self.run_ok("inspect", "x.npz"), r"(?m)^images +3 of 32x32 pixels, RGB$")

    def test_record_beside_it_is_shown(self):
        self.generate()
        self.assertEqual(self.run_json("inspect", "x.npz")["record"], json.loads(self.samples["x.npz.json"]))

    def test_make_again(self):
        self.generate()
        command = shlex.split(re.search(r"^make again +(.*)$", self.run_ok("inspect", "x.npz"), re.MULTILINE).group(1))
        command[command.index("--model") + 1] = str(CIFAR)
        self.run_ok(*command[1:], "--npz", "again.npz")
        self.assertEqual((self.work / "again.npz").read_bytes(), (self.work / "x.npz").read_bytes())

    def test_without_a_record_there_is_none(self):
        self.savez(arr_0=np.zeros((2, 4, 4, 3), np.uint8))
        self.assertNotIn("record", self.run_json("inspect", "x.npz"))

    def test_broken_record_is_named(self):
        self.savez(arr_0=np.zeros((2, 4, 4, 3), np.uint8))
        self.write("x.npz.json", "[1]")
        self.expect_error(["inspect", "x.npz"], FAILED, "x.npz.json is no JSON object")

    def test_many_images_of_a_record_are_cut_short(self):
        self.generate()
        record = json.loads(self.samples["x.npz.json"])
        record["images"] = record["images"][:1] * 1000
        self.write("x.npz.json", json.dumps(record))
        said = self.run_ok("inspect", "x.npz")
        self.assertEqual(len(re.findall(r"^image ", said, re.MULTILINE)), 17)
        self.assertIn("and 984 more", said)

    def test_labels_are_counted(self):
        self.savez(images=np.zeros((4, 8, 6), np.uint8), labels=np.array([5, 1, 5, 3]))
        said = self.run_json("inspect", "x.npz")
        self.assertEqual(said["labels"], {"count": 4, "classes": 3, "lowest": 1, "highest": 5})

    def test_images_without_channels_are_gray(self):
        self.savez(images=np.zeros((4, 8, 6), np.uint8), labels=np.array([5, 1, 5, 3]))
        self.assertEqual(self.run_json("inspect", "x.npz")["images"],
                         {"count": 4, "height": 8, "width": 6, "channels": 1})

    def test_compressed_arrays_are_read(self):
        self.savez(save=np.savez_compressed, arr_0=np.zeros((9, 8, 8, 1), np.uint8), arr_1=np.arange(9) % 4)
        said = self.run_json("inspect", "x.npz")
        self.assertEqual((said["images"]["count"], said["labels"]["classes"]), (9, 4))

    def test_statistics_are_listed(self):
        self.savez(mu=np.zeros(20), sigma=np.zeros((20, 20), np.float32))
        self.assertEqual(self.arrays("x.npz"), {"mu": ("float64", (20,)), "sigma": ("float32", (20, 20))})

    def test_statistics_are_told_to_people(self):
        self.savez(mu=np.zeros(20), sigma=np.zeros((20, 20), np.float32))
        self.assertRegex(self.run_ok("inspect", "x.npz"), r"(?m)^array +sigma: float32 \(20, 20\)$")

    def test_statistics_are_no_images(self):
        self.savez(mu=np.zeros(20), sigma=np.zeros((20, 20)))
        self.assertTrue({"images", "labels"}.isdisjoint(self.run_json("inspect", "x.npz")))

    def test_numbers_that_are_no_labels_are_not_counted(self):
        self.savez(arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=np.array([-1, 5]))
        self.assertNotIn("labels", self.run_json("inspect", "x.npz"))

    def test_other_types_are_named_as_numpy_stores_them(self):
        self.savez(words=np.array(["ab"]), big=np.zeros(2, ">f4"))
        self.assertEqual(self.arrays("x.npz"), {"words": ("<U2", (1,)), "big": (">f4", (2,))})

    def test_single_array(self):
        np.save(self.work / "x.npy", np.zeros((2, 3), np.int16))
        said = self.run_json("inspect", "x.npy")
        self.assertEqual((said["format"], said["dtype"], said["shape"]), ("npy", "int16", [2, 3]))

    def test_cut_file_is_named(self):
        self.savez(arr_0=np.zeros((20, 4, 4, 3), np.uint8))
        self.write("cut.npz", (self.work / "x.npz").read_bytes()[:500])
        self.expect_error(["inspect", "cut.npz"], FAILED, "cut.npz: damaged zip file")


class RecordTest(ProgramTest):
    def test_nested_record_does_not_take_the_stack(self):
        record = '{"seed": 1, "deep": ' + "[" * 400_000 + "]" * 400_000 + "}"
        body = b"tEXtdydit\0" + record.encode()
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        png = support.tiny_png()
        self.write("x.png", png[:33] + chunk + png[33:])
        self.expect_error(["inspect", "x.png"], FAILED, "x.png: its text 'dydit' is no JSON object", "deep")


class EventsTest(ProgramTest):
    """The log of a run of dydit train: 8 steps, a row every 2, and grids at 4 and 8."""

    trained = {}  # once: the log, the CSV's text and the time

    def train(self):
        for name, level in (("dark", 40), ("light", 200)):
            (self.work / "images" / name).mkdir(parents=True)
            for i in range(4):
                (self.work / "images" / name / f"{i}.png").write_bytes(
                    support.png_bytes(np.full((8, 8, 3), level + i, np.uint8)))
        self.run_ok("train", "--data-path", "images", "--results-dir", "results", "--hidden", "32", "--depth", "1",
                    "--heads", "2", "--patch", "2", "--global-batch-size", "4", "--dtype", "f32", "--total-train-steps",
                    "8", "--log-every", "2", "--sample-every", "4", "--sample-steps", "1", "--ckpt-every", "8")
        run = next((self.work / "results").iterdir())
        self.trained.update({"log": next(run.glob("events.out.tfevents.*")).read_bytes(),
                             "log.csv": (run / "log.csv").read_bytes(), "ended": time.time()})

    def setUp(self):
        super().setUp()
        if not self.trained:
            self.train()
        self.log = self.write("log", self.trained["log"])
        self.rows = list(csv.DictReader(self.trained["log.csv"].decode().splitlines()))

    def test_scalars_are_those_of_the_csv(self):
        scalars = self.run_json("inspect", self.log)["scalars"]
        self.assertEqual(set(scalars), set(self.rows[0]) - {"step", "seconds"})
        for tag in ("loss", "lr"):
            values = [float(row[tag]) for row in self.rows]
            wanted = {"count": 4, "first": values[0], "last": values[-1], "min": min(values), "max": max(values)}
            for key, value in wanted.items():
                self.assertAlmostEqual(scalars[tag][key], value, places=5, msg=(tag, key))

    def test_steps(self):
        said = self.run_json("inspect", self.log)
        self.assertEqual((said["first_step"], said["last_step"]), (2, 8))

    def test_times(self):
        said = self.run_json("inspect", self.log)
        self.assertLessEqual(said["first_time"], said["last_time"])
        self.assertAlmostEqual(said["last_time"], self.trained["ended"], delta=10)

    def test_every_event_is_counted(self):
        said = self.run_json("inspect", self.log)
        values = sum(scalar["count"] for scalar in said["scalars"].values()) + sum(said["images"].values())
        self.assertEqual(said["events"], 1 + values)  # the first says the file's version

    def test_images_are_counted(self):
        self.assertEqual(self.run_json("inspect", self.log)["images"], {"samples": 2})

    def test_people_see_a_row_a_tag(self):
        said = self.run_ok("inspect", self.log)
        self.assertRegex(said, r"(?m)^  loss +4 ")
        self.assertRegex(said, r"(?m)^  samples +2$")
        self.assertRegex(said, r"(?m)^steps +2 to 8$")

    def test_whole_file_is_not_cut(self):
        self.assertEqual(self.run_json("inspect", self.log)["cut_bytes"], 0)

    def test_cut_end_is_told(self):
        whole = self.run_json("inspect", self.log)
        self.write("cut", self.log.read_bytes()[:-7])
        cut = self.run_json("inspect", "cut")
        self.assertEqual(cut["events"], whole["events"] - 1)
        self.assertGreater(cut["cut_bytes"], 0)
        self.assertIn(f"its last {cut['cut_bytes']} bytes are no whole event", self.run_ok("inspect", "cut"))

    def test_damage_before_the_end_is_an_error(self):
        content = bytearray(self.log.read_bytes())
        content[len(content) // 2] ^= 1
        self.write("broken", bytes(content))
        self.expect_error(["inspect", "broken"], FAILED, "broken: damaged event file at byte")


if __name__ == "__main__":
    support.main()
