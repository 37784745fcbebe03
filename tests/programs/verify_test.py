"""dydit verify: that it compares all that is recorded, and that it can fail."""

import json
import re
import shutil
import unittest

import numpy as np

import support
from support import CIFAR, GOLDEN, TINY, TINY_PT, ProgramTest

FAILED, USAGE = 1, 2
FORWARD, DIFFUSION = GOLDEN / "forward.safetensors", GOLDEN / "diffusion.safetensors"
METRICS = support.SHARED / "golden/eval/metrics.safetensors"
SPEED = support.SHARED / "golden/speed/speed.safetensors"
TD_LORA = support.SHARED / "golden/td_lora/td_lora.safetensors"
ALIGNMENT = support.SHARED / "golden/alignment/alignment.safetensors"
FEW_STEP = support.SHARED / "golden/few_step"
PLANS = GOLDEN / "step_plan" / "runs.safetensors"
FORWARD_CHECKS = {"pos_embed_formula", "attn_mask", "mlp_mask", "token_mask", "out", "out_static", "cfg_out"}


class AgreesTest(ProgramTest):
    def checks(self, *args):
        report = self.run_json("verify", "--model", TINY, *args)
        self.assertIs(report["passed"], True)
        self.assertTrue(all(check["ok"] for check in report["checks"]), report)
        return {check["name"]: check for check in report["checks"]}

    def test_forward(self):
        checks = self.checks("--reference", FORWARD)
        self.assertEqual(set(checks), FORWARD_CHECKS)
        for name in ("attn_mask", "mlp_mask", "token_mask"):
            self.assertEqual((checks[name]["disagreements"], checks[name]["allowed_share"]), (0, 0))
        for name in ("out", "out_static", "cfg_out"):
            self.assertLessEqual(checks[name]["error"], 1e-5)
            self.assertLessEqual(checks[name]["limit"], 1e-5)

    def test_forward_bf16(self):
        checks = self.checks("--reference", FORWARD, "--dtype", "bf16")
        self.assertEqual(set(checks), FORWARD_CHECKS)
        self.assertGreater(checks["out"]["error"], 1e-5, "this was no bfloat16")

    def test_diffusion(self):
        recorded = set(support.load(DIFFUSION)[0])
        tables = {name for name in recorded if name.startswith(("betas", "alphas", "sqrt_", "posterior_"))}
        timesteps = {name for name in recorded if name.startswith("timesteps_")}
        steps = {name for name in recorded if name.startswith("step_") and name.endswith("_out")}
        runs = {name for name in recorded if name.startswith("sample_") and name.endswith("_out")}
        self.assertEqual((len(tables), len(timesteps), len(steps), len(runs)), (11, 7, 12, 4))
        checks = self.checks("--reference", DIFFUSION)
        self.assertEqual(set(checks), tables | timesteps | steps | runs)
        for name in steps:
            self.assertLessEqual(checks[name]["limit"], 1e-5)
        for name in runs:  # decisions that no processor's rounding changes
            self.assertGreater(checks[name]["margin"], 1e-4, name)
            self.assertIs(checks[name]["within_rounding"], False, name)

    def test_plans(self):
        recorded = {name for name in support.load(PLANS)[0] if name.startswith(("dynamic.", "static."))}
        self.assertEqual(len({name.rsplit(".", 1)[0] for name in recorded}), 4)
        checks = self.checks("--reference", PLANS)
        self.assertEqual(set(checks), {f"{engine} {name}" for name in recorded for engine in ("cpu", "reference")})
        for name, check in checks.items():
            if name.endswith(".macs"):
                self.assertEqual((check["disagreements"], check["allowed_share"]), (0, 0), name)
            else:
                self.assertLessEqual(check["limit"], 1e-5, name)


