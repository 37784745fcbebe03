"""The command line itself: help, where values come from, what is refused by name, what goes to which stream."""

import re

import support
from support import CIFAR, GOLDEN, TINY, ProgramTest

USAGE = 2
VERBS = ("generate", "decode", "inspect", "verify", "convert", "train", "finetune", "bench", "calibrate", "evaluate", "latents", "quantize", "report", "serve")
SAMPLERS = ("auto", "ddpm", "ddim", "dpm++", "euler", "heun", "midpoint", "em-sde", "heun-sde", "dpm-fast", "lcm")
SAMPLING = ("generate", "report", "calibrate", "evaluate")
# option, verbs, values that work, values that are known and refused
CHOICES = (
    ("--sampler", SAMPLING, SAMPLERS, ("dopri5",)),
    ("--sampler", ("bench",), SAMPLERS, ()),
    ("--sampler", ("serve",), ("ddpm", "ddim", "dpm++", "euler", "heun"), ()),
    ("--diffusion-form", SAMPLING, ("auto", "sigma", "linear", "decreasing", "increasing-decreasing", "constant", "sbdm"), ()),
    ("--last-step", SAMPLING, ("mean", "euler", "tweedie", "none"), ()),
    ("--path", ("generate", "inspect", "convert", "train"), ("table", "linear", "linear-reversed", "gvp", "vp", "vp-999"), ()),
    ("--prediction", ("generate", "inspect", "finetune"), ("noise", "velocity"), ()),
    ("--family", ("train",), ("dit", "sit", "uvit", "skip-dit"), ()),
    ("--to", ("convert",), ("same", "static", "dynamic", "uvit", "skip-dit"), ()),
    ("--engine", ("generate", "verify", "bench", "calibrate", "evaluate"), ("auto", "cpu", "torch", "reference"), ()),
    ("--gate-rule", ("finetune",), ("threshold", "capacity"), ()),
    ("--distill", ("train", "finetune"), ("none", "lcm"), ()),
    ("--loss", ("train", "finetune"), ("l2", "huber"), ()),
    ("--noise", ("generate",), ("philox", "torch"), ()),
    ("--semantics", ("convert",), ("same", "original", "diffusers"), ()),
    ("--device", ("generate", "verify", "train", "finetune"), ("cpu",), ("cuda",)),
)


def arguments(verb):
    """Enough for the verb to run."""
    return {"calibrate": ["calibrate", "--model", TINY, "--threads", "1"],
            "generate": ["generate", "--model", TINY, "--latents", "x.safetensors", "--threads", "1"],
            "decode": ["decode", "--latents", "x.safetensors", "--vae", "vae"],
            "inspect": ["inspect", TINY],
            "report": ["report", TINY, "--images", "1", "--steps", "1"],
            "verify": ["verify", "--model", TINY, "--reference", GOLDEN / "forward.safetensors"],
            "convert": ["convert", TINY, "x.safetensors"],
            "bench": ["bench", "--model", TINY, "--steps", "1", "--repeats", "1"],
            "train": ["train", "--data-path", "images", "--size", "DiT-S/2", "--total-train-steps", "1"],
            "finetune": ["finetune", "--data-path", "images", "--model", TINY, "--total-train-steps", "1"],
            "quantize": ["quantize", "--model", TINY, "--out", "x.safetensors", "--calibrate", "0"],
            "serve": ["serve", "--model", support.CIFAR, "--port", "0"],
            "latents": ["latents", "--vae", "vae", "--data-path", "images", "--out", "set"],
            "evaluate": ["evaluate", "--loss", "--data-path", "images", "--model", TINY]}[verb]


class HelpTest(ProgramTest):
    def help(self, *args):
        result = self.run_program(*args)
        self.assertEqual((result.returncode, result.stderr), (0, ""), args)
        return result.stdout

    def test_program(self):
        for spelling in ("--help", "-h", "help"):
            said = self.help(spelling)
            listed = re.findall(r"^  (\w+)  ", said, re.MULTILINE)
            self.assertEqual(sorted(listed), sorted(VERBS))

    def test_version(self):
        self.assertRegex(self.help("--version"), r"\Adydit \d+\.\d+\.\d+\ncommit ")

    def test_verbs(self):
        for verb in VERBS:
            said = self.help(verb, "--help")
            self.assertIn(f"dydit {verb}", said)
            self.assertIn("--json", said)

    def test_only_what_works_is_listed(self):
        for option, verbs, works, later in CHOICES:
            for verb in verbs:
                shown = re.search(rf"^ +{option} .*(?:\n {{20,}}.*)*", self.help(verb, "--help"), re.MULTILINE)
                self.assertIsNotNone(shown, (verb, option))
                listed = re.findall(r"\(([^()]*)\)", shown.group())[-1].split(", ")
                self.assertEqual(listed, list(works), (verb, option))
                for value in later:
                    self.assertNotIn(value, listed)

    def test_help_needs_no_model_and_no_isa(self):
        self.assertIn("--steps", self.help("generate", "-h"))

    def test_nothing(self):
        result = self.run_program()
        self.assertEqual((result.returncode, result.stdout), (USAGE, ""))
        self.assertIn("usage: dydit VERB", result.stderr)


