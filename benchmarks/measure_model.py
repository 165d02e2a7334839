"""Measure a trained model: distances of its samples, sampler by sampler, and its denoising error on train and test images.

    python benchmarks/measure_model.py runs/cifar10-small --data CIFAR10_FOLDER --samples 2000 --grid grid.png

The distance is the Fréchet distance of EfficientNet-lite0 features to the same number of test images; the floor is that of
training images to them.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from denoising_ebm.generation import generate

from denoising_ebm import DenoisingEBM, load_images, to_float, to_uint8
from denoising_ebm.config import SamplingConfig
from denoising_ebm.experiments.samplers import finite
from denoising_ebm.quality.extractors import EfficientNetLite0Features
from denoising_ebm.quality.frechet import feature_statistics, frechet_distance
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.grids import save_grid

SIGMAS = (0.1, 0.3, 1.0)


@torch.no_grad()
def denoising_error(model: DenoisingEBM, pixels: torch.Tensor, sigma: float, seed: int) -> float:
    """Return the root mean squared error of D(x + sigma noise) in data units, the noise by seed."""
    generator, total = torch.Generator().manual_seed(seed), 0.0
    for chunk in torch.split(to_float(pixels), 250):
        noisy = chunk + sigma * torch.randn(chunk.shape, generator=generator)
        total += float((model.denoise(noisy.to(model.device), sigma).cpu() - chunk).square().sum())
    return (total / pixels.numel()) ** 0.5


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of samplers")
    parser.add_argument("--grid", type=Path, help="PNG with 64 two-stage samples, semantic images above them")
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model, device="auto").set_precision("auto")
    network, sampling = model.config.network, model.config.sampling
    sizes = {"image_size": network.image_size, "channels": network.channels, "limit": args.samples}
    test = load_images(args.data, split="test", **sizes).pixels
    train = load_images(args.data, split="train", **sizes).pixels
    extractor = EfficientNetLite0Features().to(model.device)
    reference = feature_statistics(test, extractor)
    print(f"{args.model}: {model.metadata}")
    print(
        f"{describe(model.device)}; {extractor.name}; {args.samples} samples, {len(test)} test images; seed {args.seed}"
    )

    print("\n| images | distance | s per 64 |\n|---|---|---|")
    print(f"| training images (floor) | {frechet_distance(feature_statistics(train, extractor), reference):.1f} | - |")
    cases: dict[str, tuple[str, int | None, SamplingConfig]] = {
        "two-stage": ("two-stage", None, sampling),
        "two-stage, exact gradient": ("two-stage", None, dataclasses.replace(sampling, drift="energy")),
        "annealed from noise, 60 steps": ("annealed", 60, sampling),
        "heun, 20 levels": ("heun", 20, sampling),
    }
    for name, (sampler, steps, settings) in cases.items():
        if args.only and name not in args.only:
            continue
        model.config = dataclasses.replace(model.config, sampling=settings)
        started = time.monotonic()
        drawn = generate(model, args.samples, sampler=sampler, steps=steps, seed=args.seed, batch_size=128)  # type: ignore[arg-type]
        seconds = (time.monotonic() - started) * 64 / args.samples
        distance = frechet_distance(feature_statistics(to_uint8(finite(drawn.images)), extractor), reference)
        print(f"| {name} | {distance:.1f} | {seconds:.2f} |", flush=True)
        if name == "two-stage" and drawn.semantic is not None:
            distance = frechet_distance(feature_statistics(to_uint8(drawn.semantic), extractor), reference)
            print(f"| its semantic images h(z^K) | {distance:.1f} | - |")
            if args.grid:
                save_grid(torch.cat([drawn.semantic[:32], drawn.images[:32]]), args.grid, columns=16)

    print("\n| RMSE of D | " + " | ".join(f"sigma {s:g}" for s in SIGMAS) + " |\n|" + "---|" * (len(SIGMAS) + 1))
    for name, pixels in (("train", train), ("test", test)):
        errors = [denoising_error(model, pixels, sigma, args.seed) for sigma in SIGMAS]
        print(f"| {name} | " + " | ".join(f"{error:.4f}" for error in errors) + " |")


if __name__ == "__main__":
    main()
