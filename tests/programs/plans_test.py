"""Plans from the outside: what caches and guidance cost and change, what is refused, and that a record makes it again."""

import csv
import json
import os
import re
import shlex
import unittest

import numpy as np

import support
from support import CIFAR, ROOT, SHARED, TINY, ProgramTest

FAILED, USAGE = 1, 2
DYNAMIC = ROOT / "models" / "dydit-cifar10-0.5.safetensors"
RUN = ["--sampler", "ddim", "--steps", "12", "--cfg-scale", "2", "--dtype", "f32"]


class PlansBase(ProgramTest):
    def make(self, *flags, model=CIFAR):
        """The JSON of a run, and its pixels."""
        result = self.run_json("generate", "--model", model, *RUN, *flags, "--npz", "x.npz")
        with np.load(self.work / "x.npz") as file:
            return result, file["arr_0"]

    def plan(self, steps, **more):
        """A plan file for the CIFAR-10 models, (attn, mlp) and more keys a step."""
        whole = {"dydit_plan": 1, "name": "by hand", "depth": 8, "num_heads": 8, "num_tokens": 64, "forecast": "taylor",
                 **more, "steps": [{"t": 960 - 80 * i, **step} for i, step in enumerate(steps)]}
        return self.write("plan.json", json.dumps(whole))


FULL = {"attn": "c" * 8, "mlp": "c" * 8}
REUSE = {"attn": "0" * 8, "mlp": "0" * 8}


class PlanImagesTest(PlansBase):
    def test_a_plan_that_computes_everything_changes_no_bit(self):
        for engine in ("cpu", "reference"):
            flags = ["-n", "2", "--engine", engine, "--timesteps", "960,880,800,720"]
            flags = [*RUN[:2], *RUN[4:], *flags]
            self.run_json("generate", "--model", DYNAMIC, *flags, "--npz", "a.npz")
            self.run_json("generate", "--model", DYNAMIC, *flags, "--plan", self.plan([FULL] * 4), "--npz", "b.npz")
            self.assertEqual((self.work / "a.npz").read_bytes(), (self.work / "b.npz").read_bytes(), engine)

    def test_an_image_does_not_depend_on_batch_or_threads(self):
        for flags in (["--cache", "taylor:3,2"], ["--cache", "stack:2,1", "--guide-every", "2"]):
            _, wanted = self.make("-n", "5", *flags, model=DYNAMIC)
            for how in (["--batch", "2"], ["--batch", "1", "--threads", "1"], ["--threads", "3"]):
                self.assertTrue(np.array_equal(self.make("-n", "5", *flags, *how, model=DYNAMIC)[1], wanted), (flags, how))

    def test_a_cached_run_resembles_the_full_one(self):
        _, full = self.make("-n", "2")
        distances = []
        for cache in ("taylor:2,1", "fora:2", "fora:4"):
            _, cached = self.make("-n", "2", "--cache", cache)
            distances.append(np.abs(cached.astype(float) - full).mean())
        self.assertLess(0, distances[0])
        self.assertLess(distances[0], distances[1])
        self.assertLess(distances[1], distances[2])
        self.assertLess(distances[2], 40)  # of 255: another image is at about 60

    def test_a_record_makes_it_again(self):
        for flags in (["--cache", "taylor:3,1", "--guide-every", "2", "--guide-from", "900"], ["--plan", self.plan([FULL, FULL, REUSE])]):
            given = [*RUN[:2], *RUN[4:]] if flags[0] == "--plan" else RUN
            self.run_json("generate", "--model", CIFAR, *given, "-n", "1", *flags, "--out", "first.png")
            said = self.run_ok("inspect", "first.png")
            command = shlex.split(re.search(r"^make again +(.*)$", said, re.MULTILINE).group(1))
            command[command.index("--model") + 1] = str(CIFAR)
            self.run_json(*command[1:], "--out", "again.png")
            self.assertTrue(np.array_equal(*(support.read_png(self.work / f"{name}.png") for name in ("first", "again"))))

    def test_a_policy_of_sample_grids_is_looked_at_before_training(self):
        for name in "ab":
            (self.work / "data" / name).mkdir(parents=True)
            self.write(f"data/{name}/0.png", support.png_bytes(np.zeros((8, 8, 3), np.uint8)))
        self.expect_error(["train", "--data-path", "data", "--total-train-steps", "1", "--global-batch-size", "2", "--hidden", "16",
                           "--depth", "1", "--heads", "2", "--patch", "4", "--sample-every", "1", "--sample-cache", "fora:0"], USAGE,
                          "--sample-cache", "fora:0")
        self.assertFalse((self.work / "results").exists())