class RefusedTest(ProgramTest):
    def test_unknown_verb(self):
        self.expect_error(["generat"], USAGE, "generat", "no such verb", "--help")

    def test_values_of_later(self):
        for option, verbs, works, later in CHOICES:
            for value in later:
                for verb in verbs:
                    self.expect_error([*arguments(verb), option, value], USAGE, option,
                                      f"{value} is not available in this version", ", ".join(works))

    def test_unknown_values(self):
        for option, verbs, _, _ in CHOICES:
            self.expect_error([*arguments(verbs[0]), option, "odd"], USAGE, option, "odd is unknown")
        self.expect_error([*arguments("generate"), "--dtype", "f16"], USAGE, "--dtype", "f16", "bf16")
        self.expect_error([*arguments("convert"), "--dtype", "auto"], USAGE, "--dtype", "auto", "bf16")
        self.expect_error([*arguments("generate"), "--mode", "odd"], USAGE, "--mode", "odd is unknown")

    def test_unknown_flags(self):
        for verb in VERBS:
            self.expect_error([*arguments(verb), "--stepps"], USAGE, "--stepps", f"dydit {verb} --help")
        self.expect_error([*arguments("generate"), "stray"], USAGE, "stray")
        # Flags of other verbs are not swallowed.
        self.expect_error([*arguments("inspect"), "--steps", "3"], USAGE, "--steps")

    def test_missing_arguments(self):
        self.expect_error(["generate"], USAGE, "--model")
        self.expect_error(["inspect"], USAGE, "file")
        self.expect_error(["verify", "--model", TINY], USAGE, "--reference")
        self.expect_error(["convert", TINY], USAGE, "out")
        self.expect_error(["generate", "--model"], USAGE, "--model", quiet=False)
        self.expect_error([*arguments("generate"), "--steps", "3", "--steps", "4"], USAGE, "--steps")

    def test_errors_are_one_line_without_quiet_too(self):
        self.expect_error([*arguments("generate"), "--steps", "0"], USAGE, "--steps", quiet=False)


class ConfigFileTest(ProgramTest):
    def expect_refused(self, toml, *fragments):
        path = self.write("run.toml", toml)
        self.expect_error([*arguments("generate"), "--config", path], USAGE, *fragments)

    def test_unknown_key(self):
        self.expect_refused("steps = 1\nstepps = 2\n", "stepps")
        self.expect_refused("[sampling]\nsteps = 1\n", "sampling")

    def test_bad_value(self):
        self.expect_refused('steps = "many"\n', "--steps", "many")
        self.expect_refused("steps = 1001\n", "--steps", "1001")
        self.expect_refused('sampler = "odd"\n', "--sampler", "odd is unknown")

    def test_missing_file(self):
        self.expect_error([*arguments("generate"), "--config", "none.toml"], USAGE, "none.toml")

    def test_short_names_are_keys(self):
        path = self.write("run.toml", "n = 2\nsteps = 1\n")
        self.assertEqual(self.run_json(*arguments("generate"), "--config", path)["num_images"], 2)

    def test_names_of_positions_are_keys(self):
        path = self.write("run.toml", f'file = "{TINY}"\n')
        self.assertEqual(self.run_json("inspect", "--config", path)["file"], str(TINY))

    def test_errors_name_the_file(self):
        for toml in ("stepps = 2\n", "steps = 1001\n", "[sampling]\n", "json = 7 8\n", 'config = "x"\n'):
            self.expect_refused(toml, "run.toml: ", "dydit generate --help")

    def test_errors_in_flags_do_not(self):
        path = self.write("run.toml", "steps = 2\n")
        said = self.expect_error([*arguments("generate"), "--config", path, "--seed", "x"], USAGE, "--seed")
        self.assertNotIn("run.toml", said)

    def test_line_is_numbered(self):
        self.expect_refused("# one\nseed = 1\n[sampling]\n", "line 3")

    def test_large_file(self):
        self.expect_refused("# " + "x" * 32768, "has more than 32768 bytes")

    def test_nested_lists(self):
        self.expect_refused("classes = " + "[" * 10000 + "1" + "]" * 10000, "no lists in lists")

    def test_long_value_is_cut(self):
        path = self.write("run.toml", "steps = " + "1" * 30000)
        self.assertLess(len(self.expect_error([*arguments("generate"), "--config", path], USAGE, "--steps")), 1000)

    def test_control_characters_are_escaped(self):
        self.expect_refused('steps = "\x1b[31m"\n', "\\x1b[31m")

    def test_key_twice(self):
        self.expect_refused("steps = 2\nseed = 1\nsteps = 3\n", "steps", "twice")
        self.expect_refused("steps = 2\nnum-sampling-steps = 3\n", "num-sampling-steps", "twice")

    def test_key_with_dots(self):
        self.expect_refused("a." * 300 + "steps = 2\n", "run.toml")

    def test_number_sign_inside_quotes(self):
        self.expect_refused('latents = "img#1.safetensors"\n', "line 1", "inside quotes")

    def test_quote_that_is_not_closed(self):
        self.expect_refused('latents = "x\n', "line 1", "not closed")


