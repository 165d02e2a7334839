"""Compare training objectives on the bundled sample: same network, same minutes, same seed; one row a variant.

    python benchmarks/compare_objectives.py --minutes 6 --out runs/compare

Each row: train, draw two-stage samples with the exact gradient or with its first term, and measure the Fréchet
distance of EfficientNet-lite0 features to the test images; the energy gap of test images and chain ends; and seconds per
64 images.
A row that is finished is kept, one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from denoising_ebm import DenoisingEBM, load_images, preset, to_uint8
from denoising_ebm.config import Config, ContrastiveConfig, Drift, EnergyConfig, TrainingStage
from denoising_ebm.experiments.cache import ResultCache, settings_of
from denoising_ebm.experiments.samplers import finite
from denoising_ebm.quality.extractors import EfficientNetLite0Features
from denoising_ebm.quality.frechet import FeatureStatistics, feature_statistics, frechet_distance
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.objectives import Contrastive
from denoising_ebm.training.once import train_once
from denoising_ebm.utils.device import describe

#: Drifts of the pixel chain to sample with. The exact gradient takes three times as long, so it is measured where it
#: answers a question: does plain denoising saturate, and does `score` not?
DIRECTIONS: dict[str, tuple[Drift, ...]] = {
    "denoising": ("denoiser", "energy"),
    "algorithm-1-clean": ("denoiser",),
    "algorithm-1-noisy": ("denoiser",),
    "algorithm-1-persistent": ("denoiser",),
    "score": ("energy",),
}


def variants(base: Config) -> dict[str, Config]:
    """Return the configs that are compared."""

    def algorithm_1(**options: Any) -> Config:
        contrastive: ContrastiveConfig = dataclasses.replace(base.contrastive, **options)
        stages = (TrainingStage("denoising", 0.6), TrainingStage("contrastive", 0.4))
        # Maximum likelihood needs chains of the energy itself, not of its gradient's first term.
        sampling = dataclasses.replace(base.sampling, drift="energy")
        return dataclasses.replace(base, contrastive=contrastive, sampling=sampling, stages=stages)

    score = dataclasses.replace(
        base,
        network=dataclasses.replace(base.network, precondition="energy"),
        energy=EnergyConfig(inner_noise=False, denoiser="gradient"),
        # Its r is no denoiser, so the first term of the gradient leads nowhere.
        sampling=dataclasses.replace(base.sampling, drift="energy"),
        stages=(TrainingStage("score"),),
    )
    return {
        "denoising": dataclasses.replace(base, stages=(TrainingStage("denoising"),)),
        "algorithm-1-clean": algorithm_1(positives="clean", chains="short"),
        "algorithm-1-noisy": algorithm_1(positives="noisy", chains="short"),
        "algorithm-1-persistent": algorithm_1(positives="noisy", chains="persistent", buffer_size=256),
        "score": score,
    }


def draw(model: DenoisingEBM, drift: Drift, num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return uint8 two-stage samples, their semantic images, and seconds per 64 images."""
    sampling = dataclasses.replace(model.config.sampling, drift=drift)
    images, semantic, started = [], [], time.monotonic()
    for i, start in enumerate(range(0, num, 128)):
        sample = model.two_stage(min(128, num - start), seed=seed + i, sampling=sampling)
        images.append(to_uint8(finite(sample.images)))
        semantic.append(to_uint8(sample.semantic))
    return torch.cat(images), torch.cat(semantic), (time.monotonic() - started) * 64 / num


def energy_gap(model: DenoisingEBM, pixels: torch.Tensor) -> dict[str, float]:
    """Return energies per dimension of test images and of the chain ends that Algorithm 1 would contrast with them."""
    config = dataclasses.replace(
        model.config,
        training=dataclasses.replace(model.config.training, batch_size=128, flip=False),
        contrastive=dataclasses.replace(model.config.contrastive, chain_batch=128, chains="short", positives="noisy"),
    )
    (batch,) = draw_batch(pixels, config, 0, 0)
    with torch.no_grad():
        contrastive_energies = Contrastive(config).contrastive_energies(model, batch)
    data, chain = float(contrastive_energies.data.mean()), float(contrastive_energies.chain.mean())
    return {"energy_data": data, "energy_chain": chain, "gap": data - chain}


def run_row(name: str, config: Config, args: argparse.Namespace, reference: FeatureStatistics) -> dict[str, Any]:
    """Train and measure one variant."""
    folder = args.out / name
    training = dataclasses.replace(
        config.training, max_minutes=args.minutes, sample_minutes=args.minutes, seed=args.seed
    )
    config = dataclasses.replace(config, training=training)
    images = load_images("fashion-mnist", split="train").pixels
    model, extractor = train_once(images, config, folder, data_name="fashion-mnist"), EfficientNetLite0Features()
    row: dict[str, Any] = {"variant": name, "images seen": model.metadata["images seen"]}
    for drift in DIRECTIONS[name]:
        samples, semantic, seconds = draw(model, drift, args.samples, args.seed)
        distance = frechet_distance(feature_statistics(samples, extractor), reference)
        row |= {f"distance {drift}": distance, f"s/64 {drift}": seconds}
    row["distance semantic"] = frechet_distance(feature_statistics(semantic, extractor), reference)
    return row | energy_gap(model, load_images("fashion-mnist", split="test").pixels)


def main() -> None:
    """Run all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--only", nargs="*", help="names of variants")
    args = parser.parse_args()
    result_cache = ResultCache(args.out, settings_of(vars(args), preset=str(preset("fashion-mnist"))))

    extractor = EfficientNetLite0Features()
    test = load_images("fashion-mnist", split="test").pixels[: args.samples]
    reference = feature_statistics(test, extractor)
    train_half = load_images("fashion-mnist", split="train").pixels[: len(test)]
    floor = frechet_distance(feature_statistics(train_half, extractor), reference)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(
        f"{describe(device)}; {extractor.name}; "
        f"{args.samples} samples against {len(test)} test images; seed {args.seed}"
    )
    print(f"floor ({len(train_half)} training images against the same test images): {floor:.1f}")
    rows = []
    for name, config in variants(preset("fashion-mnist")).items():
        if args.only and name not in args.only:
            continue
        row = result_cache.row(name, partial(run_row, name, config, args, reference))
        rows.append({column: value for column, value in row.items() if column not in ("seconds", "depends")})
        print(json.dumps(rows[-1]), flush=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        cells = [row.get(column, "-") for column in columns]
        print("| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")


if __name__ == "__main__":
    main()