@unittest.skipUnless(METRICS.exists(), f"{METRICS} is not there; set DYDIT_SHARED")
class MetricsTest(ProgramTest):
    """Recorded metrics: golden/eval of the shared folder."""

    def copied(self, change=lambda expected: None):
        expected = json.loads((METRICS.parent / "metrics.json").read_text())
        change(expected)
        shutil.copyfile(METRICS, self.work / "metrics.safetensors")
        self.write("metrics.json", json.dumps(expected))
        return self.work / "metrics.safetensors"

    def test_agree(self):
        report = self.run_json("verify", "--reference", METRICS)
        self.assertIs(report["passed"], True, report)
        checks = {check["name"]: check for check in report["checks"]}
        for name, limit in (("fid.exact", 1e-9), ("fid_few.exact", 1e-12), ("kid_full.jackknife_std", 1e-10), ("pr.recall", 0),
                            ("is.adm_split150", 1e-9), ("kid_subsets.each.9", 1e-5), ("fid_infinity.fid.7", 1e-9)):
            self.assertEqual(checks[name]["limit"], limit, name)
        self.assertEqual(checks["precision_mask"]["total"], 500)

    def test_disagree(self):
        def change(expected):
            expected["fid_few"]["exact"] *= 1 + 1e-11
            expected["kid_full"]["unbiased"] += 1e-9
        result = self.run_program("verify", "--reference", self.copied(change), "-q", "--json")
        self.assertEqual((result.returncode, result.stderr), (FAILED, ""))
        failed = {check["name"] for check in self.one_object(result.stdout)["checks"] if not check["ok"]}
        self.assertEqual(failed, {"fid_few.exact", "kid_full.unbiased"})

    def test_expected_values_that_are_missing(self):
        reference = self.copied(lambda expected: expected["kid_full"].pop("biased"))
        self.expect_error(["verify", "--reference", reference], FAILED, "metrics.json: number kid_full.biased is missing")
        (self.work / "metrics.json").unlink()
        self.expect_error(["verify", "--reference", reference], FAILED, "metrics.json")

    def test_masks_of_another_size(self):
        tensors, _ = support.load(self.copied())
        tensors["recall_mask"] = tensors["recall_mask"][:-1]
        self.expect_error(["verify", "--reference", self.save("metrics.safetensors", tensors)], FAILED,
                          "recall_mask holds 599 values, expected 600")

    def test_take_no_model(self):
        self.expect_error(["verify", "--reference", METRICS, "--engine", "cpu"], USAGE, "--engine", "--model")
        self.expect_error(["verify", "--reference", METRICS, "--dtype", "bf16"], USAGE, "--dtype", "--model or --vae")


@unittest.skipUnless(FEW_STEP.exists(), f"{FEW_STEP} is not there; set DYDIT_SHARED")
class FewStepTest(ProgramTest):
    """Consistency distillation as LCM's authors compute it: golden/few_step of the shared folder."""

    def replay(self, **changed):
        tensors, stated = support.load(FEW_STEP / "lcm.safetensors")
        path = self.save("lcm.safetensors", {**tensors, **changed}, stated)
        result = self.run_program("verify", "--reference", path, "-q", "--json")
        self.assertEqual(result.stderr, "")
        answer = self.one_object(result.stdout)
        return tensors, {check["name"]: check["ok"] for check in answer["checks"]}, answer["skipped"]

    def test_agree(self):
        tensors, checks, skipped = self.replay()
        self.assertTrue(all(checks.values()), checks)
        self.assertEqual([entry["name"] for entry in skipped], ["w_embedding"])
        inputs = {"index", "w", "x_start", "w_embedding", *(name for name in tensors if name.startswith(("eps_", "run_noise_")))}
        self.assertEqual(set(checks), set(tensors) - inputs | {"run_out"})

    def test_disagree(self):
        tensors = support.load(FEW_STEP / "lcm.safetensors")[0]
        failed = lambda **changed: {name for name, ok in self.replay(**changed)[1].items() if not ok}
        self.assertEqual(failed(w=tensors["w"] + 0.01) & {"student", "x_prev", "target"}, {"x_prev", "target"})
        self.assertEqual(failed(index=np.maximum(tensors["index"] - 1, 0)) & {"start_timesteps", "student_x0"},
                         {"start_timesteps", "student_x0"})
        noise = tensors["run_noise_1"].copy()
        noise[0, 0, 0, 0] += 0.01
        self.assertEqual(failed(run_noise_1=noise) & {"run_state_1", "run_state_2", "run_out"}, {"run_state_2", "run_out"})
        self.assertEqual(failed(**{"stitch_small_0.4": 1 - tensors["stitch_small_0.4"]}), {"stitch_small_0.4"})

    def test_other_methods_are_told(self):
        for name, method in (("swd", "scale-wise distillation (SwD)"), ("sida", "score identity distillation (SiD)")):
            self.expect_error(["verify", "--reference", FEW_STEP / f"{name}.safetensors"], USAGE, method, "not offered")


