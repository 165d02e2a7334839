"""Our default beside its rivals: same images, same minutes, same backbone where they have one; one row a method.

    pip install ebmkit torchebm
    python benchmarks/baselines/compare.py --data CIFAR10 --preset cifar10-small --minutes 10 --out runs/baselines

The distance is the Fréchet distance of EfficientNet-lite0 features to test images. Rows that say "tuned" draw by our chains,
their last steps as cold as comes nearest to 2,000 training images (`debm tune`). A finished row is kept, and an interrupted
one of ours goes on; the others start anew.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from denoisers import EDM, NCSN, PlainDAE
from libraries import EbmKit, TorchEBMChains
from loop import fit
from scalar_energies import IGEBM, MDSM
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images, preset, to_uint8
from denoising_ebm.datasets.images import content_hash
from denoising_ebm.experiments.cache import ResultCache, identity, settings_hash, settings_of
from denoising_ebm.experiments.samplers import finite
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.quality.tuning import tune_low_temperature
from denoising_ebm.training.once import train_once
from denoising_ebm.utils.device import autocast, choose_precision, describe
from denoising_ebm.viz.grids import save_grid

Draw = Callable[[int, torch.Generator], Tensor]
CPU = torch.device("cpu")
#: Samplers of our model.
OURS = {"two-stage": "ours, two-stage", "annealed": "ours, our chains from noise", "heun": "ours, Heun 20"}
TUNED = ", tuned"
METHODS = (EDM, NCSN, MDSM, IGEBM, PlainDAE)
#: Drawn from by our chains too: what the model gives, apart from what its own sampler does.
BY_OUR_CHAINS = (EDM, NCSN)
BASELINES = [method.title for method in METHODS] + [method.chains_title for method in BY_OUR_CHAINS]
TUNED_ROWS = [title + TUNED for title in (OURS["two-stage"], *(method.chains_title for method in BY_OUR_CHAINS))]
TITLES = [*OURS.values(), *BASELINES, *TUNED_ROWS, EbmKit.title, TorchEBMChains.title]


def draw_all(draw: Draw, num: int, seed: int) -> tuple[Tensor, float]:
    """Return images and seconds per 64."""
    parts, started = [], time.monotonic()
    for i, start in enumerate(range(0, num, 128)):
        generator = torch.Generator().manual_seed(seed + i)
        with torch.no_grad(), autocast(CPU, choose_precision("auto", CPU)):
            parts.append(draw(min(128, num - start), generator).float())
    return torch.cat(parts), (time.monotonic() - started) * 64 / num


def main() -> None:
    """Run all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preset", default="cifar10-small")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="parts of names of rows")
    parser.add_argument("--rates", type=float, nargs="*", help="train each baseline at these learning rates instead")
    parser.add_argument("--out", type=Path, default=Path("runs/baselines"))
    args = parser.parse_args()
    for part in args.only or ():
        if not any(part in title for title in TITLES):
            parser.error(f"--only {part!r}: no row has it in its name; rows are {'; '.join(TITLES)}")
    config = preset(args.preset)
    # Rows at other rates have names of their own.
    options = {name: value for name, value in vars(args).items() if name != "rates"}
    result_cache = ResultCache(args.out, settings_of(options, configuration=settings_hash(identity(config))))
    training = replace(config.training, max_minutes=args.minutes, max_images=10**9, sample_minutes=0, seed=args.seed)
    config = replace(config, training=training)
    sizes: dict[str, Any] = {"image_size": config.network.image_size, "channels": config.network.channels}
    pixels = load_images(args.data, split="train", **sizes).pixels
    test = load_images(args.data, split="test", limit=args.samples, **sizes).pixels
    evaluator = FidelityEvaluator(test)
    images_hash = f"{content_hash(pixels, '')} {content_hash(test, '')}"
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str, make: Callable[[], tuple[Draw, dict[str, Any]]]) -> None:
        if args.only and not any(part in name for part in args.only):
            return

        def measure() -> dict[str, Any]:
            draw, metadata = make()
            images, seconds = draw_all(draw, args.samples, args.seed)
            save_grid(images[:64], args.out / f"{name.replace(' ', '-')}.png", columns=16)
            figures = asdict(evaluator(to_uint8(finite(images))))
            return metadata | figures | {"s per 64": seconds, "hardware": describe(CPU)}

        rows[name] = result_cache.row(name, measure, images=images_hash)
        print(name, json.dumps(rows[name]), flush=True)

    def of_ours(sampler: Any, tune: bool = False) -> tuple[Draw, dict[str, Any]]:
        model = train_once(pixels, config, args.out / "ours", data_name=args.data, device="cpu")
        metadata = metadata_of(model, int(model.metadata["images seen"]), config.training.batch_size)

        def draw_with(model: DenoisingEBM) -> Draw:
            return lambda num, generator: model.sample(num, sampler=sampler, seed=generator.initial_seed())

        return tuned(model, draw_with, metadata) if tune else (draw_with(model), metadata)

    @cache
    def training_evaluator() -> FidelityEvaluator:
        chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(args.seed))
        return FidelityEvaluator(pixels[chosen[:2000]])

    def tuned(model: Any, draw_with: Callable[[Any], Draw], metadata: dict[str, Any]) -> tuple[Draw, dict[str, Any]]:
        """Give a model's chains the temperature that suits it, by samples of another seed; the other rows keep theirs."""
        model, started = copy.copy(model), time.monotonic()
        distances = tune_low_temperature(
            model, lambda: draw_all(draw_with(model), 500, args.seed + 1000)[0], training_evaluator()
        )
        return draw_with(model), metadata | {
            "cold temperature": model.config.sampling.low_temperature,
            "distances to training images": {f"{t:g}": distance for t, distance in distances.items()},
            "seconds of tuning": time.monotonic() - started,
        }

    @cache
    def trained(method: Any, rate: float | None) -> tuple[Any, dict[str, Any]]:
        torch.manual_seed(args.seed)
        model = method(config)
        if rate is not None:
            model.config = replace(model.config, training=replace(model.config.training, learning_rate=rate))
        averaged, seen = fit(model, pixels, model.config, args.minutes)
        if isinstance(model, IGEBM):
            averaged.take_chains(model)
        return averaged, metadata_of(averaged, seen, model.config.training.batch_size)

    def of_ebmkit() -> tuple[Draw, dict[str, Any]]:
        method = EbmKit(config, args.seed)
        seen = method.fit(pixels, args.minutes)
        return method.draw, metadata_of(method.energy, seen, method.batch_size)

    def of_torchebm() -> tuple[Draw, dict[str, Any]]:
        model = train_once(pixels, config, args.out / "ours", data_name=args.data, device="cpu")
        metadata = metadata_of(model, int(model.metadata["images seen"]), config.training.batch_size)
        return TorchEBMChains(model).draw, metadata

    for sampler, title in OURS.items():
        row(title, partial(of_ours, sampler))
    row(OURS["two-stage"] + TUNED, partial(of_ours, "two-stage", tune=True))
    for method in METHODS:
        for rate in args.rates or [None]:
            more = "" if rate is None else f", rate {rate:g}"

            def of(by: str, method: Any = method, rate: float | None = rate) -> tuple[Draw, dict[str, Any]]:
                model, metadata = trained(method, rate)
                if by == "tuned":
                    return tuned(model, attrgetter("chains"), metadata)
                return getattr(model, by), metadata

            row(method.title + more, partial(of, "draw"))
            if method in BY_OUR_CHAINS:
                row(method.chains_title + more, partial(of, "chains"))
                row(method.chains_title + TUNED + more, partial(of, "tuned"))
        trained.cache_clear()
    row(EbmKit.title, of_ebmkit)
    row(TorchEBMChains.title, of_torchebm)

    machines = sorted({figures.get("hardware", "not recorded") for figures in rows.values()})
    print(f"\n{', '.join(machines)}; {args.minutes:g} minutes each; seed {args.seed}")
    print(evaluator.protocol(args.samples, "test"))
    of_one = [[method.title, method.chains_title, method.chains_title + TUNED] for method in BY_OUR_CHAINS]
    for group in ([*OURS.values(), OURS["two-stage"] + TUNED, TorchEBMChains.title], *of_one):
        if len({rows[name].get("weights") for name in group if name in rows}) > 1:
            print(f"WARNING: not of one training: {'; '.join(name for name in group if name in rows)}")
    print(f"floor (training images): {evaluator.distance(pixels[: args.samples]):.1f}\n")
    columns = ["parameters", "images seen", "steps", "distance", "precision", "recall", "coverage", "s per 64"]
    print("| method | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, figures in rows.items():
        print(f"| {name} | " + " | ".join(show(figures.get(column)) for column in columns) + " |")


def metadata_of(model: torch.nn.Module, seen: int, batch_size: int) -> dict[str, Any]:
    """Return what stands before the figures of a method."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().contiguous().numpy().tobytes())
    return {
        "parameters": parameters,
        "images seen": seen,
        "steps": seen // batch_size,
        "weights": digest.hexdigest()[:12],
    }


def show(value: float | int | None) -> str:
    """Return a cell."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


if __name__ == "__main__":
    main()
