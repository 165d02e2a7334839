"""Whether the promise of `debm inspect` is kept: random splits of normal photos that nothing was fitted to.

    python benchmarks/photo_false_alarms.py runs/solar/run SOLAR_CELLS --splits 20

The maps' maxima of all normal photos that were kept from training, and of the normal test photos, are found once. Each split
takes half of them to calibrate and the others as new; a rate is kept if the share of new photos with any mark lies in the
95 % interval of the beta-binomial distribution that the promise implies. `--groups` splits by whole groups.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from denoising_ebm.datasets.images import ImageSet
from denoising_ebm.datasets.photos import open_photos
from denoising_ebm.inspection.inspector import Inspector, split_photos
from denoising_ebm.ood.conformal import flagged, fpr_interval, p_values
from denoising_ebm.ood.groups import find_groups
from denoising_ebm.utils.progress import progress_bar
from denoising_ebm.viz.report import Table, print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("photos")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--groups", default="none", help="none, prefix, or a pattern, as for debm inspect")
    parser.add_argument("--training-groups", default="none", help="--groups of the training")
    parser.add_argument("--seed", type=int, default=0, help="that of the training, too")
    args = parser.parse_args()
    inspector = Inspector.from_pretrained(args.model)
    learned = open_photos(args.photos, default_split="train", normal_only=True)
    kept = learned.take(split_photos(learned, args.training_groups, seed=args.seed).kept)
    test = open_photos(args.photos, default_split="test", channels=learned.channels)
    test = test.take([i for i, is_normal in enumerate(test.is_normal) if is_normal])
    maxima, names = [], [*kept.names, *test.names]
    with progress_bar("maps", len(names)) as progress:
        for photos in (kept, test):
            for photo in photos:
                maxima.append(float(inspector.map(photo.x).max()))
                progress(1)
    scores = torch.tensor(maxima, dtype=torch.float64)
    groups = find_groups(
        ImageSet(torch.zeros(len(names), 1, 8, 8, dtype=torch.uint8), tuple(names)), args.groups
    ).labels
    numbers = np.unique(groups.numpy())
    rng = np.random.default_rng(args.seed)
    found: dict[float, list[float]] = {0.01: [], 0.05: [], 0.1: []}
    inside = dict.fromkeys(found, 0)
    for _ in range(args.splits):
        half = rng.permutation(numbers)[: len(numbers) // 2]
        first = torch.from_numpy(np.isin(groups.numpy(), half))
        for rate, shares in found.items():
            if len(half) < 1 / rate - 1:
                continue
            p = p_values(scores[first], scores[~first], groups=groups[first])
            share = float(flagged(p, rate, len(half)).double().mean())
            low, high = fpr_interval(rate, len(half), int((~first).sum()))
            shares.append(share)
            inside[rate] += low - 1e-9 <= share <= high + 1e-9
    rows: list[list[str | int | float | None]] = [
        [rate, float(np.mean(shares)), min(shares), max(shares), f"{inside[rate]} of {len(shares)}"]
        for rate, shares in found.items()
        if shares
    ]
    columns = ["rate promised", "mean share with a mark", "least", "most", "splits within the interval"]
    caption = f"{len(numbers)} normal photos (or groups) that were not fitted to, {args.splits} random halves"
    print_table(Table(columns, rows, caption))


if __name__ == "__main__":
    main()
