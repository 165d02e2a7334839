"""Lay out the solar cells of `pip install elpv-dataset` as photographs: train/good, test/good, test/defective.

    python benchmarks/baselines/solar_cells.py OUT --seed 0

Cells of defect probability 0 are normal, those of 1 defective, others are left out. `--normal` of the normal ones, drawn by
the seed, are for fitting; all others are for testing. The images are CC BY-NC-SA 4.0: for measuring only.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np


def main() -> None:
    """Copy the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--normal", type=int, default=300, help="normal cells for fitting")
    parser.add_argument(
        "--package", type=Path, help="folder elpv_dataset of the unpacked wheel; the installed one if left out"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} exists")
    if args.package is None:
        import elpv_dataset

        args.package = Path(elpv_dataset.__file__).parent
    lines = [line.split() for line in (args.package / "data/labels.csv").read_text().splitlines() if line.strip()]
    good, defective = ([line[0] for line in lines if float(line[1]) == value] for value in (0.0, 1.0))
    good = [good[i] for i in np.random.default_rng(args.seed).permutation(len(good))]
    parts = {"train/good": good[: args.normal], "test/good": good[args.normal :], "test/defective": defective}
    for part, names in parts.items():
        (args.out / part).mkdir(parents=True)
        for name in names:
            shutil.copy(args.package / "data" / name, args.out / part)
    print(", ".join(f"{len(names)} {part}" for part, names in parts.items()), f"seed {args.seed}", sep="; ")


if __name__ == "__main__":
    main()
