"""What the documents say exists, exists: every file that README.md and docs/*.md name in backticks, in a
```sh block or as a link, and every symbol that they name after a file (`FILE.cpp`: `symbol`). And no file of the project knows the machine it was made on or a package registry.

A word names a file of ours if its first folder is one of the repository's, or if it is a bare name of a source,
script or document (`main.cpp`). Not checked: build/, samples/, ../shared and placeholders (`ROOT/CLASS/*.png`,
`<file>.h`, `{png,npz}.h`). A file of another project is written with its folder (`DiT/models.py`)."""

import glob
import os
import re

import house

BARE_NAMES = (".cpp", ".h", ".cu", ".py", ".cmake", ".md", ".sh")
MADE_LATER = ("build/", "samples/", "../shared")
PLACEHOLDER = re.compile(r"[<>{}$]|\.\.\.|(^|[/.])[A-Z][A-Z_0-9]*(?=[/.]|$)")
# Written so that this file does not match itself.
MACHINE = re.compile(r"(?<![\w.$})\]/-])/(work|root)/\w")
MACHINE_IN_DOCS = re.compile(r"(?<![\w.$})\]/:-])/(work|root|home|tmp|opt|mnt|srv|Users)/\w")
REGISTRY = re.compile(r"\b(pypi|pythonhosted|anaconda|conda|npmjs|crates|conan)\.(org|io|com)\b"
                      r"|\b(deb|ftp|security|snapshot|archive)\.(debian|ubuntu)\.(org|com)\b"
                      r"|\bdownload\.pytorch\.org\b")


def named_files(text):
    """(line number, kind, word) of every word that may be a file: kind is "code" or "link"."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"\s*```+\s*(\w*)", line)
        if match:
            fence = match[1] or "text" if fence is None else None
            continue
        if fence is not None and fence != "sh":
            continue
        spans = [line] if fence == "sh" else re.findall(r"`+([^`]+)`+", line)
        for span in spans:
            for word in re.split(r"[\s=,;|&()\"']+", span):
                yield number, "code", word
        if fence is None:
            targets = re.findall(r"\]\(\s*<?([^)\s>]+)", line) + re.findall(r"^\s*\[[^\]]+\]:\s*(\S+)", line)
            for target in targets + re.findall(r"\b(?:src|href)=\"([^\"]+)\"", line):
                yield number, "link", target


def is_missing(word, kind, folder, root, files):
    """Whether a word of a document in `folder` names a file of ours that is not there."""
    if kind == "link":
        target = word.split("#")[0]
        if not target or re.match(r"[a-z][a-z0-9+.-]*:", target):
            return False
        return not os.path.exists(os.path.normpath(root / folder / target))  # docs/.. even without docs/
    word = re.sub(r"(:\d+(-\d+)?|#.*)$", "", word.strip(".,:")).removeprefix("./")
    if not word or word.startswith(MADE_LATER) or (root / word).exists() or (root / folder / word).exists():
        return False
    if PLACEHOLDER.search(word):
        return False
    if "/" not in word:
        ours = re.fullmatch(r"\w[\w.-]*", word) and word.endswith(BARE_NAMES)
        return bool(ours) and not any(path.endswith("/" + word) for path in files)
    if word.split("/")[0] not in {path.split("/")[0] for path in files if "/" in path}:
        return False
    return not ("*" in word and glob.glob(word, root_dir=root))


def missing_symbols(text, root):
    """(line number, file, symbol) of every `FILE`: `SYMBOL`, `SYMBOL` whose file does not hold the symbol's name."""
    for number, line in enumerate(text.splitlines(), 1):
        for file, symbols in re.findall(r"`([\w/]+\.(?:cpp|h|py))`: ((?:`[\w:]+`(?:, )?)+)", line):
            source = (root / file).read_text() if (root / file).is_file() else ""
            for symbol in re.findall(r"`([\w:]+)`", symbols):
                if source and not re.search(rf"\b{symbol.split('::')[-1]}\b", source):
                    yield number, file, symbol


def check_document(path, text, root, files):
    folder = path.rpartition("/")[0]
    complaints = [f"{path}:{number}: names {word}, which does not exist"
                  for number, kind, word in named_files(text) if is_missing(word, kind, folder, root, files)]
    complaints += [f"{path}:{number}: {file} has no {symbol}" for number, file, symbol in missing_symbols(text, root)]
    return complaints + check_lines(path, text, MACHINE_IN_DOCS)


def check_lines(path, text, machine):
    complaints = []
    for number, line in enumerate(text.splitlines(), 1):
        if found := machine.search(line):
            complaints.append(f"{path}:{number}: a path of one machine: {found[0]}...")
        if found := REGISTRY.search(line):
            complaints.append(f"{path}:{number}: the host of a package registry: {found[0]}")
    return complaints


# (document text, a word of the one complaint or None); they stand in for docs/x.md of this repository.
CASES = [
    ("`tests/house/docs_test.py:3` and `docs_test.py`, see [the test](../tests/house/docs_test.py#top)", None),
    ("`build/release/dydit generate --out samples/x.png --data ../shared/data`", None),
    ("`ROOT/CLASS/*.png`, `tests/<name>.cpp`, `tests/{io,base}/file.h`, `DiT/models.py`, `images/s`, `x.png`", None),
    ("`tests/house/*.py` [web](https://example.com/x.md) [below](#below)", None),
    ("```text\ntests/nowhere/a.cpp\n```", None),
    ("`tests/nowhere/a.cpp`", "tests/nowhere/a.cpp"),
    ("`tests/nowhere/`", "tests/nowhere"),
    ("`tests/nowhere/*.cpp`", "tests/nowhere/*.cpp"),
    ("`nowhere.cpp`", "nowhere.cpp"),
    ("run `scripts/nowhere --flag`", "scripts/nowhere"),
    ("```sh\nscripts/nowhere --flag\n```", "scripts/nowhere"),
    ("[gone](nowhere.md)", "nowhere.md"),
    ("`tests/house/docs_test.py`: `check_document`, `self_check`", None),
    ("`tests/house/docs_test.py`: `self_check`, `" + "no_such" + "_function`", "no_such"),
    ("it lies in " + "/home" + "/me/dydit", "one machine"),
    ("from https://" + "pypi" + ".org/simple", "registry"),
]


def self_check(files):
    complaints = []
    for text, wanted in CASES:
        found = check_document("docs/x.md", text, house.ROOT, files)
        if (len(found) != 1 or wanted not in found[0]) if wanted else found:
            complaints.append(f"self-check {text!r}: wanted {wanted}, got {found}")
    return complaints


files = house.project_files()
documents = ["README.md", *sorted(str(p.relative_to(house.ROOT)) for p in (house.ROOT / "docs").glob("*.md"))]
complaints = self_check(files)
for path in documents:
    if (house.ROOT / path).exists():
        complaints += check_document(path, (house.ROOT / path).read_text(), house.ROOT, files)
    else:
        complaints.append(f"{path} is missing")
for path in sorted(set(files) - set(documents)):
    data = (house.ROOT / path).read_bytes()
    if b"\0" not in data[:8192]:
        complaints += check_lines(path, data.decode(errors="replace"), MACHINE)
house.finish(complaints, f"{len(documents)} documents name files that exist; {len(files)} files name no machine")
