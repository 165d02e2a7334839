"""Is a foreign square found? Pixel AUROC of maps on images with a square of another image pasted in.

    python benchmarks/localisation.py MODEL --data CIFAR10 --num 500

A square of `--side` pixels at a random place comes from the same place of another test image. The pixel AUROC is the chance
that a pixel inside of it has a higher value than one outside, over all pixels of all images, and its mean over images. Maps
are fitted on training images where they need it.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.ood.anomaly_maps import AnomalyMapConfig, AnomalyMaps
from denoising_ebm.ood.blur import gaussian_blur
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.report import print_head, print_row


def paste(pixels: Tensor, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images with a square of the image before, and a mask of where it is."""
    count, size = len(pixels), pixels.shape[-1]
    corners = torch.randint(0, size - side + 1, (count, 2), generator=torch.Generator().manual_seed(seed))
    place = torch.arange(size)
    inside = [(place >= corner[:, None]) & (place < corner[:, None] + side) for corner in corners.unbind(1)]
    mask = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(mask[:, None], pixels.roll(1, dims=0), pixels), mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--fit", type=int, default=500)
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model, device="auto").set_precision("auto")
    size: dict[str, Any] = {"image_size": model.config.network.image_size, "channels": model.config.network.channels}
    test = load_images(args.data, split="test", limit=args.num, **size).pixels
    train = load_images(args.data, split="train", limit=args.fit, **size).pixels
    pasted, mask = paste(test, args.side, args.seed)
    print(f"{describe(model.device)}; {args.num} images, square {args.side}, fitted on {args.fit}, seed {args.seed}")
    print_head(["map", "all pixels", "mean over images"])

    def show(label: str, maps: Tensor) -> None:
        pooled = auroc(maps[~mask], maps[mask])
        each = sum(auroc(m[~inside], m[inside]) for m, inside in zip(maps, mask, strict=True)) / len(maps)
        print_row([label, pooled, each])

    @torch.no_grad()
    def bare(sigma: float, num_noise_samples: int, blur: float) -> Tensor:
        noise = model.scoring_noise(num_noise_samples, args.seed) if num_noise_samples else None
        parts = [model.energy_map(to_float(part).to(model.device), sigma, noise) for part in torch.split(pasted, 128)]
        return gaussian_blur(torch.cat(parts)[:, None], blur)[:, 0].cpu()

    cases = {f"energy, sigma {sigma:g}, no inner noise": (lambda s=sigma: bare(s, 0, 1)) for sigma in (0.05, 0.2)}
    cases |= {
        f"energy, sigma {sigma:g}, 4 noise samples": (lambda s=sigma: bare(s, 4, 1)) for sigma in (0.05, 0.2, 0.4)
    }
    levels: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
        "z .2 .4 .8 noisy, .1 .2 .4 clean": ((0.2, 0.4, 0.8), (0.1, 0.2, 0.4)),
        "z .2 .4 .8 noisy": ((0.2, 0.4, 0.8), ()),
        "z .1 .2 .4 clean": ((), (0.1, 0.2, 0.4)),
    }
    for label, (noisy, clean) in levels.items():
        for blur in (1.0, 2.0, 3.0, 4.0):
            config = AnomalyMapConfig(noisy, clean, blur=blur)
            named = f"{label}, blurred {blur:g}" + (" (default)" if config == AnomalyMapConfig() else "")
            cases[named] = lambda c=config: AnomalyMaps(model, c).fit(train).maps(pasted)
    for label, compute in cases.items():
        if not args.only or label in args.only:
            show(label, compute())


if __name__ == "__main__":
    main()
