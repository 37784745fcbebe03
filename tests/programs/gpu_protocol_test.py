"""benchmarks/gpu without a GPU: every line of the protocol runs dry, a killed call keeps its rows, the report marks what missed, the rival that
skips computes what the masked one does. Lines of the engine are held to what the program says that it is: one without --engine torch
refuses them, in its own words."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import support
from support import PROGRAM, ROOT, ProgramTest, environment

GPU = ROOT / "benchmarks/gpu"
RIVALS = ROOT / "benchmarks/rivals"
USAGE = 2
NEEDS_CARD = "needs a card"
# Lines that a CPU cannot do, whatever the program: no others may be skipped for lack of a card.
CARD_ONLY = {"truth": {"card", "no wait", "memcheck", "racecheck", "graphs"}, "products": {"16 algorithms M 4096", "16 algorithms M 512"},
             "facts": {"nodes", "step graphs", "persisting L2", "nodes with PDL", "own row passes"},
             "ours": {"XL/2 2 not batch-invariant", "XL/2 16 not batch-invariant", "XL/2 2 graphs on", "XL/2 2 graphs off", "XL/2 16 graphs on",
                      "XL/2 16 graphs off"},
             "why": {"counters 16", "counters 2"}}


def has_torch():
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


def knows_engine():
    said = subprocess.run([PROGRAM, "bench", "--help"], capture_output=True, text=True, env=environment()).stdout
    return bool(re.search(r"--engine.*?torch", re.search(r"--engine.*?(?=\n  -)", said, re.S)[0], re.S))


class GpuCase(ProgramTest):
    """What the classes below share; holds no test."""

    def gpu(self, script, *args):
        return subprocess.run([sys.executable, GPU / script, *map(str, args)], cwd=self.work, env=environment(), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=300)

    def dry(self, call, *args):
        return self.gpu("run", call, "--dry-run", "--program", PROGRAM, "--out", "out", *args)

    def rows(self, call):
        document = json.loads((self.work / "out" / f"{call}.json").read_text())
        return document, {row["name"]: row for row in document["rows"]}

    def check_call(self, call, engine_lines):
        """Runs it dry; every line has a row that says something, and what the program refuses it refuses itself."""
        listed = self.gpu("run", call, "--dry-run", "--program", PROGRAM, "--out", "out", "--list").stdout.splitlines()
        self.assertGreater(len(listed), 3)
        done = self.dry(call)
        document, rows = self.rows(call)
        said = f"{done.stdout}\n{done.stderr}"
        lines = {name: row for name, row in rows.items() if not row.get("part_of")}
        self.assertEqual(len(lines), len(listed), said)
        self.assertTrue(document["finished"] and document["dry_run"], said)
        for name, row in rows.items():
            with self.subTest(line=name):
                self.assertNotIn(row["status"], ("failed", "running", "not reached"), row)
                if row["status"] == "refused":
                    self.assertFalse(knows_engine(), row)
                    self.assertIn("dydit: error: ", row["why"])
                elif row["status"] == "skipped":
                    self.assertTrue(row["why"])
                    if row["why"] == NEEDS_CARD and not row.get("part_of"):
                        self.assertIn(name, CARD_ONLY.get(call, ()))
                elif not row.get("part_of") and row["values"]:
                    self.assertTrue(any(value["measured"] is not None for value in row["values"]), row)
        self.assertEqual(done.returncode, 0 if all(row["status"] in ("ok", "skipped") for row in lines.values()) else 1, said)
        table = done.stdout.splitlines()[-40:]
        self.assertIn(f"{call}: predicted -> measured (dry run", "\n".join(table))
        self.assertIn("out/" + call + ".json: ", table[-1])
        wanted = "ok" if knows_engine() else "refused"
        for name in engine_lines:
            self.assertEqual(rows[name]["status"], wanted, rows[name])
        return document, rows


class TruthTest(GpuCase):
    def test_every_line(self):
        _, rows = self.check_call("truth", ["forward f32", "threshold f32", "counts bf16", "same twice", "shards", "error: invariance"])
        if knows_engine():
            off = {value["of"]: value for value in rows["counts f32"]["values"]}["largest difference from the CPU's engine"]
            self.assertLess(off["measured"], off["predicted"])


class OwnTest(GpuCase):
    def test_every_line(self):
        document, rows = self.check_call("ours", ["XL/2 16 .49", "kernels 16", "slots, two", "run 50", "heads 16"])
        if knows_engine():
            row = rows["XL/2 16 .49"]
            values = {value["of"]: value for value in row["values"]}
            self.assertGreater(values["static"]["measured"], 0)
            # What was predicted is of the stage that the call names.
            self.assertEqual(values[".49"]["predicted"],
                             json.loads((GPU / "predictions.json").read_text())["stages"][document["stage"]]["XL/2 batch 16"][".49"])
            for key in ("device", "graphs", "batch_invariant", "slot_bytes_copied", "redone_forwards", "peak_memory_mb"):
                self.assertIn(key, row["numbers"])
            self.assertEqual(len([row for row in rows.values() if row.get("part_of") == "heads 16"]), 2)


class ProductsTest(GpuCase):
    def test_every_line(self):
        if not has_torch():
            self.skipTest("no torch in the Python of the tests (scripts/setup --tests puts it there)")
        _, rows = self.check_call("products", [])
        times = rows["layers M 4096 9 of 16"]["numbers"]["milliseconds"]["no split-K"]
        self.assertEqual(set(times), {"qkv", "proj", "fc1", "fc2"})
        self.assertTrue(all(ms > 0 for ms in times.values()))
        self.assertEqual(len(rows["small workspace"]["numbers"]["milliseconds"]), 4)
        _, rows = self.check_call("facts", [])
        self.assertIn("first_sample_equal_alone", rows["attention 16 16 256 72"]["numbers"]["sdpa of the CPU"])


class RivalsTest(GpuCase):
    def setUp(self):
        super().setUp()
        if not has_torch():
            self.skipTest("no torch in the Python of the tests (scripts/setup --tests puts it there)")

    def test_every_line(self):
        _, rows = self.check_call("rivals", [])
        eager = rows["XL/2 batch 16: static, eager, flash"]
        self.assertEqual(eager["status"], "ok")
        self.assertGreater(eager["values"][0]["measured"], 0)
        self.assertEqual(rows["XL/2 batch 16: static, eager, cudnn, graph"]["why"], NEEDS_CARD)
        for name in ("masked, as published, eager, matmul", "masked, bf16, eager, flash"):
            self.assertEqual(rows[f"S/2 batch 64: {name}"]["status"], "ok")
        compiled = rows["XL/2 batch 2: sliced .49, torch.compile, flash"]
        self.assertTrue(compiled["status"] == "ok" or "no package" in compiled["why"], compiled)
        document, rows = self.check_call("why", [])
        self.assertEqual(document["call"], "why")

    def test_sliced_is_masked(self):
        script = """