class PlanCostTest(PlansBase):
    def test_cost_is_known_before(self):
        for flags in (["--cache", "taylor:3,1"], ["--cache", "delta:2"], ["--cache", "stack:3,2", "--guide-every", "3"],
                      ["--guide-from", "800", "--guide-to", "300"]):
            for model in (CIFAR, DYNAMIC):  # the dynamic one has a capacity, so its tokens are known
                run, _ = self.make("-n", "2", *flags, model=model)
                for image in run["images"]:
                    self.assertAlmostEqual(image["required_share"], run["plan"]["required_share"], places=12)

    def test_memory_is_said_and_bounded(self):
        run, _ = self.make("-n", "2", "--cache", "taylor:3,1")
        # 16 branches, 2 anchors, 2 rows, 64 x 256 floats
        self.assertEqual(run["plan"]["bytes_per_image"], 16 * 2 * 2 * 64 * 256 * 4)
        small = str(3 * run["plan"]["bytes_per_image"] / 1e9)
        self.expect_error(["generate", "--model", CIFAR, *RUN, "-n", "8", "--cache", "taylor:3,1", "--cache-memory", small],
                          FAILED, "taylor:3,1", "--batch 3")
        self.expect_error(["generate", "--model", CIFAR, *RUN, "-n", "1", "--cache", "taylor:3,1", "--cache-memory", "1e-6"],
                          FAILED, "a plan of a lower order")
        self.make("-n", "8", "--cache", "taylor:3,1", "--cache-memory", small, "--batch", "3")

    def test_bench_times_all_ways(self):
        result = self.run_json("bench", "--model", DYNAMIC, "--cache", "taylor:3,1", "--steps", "10", "--repeats", "2",
                               "--batch", "4", "--csv", "rows.csv")
        for name in ("static cached", "dynamic", "dynamic cached"):
            entry = result[name]
            self.assertAlmostEqual(entry["realised_share"], entry["speedup"] * entry["required_share"], places=6)
        self.assertLess(result["dynamic cached"]["required_share"], result["dynamic"]["required_share"])
        self.assertEqual(result["required_share"], result["dynamic cached"]["required_share"])
        self.assertEqual(result["cache_bytes"], 4 * 16 * 2 * 64 * 256 * (2 if result["dtype"] == "bf16" else 4))
        with open(self.work / "rows.csv", newline="") as file:
            self.assertEqual([row["mode"] for row in csv.DictReader(file)],
                             ["static", "static cached", "dynamic", "dynamic cached"])


