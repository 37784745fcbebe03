"""Results of `dydit evaluate --json` as one table.

    tools/evaluation_table.py RESULT.json...
"""

import json
import pathlib
import sys


def shown(result, key, digits, scale=1.0):
    if key not in result:
        return ""
    text = f"{scale * result[key]:.{digits}f}"
    return text + (f" ± {scale * result[key + '_error']:.{digits}f}" if key + "_error" in result else "")


def main():
    results = [json.loads(pathlib.Path(name).read_text()) for name in sys.argv[1:]]
    costs = {result["name"]: result for result in results if "gmacs_per_image" in result}
    print("| features | run | N | FID | KID x 1000 | IS | precision | recall | agreement | GMACs an image | s an image |\n"
          "|---|---|---|---|---|---|---|---|---|---|---|")
    for result in sorted(results, key=lambda result: (result["extractor"], result["name"])):
        cost = costs.get(result["name"], {})
        cells = [result["extractor"], result["name"], str(result["n"]), shown(result, "fid", 3), shown(result, "kid", 3, 1000),
                 shown(result, "is", 2), shown(result, "precision", 3), shown(result, "recall", 3), shown(result, "class_agreement", 3),
                 shown(cost, "gmacs_per_image", 2), shown(cost, "seconds_per_image", 3)]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
