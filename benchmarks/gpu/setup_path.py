"""Makes the modules of benchmarks/rivals importable; imported for that alone."""

import sys

from protocol import ROOT

if str(ROOT / "benchmarks/rivals") not in sys.path:
    sys.path.insert(0, str(ROOT / "benchmarks/rivals"))
