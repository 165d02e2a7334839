"""Which images of a set count as near copies, which should be few, and of bursts made of it, which should be all.

    python benchmarks/near_copies.py DATA --num 5000 [--bursts 300] [--size 32] [--seed 0]

A burst is six shots of an image, each moved by a few pixels, made darker or lighter and noisy. Pairs together are pairs of
shots of one image that are of one group.
"""

from __future__ import annotations

import argparse
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from denoising_ebm import load_images
from denoising_ebm.literals import Resize
from denoising_ebm.ood.groups import Groups, near_copies
from denoising_ebm.viz.report import Cell, Table, print_table

SHOTS = 6
#: Largest shift in pixels, standard deviation of noise and largest change of brightness in gray levels.
STRENGTHS = ((1, 2.0, 5.0), (2, 4.0, 15.0), (2, 8.0, 30.0))


def bursts(pixels: Tensor, shift: int, noise: float, brightness: float, generator: torch.Generator) -> Tensor:
    """Return the shots of each image, one after another, uint8, shape `(n * SHOTS, channels, height, width)`."""
    count, _, height, width = pixels.shape
    padded, shots = F.pad(pixels.float(), (shift,) * 4, "replicate"), []
    for _ in range(SHOTS):
        places = torch.randint(0, 2 * shift + 1, (count, 2), generator=generator).tolist()
        moved = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, places, strict=True)]
        shot = torch.stack(moved) + brightness * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
        shot += noise * torch.randn(shot.shape, generator=generator)
        shots.append(shot.round().clamp(0, 255).to(torch.uint8))
    return torch.stack(shots, dim=1).flatten(0, 1)


def row_of(name: str, pixels: Tensor, shots: int = 1) -> list[Cell]:
    """Return the counts of a set whose images are shots of bursts, so many after another."""
    groups = Groups(near_copies(pixels))
    labels = groups.labels.view(-1, shots)
    together = [float((labels[:, i] == labels[:, j]).double().mean()) for i, j in combinations(range(shots), 2)]
    pairs = f"{sum(together) / len(together):.3f}" if together else ""
    return [name, len(pixels), groups.count, groups.shared, int(groups.labels.bincount().max()), pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--num", type=int, default=5000)
    parser.add_argument("--bursts", type=int, default=300)
    parser.add_argument("--size", type=int, help="bring images to this size first")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    resize: Resize | None = "bilinear" if args.size else None
    pixels = load_images(args.data, split="train", limit=args.num, image_size=args.size, resize=resize).pixels
    rows = [row_of("as they are", pixels)]
    for shift, noise, brightness in STRENGTHS if args.bursts else ():
        generator = torch.Generator().manual_seed(args.seed)
        made = bursts(pixels[: args.bursts], shift, noise, brightness, generator)
        name = f"bursts of {SHOTS}: shift {shift}, noise {noise:g}, brightness {brightness:g}"
        rows.append(row_of(name, made, SHOTS))
    print(f"{args.data}, seed {args.seed}\n")
    print_table(Table(["images", "number", "groups", "not alone", "largest group", "pairs together"], rows))


if __name__ == "__main__":
    main()
