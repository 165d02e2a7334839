"""Is Algorithm 1 stable at this scale, and does it help? Hundreds of contrastive rounds from a trained model.

    python benchmarks/contrastive_stability.py cifar10-small --data CIFAR10 --rounds 500 --out runs/contrastive

Each row goes on from the same weights by L denoising steps and one contrastive step a round, chains in both spaces. Before
and after: FD (the Fréchet distance of EfficientNet-lite0 features) of samples, the denoising error, and energies per
dimension of held-out images, of chain ends and of uniform noise at a few levels. The row `denoising` takes as many denoising
steps as the others take in all, so that a gain of the contrastive steps is not one of longer training. Curves of the energy
gap, of gradient norms and of the spread of chains are drawn from metrics.jsonl. An interrupted row is resumed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images, to_float, to_uint8
from denoising_ebm.config import Config, ContrastiveConfig, TrainingStage, to_dict
from denoising_ebm.experiments.cache import ResultCache, figures_of, settings_hash, settings_of
from denoising_ebm.experiments.drawing import draw
from denoising_ebm.experiments.settings import with_drift
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.logging import read_metrics
from denoising_ebm.training.objectives import Contrastive
from denoising_ebm.training.trainer import train
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.plots import png_bytes, training_curves
from denoising_ebm.viz.report import Table, print_table

#: Of the computation of all rows.
VERSION = 1

#: What each row changes of the preset's contrastive settings; None is denoising alone. The paper has clean positives, weight
#: 1 and no bound on energies, and other lengths and steps of chains.
VARIANTS: dict[str, dict[str, Any] | None] = {
    "denoising": None,
    "clean positives": {"positive_samples": "clean", "weight": 1.0, "regularisation": 0.0},
    "noisy positives": {"positive_samples": "noisy", "weight": 1.0, "regularisation": 0.0},
    "noisy positives, small weight": {"positive_samples": "noisy", "weight": 0.1, "regularisation": 0.0},
    "noisy positives, small weight, energies bounded": {
        "positive_samples": "noisy",
        "weight": 0.1,
        "regularisation": 0.01,
    },
    "clean positives, small weight, energies bounded": {
        "positive_samples": "clean",
        "weight": 0.1,
        "regularisation": 0.01,
    },
}
SIGMAS = (0.05, 0.1, 0.3, 1.0)


def variant(base: Config, changes: dict[str, Any] | None, args: argparse.Namespace) -> Config:
    """Return the config of a row: `args.rounds` rounds from the model's weights."""
    contrastive: ContrastiveConfig = dataclasses.replace(base.contrastive, **(changes or {}))
    steps = args.rounds * (contrastive.reconstruction_steps + 1)
    training = dataclasses.replace(
        base.training,
        learning_rate=args.learning_rate,
        warmup_images=50 * base.training.batch_size,
        cooldown=0.0,
        max_images=steps * base.training.batch_size,
        max_minutes=0,
        sample_minutes=5,
        log_every=10 * (contrastive.reconstruction_steps + 1),
        seed=args.seed,
    )
    stages = (TrainingStage("denoising" if changes is None else "contrastive"),)
    # Maximum likelihood needs chains of the energy itself: the denoiser's drift is no gradient of it.
    sampling = with_drift(base.sampling, "energy")
    return dataclasses.replace(base, contrastive=contrastive, training=training, stages=stages, sampling=sampling)