@unittest.skipUnless(SPEED.exists(), f"{SPEED} is not there; set DYDIT_SHARED")
class TimestepsTest(ProgramTest):
    """How SpeeD's authors draw and weigh timesteps: golden/speed of the shared folder."""

    def replay(self, **metadata):
        tensors, stated = support.load(SPEED)
        path = self.save("speed.safetensors", tensors, {**stated, **metadata})
        result = self.run_program("verify", "--reference", path, "-q", "--json")
        self.assertEqual(result.stderr, "")
        return result.returncode, {check["name"]: check["ok"] for check in self.one_object(result.stdout)["checks"]}

    def test_agree(self):
        code, checks = self.replay()
        self.assertEqual(code, 0, checks)
        self.assertEqual(len(checks), 17)

    def test_disagree(self):
        code, checks = self.replay(k="4")
        self.assertEqual(code, FAILED)
        failed = {name for name, ok in checks.items() if not ok}
        self.assertLessEqual({"p_exact", "marginal", "ratio_weight", "pair_t_even", "flops_mean"}, failed)
        self.assertEqual(failed & {"mirror", "weights_exact", "loss_mse"}, set())
        code, checks = self.replay(lam="0.5")
        self.assertEqual({name for name, ok in checks.items() if not ok}, {"weights", "weights_exact", "loss_mse"})

    def test_a_setting_that_is_no_number(self):
        tensors, stated = support.load(SPEED)
        path = self.save("speed.safetensors", tensors, {**stated, "tau": "late"})
        self.expect_error(["verify", "--reference", path], FAILED, "speed.safetensors: metadata 'tau' is \"late\", expected a number")


@unittest.skipUnless(TD_LORA.exists(), f"{TD_LORA} is not there; set DYDIT_SHARED")
class AdaptersTest(ProgramTest):
    """A linear with low-rank updates, TD-LoRA's (our form) and plain: golden/td_lora of the shared folder."""

    def replay(self, **changed):
        tensors, stated = support.load(TD_LORA)
        path = self.save("td_lora.safetensors", {**tensors, **changed}, stated)
        result = self.run_program("verify", "--reference", path, "-q", "--json")
        self.assertEqual(result.stderr, "")
        return result.returncode, {check["name"]: check["ok"] for check in self.one_object(result.stdout)["checks"]}

    def test_agree(self):
        code, checks = self.replay()
        self.assertEqual(code, 0, checks)
        self.assertEqual(len(checks), 21)

    def test_every_part_is_compared(self):
        """What belongs to another reference fails, and nothing else does."""
        tensors, _ = support.load(TD_LORA)
        for changed, failed in ({"out": {"out", "out, merged"}, "mixb.B": {"mixb.out"}, "plain.A": {"plain.out"},
                                 "grad.lora.A": {"grad.lora.A"}, "weight_merged": {"weight_merged"}}).items():
            code, checks = self.replay(**{changed: tensors[changed] * 1.5})
            self.assertEqual(code, FAILED)
            self.assertEqual({name for name, ok in checks.items() if not ok}, failed)

    def test_shapes_that_do_not_belong_together(self):
        tensors, stated = support.load(TD_LORA)
        path = self.save("td_lora.safetensors", {**tensors, "plain.B": tensors["plain.B"][:, :2]}, stated)
        self.expect_error(["verify", "--reference", path], FAILED, "a matrix of an adapter has shape (18, 2), expected (18, 6)")
        path = self.save("td_lora.safetensors", {**tensors, "lora.B": tensors["lora.B"][None]}, stated)
        self.expect_error(["verify", "--reference", path], FAILED,
                          "lora.A and lora.B are not (experts, rank, inputs) and (outputs, rank)")


