"""What batching over noise levels and shared passes save: the default detector's features, three ways, interleaved.

    python benchmarks/scoring_speed.py MODEL --data CIFAR10 --num 64 --rounds 5

`loop`: every family by itself, one noise level at a time, fp32, `--loop-batch` images a pass, as one writes it at first.
`shared`: all families from the same passes, one level at a time. `batched`: all families, levels and images in common
passes, in the precision that is fast here. The ways take turns; medians of the rounds, and their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import Family, FeatureConfig, compute_features
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.report import Table, print_table


def at(config: FeatureConfig, sigma: float, families: tuple[Family, ...]) -> FeatureConfig | None:
    """Return what of some families is computed at one level."""
    chosen = tuple(family for family in families if sigma in config.sigmas_of(family))
    return replace(config, sigmas=(sigma,), families=chosen, feature_sigmas=()) if chosen else None


def loop(model: DenoisingEBM, pixels: Tensor, config: FeatureConfig, batch: int) -> None:
    for family in config.families:
        for sigma in config.sigmas:
            # Two passes of `batch` images each where a family needs both kinds.
            if single := at(config, sigma, (family,)):
                compute_features(model, pixels, single, batch_size=2 * batch)


def shared(model: DenoisingEBM, pixels: Tensor, config: FeatureConfig, batch: int) -> None:
    for sigma in config.sigmas:
        if single := at(config, sigma, config.families):
            compute_features(model, pixels, single, batch_size=2 * batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop-batch", type=int, nargs="+", default=[1, 64])
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model, device="auto")
    pixels = load_images(args.data, split="test", limit=args.num).pixels
    config = DetectorConfig().features
    ways: dict[str, tuple[str, Callable[[], object]]] = {
        "batched": ("auto", lambda: compute_features(model, pixels, config, batch_size=256)),
        "batched, fp32": ("fp32", lambda: compute_features(model, pixels, config, batch_size=256)),
    }
    for batch in args.loop_batch:
        ways[f"shared, {batch} a pass"] = ("fp32", partial(shared, model, pixels, config, batch))
        ways[f"loop, {batch} a pass"] = ("fp32", partial(loop, model, pixels, config, batch))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, (precision, run) in ways.items():
            model.set_precision(precision)  # type: ignore[arg-type]
            started = time.monotonic()
            run()
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.monotonic() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"{describe(model.device)}; {args.num} images, {args.rounds} rounds, {2 * len(config.sigmas)} forwards an image"
    )
    records = {
        name: {"images/s": args.num / value, "times as long as batched": value / medians["batched"]}
        for name, value in medians.items()
    }
    print_table(Table.from_records(records, first="way"))


if __name__ == "__main__":
    main()