@torch.no_grad()
def measure(
    model: DenoisingEBM, base: Config, test: Tensor, evaluator: FidelityEvaluator, args: argparse.Namespace
) -> dict[str, Any]:
    """Return distances, denoising errors and energies of a model."""
    model.config = dataclasses.replace(base, contrastive=dataclasses.replace(base.contrastive, chain_batch=128))
    drawn, _ = draw(model, args.samples, seed=args.seed)
    assert drawn.semantic is not None
    row: dict[str, Any] = {
        "FD": evaluator.frechet_distance(to_uint8(drawn.images)),
        "FD of h(z)": evaluator.frechet_distance(to_uint8(drawn.semantic)),
    }
    x0, generator = to_float(test[:512]), torch.Generator().manual_seed(args.seed)
    noise = torch.randn(x0.shape, generator=generator)
    uniform = 2 * torch.rand(x0.shape, generator=generator) - 1
    for sigma in SIGMAS:
        dim = x0[0].numel()
        row[f"mse {sigma:g}"] = float((model.denoise(x0 + sigma * noise, sigma) - x0).square().mean())
        row[f"U test {sigma:g}"] = float(model.energy(x0, sigma).mean()) / dim
        row[f"U uniform {sigma:g}"] = float(model.energy(uniform, sigma).mean()) / dim
    (batch,) = draw_batch(
        test, dataclasses.replace(base, training=dataclasses.replace(base.training, flip=False)), 0, 0
    )
    exact = dataclasses.replace(model.config, sampling=with_drift(base.sampling, "energy"))
    model.config = exact
    contrastive_energies = Contrastive(exact).contrastive_energies(model, batch)
    assert contrastive_energies.latent_data is not None and contrastive_energies.latent_chain is not None
    return row | {
        "U noisy test": float(contrastive_energies.data.mean()),
        "U chain ends": float(contrastive_energies.chain.mean()),
        "U^s codes": float(contrastive_energies.latent_data.mean()),
        "U^s chain ends": float(contrastive_energies.latent_chain.mean()),
        **{name: float(value) for name, value in contrastive_energies.stds.items()},
    }


def main() -> None:
    """Run all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--out", type=Path, default=Path("runs/contrastive"))
    args = parser.parse_args()
    initial = DenoisingEBM.from_pretrained(args.model).set_precision("auto")
    result_cache = ResultCache(
        args.out,
        settings_of(vars(args), weights=initial.fingerprint(), config=settings_hash(to_dict(initial.config))),
        version=VERSION,
    )
    base, network = initial.config, initial.config.network
    sizes: dict[str, Any] = {"image_size": network.image_size, "channels": network.channels}
    pixels = load_images(args.data, split="train", **sizes).pixels
    test = load_images(args.data, split="test", limit=args.samples, **sizes).pixels
    evaluator = FidelityEvaluator(test)
    floor = evaluator.frechet_distance(pixels[: args.samples])
    protocol = evaluator.protocol(args.samples, "test")
    print(f"{describe(initial.device)}; floor {floor:.1f}; seed {args.seed}; {protocol}")

    rows: dict[str, dict[str, Any]] = {}
    for name, changes in {"before": None, **VARIANTS}.items():
        if args.only and name not in (*args.only, "before"):
            continue

        def make(name: str = name, changes: dict[str, Any] | None = changes) -> dict[str, Any]:
            folder, model = args.out / name.replace(" ", "-").replace(",", ""), initial
            if name != "before":
                config = variant(base, changes, args)
                started = {"resume": True} if (folder / "state.pt").exists() else {"initial": initial}
                result = train(pixels, config, folder, data_name=args.data, **started)  # type: ignore[arg-type]
                if not result.finished:
                    raise SystemExit(f"{name}: interrupted and saved; the same command goes on")
                model = result.model
                (folder / "curves.png").write_bytes(png_bytes(training_curves(read_metrics(folder))))
            return measure(model, base, test, evaluator, args)

        rows[name] = figures_of(result_cache.row(name, make))
        print(name, json.dumps(rows[name]), flush=True)
    # A column a row, since there are more figures than variants, and of all sizes.
    by_figure = {
        figure: {name: f"{row[figure]:.4g}" for name, row in rows.items() if figure in row} for figure in rows["before"]
    }
    print()
    print_table(Table.from_records(by_figure, list(rows)))


if __name__ == "__main__":
    main()