@unittest.skipUnless(ALIGNMENT.exists(), f"{ALIGNMENT} is not there; set DYDIT_SHARED")
class AlignmentTest(ProgramTest):
    """Losses on features with their gradients: golden/alignment of the shared folder."""

    def replay(self, change=lambda tensors: None, **metadata):
        tensors, stated = support.load(ALIGNMENT)
        change(tensors)
        path = self.save("alignment.safetensors", tensors, {**stated, **metadata})
        result = self.run_program("verify", "--reference", path, "-q", "--json")
        self.assertEqual(result.stderr, "")
        checks = self.one_object(result.stdout)["checks"]
        return result.returncode, {check["name"] for check in checks}, {check["name"] for check in checks if not check["ok"]}

    def test_agree(self):
        code, names, failed = self.replay()
        self.assertEqual((code, failed), (0, set()))
        inputs = {"z", "y", "sra_student", "sra_teacher", "sra_t", "sra_interval", "plr_noise"}
        inputs |= {name for name in support.load(ALIGNMENT)[0] if re.match(r"head\.|plr\.\d\.(features|[02]\.)", name)}
        self.assertEqual(names, set(support.load(ALIGNMENT)[0]) - inputs)

    def test_disagree(self):
        def add(name, value):
            return lambda tensors: tensors[name].__iadd__(tensors[name].dtype.type(value))
        for change, wanted in ((add("y", 0.1), {"cosine", "manifold_intra", "manifold_inter", "urepa"}),
                               (add("head.linear2.bias", 0.1), {"sra_head_out", "sra"}), (add("sra_interval", 1), {"sra_t_teacher"}),
                               (add("plr.1.2.bias", 0.1), {"plr.1.loss", "plr"})):
            code, _, failed = self.replay(change)
            self.assertEqual(code, FAILED)
            self.assertEqual({name for name in failed if not name.startswith("grad.")}, wanted)

    def test_patches_that_do_not_tile(self):
        tensors, stated = support.load(ALIGNMENT)
        path = self.save("alignment.safetensors", tensors, {**stated, "patch": "4"})
        self.expect_error(["verify", "--reference", path], FAILED, "metadata 'patch' is \"4\"", "tile plr_noise")


