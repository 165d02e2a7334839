"""What the head of `debm inspect` should read: the photo alone, or residuals of the energy beside it, at equal minutes.

    python benchmarks/photo_evidence.py runs/screw/run SCREW --minutes 4 --out runs/evidence

Heads are trained on the normal photos that the model was fitted to, with some kinds of made defects held out, and judged on
the photos that were kept, with made defects of each kind: how well defective photos and pixels are told from normal ones.
No real defect is looked at.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from denoising_ebm.datasets.photos import open_photos
from denoising_ebm.inspection.bank import PhotoBank
from denoising_ebm.inspection.defects import DEFECTS, alter, change_harmlessly
from denoising_ebm.inspection.evidence import evidence
from denoising_ebm.inspection.head import HeadConfig, fit_head
from denoising_ebm.inspection.inspector import split_photos
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.viz.report import print_head, print_row

HELD_OUT = ("scratch", "foreign patch", "blur")
SIGMAS = ((), (0.1,), (0.05, 0.3), (0.03, 0.1, 0.3))
COLUMNS = ("sigmas", "steps", "image_auroc_seen", "image_auroc_held", "pixel_auroc_seen", "pixel_auroc_held")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("photos")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--defects", type=int, default=24, help="of each kind")
    parser.add_argument("--groups", default="none", help="as in the training of the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = DenoisingEBM.from_pretrained(args.model).set_precision("auto")
    photos = open_photos(args.photos, default_split="train", normal_only=True)
    split = split_photos(photos, args.groups, seed=args.seed)
    rng = np.random.default_rng([args.seed, 2**31])
    bank = PhotoBank.of(photos.take(split.fitted), rng, least_side=128)
    kept = [photo.x.numpy() for photo in photos.take(split.kept)]
    kinds = {name: kind for name, kind in DEFECTS.items() if name not in HELD_OUT}
    args.out.mkdir(parents=True, exist_ok=True)
    print_head(COLUMNS)
    rows = []
    for sigmas in SIGMAS:
        steps: list[float] = []
        config = replace(HeadConfig(), sigmas=sigmas, max_crops=10**9, max_minutes=args.minutes)
        note = partial(_count, steps)
        head = fit_head(model, bank, config, defects=kinds, seed=args.seed, progress=note)

        def logits(photo: np.ndarray, sigmas: tuple[float, ...] = sigmas, head: torch.nn.Module = head) -> np.ndarray:
            with torch.no_grad():
                return head(evidence(model, torch.from_numpy(photo)[None], sigmas))[0].numpy()

        found = judged(logits, kept, args.defects, args.seed)
        row: list[str | int | float | None] = [", ".join(map(str, sigmas)) or "none", len(steps), *found]
        print_row(row)
        rows.append(row)
        with (args.out / "result.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])


def _count(steps: list[float], share: float, loss: float) -> None:
    steps.append(loss)


def judged(logits, kept, count: int, seed: int) -> list[float]:  # type: ignore[no-untyped-def]
    """Return AUROC of photos for kinds that were seen and held out, then of pixels."""
    rng = np.random.default_rng([seed, 1])
    normal = [float(logits(change_harmlessly(kept[i % len(kept)], rng)).max()) for i in range(60)]
    images: dict[bool, list[float]] = {False: [], True: []}
    pixels: dict[bool, list[float]] = {False: [], True: []}
    for name, kind in DEFECTS.items():
        scores: list[float] = []
        values, labels = [], []
        while len(scores) < count:
            first, second = rng.integers(len(kept), size=2)
            altered = alter(kept[first], kept[second], rng, {name: kind})
            if altered.mask.sum() < 9:
                continue
            found = logits(change_harmlessly(altered.photo, rng))
            scores.append(float(found.max()))
            values.append(found[::2, ::2].ravel())
            labels.append(altered.mask[::2, ::2].ravel())
        images[name in HELD_OUT].append(roc_auc_score([0] * len(normal) + [1] * count, normal + scores))
        pixels[name in HELD_OUT].append(roc_auc_score(np.concatenate(labels), np.concatenate(values)))
    return [float(np.mean(part[held])) for part in (images, pixels) for held in (False, True)]


if __name__ == "__main__":
    main()
