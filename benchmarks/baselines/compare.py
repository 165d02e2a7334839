"""Our default beside its rivals: same images, same minutes, same backbone where they have one; one row a method.

    pip install ebmkit torchebm
    python benchmarks/baselines/compare.py --data CIFAR10 --preset cifar10-small --minutes 10 --out runs/baselines

FD is the Fréchet distance of EfficientNet-lite0 features to test images. Rows that say "low-temperature end" draw by our
default sampler, the temperature of its last steps chosen by FD to 2,000 training images (`debm tune`). A finished row is
kept, and an interrupted training of ours goes on; the others start anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from denoisers import EDM, FROM_NOISE, NCSN, Denoiser, PlainDAE
from libraries import EbmKit, TorchEBMChains
from loop import fit
from scalar_energies import IGEBM, MDSM
from torch import Tensor

from denoising_ebm import load_images, preset, to_uint8
from denoising_ebm.config import SamplingConfig, without_density
from denoising_ebm.datasets.images import content_hash
from denoising_ebm.experiments.cache import ResultCache, settings_of
from denoising_ebm.experiments.drawing import finite
from denoising_ebm.model import DenoisingEBM, Sampler
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.quality.tuning import tune_low_temperature
from denoising_ebm.samplers import METHODS
from denoising_ebm.training.once import train_once
from denoising_ebm.utils.device import autocast, choose_precision, describe
from denoising_ebm.viz.grids import save_grid
from denoising_ebm.viz.report import Table, print_table

Draw = Callable[[int, torch.Generator], Tensor]
CPU = torch.device("cpu")
#: Of the computation of all rows; raised when presets or methods change.
VERSION = 2
#: Samplers of our model.
OURS: dict[Sampler, str] = {
    "two-stage": f"ours, {METHODS['dpmpp-2m-sde'].title} from h(z)",
    "dpmpp-2m-sde": f"ours, {FROM_NOISE}",
    "heun": "ours, Heun 20",
}
TUNED = ", low-temperature end"
RIVALS = (EDM, NCSN, MDSM, IGEBM, PlainDAE)
#: Drawn from by our sampler too: what the model gives, apart from what its own sampler does.
AS_OURS = (EDM, NCSN)
BASELINES = [method.title for method in RIVALS] + [method.title_as_ours for method in AS_OURS]
TUNED_ROWS = [title + TUNED for title in (OURS["two-stage"], *(method.title_as_ours for method in AS_OURS))]
TITLES = [*OURS.values(), *BASELINES, *TUNED_ROWS, EbmKit.title, TorchEBMChains.title]
COLUMNS = {
    "parameters": "parameters",
    "images seen": "images_seen",
    "steps": "steps",
    "FD": "frechet_distance",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "s per 64": "s_per_64",
}


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
    parser.add_argument("--tuning-samples", type=int, default=500, help="at each temperature of a low-temperature end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="parts of names of rows")
    parser.add_argument("--rates", type=float, nargs="*", help="train each baseline at these learning rates instead")
    parser.add_argument("--out", type=Path, default=Path("runs/baselines"))
    args = parser.parse_args()
    for part in args.only or ():
        if not any(part in title for title in TITLES):
            parser.error(f"--only {part!r}: no row has it in its name; rows are {'; '.join(TITLES)}")
    config = without_density(preset(args.preset))
    # Rows at other rates have names of their own.
    options = {name: value for name, value in vars(args).items() if name != "rates"}
    result_cache = ResultCache(args.out, settings_of(options), version=VERSION)
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
            return metadata | figures | {"s_per_64": seconds, "hardware": describe(CPU)}

        rows[name] = result_cache.row(name, measure, {"images": images_hash})
        print(name, json.dumps(rows[name]), flush=True)

    def ours() -> tuple[DenoisingEBM, dict[str, Any]]:
        model = train_once(pixels, config, args.out / "ours", data_name=args.data, device="cpu")
        return model, metadata_of(model, int(model.metadata["images seen"]), config.training.batch_size)

    def of_ours(sampler: Sampler, tune: bool = False) -> tuple[Draw, dict[str, Any]]:
        model, metadata = ours()

        def draw_by(sampler: Sampler) -> Draw:
            return lambda num, generator: (
                model.sample(num, sampler=sampler, seed=generator.initial_seed(), batch_size=num).images
            )

        return tuned(draw_by, metadata) if tune else (draw_by(sampler), metadata)

    @cache
    def training_evaluator() -> FidelityEvaluator:
        chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(args.seed))
        return FidelityEvaluator(pixels[chosen[:2000]])

    def tuned(draw_by: Callable[[SamplingConfig], Draw], metadata: dict[str, Any]) -> tuple[Draw, dict[str, Any]]:
        """Give the preset's sampler the temperature at its end that suits a model, by samples of another seed."""
        started = time.monotonic()
        chosen, distances = tune_low_temperature(
            config.sampling,
            lambda choice: draw_all(draw_by(choice), args.tuning_samples, args.seed + 1000)[0],
            training_evaluator(),
        )
        return draw_by(chosen), metadata | {
            "low_temperature": chosen.pixel.low_temperature,
            "distances_to_training_images": {f"{t:g}": distance for t, distance in distances.items()},
            "seconds_of_tuning": time.monotonic() - started,
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
        model, metadata = ours()
        return TorchEBMChains(model).draw, metadata

    for sampler, title in OURS.items():
        row(title, partial(of_ours, sampler))
    row(OURS["two-stage"] + TUNED, partial(of_ours, "two-stage", tune=True))
    for method in RIVALS:
        for rate in args.rates or [None]:
            more = "" if rate is None else f", rate {rate:g}"

            def of(by: str, method: Any = method, rate: float | None = rate) -> tuple[Draw, dict[str, Any]]:
                model, metadata = trained(method, rate)
                if by == "tuned":
                    return tuned(partial(draw_as_ours, model), metadata)
                return getattr(model, by), metadata

            row(method.title + more, partial(of, "draw"))
            if method in AS_OURS:
                row(method.title_as_ours + more, partial(of, "draw_as_ours"))
                row(method.title_as_ours + TUNED + more, partial(of, "tuned"))
        trained.cache_clear()
    row(EbmKit.title, of_ebmkit)
    row(TorchEBMChains.title, of_torchebm)

    machines = sorted({figures.get("hardware", "not recorded") for figures in rows.values()})
    print(f"\n{', '.join(machines)}; {args.minutes:g} minutes each; seed {args.seed}")
    print(evaluator.protocol(args.samples, "test"))
    of_one = [[method.title, method.title_as_ours, method.title_as_ours + TUNED] for method in AS_OURS]
    for group in ([*OURS.values(), OURS["two-stage"] + TUNED, TorchEBMChains.title], *of_one):
        if len({rows[name].get("weights") for name in group if name in rows}) > 1:
            print(f"WARNING: not of one training: {'; '.join(name for name in group if name in rows)}")
    print(f"floor (FD of training images): {evaluator.frechet_distance(pixels[: args.samples]):.1f}\n")
    print_table(Table.from_records(rows, COLUMNS, first="method"))


def draw_as_ours(model: Denoiser, sampling: SamplingConfig) -> Draw:
    """Return how a rival is drawn from by the pixel stage of `sampling`."""
    return partial(model.draw_as_ours, sampler=sampling.pixel)


def metadata_of(model: torch.nn.Module, seen: int, batch_size: int) -> dict[str, Any]:
    """Return what stands before the figures of a method."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().contiguous().numpy().tobytes())
    return {
        "parameters": parameters,
        "images_seen": seen,
        "steps": seen // batch_size,
        "weights": digest.hexdigest()[:12],
    }


if __name__ == "__main__":
    main()