class PrecedenceTest(ProgramTest):
    """default < --config < DYDIT_* < flag."""

    def generate(self, *flags, env=None):
        return self.run_json("generate", "--model", TINY, "--latents", "x.safetensors", "--threads", "1", *flags, env=env)

    def test_four_levels(self):
        toml = self.write("run.toml", 'seed = 11\nsteps = 2\nsampler = "ddim"\ncfg-scale = 1.5\n')
        file, variables, flags = ["--config", toml], {"DYDIT_SEED": "22", "DYDIT_STEPS": "3"}, ["--seed", "33", "--steps", "4"]
        seen = {
            "file": self.generate(*file),
            "variables": self.generate(*file, env=variables),
            "flags": self.generate(*file, *flags, env=variables),
            "one flag": self.generate(*file, "--seed=33", env=variables),
            "no file": self.generate(env=variables),
            "defaults": self.generate("--steps", "1"),
        }
        values = {level: tuple(run[key] for key in ("seed", "steps", "sampler", "cfg_scale")) for level, run in seen.items()}
        self.assertEqual(values, {
            "file": (11, 2, "ddim", 1.5),
            "variables": (22, 3, "ddim", 1.5),
            "flags": (33, 4, "ddim", 1.5),
            "one flag": (33, 3, "ddim", 1.5),
            "no file": (22, 3, "ddpm", 4.0),
            "defaults": (0, 1, "ddpm", 4.0),
        })

    def test_default_steps(self):
        self.assertEqual(self.generate("--cfg-scale", "1")["steps"], 250)

    def test_names_with_dashes(self):
        run = self.generate("--steps", "1", env={"DYDIT_CFG_SCALE": "2.5", "DYDIT_NUM_IMAGES": "2"})
        self.assertEqual((run["cfg_scale"], run["num_images"]), (2.5, 2))

    def test_short_and_second_spellings_beat_variables(self):
        env = {"DYDIT_NUM_IMAGES": "3", "DYDIT_STEPS": "5", "DYDIT_MODEL": "none.safetensors"}
        for images in (["-n", "2"], ["-n2"], ["--num-images=2"]):
            run = self.run_json("generate", "--ckpt", TINY, "--latents", "x.safetensors", *images,
                                "--num-sampling-steps", "1", env=env)
            self.assertEqual((run["num_images"], run["steps"]), (2, 1), images)

    def test_model_by_variable(self):
        run = self.run_json("generate", "--latents", "x.safetensors", "--steps", "1", env={"DYDIT_MODEL": str(TINY)})
        self.assertEqual(run["model"]["file"], TINY.name)

    def test_bad_variable(self):
        self.expect_error(arguments("generate"), USAGE, "--steps", "many", env={"DYDIT_STEPS": "many"})

    def test_unknown_variables_are_not_read(self):
        self.assertEqual(self.generate("--steps", "1", env={"DYDIT_STEPPS": "many", "DYDIT_SHARED": "x"})["steps"], 1)

    def test_isa_caps_dtype(self):
        run = self.generate("--steps", "1", env={"DYDIT_ISA": "avx2"})
        self.assertEqual(run["dtype"], "f32")


