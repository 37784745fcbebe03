"""Prints the losses of several models by decile of t as one Markdown table: mean +- spread over the noise seeds.

    python3 tools/loss_table.py static=loss-static.csv dynamic=loss-dynamic.csv

The files are those of `dydit evaluate --loss --csv`, on the same images, timesteps and seeds. Standard library only.
"""

import csv
import sys


def rows_of(path):
    with open(path, newline="") as file:
        return {row["t"]: row for row in csv.DictReader(file)}


def print_table(names, tables, key, scale, unit):
    print(f"| t | {' | '.join(f'{name}, {unit}' for name in names)} |")
    print("|" + "---|" * (len(names) + 1))
    for decile in tables[0]:
        cells = (f"{scale * float(table[decile][key]):.2f} +- {scale * float(table[decile][key + '_spread']):.2f}" for table in tables)
        print(f"| {decile} | {' | '.join(cells)} |")
    print()


def main():
    if len(sys.argv) < 2 or any("=" not in argument for argument in sys.argv[1:]):
        sys.exit(__doc__)
    names, paths = zip(*(argument.split("=", 1) for argument in sys.argv[1:]))
    tables = [rows_of(path) for path in paths]
    for path, table in zip(paths, tables):
        if table.keys() != tables[0].keys():
            sys.exit(f"{path}: its rows are not those of {paths[0]}")
    print_table(names, tables, "mse", 1e3, "mse x 1000")
    print_table(names, tables, "vb", 1e3, "vb x 1000, bits")
    print(f"| t | {' | '.join(f'{name}: heads / groups / tokens / work' for name in names)} |")
    print("|" + "---|" * (len(names) + 1))
    for decile in tables[0]:
        shares = (" / ".join(f"{float(table[decile][key]):.2f}" for key in ("heads", "groups", "tokens", "required_share"))
                  for table in tables)
        print(f"| {decile} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
