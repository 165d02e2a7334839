"""Which settings of stage two: the same ends of latent chains, made into images in many ways.

    python benchmarks/tune_sampler.py cifar10-small --data CIFAR10 --samples 1000 --out runs/tune-sampler

FD, the Fréchet distance of EfficientNet-lite0 features, is that to *training* images, so that test images are not used to
choose. Every row starts from the same semantic images (per K) and has about 40 network evaluations in stage two, or as many
steps as it says. A finished row is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images, to_uint8
from denoising_ebm.config import PixelSampler
from denoising_ebm.datasets.images import content_hash
from denoising_ebm.energies import draw_noise
from denoising_ebm.experiments.cache import ResultCache
from denoising_ebm.experiments.drawing import finite
from denoising_ebm.noise import expand_sigma, falling_sigmas
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.samplers import ChainState, sample_pixels, two_stage, ula
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.grids import save_grid
from denoising_ebm.viz.report import Table, print_table

#: Of the computation of all rows.
VERSION = 1
BATCH = 128
Row = dict[str, Any]
#: What rows start from: Langevin steps of one size, on geometric levels.
BASE = PixelSampler("consistent-annealed", steps=40, step_size=0.4, sigma_max=2.0, drift="denoiser")
KARRAS_FROM_4: Row = {"method": "ancestral", "step_size": None, "schedule": "karras", "sigma_max": 4.0}
DEFAULT: Row = KARRAS_FROM_4 | {"method": "dpmpp-2m-sde", "steps": 16}
#: Heun's method with as many evaluations.
HEUN: Row = {"method": "heun", "step_size": None, "schedule": "karras", "steps": 20, "final_denoise": False}
#: What each row changes; `K` is the number of latent steps (10), and `corrections` adds Langevin steps of 0.2 at a fixed
#: level after each step.
ROWS: dict[str, Row] = {
    "step size 0.4, sigma from 2": {},
    "step size 0.2": {"step_size": 0.2},
    "step size 0.7": {"step_size": 0.7},
    "step size 1": {"step_size": 1.0},
    "Heun from 2": HEUN,
    "Heun from 4": HEUN | {"sigma_max": 4.0},
    "sigma from 1": {"sigma_max": 1.0},
    "sigma from 4": {"sigma_max": 4.0},
    "step size 0.2, sigma from 4": {"sigma_max": 4.0, "step_size": 0.2},
    "ancestral": {"method": "ancestral", "step_size": None},
    "ancestral, Karras levels": KARRAS_FROM_4 | {"sigma_max": 2.0},
    "ancestral, Karras levels from 4": KARRAS_FROM_4,
    "ancestral, Karras levels from 10": KARRAS_FROM_4 | {"sigma_max": 10.0},
    "ancestral, Karras levels from 4, 16 steps": KARRAS_FROM_4 | {"steps": 16},
    **{
        f"SDE-DPM-Solver++(2M), Karras levels from 4, {steps} steps": DEFAULT | {"steps": steps, "K": 10}
        for steps in (8, 12, 16, 20, 30)
    },
    "SDE-DPM-Solver++(2M), Karras levels from 10, 16 steps": DEFAULT | {"sigma_max": 10.0, "K": 10},
    "SDE-DPM-Solver++(2M), Karras levels from 4, 16 steps, 5 latent steps": DEFAULT | {"K": 5},
    "Heun from 10": HEUN | {"sigma_max": 10.0},
    "temperature 0.9": {"temperature": 0.9},
    **{
        f"the default, temperature {temperature} below {sigma}": DEFAULT
        | {"low_temperature": temperature, "low_temperature_sigma": sigma, "K": 5}
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
    **{
        f"the default, {num} Langevin steps at each level": DEFAULT | {"K": 5, "corrections": num} for num in (1, 3, 10)
    },
    "no latent steps": {"K": 0},
    "no latent steps, Heun from 2": HEUN | {"K": 0},
}


@torch.no_grad()
def semantic_images(model: DenoisingEBM, steps: int, num: int, seed: int) -> Tensor:
    """Return h(z) of `num` latent chains of `steps` steps."""
    own = model.config.sampling
    sampling = dataclasses.replace(
        own, semantic=dataclasses.replace(own.semantic, steps=steps), pixel=dataclasses.replace(own.pixel, steps=0)
    )
    parts = []
    for i, start in enumerate(range(0, num, BATCH)):
        generator = torch.Generator().manual_seed(seed + i)
        z = torch.randn(min(BATCH, num - start), model.config.network.latent_dim, generator=generator)
        energies = model.semantic(), model.decode, model.pixel_energy(), model.denoise
        parts.append(two_stage(*energies, z, sampling, generator=generator).semantic)
    return torch.cat(parts)


@torch.no_grad()
def stage_two(model: DenoisingEBM, start: Tensor, sampler: PixelSampler, corrections: int, seed: int) -> Tensor:
    """Return the images that stage two makes of semantic images, with `corrections` Langevin steps at each level beside."""
    sigmas = falling_sigmas(sampler.schedule, sampler.sigma_max, sampler.sigma_min, sampler.steps)
    parts = []
    for i, x in enumerate(start.split(BATCH)):
        generator = torch.Generator().manual_seed(seed + 1000 + i)

        def correct(state: ChainState, generator: torch.Generator = generator) -> None:
            # In place: what a callback sees is the chain's own state.
            sigma = float(sigmas[min(state.step, len(sigmas) - 1)])
            energy = model.pixel_energy(sampler)
            state.x.copy_(ula(energy, state.x, sigma, step_size=0.2, num_steps=corrections, generator=generator))

        x = x + sampler.sigma_max * draw_noise(tuple(x.shape), generator, x)
        callback = correct if corrections else None
        x = sample_pixels(model.pixel_energy(sampler), x, sampler, generator=generator, callback=callback)
        parts.append(model.denoise(x, expand_sigma(sampler.sigma_min, x)) if sampler.final_denoise else x)
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
    settings = {"model": model.fingerprint(), "samples": args.samples, "seed": args.seed}
    result_cache = ResultCache(args.out, settings, version=VERSION)
    network = model.config.network
    sizes: dict[str, Any] = {"image_size": network.image_size, "channels": network.channels}
    train = load_images(args.data, split="train", limit=4 * args.samples, **sizes).pixels
    images_hash = content_hash(train, "")
    evaluator = FidelityEvaluator(train[: 2 * args.samples])
    floor = evaluator.frechet_distance(train[2 * args.samples : 3 * args.samples])
    print(f"{args.model}: {model.metadata.get('images seen'):,} images; {describe(model.device)}; seed {args.seed}")
    print(f"{evaluator.protocol(args.samples, 'train')}; floor {floor:.1f}\n")
    starts: dict[int, Tensor] = {}
    records: dict[str, Row] = {}
    for name, changes in ROWS.items():
        if args.only and not any(part in name for part in args.only):
            continue
        options = {key: value for key, value in changes.items() if key not in ("K", "corrections")}
        sampler = dataclasses.replace(BASE, **options)

        def make(name: str = name, sampler: PixelSampler = sampler, changes: Row = changes) -> Row:
            latent_steps = changes.get("K", 10)
            if latent_steps not in starts:
                starts[latent_steps] = semantic_images(model, latent_steps, args.samples, args.seed)
            start = starts[latent_steps]
            images = stage_two(model, start, sampler, changes.get("corrections", 0), args.seed)
            save_grid(images[:64], args.out / f"{name.replace(' ', '-').replace(',', '')}.png", columns=16)
            return {
                "frechet_distance": evaluator.frechet_distance(to_uint8(finite(images))),
                "semantic_frechet_distance": evaluator.frechet_distance(to_uint8(start)),
            }

        depends = {"images": images_hash, "sampler": str((sampler, changes.get("K"), changes.get("corrections")))}
        records[name] = result_cache.row(name, make, depends)
        print(name, records[name].get("missing") or records[name]["frechet_distance"], flush=True)
    print()
    columns = {"FD": "frechet_distance", "FD of h(z)": "semantic_frechet_distance"}
    print_table(Table.from_records(records, columns, first="stage two"))


if __name__ == "__main__":
    main()
