"""Draw README's picture of the four jobs: docs/images/four-jobs.png.

    python scripts/four_jobs.py --data CIFAR10 --ood SVHN      # folders with the images; a minute on one core

Images are the first of the test split that are given, seed 0; nothing is selected but the four corruptions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from denoising_ebm import Detector, load_images, to_float, to_uint8
from denoising_ebm.restoration.operators import masked
from denoising_ebm.restoration.posterior import restore

OUT = Path(__file__).parents[1] / "docs" / "images" / "four-jobs.png"


def anomalies(images: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Return four anomalous images: a blurred one, a noisy one, one with a foreign square, one of another set."""
    x = to_float(images)
    square = images[3].clone()
    square[:, 12:20, 12:20] = images[5, :, 4:12, 4:12]
    blurred = F.interpolate(F.avg_pool2d(x[1:2], 3), (32, 32), mode="bilinear")[0]
    noisy = x[2] + 0.25 * torch.randn(x[2].shape, generator=torch.Generator().manual_seed(0))
    return {"blurred": to_uint8(blurred), "noisy": to_uint8(noisy), "8 x 8 square": square, "another set": other}


def show(axis: Axes, image: Tensor, title: str = "", colour: str = "#333333") -> None:
    """Show a uint8 image with a title; a coloured frame if a colour is given."""
    axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=7, color=colour, pad=2)
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2 if colour != "#333333" else 0.5)


def main() -> None:
    """Compute the four panels and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10")
    parser.add_argument("--ood", required=True, help="SVHN")
    args = parser.parse_args()
    detector = Detector.from_pretrained("cifar10-small")
    model = detector.model
    normal = load_images(args.data, split="test", limit=8, progress=False).pixels
    bad = anomalies(normal, load_images(args.ood, limit=1, progress=False).pixels[0])
    figure = Figure(figsize=(8.4, 5.2), layout="constrained", dpi=160)
    top, bottom = figure.subfigures(2, 1, hspace=0.04, squeeze=False).flat
    panels = [panel for half in (top, bottom) for panel in np.ravel(half.subfigures(1, 2, wspace=0.04))]

    panels[0].suptitle("Score: p-values; flagged at a false-alarm rate of 5 %", fontsize=9)
    pixels = torch.cat([normal[:4], torch.stack(list(bad.values()))])
    p = detector.p_values(detector.score(pixels))
    for axis, image, value in zip(panels[0].subplots(2, 4).flat, pixels, p.tolist(), strict=True):
        show(axis, image, f"p = {value:.2g}", "#c0392b" if value <= 0.05 else "#333333")

    panels[1].suptitle("Show where: energy per pixel against normal images", fontsize=9)
    shown = torch.stack([bad["8 x 8 square"], bad["blurred"], bad["noisy"], normal[0]])
    axes = panels[1].subplots(2, 4)
    for i, (image, z) in enumerate(zip(shown, detector.maps(shown), strict=True)):
        show(axes[0, i], image)
        axes[1, i].imshow(z.numpy(), cmap="RdBu_r", vmin=-3, vmax=3)
        axes[1, i].set(xticks=[], yticks=[])

    panels[2].suptitle("Restore: missing pixels, restored, original", fontsize=9)
    known = torch.ones(32, 32, dtype=torch.bool)
    known[8:20, 10:22] = False
    x = to_float(normal[4:8])
    rows = (to_uint8(x * known), to_uint8(restore(model, x * known, masked(known), seed=0)), normal[4:8])
    for line, row in zip(panels[2].subplots(3, 4), rows, strict=True):
        for axis, image in zip(line, row, strict=True):
            show(axis, image)

    panels[3].suptitle("Generate: the first 18 samples, seed 0", fontsize=9)
    samples = to_uint8(model.sample(18, seed=0).images)
    for axis, image in zip(panels[3].subplots(3, 6).flat, samples, strict=True):
        show(axis, image)
    figure.savefig(OUT)


if __name__ == "__main__":
    main()
