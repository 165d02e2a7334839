"""Which settings of stage two: the same ends of latent chains, made into images in many ways.

    python benchmarks/tune_sampler.py cifar10-small --data CIFAR10 --samples 1000 --out runs/tune-sampler

The Fréchet distance (EfficientNet-lite0) is that to *training* images, so that test images are not used to choose. Every row
starts from the same semantic images (per K) and has about 40 network evaluations in stage two, or as many steps as it says.
A finished row is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images, to_uint8
from denoising_ebm.config import SamplingConfig
from denoising_ebm.datasets.images import content_hash
from denoising_ebm.energies import draw_noise
from denoising_ebm.experiments.cache import ResultCache
from denoising_ebm.experiments.samplers import finite
from denoising_ebm.noise import expand_sigma, falling_sigmas, karras_sigmas
from denoising_ebm.quality.extractors import EfficientNetLite0Features
from denoising_ebm.quality.frechet import feature_statistics, frechet_distance
from denoising_ebm.samplers import ChainState, heun, texture_chain, two_stage, ula
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.grids import save_grid

BATCH = 128
Row = dict[str, Any]
#: What rows start from: Langevin steps of one size, on geometric levels.
BASE: dict[str, Any] = {
    "semantic_steps": 10,
    "texture_steps": 40,
    "texture_step_size": 0.4,
    "texture_sigma_max": 2.0,
    "texture_levels": "geometric",
    "texture_order": 1,
}
REVERSE: dict[str, Any] = {"texture_step_size": 0.0, "texture_levels": "karras", "texture_sigma_max": 4.0}
DEFAULT: dict[str, Any] = REVERSE | {"texture_order": 2, "texture_steps": 16, "semantic_steps": 5}
#: What each row changes; `heun` replaces the Langevin chain by the probability-flow ODE with as many evaluations, and
#: `corrections` adds steps of 0.2 at a fixed level after each of it.
ROWS: dict[str, dict[str, Any]] = {
    "step size 0.4, sigma from 2": {},
    "step size 0.2": {"texture_step_size": 0.2},
    "step size 0.7": {"texture_step_size": 0.7},
    "step size 1": {"texture_step_size": 1.0},
    "heun from 2": {"heun": True},
    "heun from 4": {"heun": True, "texture_sigma_max": 4.0},
    "sigma from 1": {"texture_sigma_max": 1.0},
    "sigma from 4": {"texture_sigma_max": 4.0},
    "step size 0.2, sigma from 4": {"texture_sigma_max": 4.0, "texture_step_size": 0.2},
    "steps of the reverse diffusion": {"texture_step_size": 0.0},
    "steps of the reverse diffusion, Karras levels": {"texture_step_size": 0.0, "texture_levels": "karras"},
    "steps of the reverse diffusion, Karras levels from 4": REVERSE,
    "steps of the reverse diffusion, Karras levels from 10": REVERSE | {"texture_sigma_max": 10.0},
    **{
        f"these from 4, order {order}, {steps} steps": REVERSE | {"texture_order": order, "texture_steps": steps}
        for order, steps in ((1, 16), (2, 8), (2, 12), (2, 16), (2, 20), (2, 30))
    },
    "these from 10, order 2, 16 steps": REVERSE | {"texture_sigma_max": 10.0, "texture_order": 2, "texture_steps": 16},
    "these from 4, order 2, 16 steps, 5 latent steps": DEFAULT,
    "heun from 10": {"heun": True, "texture_sigma_max": 10.0},
    "temperature 0.9": {"temperature": 0.9},
    **{
        f"the default, temperature {temperature} below {sigma}": DEFAULT
        | {"low_temperature": temperature, "low_temperature_sigma": sigma}
        for temperature, sigma in (
            (0.95, 20.0),
            (0.8, 20.0),
            (0.8, 0.5),
            (0.6, 0.5),
            (0.4, 0.5),
            (0.8, 0.25),
            (0.5, 0.25),
            (0.25, 0.25),
            (0.1, 0.25),
        )
    },
    **{f"the default, {num} Langevin steps at each level": DEFAULT | {"corrections": num} for num in (1, 3, 10)},
    "no latent steps": {"semantic_steps": 0},
    "no latent steps, heun from 2": {"semantic_steps": 0, "heun": True},
}


@torch.no_grad()
def semantic_images(model: DenoisingEBM, steps: int, num: int, seed: int) -> Tensor:
    """Return h(z^K) of `num` latent chains."""
    sampling = dataclasses.replace(model.config.sampling, semantic_steps=steps, texture_steps=0)
    parts = []
    for i, start in enumerate(range(0, num, BATCH)):
        generator = torch.Generator().manual_seed(seed + i)
        z = torch.randn(min(BATCH, num - start), model.config.network.latent_dim, generator=generator)
        energies = model.semantic(), model.decode, model.texture(), model.denoise
        parts.append(two_stage(*energies, z, sampling, generator=generator).semantic)
    return torch.cat(parts)


@torch.no_grad()
def stage_two(
    model: DenoisingEBM, start: Tensor, sampling: SamplingConfig, by_heun: bool, corrections: int, seed: int
) -> Tensor:
    """Return the images that stage two makes of semantic images, with `corrections` Langevin steps at each level beside."""
    parts, high, low = [], sampling.texture_sigma_max, sampling.texture_sigma_min
    sampling = dataclasses.replace(sampling, consistent=True)
    sigmas = falling_sigmas(sampling.texture_levels, high, low, sampling.texture_steps)
    for i, x in enumerate(start.split(BATCH)):
        generator = torch.Generator().manual_seed(seed + 1000 + i)

        def correct(state: ChainState, generator: torch.Generator = generator) -> None:
            if corrections:
                # In place: what a callback sees is the chain's own state.
                level = float(sigmas[min(state.step, len(sigmas) - 1)])
                options: dict[str, Any] = {"step_size": 0.2, "num_steps": corrections, "generator": generator}
                state.x.copy_(ula(model.texture(), state.x, level, **options))

        x = x + high * draw_noise(tuple(x.shape), generator, x)
        if by_heun:
            parts.append(heun(model.denoise, x, karras_sigmas(high, low, sampling.texture_steps // 2)))
            continue
        x = texture_chain(model.texture(), x, sigmas, sampling, generator=generator, callback=correct)
        parts.append(model.denoise(x, expand_sigma(low, x)))
    return torch.cat(parts)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="parts of names of rows")
    parser.add_argument("--out", type=Path, default=Path("runs/tune-sampler"))
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model).set_precision("auto")
    # Rows are kept under what they depend on; another choice is refused.
    result_cache = ResultCache(args.out, {"model": model.fingerprint(), "samples": args.samples, "seed": args.seed})
    network = model.config.network
    sizes: dict[str, Any] = {"image_size": network.image_size, "channels": network.channels}
    train = load_images(args.data, split="train", limit=4 * args.samples, **sizes).pixels
    images_hash = content_hash(train, "")
    extractor = EfficientNetLite0Features()
    reference = feature_statistics(train[: 2 * args.samples], extractor)

    def distance(pixels: Tensor) -> float:
        return frechet_distance(feature_statistics(pixels, extractor), reference)

    print(f"{args.model}: {model.metadata.get('images seen'):,} images; {describe(model.device)}; {extractor.name}")
    floor = distance(train[2 * args.samples : 3 * args.samples])
    print(f"{args.samples} samples, {2 * args.samples} training images; floor {floor:.1f}; seed {args.seed}\n")
    print("| stage two | distance |\n|---|---|", flush=True)
    starts: dict[int, Tensor] = {}
    for name, changes in ROWS.items():
        if args.only and not any(part in name for part in args.only):
            continue
        options = {key: value for key, value in changes.items() if key not in ("heun", "corrections")}
        sampling = dataclasses.replace(model.config.sampling, **(BASE | options))

        def make(name: str = name, sampling: SamplingConfig = sampling, changes: dict[str, Any] = changes) -> Row:
            steps = sampling.semantic_steps
            if steps not in starts:
                starts[steps] = semantic_images(model, steps, args.samples, args.seed)
                print(f"| h(z), {steps} latent steps | {distance(to_uint8(starts[steps])):.1f} |", flush=True)
            how = "heun" in changes, changes.get("corrections", 0)
            images = stage_two(model, starts[steps], sampling, *how, args.seed)
            save_grid(images[:64], args.out / f"{name.replace(' ', '-').replace(',', '')}.png", columns=16)
            return {"distance": distance(to_uint8(finite(images)))}

        row = result_cache.row(name, make, images=images_hash, sampling=str(sampling))
        print(f"| {name} | {row.get('missing') or format(row['distance'], '.1f')} |", flush=True)


if __name__ == "__main__":
    main()