import torch
from dit_cuda import FixedGates, make_inputs, make_model, required_share, slice_model
torch.set_num_threads(1)
import copy
masked = make_model("tiny", "cpu", torch.float32, "sdpa", dynamic=True)
sliced, shares = copy.deepcopy(masked), (.5, .6, .7)
sets = slice_model(sliced, *shares)
inputs = make_inputs(masked.config, 3, "cpu", torch.float32)
with torch.no_grad():
    a, b, whole = masked(*inputs, FixedGates(masked.config, sets, shares[2])), sliced(*inputs), masked(*inputs)
print((a - b).abs().max().item() / a.abs().max().item(), (whole - b).abs().max().item() / a.abs().max().item(), required_share(masked.config, *shares))
"""
        said = subprocess.run([sys.executable, "-c", script], env=environment({"PYTHONPATH": str(RIVALS)}), capture_output=True, text=True)
        self.assertEqual(said.returncode, 0, said.stderr)
        off, against_whole, share = map(float, said.stdout.split())
        self.assertLess(off, 1e-5)
        self.assertGreater(against_whole, 1e-3)  # something was cut
        self.assertTrue(.3 < share < .7, share)

    def test_bad_input(self):
        for args, fragment in ((["--cases", "M/2:4"], "is no case"), (["--rounds", "0"], "at least 1 lap"), (["--dydit", "nothing"], "is no program"),
                               ([], "sees no CUDA card")):
            done = subprocess.run([sys.executable, RIVALS / "compare_cuda.py", *args], env=environment(), capture_output=True, text=True, cwd=self.work)
            self.assertEqual(done.returncode, USAGE, done.stderr)
            self.assertIn(fragment, done.stderr.splitlines()[-1])


class CountersTest(GpuCase):
    def test_what_ncu_prints(self):
        """Units of the second line, sums over launches, the mean of the pipe; text of the program around it."""
        script = """