class VariablesTest(ProgramTest):
    GENERATE = ["generate", "--model", TINY, "--latents", "x.safetensors", "--cfg-scale", "1", "--dtype", "f32"]

    def test_an_empty_one_is_none(self):
        empty = {"DYDIT_STEPS": "", "DYDIT_SEED": "", "DYDIT_OUT": "", "DYDIT_QUIET": "", "DYDIT_CONFIG": "", "DYDIT_ISA": ""}
        run = self.run_json(*self.GENERATE, "--num-sampling-steps", "2", env=empty)
        self.assertEqual((run["steps"], run["seed"], run["files"]), (2, 0, ["x.safetensors"]))

    def test_its_name_is_told_with_what_is_wrong(self):
        for name, value, word in (("DYDIT_STEPS", "many", "many"), ("DYDIT_STEPS", "4\n", "\\x0a"), ("DYDIT_SEED", "-1", "-1"),
                                  ("DYDIT_CLASSES", "cat", "no class names"), ("DYDIT_CFG_CHANNELS", "some", "some"),
                                  ("DYDIT_ENGINE", "fast", "fast"), ("DYDIT_TIMESTEPS", "1,x", "'x'")):
            args = [word for word in self.GENERATE if name != "DYDIT_CFG_CHANNELS" or word not in ("--cfg-scale", "1")]
            self.expect_error(args, USAGE, f"{name}: ", word, env={name: value})

    def test_what_is_no_text_is_refused(self):
        for value in (b"caf\xe9.npz", b"a\nb.npz", b"\x1b[31m.npz"):
            self.expect_error(self.GENERATE, USAGE, "DYDIT_NPZ: ", "UTF-8", env={"DYDIT_NPZ": value})

    def test_every_long_name_of_a_flag_has_one(self):
        run = self.run_json(*self.GENERATE, env={"DYDIT_NUM_SAMPLING_STEPS": "3"})
        self.assertEqual(run["steps"], 3)
        self.expect_error(self.GENERATE, USAGE, "DYDIT_STEPS and DYDIT_NUM_SAMPLING_STEPS",
                          env={"DYDIT_NUM_SAMPLING_STEPS": "3", "DYDIT_STEPS": "3"})

    def test_names_the_config_file(self):
        path = self.write("run.toml", "steps = 2\n")
        self.assertEqual(self.run_json(*self.GENERATE, env={"DYDIT_CONFIG": str(path)})["steps"], 2)

    def test_verbose_says_where_values_came_from(self):
        path = self.write("run.toml", "seed = 3\n")
        said = self.run_program(*self.GENERATE, "-v", "--config", path, env={"DYDIT_STEPS": "2", "DYDIT_STEPPS": "9"}).stderr
        for told in ("--steps 2 (DYDIT_STEPS)", f"--seed 3 ({path})", "--cfg-scale 1,", "DYDIT_STEPPS: not read",
                     "knows DYDIT_STEPS"):
            self.assertIn(told, said)

    def test_a_wrong_one_does_not_keep_the_help_away(self):
        result = self.run_program("generate", "--help", env={"DYDIT_STEPS": "many"})
        self.assertEqual((result.returncode, result.stderr), (0, ""))


class MissingValueTest(ProgramTest):
    """The next flag is no value."""

    def test_the_next_flag_is_not_eaten(self):
        make = ["generate", "--model", TINY]
        for args in ([*make, "--npz", "--json"], [*make, "--latents", "-n", "2"], [*make, "--npz", "--steps=2"],
                     ["generate", "--model", "--npz", "x.npz"]):
            self.expect_error(args, USAGE, "expected a value, got the flag", quiet=False)

    def test_nothing_after_the_sign(self):
        for flag in ("--npz=", "--steps=", "--classes="):
            self.expect_error(["generate", "--model", TINY, flag, "--json"], USAGE, flag, "expected a value")

    def test_values_may_look_like_numbers_below_zero(self):
        self.expect_error(["generate", "--model", TINY, "--steps", "-5"], USAGE, "--steps: -5")


class StreamsTest(ProgramTest):
    GENERATE = ["generate", "--model", CIFAR, "--steps", "1", "-n", "2", "--threads", "1", "--dtype", "f32", "--seed", "5"]

    def test_decisions_go_to_stderr(self):
        result = self.run_program(*self.GENERATE)
        self.assertEqual(result.returncode, 0)
        for decision in ("engine   cpu, f32", "cpu", "seed 5", "ddpm 1 steps", CIFAR.name):
            self.assertIn(decision, result.stderr)
        self.assertIn("wrote samples.png", result.stdout)
        self.assertIn("required", result.stdout)
        self.assertEqual(list(self.files()), ["samples.png"])

    def test_json_is_alone_on_stdout(self):
        result = self.run_program(*self.GENERATE, "--json")
        self.assertEqual(self.one_object(result.stdout)["seed"], 5)
        self.assertIn("seed 5", result.stderr)

    def test_quiet_prints_results_only(self):
        self.assertIn("wrote samples.png", self.run_ok(*self.GENERATE))

    def test_verbose_prints_each_image(self):
        result = self.run_program(*self.GENERATE, "-v")
        self.assertEqual(len(re.findall(r"^image +\d+ ", result.stdout, re.MULTILINE)), 2)

    def test_json_of_every_verb(self):
        for verb in ("inspect", "verify", "convert"):
            self.run_json(*arguments(verb))


if __name__ == "__main__":
    support.main()