class PlanPicturesTest(PlansBase):
    def test_actions_are_drawn(self):
        self.run_json("inspect", DYNAMIC, "--cache", "stack:3,1", "--plan-steps", "9", "--svg", "plan.svg", "--csv", "plan.csv")
        self.assertIn("skipped", (self.work / "plan.svg").read_text())
        with open(self.work / "plan.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual({row["attn_0"] for row in rows}, {"c", "-"})
        plan = self.plan([FULL, {**REUSE, "guide": "reuse:1"}, {**FULL, "guide": "reuse:0"}])
        self.run_json("inspect", CIFAR, "--plan", plan, "--svg", "guide.svg", "--csv", "guide.csv")  # static, but it has a plan
        drawn = (self.work / "guide.svg").read_text()
        self.assertIn("forecast of order 0", drawn)
        self.assertIn("guidance (", drawn)
        with open(self.work / "guide.csv", newline="") as file:
            self.assertEqual([row["guide"] for row in csv.DictReader(file)], ["forecast", "forecast", "full"])


class RefusedPlansTest(PlansBase):
    def refused(self, flags, code, *fragments, model=CIFAR):
        self.expect_error(["generate", "--model", model, *RUN, *flags], code, *fragments)
        self.assertFalse((self.work / "samples.png").exists())

    def test_runs_that_a_plan_is_not_for(self):
        plan = self.plan([FULL, REUSE])
        self.refused(["--plan", plan], USAGE, "plan.json", "--steps", "2 timesteps")
        free = [*RUN[:2], *RUN[4:]]
        for key, value, what in (("sampler", "ddpm", "sampler ddpm"), ("eta", 0.5, "eta 0.5"), ("cfg_scale", 3, "guidance scale 3"),
                                 ("mode", "dynamic", "mode dynamic"), ("model_sha256", "0" * 64, "0000000000")):
            plan = self.plan([FULL, REUSE], **{key: value})
            self.expect_error(["generate", "--model", CIFAR, *free, "--mode", "static", "--plan", plan]
                              if key == "mode" else ["generate", "--model", CIFAR, *free, "--plan", plan], USAGE, "by hand", what)

    def test_widths_by_hand_need_routers(self):
        plan = self.plan([{**FULL, "tokens": [9] * 8}])
        self.expect_error(["generate", "--model", DYNAMIC, "--mode", "static", *RUN[:2], *RUN[4:], "--plan", plan], USAGE,
                          "this run is static", "--mode dynamic")
        made = self.run_json("generate", "--model", DYNAMIC, *RUN[:2], *RUN[4:], "-n", "1", "--plan", plan, "--cost-map", "map.png")
        self.assertAlmostEqual(made["images"][0]["token_share"], 9 / 64)

    def test_guidance_of_a_plan_is_passed_over_aloud(self):
        free = ["generate", "--model", CIFAR, "--sampler", "ddim", "-n", "1", "--dtype", "f32"]
        plan = self.plan([FULL, {**FULL, "guide": "off"}])
        for scale, said in (("1", 1), ("2", 0)):
            result = self.run_program(*free, "--cfg-scale", scale, "--plan", plan, "--out", "x.png")
            self.assertEqual((result.returncode, result.stderr.count("says of guidance, for this run has none")), (0, said))

    def test_guidance_between_nowhere(self):
        self.refused(["--guide-from", "10", "--guide-to", "20"], USAGE, "--guide-to 20: is above --guide-from 10")

    def test_policies(self):
        for policy in ("tailor:3,1", "taylor:3", "fora:0", "taylor:3,9", "delta:2,3,99"):
            self.refused(["--cache", policy], USAGE, policy.split(":")[0])
        self.refused(["--cache", "l2c:none.pt"], FAILED, "none.pt")

    def test_a_file_of_a_gigabyte(self):
        with open(self.work / "huge.json", "wb") as file:
            os.truncate(file.fileno(), 1 << 30)
        self.refused(["--plan", "huge.json"], FAILED, "huge.json", "at most 1048576")

    @unittest.skipUnless((SHARED / "golden/step_plan").is_dir(), f"{SHARED} has no golden/step_plan")
    def test_every_fault_of_the_recorded_set(self):
        files = sorted((SHARED / "golden/step_plan/bad").glob("*.json"))
        self.assertGreater(len(files), 30)
        for file in files:
            self.expect_error(["generate", "--model", TINY, "--sampler", "ddim", "--cfg-scale", "1.5", "--latents", "x.safetensors",
                               "--plan", file], FAILED, file.name)


if __name__ == "__main__":
    support.main()
