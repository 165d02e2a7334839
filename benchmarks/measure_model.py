"""Measure a trained model: distances of its samples, sampler by sampler, and its denoising error on train and test images.

    python benchmarks/measure_model.py runs/cifar10-small --data CIFAR10_FOLDER --samples 2000 --grid grid.png

FD is the Fréchet distance of EfficientNet-lite0 features to the same number of test images; the floor is that of training
images to them. With --inception there are FID and KID beside it, at about eight images a second on one CPU core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from denoising_ebm import DenoisingEBM, load_images, to_float, to_uint8
from denoising_ebm.experiments.drawing import draw
from denoising_ebm.experiments.settings import sampler_title, with_drift
from denoising_ebm.model import Sampler
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.samplers import METHODS
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.grids import save_grid
from denoising_ebm.viz.report import Table, print_table

SIGMAS = (0.1, 0.3, 1.0)


@torch.no_grad()
def denoising_error(model: DenoisingEBM, pixels: torch.Tensor, sigma: float, seed: int) -> float:
    """Return the root mean squared error of D(x + sigma noise) in data units, the noise by seed."""
    generator, total = torch.Generator().manual_seed(seed), 0.0
    for chunk in torch.split(to_float(pixels), 250):
        noisy = chunk + sigma * torch.randn(chunk.shape, generator=generator)
        total += float((model.denoise(noisy.to(model.device), sigma).cpu() - chunk).square().sum())
    return (total / pixels.numel()) ** 0.5


def figures(evaluator: FidelityEvaluator, images: torch.Tensor) -> dict[str, Any]:
    """Return the distances of uint8 images."""
    if evaluator.inception is None:
        return {"FD": evaluator.frechet_distance(images)}
    quality = evaluator(images)
    return {"FD": quality.frechet_distance, "FID": quality.fid, "KID": quality.kid}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="parts of names of samplers")
    parser.add_argument("--inception", action="store_true", help="also FID and KID (extra fid)")
    parser.add_argument(
        "--grid", type=Path, help="PNG with 32 samples of the model's own sampler, semantic images above them"
    )
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model, device="auto").set_precision("auto")
    network, sampling = model.config.network, model.config.sampling
    sizes = {"image_size": network.image_size, "channels": network.channels, "limit": args.samples}
    test = load_images(args.data, split="test", **sizes).pixels
    train = load_images(args.data, split="train", **sizes).pixels
    evaluator = FidelityEvaluator(test, inception=args.inception, device=model.device)
    print(f"{args.model}: {model.metadata}")
    print(f"{describe(model.device)}; seed {args.seed}\n{evaluator.protocol(args.samples, 'test')}\n")

    own, method = sampler_title("two-stage", sampling), sampling.pixel.method
    cases: dict[str, Sampler] = {
        own: sampling,
        f"{own}, denoiser drift": with_drift(sampling, "denoiser"),
        f"{own}, gradient of eq. 7": with_drift(sampling, "energy"),
        f"{METHODS[method].title} from noise, T = 60": model.configure_sampler(method, steps=60),
        f"{METHODS['heun'].title} from noise, T = 20": model.configure_sampler("heun", steps=20),
    }
    records: dict[str, dict[str, Any]] = {"training images (floor)": figures(evaluator, train)}
    if sampling.pixel.drift == "denoiser":
        del cases[f"{own}, denoiser drift"]
    for name, sampler in cases.items():
        if args.only and not any(part in name for part in args.only):
            continue
        drawn, seconds = draw(model, args.samples, sampler, seed=args.seed)
        distances = figures(evaluator, to_uint8(drawn.images.cpu()))
        records[name] = {**distances, "NFE": drawn.nfe, "s per 64": seconds * 64 / args.samples}
        print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in distances.items())}", flush=True)
        if name == own and drawn.semantic is not None:
            records["its semantic images h(z)"] = figures(evaluator, to_uint8(drawn.semantic.cpu()))
            if args.grid:
                save_grid(torch.cat([drawn.semantic[:32], drawn.images[:32]]), args.grid, columns=16)
    print()
    print_table(Table.from_records(records, first="images"))
    errors = {
        name: {f"sigma {sigma:g}": denoising_error(model, pixels, sigma, args.seed) for sigma in SIGMAS}
        for name, pixels in (("train", train), ("test", test))
    }
    print()
    print_table(Table.from_records(errors, first="RMSE of D"))


if __name__ == "__main__":
    main()
