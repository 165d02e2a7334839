"""`debm inspect` and its rivals on photographs, judged by the same metrics: anomalib's PatchCore and PaDiM.

    python benchmarks/photographs.py PHOTOS --method patchcore-lite0 --size 256 --seed 0 --out runs/patchcore
    python benchmarks/photographs.py PHOTOS --method debm --model runs/inspect/model --out runs/ours

PHOTOS is in MVTec AD's layout, or a folder of several such sets, which are then one. Normal photos of `train` are for
fitting, those of `test` are scored, one at a time on one thread. Folder --out gets `result.json` and the score of every
photo. The rivals need anomalib, see `baselines/anomalib_models.py`; ours does not.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "baselines"))
from anomalib_models import Fitted, fit_padim, fit_patchcore, megabytes, now, since

from denoising_ebm.datasets.photos import Photo, PhotoSet, open_photos
from denoising_ebm.inspection.inspector import Inspector
from denoising_ebm.inspection.metrics import Record, evaluate_maps
from denoising_ebm.utils.device import describe

METHODS = ("patchcore-lite0", "padim-lite0", "debm")


def read_debm(model: str) -> Fitted:
    """Return the inspector of a model's folder, which was fitted by `debm inspect --train`."""
    inspector = Inspector.from_pretrained(model)

    def score(photo: Photo) -> tuple[float, Tensor]:
        values = inspector.map(photo.x)
        return float(values.max()), values

    return Fitted(score, None, megabytes(inspector.model) + megabytes(inspector.head))


def judged(test: PhotoSet, fitted: Fitted) -> tuple[list[Record], tuple[float, float]]:
    """Return a record of every photo, and the seconds that judging took, of the clock and the CPU, without reading files."""
    records, spent = [], []
    for photo in test:
        if photo.is_normal is None:
            raise ValueError(f"{photo.name}: folders do not say whether it is normal")
        start = now()
        score, values = fitted.score(photo)
        spent.append(since(start))
        records.append(Record(photo.kind or "", photo.is_normal, score, values, photo.mask, None, photo.name))
    clock, cpu = zip(*spent, strict=True)
    return records, (sum(clock), sum(cpu))


def main() -> None:
    """Fit, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--model", help="folder with model and inspector, of --method debm")
    parser.add_argument("--size", type=int, default=256, help="side to which the rivals resize a photo")
    parser.add_argument("--coreset", type=float, default=0.1, help="share of patches that PatchCore keeps")
    parser.add_argument("--fit-limit", type=int, help="fit to so many normal photos, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if (args.method == "debm") != (args.model is not None):
        parser.error("--method debm needs --model, and only that")
    torch.set_num_threads(1)
    normal = open_photos(args.photos, default_split="train", normal_only=True)
    if args.fit_limit:
        order = np.random.default_rng(args.seed).permutation(len(normal))
        normal = normal.take(order[: args.fit_limit].tolist())
    test = open_photos(args.photos, default_split="test", channels=normal.channels)
    shared = set(normal.names) & set(test.names)
    if shared:
        raise ValueError(f"{args.photos}: {len(shared)} photos are both for fitting and for testing, as {min(shared)}")
    methods = {
        "patchcore-lite0": partial(fit_patchcore, normal, size=args.size, seed=args.seed, coreset=args.coreset),
        "padim-lite0": partial(fit_padim, normal, size=args.size, seed=args.seed),
        "debm": partial(read_debm, args.model),
    }
    fitted = methods[args.method]()
    records, seconds = judged(test, fitted)
    row = evaluate_maps(records, seed=args.seed)[0]
    rival = args.method != "debm"
    result = {
        "photos": args.photos,
        "method": args.method,
        "size": args.size if rival else None,
        "coreset": args.coreset if args.method == "patchcore-lite0" else None,
        "seed": args.seed,
        "fitted": len(normal) if rival else None,
        "normal": row.num_normal,
        "defective": row.num_defective,
        "regions": row.num_regions,
        "seconds to fit, CPU seconds": fitted.seconds and [round(x, 1) for x in fitted.seconds],
        "ms a photo, CPU ms": [round(1000 * x / len(test), 1) for x in seconds],
        "megabytes": round(fitted.megabytes, 2),
        "megabytes pretrained": round(fitted.pretrained_megabytes, 2),
        "hardware": describe(torch.device("cpu")),
        "figures": {name: [round(x, 4) for x in (f.value, f.low, f.high)] for name, f in row.figures.items()},
    }
    print(json.dumps(result))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        with (args.out / "scores.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "kind", "is_normal", "score"])
            writer.writerows([r.name, r.kind, int(r.is_normal), r.score] for r in records)


if __name__ == "__main__":
    main()
