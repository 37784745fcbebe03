"""Which room may see which: walks the #includes of dydit/ and programs/ and fails on an arrow that is not in
ROOMS. The check is a function of {path: text}, so the cases at the end prove that it finds what it should."""

import re

import house

# A room sees the rooms named here and all that those see. A room that does not exist yet is fine.
ROOMS = {
    "base": [],
    "io": ["base"],
    "model": ["io"],
    "diffusion": ["base"],
    "plan": ["model"],
    "engine": ["plan"],  # never train: they meet in the checkpoint, in model and in plan
    "data": ["io"],
    "train": ["plan", "diffusion", "data"],
    "conv": ["engine"],
    "eval": ["conv", "diffusion", "data"],
    "vae": ["conv", "data"],
    "report": ["plan", "io"],
    "pipeline": ["engine", "diffusion", "vae"],
    "calibrate": ["pipeline"],
    "serve": ["calibrate"],
}
EVERYTHING = set(ROOMS)
SOURCES = (".h", ".cpp", ".cu", ".cuh")
TORCH = ("torch/", "ATen/", "c10/")


def seen_from(room):
    """The room itself and every room that it may include."""
    return {room}.union(*(seen_from(other) for other in ROOMS[room]))


def room_of(path):
    """base ... pipeline, "dydit.h", "programs", or None for a place that has no row in the table."""
    parts = path.split("/")
    if parts[0] == "programs":
        return "programs"
    if path == "dydit/dydit.h":
        return "dydit.h"
    return parts[1] if parts[0] == "dydit" and len(parts) > 2 and parts[1] in ROOMS else None


def may_include(room):
    if room == "programs":
        return EVERYTHING | {"programs", "dydit.h"}
    return EVERYTHING if room == "dydit.h" else seen_from(room)


def includes(text):
    """(line number, how it opens, what it names) of every #include."""
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#\s*include(?:_next)?\b\s*([<"]?)([^>"]*)', line)
        if match:
            yield number, match[1], match[2].strip()


def check_file(path, text):
    room = room_of(path)
    if room is None:
        return [f"{path}: not in a room; the rooms are {', '.join(ROOMS)} (tests/house/layers_test.py)"]
    complaints = []
    for number, opening, name in includes(text):
        where = f"{path}:{number}: {room} includes {name}"
        inside = name.startswith(("dydit/", "programs/"))
        if name.startswith("CLI/") and room != "programs":
            complaints.append(f"{where}, but options are parsed in programs/ only")
        elif room != "programs" and (opening == '"' and not inside or opening == "" or "/../" in name):
            complaints.append(f"{where}, wanted a path from the root of the repository: \"dydit/ROOM/FILE.h\"")
        elif inside and room_of(name) not in may_include(room):
            allowed = ", ".join(sorted(may_include(room) - {room})) or "nothing"
            complaints.append(f"{where}, but {room} may see {allowed}")
    return complaints


def sources_of_dydit_io(cmake):
    """The files that dydit/CMakeLists.txt gives to the target dydit_io, as paths from the root."""
    cmake = re.sub(r"#.*", "", cmake)
    calls = re.findall(r"(?:target_sources|add_library)\s*\(\s*dydit_io\b([^)]*)\)", cmake)
    return [f"dydit/{word}" for call in calls for word in call.split() if word.endswith(SOURCES)]


def check_dydit_io(files, cmake):
    """dydit_io links no LibTorch: neither its sources, nor dydit/io, nor a header they reach may include it."""
    sources = sources_of_dydit_io(cmake)
    if not sources:
        return ["dydit/CMakeLists.txt: no sources of dydit_io found"]
    complaints = []
    todo = [(path, path) for path in sorted({*sources, *(p for p in files if p.startswith("dydit/io/"))})]
    reached = {path for path, _ in todo}
    while todo:
        path, route = todo.pop()
        for number, _, name in includes(files.get(path, "")):
            if name.startswith(TORCH):
                complaints.append(f"{path}:{number}: dydit_io is built without LibTorch, but includes {name}"
                                  f" (reached by {route})")
            elif name in files and name not in reached:
                reached.add(name)
                todo.append((name, f"{route} -> {name}"))
    return complaints


def check(files, cmake):
    complaints = [complaint for path, text in sorted(files.items()) for complaint in check_file(path, text)]
    return complaints + check_dydit_io(files, cmake)


# (what is proved, files, a word of the one complaint or None)
CASES = [
    ("a room sees what its rooms see", {"dydit/plan/a.h": '#include "dydit/base/error.h"\n#include <vector>'}, None),
    ("programs see everything", {"programs/dydit/a.cpp": '#include "dydit/dydit.h"\n#include <CLI/CLI.hpp>'}, None),
    ("dydit.h sees everything", {"dydit/dydit.h": '#include "dydit/pipeline/generate.h"'}, None),
    ("train does not see engine", {"dydit/train/a.h": '#include "dydit/engine/engine.h"'}, "train includes"),
    ("engine does not see train", {"dydit/engine/a.cpp": '#include "dydit/train/ema.h"'}, "engine includes"),
    ("diffusion knows no network", {"dydit/diffusion/a.cpp": '  # include "dydit/model/dit.h"'}, "diffusion includes"),
    ("angle brackets count too", {"dydit/base/a.h": "#include <dydit/io/png.h>"}, "base includes"),
    ("no way round by a relative path", {"dydit/io/a.h": '#include "../plan/plan.h"'}, "wanted a path"),
    ("no way round by dots", {"dydit/io/a.h": '#include "dydit/io/../plan/plan.h"'}, "wanted a path"),
    ("no way round by a macro", {"dydit/io/a.h": "#include HEADER"}, "wanted a path"),
    ("rooms do not see programs", {"dydit/io/a.h": '#include "programs/dydit/verbs.h"'}, "io includes"),
    ("rooms do not see dydit.h", {"dydit/engine/a.h": '#include "dydit/dydit.h"'}, "engine includes"),
    ("a new room needs a row", {"dydit/util/a.h": ""}, "not in a room"),
    ("options are parsed in programs", {"dydit/base/a.h": "#include <CLI/CLI.hpp>"}, "programs/ only"),
    ("no LibTorch in a source of dydit_io", {"dydit/io/a.cpp": "#include <torch/torch.h>"}, "without LibTorch"),
    ("no LibTorch behind two headers",
     {"dydit/io/a.cpp": '#include "dydit/io/b.h"', "dydit/io/b.h": '#include "dydit/base/c.h"',
      "dydit/base/c.h": "#include <ATen/ATen.h>"}, "without LibTorch"),
    ("LibTorch elsewhere in base", {"dydit/base/c.h": "#include <c10/util/Half.h>"}, None),
]


def self_check():
    complaints = []
    if "train" in seen_from("engine") or "engine" in seen_from("train"):
        complaints.append("ROOMS: train and engine see each other")
    for fact, files, wanted in CASES:
        found = check(files, "target_sources(dydit_io PRIVATE io/a.cpp)")
        if (len(found) != 1 or wanted not in found[0]) if wanted else found:
            complaints.append(f"self-check '{fact}': wanted {wanted}, got {found}")
    return complaints


files = {str(path.relative_to(house.ROOT)): path.read_text()
         for top in ("dydit", "programs") for path in (house.ROOT / top).rglob("*") if path.suffix in SOURCES}
cmake = (house.ROOT / "dydit/CMakeLists.txt").read_text()
house.finish(self_check() + check(files, cmake), f"{len(files)} files include only what their room may see")
