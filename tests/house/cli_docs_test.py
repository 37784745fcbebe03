"""docs/cli.md is what tools/make_cli_docs.py would write now. Called as FILE PROGRAM."""

import difflib
import re
import sys

import house

sys.path.insert(0, str(house.ROOT / "tools"))
import make_cli_docs  # noqa: E402

wanted = make_cli_docs.make_page(sys.argv[1])
found = make_cli_docs.PAGE.read_text() if make_cli_docs.PAGE.exists() else ""
difference = difflib.unified_diff(found.splitlines(), wanted.splitlines(), "as it is", "as --help says",
                                  lineterm="", n=0)
complaints = [f"docs/cli.md: {line}" for line in difference]
if complaints:
    complaints.append("run: python3 tools/make_cli_docs.py PROGRAM")
if "=cores\n" not in wanted or re.search(r"--threads .*=\d+$", wanted, re.MULTILINE):
    complaints.append("the default of --threads is that of this machine")
house.finish(complaints, "docs/cli.md is current")