class DisagreesTest(ProgramTest):
    def failed_checks(self, *args):
        result = self.run_program("verify", *args, "-q", "--json")
        self.assertEqual((result.returncode, result.stderr), (FAILED, ""))
        report = self.one_object(result.stdout)
        self.assertIs(report["passed"], False)
        return {check["name"] for check in report["checks"] if not check["ok"]}

    def test_wrong_weights(self):
        failed = self.failed_checks("--model", TINY_PT, "--reference", FORWARD)  # ema = half of model
        self.assertLessEqual({"out", "out_static", "cfg_out"}, failed)

    def test_says_so(self):
        result = self.run_program("verify", "--model", TINY_PT, "--reference", FORWARD, "-q")
        self.assertEqual((result.returncode, result.stderr), (FAILED, ""))
        self.assertRegex(result.stdout, r"(?m)^FAIL  out +error ")
        self.assertRegex(result.stdout, r"(?m)^ok    pos_embed_formula ")
        self.assertRegex(result.stdout, r"FAILED: \d+ checks\n\Z")

    def test_each_recorded_value_counts(self):
        tensors, _ = support.load(FORWARD)
        for name in ("attn_mask", "mlp_mask", "token_mask"):
            with self.subTest(name):
                changed = tensors[name].copy()
                changed.flat[0] = 1 - changed.flat[0]
                path = self.save("flipped.safetensors", {**tensors, name: changed})
                self.assertEqual(self.failed_checks("--model", TINY, "--reference", path), {name})
        for value in (np.nan, tensors["out"].flat[7] + 1e-3 * np.abs(tensors["out"]).max()):
            changed = tensors["out"].copy()
            changed.flat[7] = value
            path = self.save("moved.safetensors", {**tensors, "out": changed})
            self.assertEqual(self.failed_checks("--model", TINY, "--reference", path), {"out"})

    def test_a_decision_that_rounding_moves(self):
        tensors, metadata = support.load(TINY)
        for block in range(2):
            router = f"blocks.{block}.token_selection.mlp_head.2"
            tensors[f"{router}.weight"] = np.zeros_like(tensors[f"{router}.weight"])
            tensors[f"{router}.bias"] = np.full_like(tensors[f"{router}.bias"], 1e-7)
        model = self.save("close.safetensors", tensors, metadata)
        recorded = support.load(DIFFUSION)[0]
        run = {name: value for name, value in recorded.items() if name.startswith("sample_ddim_eta1_")}
        path = self.save("run.safetensors", run)
        result = self.run_program("verify", "--model", model, "--reference", path, "-q")
        self.assertEqual(result.returncode, FAILED)
        self.assertRegex(result.stdout, r"FAIL .*closest decision 1\.0e-07 from another\n.*rounding can move .*Record it again")
        check = self.one_object(self.run_program("verify", "--model", model, "--reference", path, "--json").stdout)["checks"][0]
        self.assertIs(check["within_rounding"], True)

    def test_wrong_table(self):
        tensors, _ = support.load(DIFFUSION)
        betas = {"betas": tensors["betas"] * (1 + 1e-7), "timesteps_20": tensors["timesteps_20"] + 1}
        path = self.save("tables.safetensors", betas)
        self.assertEqual(self.failed_checks("--model", TINY, "--reference", path), {"betas", "timesteps_20"})

    def test_each_recorded_value_of_plans_counts(self):
        tensors, _ = support.load(PLANS)
        shutil.copytree(PLANS.parent / "plans", self.work / "plans")
        for kind in ("macs", "out", "x_9", "model_out_4"):
            name = f"dynamic.s12.mixed.{kind}"
            with self.subTest(name):
                changed = tensors[name].copy()
                changed.flat[1] += 1 if kind == "macs" else 1e-3 * np.abs(changed).max()
                path = self.save("moved.safetensors", {**tensors, name: changed})
                self.assertEqual(self.failed_checks("--model", TINY, "--reference", path), {f"cpu {name}", f"reference {name}"})

    def test_another_plan(self):
        tensors, _ = support.load(PLANS)
        plans = shutil.copytree(PLANS.parent / "plans", self.work / "plans")
        plan = json.loads((plans / "s12_stack_n3_o1.json").read_text())
        for step in plan["steps"]:
            step.get("ranges", [{}])[0]["order"] = 0  # it is 1
        (plans / "s12_stack_n3_o1.json").write_text(json.dumps(plan))
        failed = self.failed_checks("--model", TINY, "--reference", self.save("runs.safetensors", tensors))
        self.assertEqual({name.rsplit(".", 1)[0] for name in failed}, {"cpu static.s12.stack_n3_o1", "reference static.s12.stack_n3_o1"})


