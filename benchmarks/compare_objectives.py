"""Compare training objectives on the bundled sample: same network, same minutes, same seed; one row a variant.

    python benchmarks/compare_objectives.py --minutes 6 --out runs/compare

Each row: train, draw by the preset's sampler with the drift of the energy's exact gradient or of the denoiser, and measure
FD (the Fréchet distance of EfficientNet-lite0 features to the test images), the energy gap of test images and chain ends,
and seconds per 64 images. A row that is finished is kept, one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from denoising_ebm import DenoisingEBM, load_images, preset, to_uint8
from denoising_ebm.config import Config, ContrastiveConfig, Drift, EnergyConfig, TrainingStage
from denoising_ebm.experiments.cache import ResultCache, figures_of, settings_of
from denoising_ebm.experiments.drawing import draw
from denoising_ebm.experiments.settings import with_drift
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.objectives import Contrastive
from denoising_ebm.training.once import train_once
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.report import Table, print_table

#: Of the computation of all rows; raised when the preset or a variant changes.
VERSION = 1
#: Drifts of the pixel chain to sample with. The exact gradient takes three times as long, so it is measured where it
#: answers a question: does plain denoising saturate, and does `score` not?
DRIFTS: dict[str, tuple[Drift, ...]] = {
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
        # Maximum likelihood needs chains of the energy itself: the denoiser's drift is no gradient of it.
        sampling = with_drift(base.sampling, "energy")
        return dataclasses.replace(base, contrastive=contrastive, sampling=sampling, stages=stages)

    score = dataclasses.replace(
        base,
        network=dataclasses.replace(base.network, precondition="energy"),
        energy=EnergyConfig(inner_noise=False, denoiser="gradient"),
        # Its r is no denoiser.
        sampling=with_drift(base.sampling, "energy"),
        stages=(TrainingStage("score"),),
    )
    return {
        "denoising": dataclasses.replace(base, stages=(TrainingStage("denoising"),)),
        "algorithm-1-clean": algorithm_1(positive_samples="clean", chains="short"),
        "algorithm-1-noisy": algorithm_1(positive_samples="noisy", chains="short"),
        "algorithm-1-persistent": algorithm_1(positive_samples="noisy", chains="persistent", buffer_size=256),
        "score": score,
    }


def energy_gap(model: DenoisingEBM, pixels: torch.Tensor) -> dict[str, float]:
    """Return energies per dimension of test images and of the chain ends that Algorithm 1 would contrast with them."""
    config = dataclasses.replace(
        model.config,
        training=dataclasses.replace(model.config.training, batch_size=128, flip=False),
        contrastive=dataclasses.replace(
            model.config.contrastive, chain_batch=128, chains="short", positive_samples="noisy"
        ),
    )
    (batch,) = draw_batch(pixels, config, 0, 0)
    with torch.no_grad():
        contrastive_energies = Contrastive(config).contrastive_energies(model, batch)
    data, chain = float(contrastive_energies.data.mean()), float(contrastive_energies.chain.mean())
    return {"energy_data": data, "energy_chain": chain, "gap": data - chain}


def run_row(name: str, config: Config, args: argparse.Namespace, evaluator: FidelityEvaluator) -> dict[str, Any]:
    """Train and measure one variant."""
    folder = args.out / name
    training = dataclasses.replace(
        config.training, max_minutes=args.minutes, sample_minutes=args.minutes, seed=args.seed
    )
    config = dataclasses.replace(config, training=training)
    images = load_images("fashion-mnist", split="train").pixels
    model = train_once(images, config, folder, data_name="fashion-mnist")
    row: dict[str, Any] = {"images_seen": model.metadata["images seen"]}
    for drift in DRIFTS[name]:
        samples, seconds = draw(model, args.samples, with_drift(model.config.sampling, drift), seed=args.seed)
        distance = evaluator.frechet_distance(to_uint8(samples.images.cpu()))
        row |= {f"FD, drift {drift}": distance, f"s per 64, drift {drift}": seconds * 64 / args.samples}
    assert samples.semantic is not None
    row["FD of h(z)"] = evaluator.frechet_distance(to_uint8(samples.semantic.cpu()))
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
    result_cache = ResultCache(args.out, settings_of(vars(args)), version=VERSION)

    test = load_images("fashion-mnist", split="test").pixels[: args.samples]
    evaluator = FidelityEvaluator(test)
    train_half = load_images("fashion-mnist", split="train").pixels[: len(test)]
    floor = evaluator.frechet_distance(train_half)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{describe(device)}; seed {args.seed}\n{evaluator.protocol(args.samples, 'test')}")
    print(f"floor ({len(train_half)} training images against the same test images): {floor:.1f}")
    rows: dict[str, dict[str, Any]] = {}
    for name, config in variants(preset("fashion-mnist")).items():
        if args.only and name not in args.only:
            continue
        rows[name] = figures_of(result_cache.row(name, partial(run_row, name, config, args, evaluator)))
        print(name, json.dumps(rows[name]), flush=True)
    print()
    print_table(Table.from_records(rows, first="variant"))


if __name__ == "__main__":
    main()
