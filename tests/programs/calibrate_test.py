"""dydit calibrate from the outside: what it measures and writes, what generate --budget makes of it, and what inspect says."""

import csv
import json
import re
import signal
import subprocess
import time

import support
from support import TINY, ProgramTest

FAILED, USAGE, CANCELLED = 1, 2, 130
STEPS = ["--sampler", "ddim", "--steps", "8", "--cfg-scale", "2", "--dtype", "f32"]


class CalibrateTest(ProgramTest):
    def setUp(self):
        super().setUp()
        tensors, metadata = support.load(TINY)
        self.model = self.save("model.safetensors", tensors, metadata)

    def calibrate(self, *flags):
        return self.run_json("calibrate", "--model", self.model, *STEPS, "--images", "2", *flags)

    def generate(self, *flags):
        return self.run_json("generate", "--model", self.model, *STEPS, "-n", "1", "--latents", "x.safetensors", *flags)

    def test_from_a_model_to_images_within_a_budget(self):
        result = self.calibrate("--csv", "all.csv")
        path = self.work / "model.plans.json"
        self.assertEqual(result["file"], str(path))
        costs = [plan["cost_max"] for plan in result["plans"]]
        errors = [plan["error"] for plan in result["plans"]]
        self.assertEqual(costs, sorted(costs))
        self.assertEqual(errors, sorted(errors, reverse=True))
        self.assertEqual(errors[-1], 0)
        kinds = {re.match(r"[a-z]+", plan["name"])[0] for plan in result["measured"]}
        self.assertEqual(kinds, {"none", "fora", "taylor", "lagrange", "stack", "ddim", "search"})
        with open(self.work / "all.csv", newline="") as file:  # names may hold commas
            self.assertEqual([row["name"] for row in csv.DictReader(file)], [plan["name"] for plan in result["measured"]])
        written = json.loads(path.read_text())
        self.assertEqual([entry["plan"]["name"] for entry in written["plans"]], [plan["name"] for plan in result["plans"]])

        said = self.run_ok("inspect", path)
        self.assertIn("which is not quality", said)
        for plan in result["plans"]:
            self.assertIn(f"{plan['error']:.5f}", said)
        self.assertEqual(len(self.run_json("inspect", path)["plans"]), len(costs))

        middle = costs[len(costs) // 2]
        made = self.generate("--budget", f"{middle + 1e-4:.6f}")
        self.assertEqual(made["plan"]["name"], result["plans"][len(costs) // 2]["name"])
        self.assertAlmostEqual(made["plan"]["error"], errors[len(costs) // 2], places=5)
        full = self.generate("--budget", "1")
        self.assertEqual(full["plan"]["name"], "none")
        unplanned = self.generate()
        self.assertNotIn("plan", unplanned)

        # A plan of the set is a plan file, too.
        entry = written["plans"][len(costs) // 2]["plan"]
        self.write("one.json", json.dumps(entry))
        shown = self.run_ok("inspect", "one.json")
        self.assertIn(entry["name"], shown)
        self.assertEqual(len(re.findall(r"^ +\d+  [c0-4-]", shown, re.MULTILINE)), len(entry["steps"]))
        steps = self.run_json("inspect", "one.json")["steps"]
        self.assertEqual([step["t"] for step in steps], [step["t"] for step in entry["steps"]])
        self.generate(*(["--plan", "one.json"] if len(entry["steps"]) == 8 else []))

        self.check_refusals(path, costs)

    def check_refusals(self, path, costs):
        good = ["generate", "--model", self.model, *STEPS, "--latents", "x.safetensors"]
        few = f"{costs[0] / 2:.6f}"
        self.expect_error([*good, "--budget", few], USAGE, f"no plan of {path} costs as little; the cheapest costs")
        forced = self.generate("--budget", few, "--force")
        self.assertEqual(forced["plan"]["name"], json.loads(path.read_text())["plans"][0]["plan"]["name"])
        self.expect_error([*good, "--budget", "1.5"], USAGE, "--budget: 1.5")
        self.expect_error([*good, "--budget", "0.5", "--cache", "fora:2"], USAGE, "--budget")
        self.expect_error([*good, "--budget", "0.5", "--guide-every", "2"], USAGE, "needs no --budget")
        for flag, value, what in (("--cfg-scale", "3", "guidance scale 2"), ("--steps", "9", "timesteps")):
            other = list(good)
            other[other.index(flag) + 1] = value
            self.expect_error([*other, "--budget", "0.5"], USAGE, f"its plans are for {what}")
        self.expect_error([*good, "--budget", "0.5", "--plans", "none.json"], FAILED, "none.json")
        self.expect_error([*good, "--force"], USAGE, "--force: needs --budget")
        path.rename(self.work / "moved.json")
        self.expect_error([*good, "--budget", "0.5"], FAILED, "so no plan is known for --budget; make it with: dydit calibrate")
        self.assertIn("plan", self.generate("--budget", "1", "--plans", "moved.json"))

    def test_families_are_chosen(self):
        names = {plan["name"].split(":")[0] for plan in self.calibrate("--families", "fora,stack", "--out", "x.json")["measured"]}
        self.assertEqual(names, {"none", "fora", "stack"})
        self.assertTrue((self.work / "x.json").exists())
        self.assertFalse((self.work / "model.plans.json").exists())
        self.expect_error(["calibrate", "--model", self.model, *STEPS, "--families", "fora,magic"], USAGE,
                          '"magic" is no family; choose from fora, taylor')

    def test_the_same_run_measures_the_same(self):
        first, again = (self.calibrate("--families", "fora,search", "--threads", n, "--batch", n)["measured"] for n in ("1", "2"))
        self.assertEqual(first, again)

    def test_stopped_it_leaves_nothing(self):
        with subprocess.Popen([support.PROGRAM, "calibrate", "--model", self.model, *STEPS[:3], "1000", "--images", "64"],
                              cwd=self.work, env=support.environment({}), stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stderr.readline()
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            self.assertEqual(process.returncode, CANCELLED)
        self.assertEqual([path.name for path in self.work.iterdir() if "plans" in path.name], [])


if __name__ == "__main__":
    support.main()
