"""dydit bench from the outside: its numbers fit together, and what cannot be timed is refused."""

import csv

import support
import vae_files
from support import CIFAR, TINY, ProgramTest

USAGE = 2
QUICK = ["--steps", "2", "--repeats", "2", "--threads", "2"]


class BenchTest(ProgramTest):
    def test_realised_share_is_speedup_times_required_share(self):
        result = self.run_json("bench", "--model", TINY, *QUICK)
        for key in ("ms_per_sample", "gflops", "peak_share", "required_share", "executed_share", "realised_share",
                    "peak_rss_mb"):
            self.assertGreater(result[key], 0, key)
        speedup = result["static"]["ms_per_sample"] / result["dynamic"]["ms_per_sample"]
        self.assertAlmostEqual(result["realised_share"], speedup * result["required_share"], places=6)
        self.assertAlmostEqual(result["gflops"], 2 * result["required_gmacs"] / result["ms_per_sample"] * 1e3, places=6)

    def test_shares_make_a_static_model_dynamic(self):
        result = self.run_json("bench", "--model", CIFAR, *QUICK, "--heads", ".5", "--groups", ".5", "--tokens", ".75",
                               "--profile")
        # attention 4NC^2 + 2N^2C at 1/2, MLP 8NC^2 at 3/8, N = 64, C = 256: .42; adaLN, embeddings and routers on top.
        self.assertLess(abs(result["required_share"] - 0.43), 0.02)
        self.assertLess(result["executed_share"], 1.03 * result["required_share"])
        self.assertEqual(len(result["dynamic"]["operators"]["blocks"]), 8)

    def test_static_model_alone_has_no_realised_share(self):
        result = self.run_json("bench", "--model", CIFAR, *QUICK, "--csv", "rows.csv")
        self.assertNotIn("realised_share", result)
        with open(self.work / "rows.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([row["mode"] for row in rows], ["static"])
        self.assertAlmostEqual(float(rows[0]["ms_per_sample"]), result["ms_per_sample"], places=4)

    def test_random_routers_decide_by_the_timestep(self):
        result = self.run_json("bench", "--size", "DyDiT-S/8", "--steps", "50", "--repeats", "1", "--batch", "1")
        self.assertGreaterEqual(result["least_changes"], 10)
        self.assertTrue(0.3 < result["required_share"] < 0.7, result["required_share"])

    def test_timesteps_of_every_sampler(self):
        for sampler in ("ddpm", "ddim", "dpm++"):
            result = self.run_json("bench", "--model", TINY, *QUICK, "--run", "--sampler", sampler)
            self.assertEqual(result["steps"], 2)

    def test_levels_take_turns_and_the_table_is_judged(self):
        said = self.run_json("bench", "--model", TINY, "--levels", "--steps", "2", "--repeats", "2", "--batch", "2")
        self.assertLessEqual({"f32", "bf16-fma"}, set(said["levels"]))
        self.assertIn(said["auto"], ("f32", "bf16-dot"))
        self.assertIn(said["bf16"], ("bf16-dot", "bf16-fma"))
        times = {name: level["ms_per_sample"] for name, level in said["levels"].items() if not name.startswith("int8")}
        self.assertEqual(times[said["fastest"]], min(times.values()))
        self.assertAlmostEqual(said["auto_over_fastest"], times[said["auto"]] / min(times.values()))
        work = {level["required_gmacs"] for name, level in said["levels"].items() if name in ("f32", "bf16-fma")}
        self.assertEqual(len(work), 1)
        self.expect_error(["bench", "--model", TINY, "--levels", "--dtype", "f32"], 2, "--dtype", "leave out --levels")

    def test_whole_runs(self):
        result = self.run_json("bench", "--model", TINY, *QUICK, "--run", "--cfg-scale", "1.5")
        self.assertEqual(result["unit"], "sampling runs")
        self.assertGreater(result["realised_share"], 0)

    def test_autoencoder(self):
        vae = vae_files.write_kl(self.work / "vae")
        result = self.run_json("bench", "--vae", vae, "--side", "32", "--repeats", "2", "--threads", "1")
        for half in ("encode", "decode"):
            for key in ("seconds", "cpu_seconds", "gmacs", "bytes"):
                self.assertGreater(result[half][key], 0, key)
            self.assertAlmostEqual(result[half]["gmacs_per_second"] * result[half]["seconds"], result[half]["gmacs"], places=6)
        self.expect_error(["bench", "--vae", vae, "--side", "33"], USAGE, "--side 33: not a multiple of the autoencoder's factor")

    def test_refusals(self):
        self.expect_error(["bench"], USAGE, "--model", "--size")
        self.expect_error(["bench", "--size", "DiT-Q/2"], USAGE, "DiT-Q/2")
        self.expect_error(["bench", "--model", TINY, "--heads", "1.5"], USAGE, "--heads")
        self.expect_error(["bench", "--model", TINY, "--run", "--profile"], USAGE, "--profile")
        self.expect_error(["bench", "--model", TINY, "--size", "DiT-S/2"], USAGE, "--size")


if __name__ == "__main__":
    support.main()
