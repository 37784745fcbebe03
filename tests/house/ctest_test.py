"""tests/ctest: every gtest case is in one entry of ctest, and what a run skipped is said with its reason."""

import sys

import house

sys.path.insert(0, str(house.ROOT / "tests" / "ctest"))
import entries  # noqa: E402
import skipped  # noqa: E402

CASES = [("Png", "Reads", "/a/tests/io/png_test.cpp"), ("Png", "Writes", "/a/tests/io/png_test.cpp"),
         ("Kinds/Image", "Is/0", "../tests/io/png_test.cpp"),
         ("Run", "A", "tests/x/run_test.cpp"), ("Run", "B", "tests/x/other_test.cpp"),
         ("Levels/Kernels", "Gemm/avx2", "tests/x/run_test.cpp"), ("Levels/Kernels", "Dot/avx2", "tests/x/run_test.cpp"),
         ("Levels/Kernels", "Gemm/amx", "tests/x/run_test.cpp")]
ENTRIES = {"io.png": "Png.*:Kinds/Image.*", "x.run": "Run.A", "x.other": "Run.B", "x.run.avx2": "Levels/Kernels.*/avx2",
           "x.run.amx": "Levels/Kernels.*/amx"}

LOG = """Start testing: now
----------------------------------------------------------
1/4 Testing: x.run.amx
1/4 Test: x.run.amx
Command: "x_tests"
Output:
----------------------------------------------------------
[ RUN      ] Levels/Kernels.Gemm/amx
a_test.cpp:52: Skipped
this processor
has no amx
[  SKIPPED ] Levels/Kernels.Gemm/amx (0 ms)
[ RUN      ] Levels/Kernels.Other/amx
[       OK ] Levels/Kernels.Other/amx (0 ms)
[ RUN      ] Levels/Kernels.Dot/amx
a_test.cpp:52: Skipped
this processor has no amx
[  SKIPPED ] Levels/Kernels.Dot/amx (0 ms)
[  SKIPPED ] 2 tests, listed below:
[  SKIPPED ] Levels/Kernels.Gemm/amx
[  SKIPPED ] Levels/Kernels.Dot/amx
<end of output>
Test Passed.
----------------------------------------------------------
2/4 Testing: python.module
2/4 Test: python.module
Output:
----------------------------------------------------------
SKIPPED: no torch
<end of output>
3/4 Test: program.memory
Output:
----------------------------------------------------------
test_a ... skipped 'no mount'
SKIPPED memory_test.A.test_a: no mount
<end of output>
4/4 Test: golden
Output:
----------------------------------------------------------
engine cpu (avx2)
<end of output>
"""
SKIPPED = ["  x.run.amx, 2 tests: this processor has no amx", "  python.module: no torch",
           "  program.memory, memory_test.A.test_a: no mount", "  golden: engine cpu (avx2)"]

complaints = []
for found, wanted in ((entries.entries_of(CASES), ENTRIES), (skipped.report(LOG, {"golden", "python.module"}), SKIPPED),
                      (skipped.report(LOG, set()), SKIPPED[:3]),
                      (skipped.WHOLE.findall("1/4 Test #12: golden.x ......***Skipped   0.52 sec"), ["golden.x"])):
    if found != wanted:
        complaints.append(f"{found}\n  expected {wanted}")
house.finish(complaints, "entries hold every case once; skipped tests are listed")
