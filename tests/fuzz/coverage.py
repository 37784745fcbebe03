"""Line coverage of the readers after a run of fuzz_readers that was built with -DDYDIT_COVERAGE=ON.

coverage.py BUILD: prints a table. What writes files, opens them by name or works on tensors that are already read is not
counted: no mutant gets there.
"""

import json
import pathlib
import re
import subprocess
import sys

READERS = ("config_file", "diffusers", "image", "inflate", "jpeg", "json", "npz_reader", "pickle", "pickle_machine",
           "latents_index", "plan_file", "plan_spec", "png", "safetensors", "safetensors_index", "tar", "text", "tfevents",
           "tfevents_reader", "torch_file", "torch_tensor", "zip")
NOT_READING = re.compile(r"write|Writer|make_grid|text_chunks|::encode\(|append_bytes|truncate_events|put_|new_event|"
                         r"colorspace|std::filesystem|Renamer|block_name|bytes_of")


def lines_of(data):
    """{line number: times executed} of the file that a .gcda belongs to, without headers."""
    said = subprocess.run(["gcov", "--json-format", "--stdout", data.name], cwd=data.parent, check=True,
                          capture_output=True, text=True).stdout
    source = data.name.removesuffix(".gcda")
    counts = {}
    for text in said.splitlines():
        for file in json.loads(text)["files"]:
            if pathlib.Path(file["file"]).name != source:
                continue
            skipped = {f["name"] for f in file["functions"] if NOT_READING.search(f["demangled_name"])}
            for line in file["lines"]:
                if line.get("function_name") not in skipped:
                    number = line["line_number"]
                    counts[number] = max(counts.get(number, 0), line["count"])
    return counts


def main():
    data = {path.name.removesuffix(".cpp.gcda"): path for path in pathlib.Path(sys.argv[1]).rglob("*.gcda")
            if any(folder in str(path) for folder in ("dydit_io", "dydit/plan", "programs/dydit"))}
    print(f"{'file':<22} {'lines':>6} {'executed':>9}   not executed")
    for name in READERS:
        if name not in data:
            sys.exit(f"coverage.py: no counts of {name}.cpp below {sys.argv[1]}; build with -DDYDIT_COVERAGE=ON and run "
                     "fuzz_readers")
        counts = lines_of(data[name])
        missed = sorted(number for number, count in counts.items() if count == 0)
        share = 100 * (1 - len(missed) / len(counts))
        print(f"{name + '.cpp':<22} {len(counts):>6} {share:>7.1f} %   {' '.join(map(str, missed[:12]))}"
              f"{' ...' if len(missed) > 12 else ''}")


if __name__ == "__main__":
    main()
