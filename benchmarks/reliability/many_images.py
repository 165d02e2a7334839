"""Scores folders of many images, some of them damaged: each damaged one must be named, and memory must not grow.

The images are cut out of the bundled sets, so that no two are equal; a damaged one has lost its second half. `debm score`
runs in a process of its own for each number, whose largest memory is that of the system's own account.

    python benchmarks/reliability/many_images.py --counts 2000 20000

prints a row for each number: images, damaged ones, rows of the table, rows that name a damaged image, peak memory in MB.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from denoising_ebm import load_images
from denoising_ebm.viz.report import print_head, print_row


def make_images(folder: Path, count: int, damaged: float, *, seed: int = 0) -> set[str]:
    """Write `count` PNG files, a share of them cut in half; return the names of those.

    Args:
        folder: Made if missing.
        count: Files.
        damaged: Share of them that is cut.
        seed: Of the draw of the damaged ones, and of the noise that makes images of equal pixels differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels = load_images("fashion-mnist", split="test", progress=False).pixels[:, 0].numpy()
    generator = np.random.default_rng(seed)
    cut = set(generator.choice(count, size=round(damaged * count), replace=False).tolist())
    names = set()
    for i in range(count):
        image = np.clip(pixels[i % len(pixels)] + generator.integers(-2, 3, pixels.shape[1:]), 0, 255)
        encoded = io.BytesIO()
        Image.fromarray(image.astype(np.uint8)).save(encoded, "PNG")
        name, data = f"{i:06d}.png", encoded.getvalue()
        (folder / name).write_bytes(data[: len(data) // 2] if i in cut else data)
        if i in cut:
            names.add(name)
    return names


def score(model: str, folder: Path, out: Path, options: list[str]) -> float:
    """Run `debm score` in a process of its own; return its peak memory in MB."""
    command = [sys.executable, "-m", "denoising_ebm", "score", model, str(folder), "--out", str(out), *options]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"debm score ended with exit status {process.returncode}")
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Make the images of each number, score them, print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="fashion-mnist", help="model, with or without a detector")
    parser.add_argument("--counts", type=int, nargs="+", default=[2000, 20000], help="images of each folder")
    parser.add_argument("--damaged", type=float, default=0.05, help="share of them that is cut in half")
    parser.add_argument("--seed", type=int, default=0)
    arguments, options = parser.parse_known_args()
    print_head(("images", "damaged", "rows", "named unreadable", "peak memory, MB", "seconds"))
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as place:
            folder, out = Path(place) / "images", Path(place) / "scores.csv"
            damaged = make_images(folder, count, arguments.damaged, seed=arguments.seed)
            started = time.monotonic()
            peak = score(arguments.model, folder, out, options)
            seconds = time.monotonic() - started
            with open(out, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            named = {row["name"] for row in rows if row["status"] == "unreadable" and row["reason"]}
            if named != damaged:
                raise SystemExit(f"{len(named ^ damaged)} images are named wrongly")
            print_row((count, len(damaged), len(rows), len(named), peak, seconds), decimals=0)


if __name__ == "__main__":
    main()