class RefusedTest(ProgramTest):
    def expect_refused(self, model, reference, exit_code, *fragments, flags=()):
        self.expect_error(["verify", "--model", model, "--reference", reference, *flags], exit_code, *fragments)

    def test_nothing_known(self):
        path = self.save("odd.safetensors", {"odd": np.zeros(3, np.float32)})
        self.expect_refused(TINY, path, FAILED, str(path), "nothing that verify can replay")

    def test_wrong_model(self):
        for reference in (FORWARD, DIFFUSION):
            self.expect_refused(CIFAR, reference, FAILED, str(reference), "(rows, 3, 32, 32)", "belong together")

    def test_bf16_runs(self):
        self.expect_refused(TINY, DIFFUSION, USAGE, "--dtype bf16", "f32", flags=["--dtype", "bf16"])

    def test_not_a_reference(self):
        self.expect_refused(TINY, self.write("text", "no tensors here"), FAILED, "text")
        self.expect_refused(TINY, TINY_PT, FAILED, str(TINY_PT))

    def test_incomplete(self):
        tensors, _ = support.load(FORWARD)
        y = tensors.pop("y")
        self.expect_refused(TINY, self.save("cut.safetensors", tensors), FAILED, "tensor y is missing", "nearest")
        self.expect_refused(TINY, self.save("cut.safetensors", {**tensors, "y": y[:-1]}), FAILED, "11 labels", "12")
        self.expect_refused(TINY, self.save("cut.safetensors", {**tensors, "y": y + 1}), FAILED, "label 11", "0 to 10")
        tensors["y"] = y
        self.expect_refused(TINY, self.save("cut.safetensors", {**tensors, "t": tensors["t"] + 1000}), FAILED, "timestep")

    def test_messages_of_forwards(self):
        tensors, _ = support.load(FORWARD)
        for changed, *words in (
            ({"y": tensors["y"][:-1]}, "y holds 11 labels, expected 12"),
            ({"y": tensors["y"] + 1}, "holds label 11, the model has 0 to 10"),
            ({"t": tensors["t"] + 1000}, "holds timestep 1", "expected 0 to 999"),
            ({"t": tensors["t"][:-1]}, "t holds 11 timesteps, x 12 rows"),
            ({"t": tensors["t"][:0]}, "t is empty"),
            ({"cfg_x": tensors["cfg_x"][:-1]}, "rows, expected two halves"),
            ({"cfg_t": tensors["cfg_t"][:-1]}, "timesteps, cfg_x", "rows"),
            ({"attn_mask": tensors["attn_mask"][:, :1]}, "attn_mask does not have shape (rows, blocks, heads)"),
            ({"token_mask": tensors["token_mask"][..., :5]}, "does not have shape (rows, blocks, tokens)"),
            ({"out": tensors["out"][:, :4]}, "reference tensor out has shape", "this model makes"),
        ):
            with self.subTest(words[0]):
                self.expect_refused(TINY, self.save("changed.safetensors", {**tensors, **changed}), FAILED, *words)

    def test_messages_of_runs(self):
        tensors, _ = support.load(DIFFUSION)
        run = {name: value for name, value in tensors.items() if name.startswith("sample_p_") and "unguided" not in name}
        steps = {name: value for name, value in tensors.items() if name.startswith("step_1_")}
        for changed, *words in (
            ({"betas_every7": tensors["betas_20"]}, "betas_every7 names no spacing; expected N or ddimN"),
            ({**run, "sample_p_y": run["sample_p_y"][:-2]}, "6 rows, 4 labels"),
            ({**run, "sample_p_noise": run["sample_p_noise"][1:]}, "one noise of sample_p_z's shape a step"),
            ({**run, "step_20_x": steps["step_1_x"], "step_20_noise": steps["step_1_noise"]},
             "is beyond the 20 recorded timesteps"),
        ):
            with self.subTest(words[0]):
                self.expect_refused(TINY, self.save("changed.safetensors", changed), FAILED, *words)

    def test_messages_of_plans(self):
        tensors, _ = support.load(PLANS)
        runs = self.save("runs.safetensors", tensors)
        self.expect_refused(TINY, runs, FAILED, "s12_guide_reuse.json", "No such file")
        shutil.copytree(PLANS.parent / "plans", self.work / "plans")
        changed = {**tensors, "timesteps_s12": tensors["timesteps_s12"][:-1]}
        self.expect_refused(TINY, self.save("cut.safetensors", changed), FAILED, "timesteps_s12 are not those of", "s12_guide_reuse.json")

    def test_bf16_is_for_forwards_alone(self):
        for reference, what in ((DIFFUSION, "single steps and sampling runs are compared in float32 only"),
                                (PLANS, "runs of plans are compared in float32 only"),
                                (GOLDEN / "training.safetensors", "a training step is compared in float32 only")):
            self.expect_refused(TINY, reference, USAGE, what, flags=["--dtype", "bf16"])


if __name__ == "__main__":
    support.main()
