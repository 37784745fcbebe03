"""The program's three streams: full, closed, ended by the reader, or wanted for a picture. No verb loses work or tells a
result that did not arrive; scripts/quickstart neither."""

import os
import pathlib
import shutil
import subprocess
import zipfile

import numpy as np

import support
from support import CIFAR, GOLDEN, PROGRAM, ROOT, TINY, ProgramTest, environment, png_bytes, read_png

FAILED, USAGE = 1, 2
ONE_STEP = ["--steps", "1", "--seed", "5"]
NO_SPACE = "dydit: error: standard output: the result could not be written: No space left on device\n"
BROKEN_PIPE = "dydit: error: standard output: the result could not be written: Broken pipe\n"


class StreamsBase(ProgramTest):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(3)
        for name in ("a", "b"):
            (self.work / "data" / name).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                (self.work / "data" / name / f"{index}.png").write_bytes(png_bytes(pixels))
        np.savez(self.work / "held_out.npz", images=rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
                 labels=np.array([0, 1, 2, 3]))
        run = self.run_json(*self.train("from"))
        self.static = run["checkpoint"]

    def train(self, results):
        return ["train", "--data-path", "data", "--hidden", "8", "--depth", "1", "--heads", "2", "--patch", "4",
                "--global-batch-size", "2", "--total-train-steps", "2", "--log-every", "1", "--results-dir", results]

    def finetune(self, results):
        return ["finetune", "--data-path", "data", "--model", self.static, "--global-batch-size", "2",
                "--total-train-steps", "2", "--log-every", "1", "--results-dir", results]

    def work_of_verbs(self):
        """Of every verb a command, and the file that it must have written whole (None: it writes none)."""
        return [(["generate", "--model", CIFAR, *ONE_STEP, "-n", "2", "--out", "x.png", "--npz", "x.npz"], "x.npz"),
                (["generate", "--model", TINY, *ONE_STEP, "--latents", "x.safetensors"], "x.safetensors"),
                (["inspect", TINY, "--csv", "plan.csv"], "plan.csv"),
                (["inspect", self.work / "held_out.npz"], None),
                (["verify", "--model", TINY, "--reference", GOLDEN / "forward.safetensors"], None),
                (["convert", TINY, "y.safetensors"], "y.safetensors"),
                (["bench", "--model", TINY, "--steps", "1", "--repeats", "1", "--csv", "bench.csv"], "bench.csv"),
                (["evaluate", "--loss", "--model", CIFAR, "--data-path", "held_out.npz", "--images", "2", "--seeds", "1",
                  "--csv", "loss.csv"], "loss.csv"),
                (self.train("runs"), "runs/000-DiT-1x8-4/checkpoints/0000002.safetensors"),
                (self.finetune("tuned"), "tuned/000-DyDiT-1x8-4/checkpoints/0000002.safetensors")]

    def all_that_print(self):
        verbs = ["generate", "inspect", "verify", "convert", "bench", "evaluate", "train", "finetune"]
        return ([args for args, _ in self.work_of_verbs()] + [[*args, "--json"] for args, _ in self.work_of_verbs()] +
                [["--version"], ["--version", "--json"], ["--help"]] + [[verb, "--help"] for verb in verbs])

    def run_with(self, args, closed=(), **streams):
        """The program with streams of subprocess's kind (default: captured), `closed` ones not open at all."""
        def close():
            for stream in closed:
                os.close(stream)
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        return subprocess.run([PROGRAM, *map(str, args)], cwd=self.work, env=environment(), text=True, preexec_fn=close,
                              timeout=support.TIMEOUT, **streams)

    def ended_pipe(self):
        """The writing end of a pipe whose reader is gone."""
        reader, writer = os.pipe()
        os.close(reader)
        self.addCleanup(os.close, writer)
        return writer

    def full(self):
        return self.enter(open("/dev/full", "w"))

    def enter(self, file):
        self.addCleanup(file.close)
        return file

    def forget_outputs(self):
        for name in ("runs", "tuned"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        for name in ("x.png", "x.npz", "x.npz.json", "x.safetensors", "y.safetensors", "plan.csv", "bench.csv", "loss.csv"):
            (self.work / name).unlink(missing_ok=True)

    def expect_whole(self, name, said):
        if name is None:
            return
        path = self.work / name
        self.assertTrue(path.is_file(), (name, said))
        if name.endswith(".npz"):
            with zipfile.ZipFile(path) as archive:
                self.assertIsNone(archive.testzip(), said)
        elif name.endswith(".safetensors"):
            self.assertTrue(support.load(path)[0], said)
        else:
            self.assertGreater(len(path.read_text().splitlines()), 1, said)
        self.assertEqual([p for p in self.files() if ".tmp-" in p], [], said)


class StdoutTest(StreamsBase):
    """A result that does not arrive is an error at the end."""

    def expect_lost(self, line, make):
        for args in self.all_that_print():
            if args[0] not in ("--version", "--help") and args[-1] != "--help":
                args = [*args, "-q"]
            result = self.run_with(args, stdout=make())
            self.assertEqual((result.returncode, result.stderr), (FAILED, line), args)
            self.forget_outputs()

    def test_full(self):
        self.expect_lost(NO_SPACE, self.full)

    def test_pipe_that_ended(self):
        self.expect_lost(BROKEN_PIPE, self.ended_pipe)

    def test_file_that_may_not_grow(self):
        with open(self.work / "log", "w") as log:
            result = subprocess.run(["bash", "-c", f"ulimit -f 0; trap '' XFSZ; exec '{PROGRAM}' --help"], stdout=log,
                                    stderr=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, FAILED, result)
        self.assertIn("File too large", result.stderr)

    def test_closed_is_nobody_who_listens(self):
        for args, file in self.work_of_verbs():
            result = self.run_with([*args, "-q"], closed=[1])
            self.assertEqual((result.returncode, result.stderr), (0, ""), args)
            self.expect_whole(file, result)

    def test_error_counts_more_than_a_lost_result(self):
        result = self.run_with(["inspect", "none.pt"], stdout=self.full())
        self.assertEqual(result.returncode, FAILED)
        self.assertIn("none.pt: cannot open", result.stderr)
        result = self.run_with(["nonsense"], stdout=self.full())
        self.assertEqual(result.returncode, USAGE)


class StderrTest(StreamsBase):
    """What cannot be told does not stop the work."""

    def expect_done(self, closed, make):
        for args, file in self.work_of_verbs():
            result = self.run_with(args, closed=closed, **({} if closed else {"stderr": make()}))
            self.assertEqual(result.returncode, 0, (args, result))
            self.assertTrue(result.stdout, args)
            self.expect_whole(file, args)
            self.forget_outputs()

    def test_full(self):
        self.expect_done([], self.full)

    def test_pipe_that_ended(self):
        self.expect_done([], self.ended_pipe)

    def test_closed(self):
        self.expect_done([2], None)

    def test_exit_status_of_an_error_stays(self):
        for stderr in (self.full(), self.ended_pipe()):
            self.assertEqual(self.run_with(["inspect", "none.pt"], stderr=stderr).returncode, FAILED)
            self.assertEqual(self.run_with(["nonsense"], stderr=stderr).returncode, USAGE)
            self.assertEqual(self.run_with([], stderr=stderr).returncode, USAGE)
        self.assertEqual(self.run_with(["inspect", "none.pt"], closed=[2]).returncode, FAILED)

    def test_all_processes_of_mpirun(self):
        if not shutil.which("mpirun") or not PROGRAM.with_name("libdydit_mpi.so").exists():
            self.skipTest("no mpirun here, or built without MPI: NOT TESTED on several processes")
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        for redirection in ("2>/dev/full", "2>&-", "0<&- 1>&- 2>&-"):
            shutil.rmtree(self.work / "runs", ignore_errors=True)
            command = f'exec "$0" "$@" {redirection}'
            result = subprocess.run(["mpirun", "--bind-to", "none", "--oversubscribe", "-n", "2", "bash", "-c", command,
                                     PROGRAM, *self.train("runs")], cwd=self.work, env=environment(allowed), text=True,
                                    stdin=subprocess.DEVNULL, capture_output=True, timeout=support.TIMEOUT)
            self.assertEqual(result.returncode, 0, (redirection, result))
            self.expect_whole("runs/000-DiT-1x8-4/checkpoints/0000002.safetensors", redirection)


class ClosedTest(StreamsBase):
    """A closed stream's number is not given to a file."""

    def test_stdin(self):
        for args, file in self.work_of_verbs():
            result = self.run_with(args, closed=[0])
            self.assertEqual(result.returncode, 0, (args, result))
            self.expect_whole(file, args)

    def test_all_three(self):
        for args, file in self.work_of_verbs():
            result = self.run_with(args, closed=[0, 1, 2])
            self.assertEqual(result.returncode, 0, args)
            self.expect_whole(file, args)
        self.assertEqual(self.run_with(["--version"], closed=[0, 1, 2]).returncode, 0)
        self.assertEqual(self.run_with(["inspect", "none.pt"], closed=[0, 1, 2]).returncode, FAILED)


class TargetStreamTest(ProgramTest):
    """--out /dev/stdout: the picture, and nothing but it, from where the stream stands."""

    PICTURE = ["generate", "--model", CIFAR, *ONE_STEP, "-c", "3"]

    def shell(self, line, *args):
        return subprocess.run(["bash", "-c", line, PROGRAM, *map(str, args)], cwd=self.work, env=environment(),
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=support.TIMEOUT)

    def setUp(self):
        super().setUp()
        self.run_ok(*self.PICTURE, "--out", "wanted.png")

    def expect_picture(self, content, before=b"", after=b""):
        """The picture between these bytes, whole (its record tells the seconds, so it is no other time the same)."""
        self.assertTrue(content.startswith(before) and content.endswith(after), content[:20] + content[-20:])
        picture = self.write("seen.png", content[len(before):len(content) - len(after)])
        self.assertTrue(np.array_equal(read_png(picture), read_png(self.work / "wanted.png")))

    def test_file(self):
        result = self.shell('exec "$0" "$@" --out /dev/stdout >x.png', *self.PICTURE)
        self.assertEqual((result.returncode, result.stdout), (0, b""))
        self.expect_picture((self.work / "x.png").read_bytes())
        self.assertIn(b"wrote /dev/stdout", result.stderr)
        self.assertIn(b"cost per image", result.stderr)

    def test_end_of_a_file(self):
        for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link.png"):
            (self.work / "link.png").unlink(missing_ok=True)
            (self.work / "link.png").symlink_to("/dev/stdout")
            (self.work / "log").write_bytes(b"before")
            result = self.shell(f'"$0" "$@" --out {name} >>log && echo after >>log', *self.PICTURE)
            self.assertEqual(result.returncode, 0, (name, result.stderr))
            self.expect_picture((self.work / "log").read_bytes(), b"before", b"after\n")
            self.assertTrue((self.work / "link.png").is_symlink())

    def test_pipe_and_other_descriptors(self):
        result = self.shell('"$0" "$@" --out /dev/stdout -q | cat', *self.PICTURE)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.expect_picture(result.stdout)
        result = self.shell('"$0" "$@" -q --out /dev/fd/7 7>seven', *self.PICTURE)
        self.expect_picture((self.work / "seven").read_bytes())
        self.assertIn(b"cost per image", result.stdout)

    def test_tables_likewise(self):
        self.run_ok("inspect", TINY, "--csv", "wanted.csv")
        result = self.shell('"$0" "$@" --csv /dev/stdout >>x.csv', "inspect", TINY)
        self.assertEqual((result.returncode, result.stdout), (0, b""))
        self.assertEqual((self.work / "x.csv").read_bytes(), (self.work / "wanted.csv").read_bytes())
        self.assertIn(b"sha256", result.stderr)

    def test_full_or_ended(self):
        result = self.shell('exec "$0" "$@" -q --out /dev/stdout >/dev/full', *self.PICTURE)
        self.assertEqual((result.returncode, result.stderr),
                         (FAILED, b"dydit: error: /dev/stdout: cannot write: No space left on device\n"))
        result = self.shell('"$0" "$@" -q --out /dev/stdout | true; exit ${PIPESTATUS[0]}', *self.PICTURE)
        self.assertEqual((result.returncode, result.stderr), (FAILED, b"dydit: error: /dev/stdout: cannot write: Broken pipe\n"))

    def test_refusals(self):
        for line, word in (('--out /dev/stdout --json | cat', "--json"),
                           ('--out /dev/fd/5 --json 5>&1 | cat', "--json"),
                           ('--out /dev/stdout >x.png 2>&1', "goes there, too"),
                           ('--out /dev/stderr', "goes there, too"),
                           ('--out /dev/stdout --latents /dev/fd/1 | cat', "--out writes that file, too"),
                           ('--out /dev/stdout >&-', "is closed"),
                           ('--npz /dev/stdout | cat', "--npz /dev/stdout"),
                           ('--out /dev/stdout --preview-every 1 --steps 2 | cat', "--preview-every"),
                           ('--out x.png >x.png', "results are printed into that file"),
                           ('--latents y 2>>y', "progress is printed into that file")):
            args = [word_ for word_ in self.PICTURE if "--steps 2" not in line or word_ not in ("--steps", "1")]
            result = self.shell(f'"$0" "$@" {line}; exit ${{PIPESTATUS[0]}}', *args)
            said = (result.stdout + result.stderr + b"".join(
                (self.work / name).read_bytes() for name in ("x.png", "y") if (self.work / name).exists())).decode(errors="replace")
            self.assertEqual((result.returncode, said.count("\n")), (USAGE, 1), (line, said))
            self.assertIn(word, said, line)
            for name in ("x.png", "y"):
                (self.work / name).unlink(missing_ok=True)
        result = self.shell('exec "$0" "$@" -q --out /dev/fd/9', *self.PICTURE)
        self.assertEqual((result.returncode, result.stderr),
                         (FAILED, b"dydit: error: /dev/fd/9: cannot write: Bad file descriptor\n"))
        self.assertFalse(pathlib.Path("/dev/stdout.json").exists())


class QuickstartTest(ProgramTest):
    """scripts/quickstart in a tree of its own, with everything built: what it prints survives every redirection."""

    QUICK = ["-n", "1", "--steps", "1"]

    def setUp(self):
        super().setUp()
        for name, content in (("setup", "echo setup"), ("build", "echo build")):
            (self.work / "scripts").mkdir(exist_ok=True)
            (self.work / "scripts" / name).write_text(f"#!/bin/sh\n{content}\n")
            (self.work / "scripts" / name).chmod(0o755)
        shutil.copy(ROOT / "scripts" / "quickstart", self.work / "scripts")
        (self.work / "build" / "release").mkdir(parents=True)
        (self.work / "build" / "release" / "dydit").symlink_to(PROGRAM)
        (self.work / "models").symlink_to(ROOT / "models")

    def quickstart(self, redirection, *flags):
        command = f'scripts/quickstart {" ".join([*(flags or self.QUICK)])} {redirection}'
        return subprocess.run(["bash", "-c", command], cwd=self.work, env=environment(), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=support.TIMEOUT)

    def expect_all(self, text):
        self.assertEqual(text.count("cost per image"), 2, text)
        for words in ("setup\n", "build\n", "quickstart: dydit generate", "wrote samples/quickstart.png",
                      "quickstart: the picture is", "wrote samples/quickstart-complete.png",
                      "quickstart: dynamic routing saved"):
            self.assertEqual(text.count(words), 1, (words, text))

    def test_file(self):
        self.assertEqual(self.quickstart("> log 2>&1").returncode, 0)
        log = (self.work / "log").read_text()
        self.expect_all(log)
        self.assertIn("sampling ddim 1 steps", log)  # of stderr

    def test_end_of_a_file(self):
        (self.work / "log").write_text("before\n")
        self.assertEqual(self.quickstart(">> log").returncode, 0)
        log = (self.work / "log").read_text()
        self.assertTrue(log.startswith("before\n"))
        self.expect_all(log)

    def test_pipe(self):
        result = self.quickstart("| cat")
        self.expect_all(result.stdout)

    def test_nothing(self):
        for redirection in (">&-", "2>&-", "<&- >&- 2>&-"):
            result = self.quickstart(redirection)
            self.assertEqual(result.returncode, 0, (redirection, result))
            self.assertEqual(read_png(self.work / "samples/quickstart.png").shape, (32, 32, 3))
            shutil.rmtree(self.work / "samples")

    def test_full(self):
        self.assertNotEqual(self.quickstart("> /dev/full").returncode, 0)

    def test_error_keeps_its_status(self):
        result = self.quickstart("", "--steps", "0")
        self.assertEqual(result.returncode, USAGE)
        self.assertIn("dydit: error: --steps", result.stderr)

    def test_own_output_is_not_compared(self):
        result = self.quickstart("", *self.QUICK, "--out", "own.png")
        self.assertEqual(result.returncode, 0)
        self.assertIn("wrote own.png", result.stdout)
        self.assertNotIn("saved", result.stdout)


if __name__ == "__main__":
    support.main()
