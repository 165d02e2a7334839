"""One flipped bit in a file of a run: is it noticed?

    python benchmarks/reliability/bit_flips.py --out runs/flips --flips 300

Makes a small run with a detector on Fashion-MNIST, then flips one random bit of state.pt, of the model's files or of the
detector's, reads the folder as `debm` does, and puts the bit back. Counts: named (an error, one line), replaced (the state
before was used, and that was said), same (read, and nothing differs from what was written), silent (read without a word,
and something differs), tracebacks (any other exception). The last two must be 0. Rows are written to bit-flips.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kill_resume import NETWORK, OBJECTIVES, RUN, leaves

from denoising_ebm import DenoisingEBM
from denoising_ebm.cli import main as debm
from denoising_ebm.config import Config, from_dict, to_dict
from denoising_ebm.ood.detector import Detector
from denoising_ebm.training.checkpoint import read_state

#: Reads a file in its folder, and tells what else was used in its place.
Reader = Callable[[Callable[[str], object]], Any]


def make_run(folder: Path) -> None:
    """Train, twice, so that there is a state before the last, and fit a detector."""
    settings = [*RUN, *NETWORK, *OBJECTIVES["denoising"], "--out", str(folder)]
    for more in (["--max-images", "320"], ["--max-images", "640", "--resume"]):
        if not (folder / "model" / "detector.json").exists() and debm(["train", *settings, *more]):
            raise SystemExit(f"{folder}: training failed")
    images = ["fashion-mnist", "--resize", "box", "--images", "60", "--corrupted-images", "4"]
    if not (folder / "model" / "detector.json").exists() and debm(["fit-detector", str(folder), *images]):
        raise SystemExit(f"{folder}: fitting failed")


def readers(run: Path) -> dict[str, Reader]:
    saved = torch.load(run / "state.pt", weights_only=True)
    config, model = from_dict(Config, saved["config"]), DenoisingEBM.from_pretrained(run)

    def state(log: Callable[[str], object]) -> Any:
        return read_state(config, run, saved["images"], log)

    def network(log: Callable[[str], object]) -> Any:
        read = DenoisingEBM.from_pretrained(run)
        return {"tensors": read.state_dict(), "config": to_dict(read.config), "metadata": read.metadata}

    def detector(log: Callable[[str], object]) -> Any:
        Detector.load(run / "model", model).save(run.parent / "again")
        return {path.name: path.read_bytes() for path in (run.parent / "again").iterdir()}

    return {
        "state.pt": state,
        "model/model.safetensors": network,
        "model/config.json": network,
        "model/detector.safetensors": detector,
        "model/detector.json": detector,
    }


def outcome(read: Reader, expected: dict[str, Any]) -> str:
    said: list[str] = []
    try:
        found = leaves(read(said.append))
    except (ValueError, OSError) as error:
        return "named" if "\n" not in str(error) else "traceback"
    except Exception as error:
        return f"traceback {type(error).__name__}"
    if said:
        return "replaced"
    return "same" if found == expected else "silent"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the run and bit-flips.csv")
    parser.add_argument("--flips", type=int, default=300, help="for each file")
    parser.add_argument("--seed", type=int, default=0, help="of the bits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = options.out / "run"
    make_run(run)
    rows = []
    for name, read in readers(run).items():
        content = (run / name).read_bytes()
        expected = leaves(read(print))
        counts: Counter[str] = Counter()
        rng = random.Random(f"{options.seed} {name}")
        try:
            for _ in range(options.flips):
                spoilt = bytearray(content)
                spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
                (run / name).write_bytes(spoilt)
                counts[outcome(read, expected)] += 1
        finally:
            (run / name).write_bytes(content)
        silent = counts["silent"]
        broken = sum(count for kind, count in counts.items() if kind.startswith("traceback"))
        rows.append(
            {"file": name, "flips": options.flips, "named": counts["named"], "replaced": counts["replaced"]}
            | {"same": counts["same"], "silent": silent, "tracebacks": broken}
        )
        print(json.dumps(rows[-1]), flush=True)
    with open(options.out / "bit-flips.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return int(any(row["silent"] or row["tracebacks"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
