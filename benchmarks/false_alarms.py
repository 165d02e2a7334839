"""Is the false-alarm rate kept? Random splits of new normal images into calibration images and others.

    python benchmarks/false_alarms.py MODEL --data CIFAR10 --num 4000 --splits 20

The model's detector scores test images once; every split calibrates on one half and counts flags on the other. A split lies
inside its interval if its count lies between the 2.5 % and 97.5 % quantiles of the beta-binomial distribution that
exchangeable images have (one split in twenty need not).
"""

from __future__ import annotations

import argparse
import math

import torch

from denoising_ebm import Detector, load_images
from denoising_ebm.ood.conformal import flagged, fpr_interval, p_values
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.report import Cell, Table, print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--num", type=int, default=4000)
    parser.add_argument("--splits", type=int, default=20)
    args = parser.parse_args()
    detector = Detector.from_pretrained(args.model, device="auto")
    network = detector.model.config.network
    pixels = load_images(
        args.data, split="test", limit=args.num, image_size=network.image_size, channels=network.channels
    ).pixels
    scores, half = detector.score(pixels), len(pixels) // 2
    counts = f"{half} calibration and {len(pixels) - half} other images, seeds 0 to {args.splits - 1}"
    print(f"{describe(detector.model.device)}; {counts}\n")
    rows: list[list[Cell]] = []
    for rate in (0.01, 0.05, 0.1):
        shares = []
        for seed in range(args.splits):
            order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
            p = p_values(scores[order[:half]], scores[order[half:]])
            shares.append(float(flagged(p, rate, half).double().mean()))
        low, high = fpr_interval(rate, half, len(pixels) - half)
        inside = sum(low - 1e-9 <= share <= high + 1e-9 for share in shares)
        mean = math.fsum(shares) / len(shares)
        interval = f"{low:.4f} to {high:.4f}"
        rows.append([f"{rate:g}", mean, min(shares), max(shares), interval, f"{inside} of {len(shares)}"])
    columns = ["nominal", "mean observed", "least", "most", "95 % interval of a split", "splits inside"]
    print_table(Table(columns, rows))


if __name__ == "__main__":
    main()
