"""What the program says of requests that cannot be meant: one a message that no other test names."""

import subprocess

import numpy as np

import support
from support import CIFAR, PROGRAM, TINY, ProgramTest, environment

FAILED, USAGE = 1, 2


class MessageTest(ProgramTest):
    def test_nothing_to_do(self):
        self.expect_error(["bench"], USAGE, "nothing to time: give --model FILE, or --size, e.g. DiT-XL/2")
        self.expect_error(["evaluate"], USAGE, "nothing to measure: give --model, or --images")
        self.expect_error(["evaluate", "--model", TINY, "--data-path", "d"], USAGE, "--data-path d: needs --loss")

    def test_version_with_more(self):
        result = self.run_program("--version", "--quiet")
        self.assertEqual((result.returncode, result.stdout), (USAGE, ""))
        self.assertIn("--version goes alone or with --json; see dydit --help", result.stderr)

    def test_class_names_that_cannot_be_read(self):
        self.expect_error(["generate", "--model", CIFAR, "--class-names", "none.txt"], FAILED,
                          "none.txt: cannot read class names")

    def test_class_lists(self):
        for given, said in (('"cat', 'a quote is not closed'), ("cat,,dog", "an item is empty"),
                            ('"cat"s', "follows a quote; expected a comma")):
            self.expect_error(["generate", "--model", CIFAR, "--classes", given], USAGE, "class list", said)

    def test_one_thing_said_twice(self):
        self.expect_error(["generate"], USAGE, "DYDIT_MODEL and DYDIT_CKPT: both give --model; set one of them",
                          env={"DYDIT_MODEL": "a", "DYDIT_CKPT": "b"})
        self.expect_error(["generate", "--model", CIFAR, "--steps", "4", "--timesteps", "1,2"], USAGE,
                          "--steps and --timesteps: one excludes the other; give one of them")

    def test_config_with_a_mark_in_quotes(self):
        path = self.write("run.toml", 'out = "a#b.png"\n')
        self.expect_error(["generate", "--model", CIFAR, "--config", path], USAGE,
                          "line 1: # inside quotes; give this as a flag")

    def test_latents_are_no_pixels(self):
        self.expect_error(["generate", "--model", TINY, "--out", "a.png"], USAGE,
                          "makes latents of 4 channels, not pixels: give its autoencoder with --vae, or write them with --latents FILE.safetensors instead of --out")
        self.expect_error(["generate", "--model", TINY], USAGE,
                          "makes latents of 4 channels, not pixels: give its autoencoder with --vae, or say where they go with --latents FILE.safetensors")

    def test_train_takes_static_models(self):
        self.expect_error(["train", "--model", TINY, "--data-path", "d", "--total-train-steps", "1"], USAGE,
                          "has routers; train makes static models, use finetune")

    def test_a_foreign_record(self):
        self.run_ok("generate", "--model", CIFAR, "--steps", "1", "--npz", "a.npz")
        record = (self.work / "a.npz.json").read_text()
        (self.work / "a.npz.json").write_text(record.replace('"ddpm"', '"ddpm; touch owned"'))
        result = self.run_program("inspect", "a.npz")
        said = result.stdout + result.stderr
        self.assertIn("no dydit writes that, so no command can be given that makes the images again", said)
        self.assertNotIn("make again", said)

    def test_pictures_and_json_on_one_stream(self):
        result = self.run_program("generate", "--model", CIFAR, "--steps", "1", "--out", "/dev/stdout", "--json", "-q")
        self.assertEqual((result.returncode, result.stdout), (USAGE, ""))
        self.assertIn("--out /dev/stdout: --json prints its object there; name a file", result.stderr)

    def test_a_picture_on_a_closed_stream(self):
        result = subprocess.run(["bash", "-c", '"$0" generate --model "$1" --steps 1 --out /dev/stdout -q >&-', PROGRAM, str(CIFAR)],
                                cwd=self.work, env=environment(None), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, USAGE, result.stderr)
        self.assertIn("--out /dev/stdout: is closed; open it or name a file", result.stderr)

    def test_results_where_no_folder_can_be(self):
        for name in ("ant", "bee"):
            (self.work / "data" / name).mkdir(parents=True)
            self.write(f"data/{name}/0.png", support.png_bytes(np.zeros((8, 8, 3), np.uint8)))
        self.write("file", "x")
        result = self.run_program("train", "--results-dir", "file/r", "--data-path", "data", "--hidden", "8", "--depth", "1",
                                  "--heads", "2", "--patch", "4", "--total-train-steps", "1", "--global-batch-size", "2", "-q")
        self.assertEqual(result.returncode, FAILED, result.stderr)
        self.assertIn("cannot make this folder", result.stderr)


if __name__ == "__main__":
    support.main()
