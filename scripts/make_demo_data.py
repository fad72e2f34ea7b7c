"""Draw the demo set: captioned pictures with planted near-duplicates, warning signs, flaws and broken files.

python scripts/make_demo_data.py .curator/demo --seed 7 --count 400
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

from curator.demo.draw import draw_demo


def main() -> None:
    """Draw what the command line asks for, and print what was planted."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--seed", type=int, default=7)
    options.add_argument("--count", type=int, default=400)
    chosen = options.parse_args()
    draw_demo(chosen.folder, chosen.seed, chosen.count)
    with open(chosen.folder / "truth.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name, counts in (
        ("transform", Counter(row["transform"] or "none" for row in rows)),
        ("unsafe", Counter(row["unsafe"] for row in rows)),
        ("broken", Counter(row["broken"] or "none" for row in rows)),
    ):
        print(f"{name:10}", "  ".join(f"{value} {number}" for value, number in sorted(counts.items())))


if __name__ == "__main__":
    main()
