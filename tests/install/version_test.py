"""dydit --version: what it says, and how the commit gets into the build.

Called as FILE PROGRAM CMAKE [CLASS...]."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

PROGRAM, CMAKE = sys.argv[1:3]
SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "cmake" / "GitCommit.cmake"
GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@example.com")


class ProgramTest(unittest.TestCase):
    def run_program(self, *args, isa=None):
        env = {name: value for name, value in os.environ.items() if not name.startswith("DYDIT_")}
        return subprocess.run([PROGRAM, "--version", *args], capture_output=True, text=True,
                              env={**env, **({"DYDIT_ISA": isa} if isa else {})})

    def test_text(self):
        said = self.run_program()
        self.assertEqual((said.returncode, said.stderr), (0, ""))
        self.assertRegex(said.stdout, r"\Adydit \d+\.\d+\.\d+\ncommit +([0-9a-f]{12}(-dirty)?|unknown)\n"
                                      r"libtorch +2\.11\.\d+\nonednn +\d+\.\d+\.\d+\n"
                                      r"isa +(avx2|avx512|avx512_bf16|amx)\n"
                                      r"auto +(f32|bf16-dot)\nbf16 +(bf16-dot|bf16-fma)\n\Z")

    def test_json_says_the_same(self):
        lines = [line.split() for line in self.run_program().stdout.splitlines()]
        said = self.run_program("--json").stdout
        self.assertEqual(said.count("\n"), 1)
        self.assertEqual(json.loads(said), {"version": lines[0][1], **{key: value for key, value in lines[1:]}})

    def test_isa_is_the_capped_one(self):
        self.assertEqual(json.loads(self.run_program("--json", isa="avx2").stdout)["isa"], "avx2")

    def test_bad_use_is_one_line(self):
        for said, name in ((self.run_program("stray"), "--json"), (self.run_program(isa="mmx"), "DYDIT_ISA=mmx")):
            self.assertEqual((said.returncode, said.stdout, said.stderr.count("\n")), (2, "", 1))
            self.assertIn(name, said.stderr)


@unittest.skipUnless(shutil.which("git"), "git is not installed")
class CommitTest(unittest.TestCase):
    """GitCommit.cmake in a folder of its own, a checkout or not."""

    def setUp(self):
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="dydit-test-"))
        self.addCleanup(shutil.rmtree, self.work)
        self.header = self.work / "commit.h"
        self.source = self.work / "source"
        self.source.mkdir()
        (self.source / "file").write_text("1")

    def git(self, *args):
        done = subprocess.run([*GIT, *args], cwd=self.source, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def make_checkout(self):
        self.git("init", "-q")
        self.git("add", "file")
        self.git("commit", "-q", "-m", "One")

    def commit(self, source=None):
        subprocess.run([CMAKE, f"-DSOURCE={source or self.source}", f"-DHEADER={self.header}", "-P", SCRIPT], check=True,
                       env={**os.environ, "GIT_CEILING_DIRECTORIES": str(self.work)})
        return re.search(r'kCommit = "(.*)";', self.header.read_text())[1]

    def test_a_checkout(self):
        self.make_checkout()
        self.assertEqual(self.commit(), self.git("rev-parse", "--short=12", "HEAD"))

    def test_a_changed_checkout(self):
        self.make_checkout()
        (self.source / "file").write_text("2")
        self.assertEqual(self.commit(), self.git("rev-parse", "--short=12", "HEAD") + "-dirty")

    def test_an_unpacked_archive(self):
        self.assertEqual(self.commit(), "unknown")

    def test_an_archive_unpacked_in_another_checkout(self):
        self.make_checkout()
        (self.source / "below").mkdir()
        self.assertEqual(self.commit(self.source / "below"), "unknown")

    def test_the_same_commit_leaves_the_header_alone(self):
        self.make_checkout()
        self.commit()
        os.utime(self.header, (1, 1))
        self.commit()
        self.assertEqual(self.header.stat().st_mtime, 1)

    def test_another_commit_is_written(self):
        self.make_checkout()
        before = self.commit()
        self.git("commit", "-q", "--allow-empty", "-m", "Two")
        self.assertNotEqual(self.commit(), before)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
