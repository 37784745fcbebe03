"""What verbs write and what they read: targets are looked at before work begins and are never an input, a result is not
lost with a file, nothing is left half written, and a file that changes meanwhile is noticed."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import numpy as np

import support
from support import CIFAR, PROGRAM, TINY, ProgramTest, environment, read_png

FAILED, USAGE, CANCELLED = 1, 2, 130
ONE_STEP = ["--steps", "1"]


class TargetsBase(ProgramTest):
    def held_out(self):
        rng = np.random.default_rng(3)
        np.savez(self.work / "held_out.npz", images=rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
                 labels=np.array([0, 1, 2, 3]))
        return "held_out.npz"

    def evaluate(self, *flags):
        return ["evaluate", "--loss", "--model", CIFAR, "--data-path", self.held_out(), "--images", "2", "--seeds", "1", *flags]

    def bench(self, *flags):
        return ["bench", "--model", TINY, "--steps", "1", "--repeats", "1", *flags]

    def generate(self, *flags):
        return ["generate", "--model", CIFAR, *ONE_STEP, *flags]

    def large_model(self):
        """A static model of 100 MB, most of it class embeddings."""
        self.run_ok("convert", TINY, "small.safetensors", "--to", "static")
        tensors, metadata = support.load(self.work / "small.safetensors")
        hidden = tensors["pos_embed"].shape[-1]
        tensors["y_embedder.embedding_table.weight"] = np.zeros((25_000_000 // hidden, hidden), np.float32)
        config = json.loads(metadata["config"])
        config["num_classes"] = 25_000_000 // hidden - 1
        return self.save("large.safetensors", tensors, {**metadata, "config": json.dumps(config)})


class ProbeTest(TargetsBase):
    """Every target of every verb is tried before the work, and its folder is made."""

    def test_folders_are_made(self):
        self.run_ok(*self.generate("--out", "a/b/x.png", "--npz", "c/x.npz", "--latents", "d/x.safetensors"))
        self.run_ok("inspect", TINY, "--svg", "e/x.svg", "--csv", "f/x.csv")
        self.run_ok(*self.bench("--csv", "g/x.csv"))
        self.run_ok(*self.evaluate("--csv", "h/i/x.csv"))
        for name in ("j/x.safetensors", "k/x.pt"):
            self.run_ok("convert", TINY, name)
        self.run_ok("convert", CIFAR, "l/m/")
        for name in ("a/b/x.png", "c/x.npz", "c/x.npz.json", "d/x.safetensors", "e/x.svg", "f/x.csv", "g/x.csv", "h/i/x.csv",
                     "j/x.safetensors", "k/x.pt", "l/m/config.json"):
            self.assertTrue((self.work / name).is_file(), name)

    def test_unusable_ones_are_refused_before_the_work(self):
        file = self.write("file", "old")
        for args in (self.generate("--out", "new/x.png", "--cost-map", f"{file}/x.png"), self.evaluate("--csv", f"{file}/x.csv"),
                     self.bench("--csv", f"{file}/x.csv"), ["inspect", TINY, "--svg", "new/x.svg", "--csv", f"{file}/x.csv"],
                     ["convert", CIFAR, f"{file}/folder/"]):
            result = self.run_program(*args)
            said = result.stdout + result.stderr
            self.assertNotEqual(result.returncode, 0, said)
            self.assertNotIn("noise seeds", said)  # evaluate's last line before it measures
            self.assertFalse((self.work / "new").exists(), args)
        self.assertEqual(file.read_text(), "old")

    def test_preview_and_record_beside_are_targets(self):
        (self.work / "x_step0001.png").mkdir()
        self.expect_error(["generate", "--model", CIFAR, "--steps", "2", "--out", "x.png", "--preview-every", "1"], FAILED,
                          "x_step0001.png", "is a directory")
        (self.work / "x.npz.json").mkdir()
        self.expect_error(self.generate("--npz", "x.npz"), FAILED, "x.npz.json", "is a directory")

    def test_two_targets_of_one_name(self):
        (self.work / "link.csv").symlink_to("x.svg")
        self.expect_error(["inspect", TINY, "--svg", "x.svg", "--csv", "./x.svg"], USAGE, "--csv ./x.svg", "--svg writes")
        self.expect_error(self.generate("--npz", "x", "--latents", "x"), USAGE, "--npz x", "--latents writes")
        self.write("x.svg", "old")
        self.expect_error(["inspect", TINY, "--svg", "x.svg", "--csv", "link.csv"], USAGE, "--csv link.csv", "--svg writes")


class InputTest(TargetsBase):
    """An output that is also an input is refused, through links and other spellings, too."""

    def test_of_every_verb(self):
        model = shutil.copy(TINY, self.work / "m.safetensors")
        static = shutil.copy(CIFAR, self.work / "s.safetensors")
        data, names = self.held_out(), self.write("names", "\n".join("abcdefghij"))
        os.link(model, self.work / "twin.safetensors")
        (self.work / "link.safetensors").symlink_to("m.safetensors")
        self.run_ok("convert", static, "folder/")
        for args, name in ((["convert", model, "m.safetensors"], "m.safetensors"),
                           (["convert", model, "./link.safetensors"], "./link.safetensors"),
                           (["convert", model, "twin.safetensors"], "twin.safetensors"),
                           (["convert", "folder", "folder/"], "folder/diffusion_pytorch_model.safetensors"),
                           (["generate", "--model", model, *ONE_STEP, "--latents", "m.safetensors"], "m.safetensors"),
                           (["generate", "--model", static, *ONE_STEP, "--class-names", names, "--latents", "names"], "names"),
                           (["inspect", model, "--csv", "m.safetensors"], "m.safetensors"),
                           (["inspect", model, "--svg", "link.safetensors"], "link.safetensors"),
                           (["bench", "--model", model, "--csv", "m.safetensors"], "m.safetensors"),
                           (["evaluate", "--loss", "--model", static, "--data-path", data, "--csv", data], data)):
            self.expect_error(args, USAGE, f"{name}: is the input")

    def test_config_file(self):
        config = self.write("run.toml", "steps = 1\nrepeats = 1\n")
        self.expect_error(["bench", "--model", TINY, "--config", config, "--csv", "run.toml"], USAGE, "run.toml: is the input")

    def test_neighbours_of_an_input(self):
        model = shutil.copy(TINY, self.work / "m.safetensors")
        self.run_ok("convert", model, "m.safetensors.pt")
        self.run_ok("convert", model, "n.safetensors")
        self.run_ok("convert", model, "n.safetensors")  # an older output may be replaced


class ResultBeforeFileTest(TargetsBase):
    """On a disk that is full by then: the result is told, one line says what failed, the old file is whole."""

    def expect_told(self, args, target, *words, room=0):
        with support.small_disk(self, 64) as disk:
            (disk / target).write_bytes(b"old")
            (disk / "filling").write_bytes(bytes((60 - room) * 1024))
            for json_flag in ([], ["--json"]):
                result = self.run_program(*args, *json_flag, "-q")
                said = (args, result)
                self.assertEqual(result.returncode, FAILED, said)
                self.assertEqual(result.stderr, f"dydit: error: disk/{target}: cannot write: No space left on device\n", said)
                if json_flag:
                    self.one_object(result.stdout)
                else:
                    for word in words:
                        self.assertIn(word, result.stdout, said)
                self.assertEqual((disk / target).read_bytes(), b"old", said)
                self.assertEqual(sorted(os.listdir(disk)), sorted(["filling", target]), said)

    def test_evaluate(self):
        self.expect_told(self.evaluate("--csv", "disk/x.csv"), "x.csv", "all ")

    def test_bench(self):
        self.expect_told(self.bench("--csv", "disk/x.csv"), "x.csv", "ms/sample")

    def test_inspect(self):
        self.expect_told(["inspect", TINY, "--plan-steps", "1000", "--csv", "disk/x.csv"], "x.csv", "sha256")
        self.expect_told(["inspect", TINY, "--plan-steps", "1000", "--svg", "disk/x.svg"], "x.svg", "sha256")

    def test_generate_keeps_what_could_be_written(self):
        for flag, target in (("--out", "x.png"), ("--npz", "x.npz"), ("--cost-map", "x.png"), ("--latents", "x.safetensors")):
            if flag == "--cost-map":
                self.expect_told(["generate", "--model", TINY, *ONE_STEP, "-n", "4", "--latents", "kept.safetensors", flag,
                                  f"disk/{target}"], target, "wrote kept.safetensors", "cost per image")
                continue
            kept = ["--out", "kept.png"] if flag != "--out" else ["--latents", "kept.safetensors"]
            room = 8 if flag == "--npz" else 0  # for the first images: without it is refused before the work
            self.expect_told(self.generate("-n", "40", *kept, flag, f"disk/{target}"), target, f"wrote {kept[1]}",
                             "cost per image", room=room)
            (self.work / kept[1]).unlink()

    def test_convert(self):
        for target in ("x.pt", "x.safetensors"):
            with support.small_disk(self, 64) as disk:
                (disk / target).write_bytes(b"old")
                self.expect_error(["convert", CIFAR, f"disk/{target}"], FAILED, f"disk/{target}: ", "No space left")
        with support.small_disk(self, 64):
            self.expect_error(["convert", CIFAR, "disk/folder/"], FAILED, "disk/folder/", "No space left")


class RunningBase(TargetsBase):
    def start(self, *args):
        process = subprocess.Popen([PROGRAM, *map(str, args), "-q"], cwd=self.work, env=environment(), text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def temporaries(self):
        return [pathlib.Path(folder, name) for folder, _, names in os.walk(self.work)  # which folders may vanish under
                for name in names if name.startswith(".") and ".tmp-" in name]

    def stop_at(self, process, reached):
        """Stops the process as soon as `reached` holds."""
        deadline = time.monotonic() + support.TIMEOUT
        while not reached():
            self.assertIsNone(process.poll(), "it ended before")
            self.assertLess(time.monotonic(), deadline)
        process.send_signal(signal.SIGSTOP)


class SignalTest(RunningBase):
    """A signal in the middle of writing leaves no temporary file and the old target."""

    def is_writing(self):
        for path in self.temporaries():
            try:
                if path.stat().st_size > 0:
                    return True
            except FileNotFoundError:  # the one with which the target was tried
                pass
        return False

    def expect_ended(self, process, *signals):
        for number in signals:
            process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=support.TIMEOUT)
        self.assertIn(-process.returncode, signals)
        self.assertEqual(self.temporaries(), [])

    def test_convert(self):
        model = self.large_model()
        for target in ("x.safetensors", "x.pt"):
            self.write(target, "old")
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                process = self.start("convert", model, target)
                self.stop_at(process, self.is_writing)
                self.expect_ended(process, number)
                self.assertEqual((self.work / target).read_text(), "old")

    def test_new_folder_is_left_empty(self):
        process = self.start("convert", self.large_model(), "new/x.safetensors")
        self.stop_at(process, self.is_writing)
        self.expect_ended(process, signal.SIGINT)
        self.assertEqual(list(self.work.glob("new/*")), [])  # none at all if that was the try of the target

    def test_second_signal_of_generate(self):
        process = self.start("generate", "--model", CIFAR, "--steps", "500", "-n", "64", "--npz", "x.npz")
        self.stop_at(process, lambda: any(path.name.startswith(".x.npz.tmp") for path in self.temporaries()))
        self.expect_ended(process, signal.SIGINT, signal.SIGTERM)

    def test_hangup_is_a_cancel(self):
        process = self.start("generate", "--model", CIFAR, "--steps", "100", "-n", "500", "--batch", "1", "--out", "made/")
        self.stop_at(process, lambda: (self.work / "made" / "000000.png").is_file())
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=support.TIMEOUT)
        self.assertEqual((process.returncode, stderr), (CANCELLED, ""))
        self.assertIn("wrote made/000000.png", stdout)

    def test_nohup_goes_on(self):
        process = subprocess.Popen(["sh", "-c", 'trap "" HUP; exec "$0" "$@"', PROGRAM, "generate", "--model", CIFAR, "--steps",
                                    "20", "-n", "4", "--batch", "1", "--out", "x%d.png", "-q"],
                                   cwd=self.work, env=environment(), stdout=subprocess.DEVNULL)
        self.stop_at(process, lambda: (self.work / "x0.png").is_file())
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGCONT)
        self.assertEqual(process.wait(timeout=support.TIMEOUT), 0)
        self.assertTrue((self.work / "x3.png").is_file())


class ChangingFileTest(RunningBase):
    """Another program writes over a file in use: one line and 1, or the image of what was read."""

    def is_mapped(self, process, name):
        try:
            return name in pathlib.Path(f"/proc/{process.pid}/maps").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False

    def expect_named(self, args, name, change, prepare):
        for _ in range(20):
            prepare()
            process = self.start(*args)
            while process.poll() is None and not self.is_mapped(process, name):
                pass
            process.send_signal(signal.SIGSTOP)
            change(self.work / name)
            process.send_signal(signal.SIGCONT)
            stdout, stderr = process.communicate(timeout=support.TIMEOUT)
            if process.returncode == 0:
                continue  # on a busy machine it may be done with the file before it is stopped
            self.assertEqual((process.returncode, stdout), (FAILED, ""), stderr)
            self.assertRegex(stderr, rf"\Adydit: error: \S*{name}: (changed|was cut short) .*run again\n\Z")
            self.assertEqual(self.temporaries(), [])
            return
        self.fail("it was never caught in the act")

    def cut(self, path):
        os.truncate(path, 0)

    def overwrite(self, path):
        """Other numbers in the same places, as cp does it; the header stays."""
        with open(path, "r+b") as file:
            file.seek(-4096, os.SEEK_END)
            file.write(bytes(4096))

    def test_convert_writes_nothing(self):
        def prepare():
            self.large_model()
            self.write("x.safetensors", "old")

        for change in (self.cut, self.overwrite):
            self.expect_named(["convert", "large.safetensors", "x.safetensors"], "large.safetensors", change, prepare)
            self.assertEqual((self.work / "x.safetensors").read_text(), "old")

    def test_inspect(self):
        for change in (self.cut, self.overwrite):
            self.expect_named(["inspect", "large.safetensors"], "large.safetensors", change, self.large_model)

    def test_generate_is_not_disturbed_once_it_began(self):
        flags = ["--steps", "30", "--batch", "1", "-n", "3", "-c", "1", "--dtype", "f32"]
        self.run_ok("generate", "--model", CIFAR, *flags, "--out", "wanted%d.png")
        for change in (self.cut, self.overwrite):
            shutil.copy(CIFAR, self.work / "m.safetensors")
            process = self.start("generate", "--model", "m.safetensors", *flags, "--out", "x%d.png")
            self.stop_at(process, lambda: (self.work / "x0.png").is_file())
            change(self.work / "m.safetensors")
            process.send_signal(signal.SIGCONT)
            stderr = process.communicate(timeout=support.TIMEOUT)[1]
            self.assertEqual((process.returncode, stderr), (0, ""))
            for i in range(3):
                self.assertTrue(np.array_equal(read_png(self.work / f"wanted{i}.png"), read_png(self.work / f"x{i}.png")), i)
                (self.work / f"x{i}.png").unlink()

    def test_data_set(self):
        images, labels = np.random.default_rng(1).integers(0, 256, (20_000, 32, 32, 3), dtype=np.uint8), np.arange(20_000) % 10
        self.expect_named(["evaluate", "--loss", "--model", CIFAR, "--data-path", "large.npz", "--images", "4000"], "large.npz",
                          self.cut, lambda: np.savez(self.work / "large.npz", images=images, labels=labels))


if __name__ == "__main__":
    support.main()