import json
from why import METRICS, by_kernel
head = ['ID', 'Kernel Name', METRICS['us'], METRICS['tensor pipe'], METRICS['DRAM bytes']]
rows = [['', '', 'ns', '%', 'Mbyte'], ['0', 'gemm<1, 2>', '2,000', '60', '1.5'], ['1', 'norm', '500', '0', '8'], ['2', 'gemm<1, 2>', '4,000', '80', '1.5']]
text = '\\n'.join(['==PROF== connected', *(','.join(f'"{cell}"' for cell in row) for row in [head, *rows]), 'static 3 ms'])
print(json.dumps(by_kernel(text)))
"""
        said = subprocess.run([sys.executable, "-c", script], env=environment({"PYTHONPATH": str(GPU)}), capture_output=True, text=True)
        kernels = json.loads(said.stdout)
        self.assertEqual(kernels["gemm<1, 2>"], {"launches": 2, "us": 6.0, "tensor pipe": 70.0, "DRAM bytes": 3e6})
        self.assertEqual(kernels["norm"]["us"], .5)
        self.assertEqual(len(kernels), 2)

    def test_blocks_of_a_staircase_are_a_checkpoint(self):
        if not has_torch():
            self.skipTest("no torch in the Python of the tests (scripts/setup --tests puts it there)")
        script = "import pathlib; from own import write_blocks; write_blocks(pathlib.Path('blocks.safetensors'), hidden_size=64, depth=2, num_heads=2)"
        done = subprocess.run([sys.executable, "-c", script], env=environment({"PYTHONPATH": str(GPU)}), cwd=self.work, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        said = self.run_json("bench", "--model", "blocks.safetensors", "--steps", "1", "--repeats", "1", "--heads", ".5")
        self.assertIn("DyDiT", said["model"])
        self.assertLess(said["dynamic"]["required_share"], .9)


class KilledTest(GpuCase):
    def test_a_killed_call_keeps_its_rows_and_goes_on(self):
        self.assertEqual(self.dry("truth", "--lines", "program").returncode, 0)
        first = self.rows("truth")[1]["program"]
        # A program that never answers: the call is killed in the middle of a line.
        sleeper = self.work / "dydit"
        sleeper.write_text(f"#!/bin/sh\n[ -e {self.work}/awake ] && exec {PROGRAM} \"$@\"\nexec sleep 600\n")
        sleeper.chmod(0o755)
        command = [sys.executable, GPU / "run", "truth", "--dry-run", "--program", sleeper, "--out", "out", "--lines", "card,program,primitives,forward f32"]
        call = subprocess.Popen(command, cwd=self.work, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            end = time.monotonic() + 60
            while self.rows("truth")[1].get("forward f32", {}).get("status") != "running" and time.monotonic() < end:
                time.sleep(.05)
        finally:
            os.killpg(call.pid, signal.SIGKILL)
            call.wait()
        document, rows = self.rows("truth")
        self.assertEqual(rows["forward f32"]["status"], "running")
        self.assertEqual(rows["program"], first)
        self.assertEqual(rows["card"]["why"], NEEDS_CARD)
        self.assertFalse(document["finished"])
        (self.work / "awake").touch()
        done = subprocess.run(command, cwd=self.work, env=environment(), capture_output=True, text=True)
        self.assertIn("program: is there", done.stdout)
        document, rows = self.rows("truth")
        self.assertTrue(document["finished"])
        self.assertEqual(rows["program"], first)
        self.assertEqual(rows["forward f32"]["status"], "ok" if knows_engine() else "refused")
        self.assertEqual(os.listdir(self.work / "out").count("truth.json.part"), 0)

    def test_a_termination_ends_the_program_too(self):
        sleeper = self.work / "dydit"
        sleeper.write_text("#!/bin/sh\necho $$ > pid\nexec sleep 600\n")
        sleeper.chmod(0o755)
        call = subprocess.Popen([sys.executable, GPU / "run", "truth", "--dry-run", "--program", sleeper, "--out", "out", "--lines", "program"],
                                cwd=self.work, env=environment(), stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not ((self.work / "pid").exists() and (self.work / "pid").read_text().strip()) and time.monotonic() < end:
            time.sleep(.05)
        call.send_signal(signal.SIGTERM)
        self.assertEqual(call.wait(), 143)
        self.assertFalse(pathlib.Path(f"/proc/{(self.work / 'pid').read_text().strip()}").exists())

    def test_time_is_a_budget(self):
        done = self.dry("ours", "--minutes", "0.000001")
        self.assertEqual(done.returncode, 1)
        rows = self.rows("ours")[1]
        self.assertEqual({row["status"] for row in rows.values()}, {"not reached"})
        self.assertIn("s were left", rows["XL/2 16 .49"]["why"])

    def test_bad_input(self):
        def refused(script, *args, fragments):
            done = self.gpu(script, *args)
            self.assertEqual((done.returncode, done.stdout), (USAGE, ""), done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            for fragment in fragments:
                self.assertIn(fragment, done.stderr)

        self.dry("truth", "--lines", "card")
        dry = ["--dry-run", "--program", PROGRAM, "--out", "out"]
        refused("run", "speed", *dry, fragments=["'speed' is unknown", "choose from truth"])
        refused("run", "truth", *dry[:3], "--out", "out", "--stage", "9", fragments=["--stage '9' is unknown", "1a, 1b"])
        refused("run", "truth", *dry, "--stage", "2a", fragments=["of stage '1a'", "'2a'", "--again"])
        refused("run", "truth", *dry, "--lines", "nothing", fragments=["no line of truth begins so", "--list"])
        refused("run", "truth", *dry, "--minutes", "0", fragments=["--minutes 0.0", "more than 0"])
        refused("run", "truth", "--dry-run", "--program", "nothing", "--out", "out", fragments=["nothing is no program"])
        self.write("out/truth.json", '{"rows": [')
        refused("run", "truth", *dry, fragments=["truth.json", "cannot be read", "--again"])
        refused("report", "out", fragments=["truth.json", "cannot be read"])
        refused("report", self.work, fragments=["no CALL.json is there", "benchmarks/gpu/run"])
        refused("report", fragments=["nothing to report"])
        if not os.path.exists("/proc/driver/nvidia"):
            refused("run", "truth", "--program", PROGRAM, "--out", "other", fragments=["a machine with an NVIDIA card is wanted", "--dry-run"])


def value(of, measured, predicted=None, unit="ms", kind="prediction", **more):
    return {"of": of, "measured": measured, "unit": unit, "predicted": predicted, "kind": kind, **more}


def row(name, *values, status="ok", **more):
    return {"name": name, "what": name, "status": status, "values": list(values), **more}


class ReportTest(GpuCase):
    """Reports of made-up rows of a card."""

    def call(self, name, *rows, **more):
        document = {"version": 1, "call": name, "dry_run": False, "stage": "1b", "card": "NVIDIA H200", "finished": True, "began": "2027-01-02T03:04:05Z",
                    "commit": "abc", "card_facts": {"name": "NVIDIA H200", "driver": "999.1"}, "machine": {"system": "Linux", "cores": 16},
                    "rows": list(rows), **more}
        (self.work / "out").mkdir(exist_ok=True)
        self.write(f"out/{name}.json", json.dumps(document))

    def made_up(self, **more):
        self.call("ours", row("XL/2 16 .49", value("static", 8.4, 8.0, low=8.3, high=8.5), value(".49", 7.0, 5.0, laps=[7.0]), value("realised, .49", .6, .78, ""),
                              value("executed over required", 1.2, 1.005, "", "limit"), numbers={"static": {"gflops": 400000}, "laps": [1, 2]},
                              clocks={"before": {"sm_mhz": 345, "memory_mhz": 3201, "reasons": ["idle"]}, "after": {"sm_mhz": 1980, "memory_mhz": 3201, "reasons": []}}),
                  row("XL/2 2 .49", status="failed", why="it broke | badly"), **more)
        self.call("products", row("ceilings", value("copy", 4.2, 4.3, "TB/s"), numbers={"peak_tflops": 800}),
                  row("layers M 4096 all", value("split-K forbidden over default", .8, .97, "x")), **more)
        self.call("rivals", row("XL/2 batch 16", value("dydit static over the best torch.compile", 1.02, None, "x")), **more)

    def test_a_miss_is_marked_and_goals_are_judged(self):
        self.made_up()
        done = self.gpu("report", "out")
        self.assertEqual(done.returncode, 0, done.stderr)
        text = done.stdout
        self.assertIn("| XL/2 16 .49 | static | 8 | 8.4 (8.3 to 8.5) | ms | +5% |", text)
        self.assertIn("|  | .49 | 5 | 7 | ms | **miss +40%** |", text)
        self.assertIn("|  | realised, .49 | 0.78 | 0.6 |  | -23% |", text)
        self.assertIn("**broken**", text)
        self.assertIn("6 predictions and limits were met with a measurement: 1 missed by more than 25%", text)
        self.assertIn("1 limits are broken", text)
        self.assertIn("| realised share, batch 16 | >= 0.72 | 0.6 | **not reached** |", text)
        self.assertIn("| share of the measured peak, static, batch 16 | >= 0.5 | 0.5 | reached |", text)
        self.assertIn("| static over the best torch.compile, batch 16 | >= 1.0 | 1.02 | reached |", text)
        self.assertIn("| realised share, batch 64 | >= 0.75 | not measured |  |", text)
        self.assertRegex(text, r"own products \(2c\) come first \| 0\.8 x \| yes \|")
        self.assertIn("| failed | it broke / badly | ours: XL/2 2 .49 |", text)
        for fact in ("NVIDIA H200", "driver 999.1", "SM clock 345 to 1980 MHz", "held back by: idle", "2027-01-02"):
            self.assertIn(fact, text)
        self.assertLess(text.index("### Products"), text.index("### The engine"))

    def test_page_and_data(self):
        self.made_up()
        page = self.write("gpu.md", (ROOT / "docs/gpu.md").read_text())
        before = page.read_text()
        done = self.gpu("report", "out", "--write", "--page", "gpu.md", "--data", "data")
        self.assertEqual(done.returncode, 0, done.stderr)
        after = page.read_text()
        self.assertIn("**miss +40%**", after)
        self.assertEqual(after.split("<!-- measured")[0], before.split("<!-- measured")[0])
        self.assertEqual(after.split("<!-- end")[1], before.split("<!-- end")[1])
        data = json.loads((self.work / "data/gpu-2027-01-02-nvidia-h200.json").read_text())
        self.assertEqual(data["calls"]["ours"]["rows"][0]["values"][1]["measured"], 7.0)
        self.assertNotIn("laps", json.dumps(data))
        self.assertIn("data/gpu-2027-01-02-nvidia-h200.json", after)
        self.gpu("report", "out", "--write", "--page", "gpu.md", "--data", "data")
        self.assertEqual(page.read_text(), after)  # once more changes nothing

    def test_a_dry_run_is_no_measurement(self):
        self.made_up(dry_run=True, card=None, card_facts=None)
        done = self.gpu("report", "out")
        self.assertIn("A dry run on a CPU", done.stdout)
        self.assertNotIn("miss", done.stdout)
        page = self.write("gpu.md", (ROOT / "docs/gpu.md").read_text())
        before = page.read_text()
        done = self.gpu("report", "out", "--write", "--page", "gpu.md", "--data", "data")
        self.assertEqual(done.returncode, USAGE)
        self.assertIn("a dry run, which measures nothing", done.stderr)
        self.assertEqual(page.read_text(), before)

    def test_rows_of_two_cards_are_not_one_table(self):
        self.made_up()
        self.call("facts", card="NVIDIA H100")
        done = self.gpu("report", "out")
        self.assertEqual(done.returncode, USAGE)
        self.assertIn("card differs", done.stderr)

    def test_page_shows_the_predictions(self):
        """The table in docs/gpu.md is the one that predictions.json says."""
        self.assertIn(self.gpu("report", "--predictions").stdout, (ROOT / "docs/gpu.md").read_text())


if __name__ == "__main__":
    support.main()
