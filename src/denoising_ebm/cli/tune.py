"""`debm tune`: fit the sampler to a trained model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from denoising_ebm.cli.common import (
    DATA_HELP,
    MODEL_HELP,
    add_device_options,
    add_source_options,
    check_at_least,
    folder_to_write,
    note,
    progress_bar,
    read_images,
    read_model,
)

HELP = "fit the sampler to a trained model"
USAGE = "debm tune MODEL DATA [--out DIR] [options]"
DESCRIPTION = """\
Choose how cold the last steps of the pixel chain run, those below noise of sampling.cold_sigma. Models that were trained for
minutes get fine detail wrong, and their samples come nearer to real images with less of it; models of hours do not need it.
Samples at each temperature are compared with images of DATA by the Fréchet distance of EfficientNet-lite0 features. Take
images that the model was trained on, and keep test images for figures that you report.

Writes the choice into config.json of the model's folder (or of --out, a copy). Going on with training undoes it."""
EPILOG = """\
Examples:
  debm tune runs/mine my-images/
  debm tune runs/cifar CIFAR10 --samples 1000
  debm tune fashion-mnist fashion-mnist --out my-fashion"""


def add(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("data", metavar="DATA", help=f"images to come near to: {DATA_HELP}")
    parser.add_argument("--out", metavar="DIR", help="where to write the model; by default its own folder")
    group = parser.add_argument_group("tuning")
    group.add_argument(
        "--temperatures",
        type=list[float] | None,
        metavar="[T, ...]",
        help="to choose from, each >= 0; by default [1, 0.7, 0.5, 0.35, 0.25]",
    )
    group.add_argument("--samples", type=int, default=500, metavar="N", help="samples at each temperature")
    group.add_argument("--images", type=int, default=2000, metavar="N", help="compare with so many, drawn at random")
    group.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of these draws; batch i of the samples has seed + i"
    )
    group.add_argument("--batch-size", type=int, default=64, metavar="N", help="samples drawn at once")
    add_source_options(parser, "train")
    add_device_options(parser)


def run(args: Namespace) -> int:
    """Measure, choose, write."""
    check_at_least(args, 2, "samples", "images")
    check_at_least(args, 1, "batch_size")
    check_at_least(args, 0, "seed")
    import torch

    from denoising_ebm.hub import copy_model_folder, find_model_folder, rewrite_config
    from denoising_ebm.quality.evaluator import FidelityEvaluator
    from denoising_ebm.quality.tuning import TEMPERATURES, tune_low_temperature
    from denoising_ebm.samplers import two_stage_steps
    from denoising_ebm.viz.report import Table, markdown

    temperatures = TEMPERATURES if args.temperatures is None else tuple(dict.fromkeys(args.temperatures))
    if not temperatures or not all(math.isfinite(t) and t >= 0 for t in temperatures):
        raise ValueError(f"--temperatures must be one or more numbers >= 0, got {list(temperatures)}")
    source, folder = find_model_folder(args.model), folder_to_write(args, "the tuned model")
    model = read_model(args)
    network = model.config.network
    draws = torch.Generator().manual_seed(args.seed)
    sizes = network.image_size, network.channels
    pixels = read_images(args.data, args, *sizes, sample=args.images, generator=draws).pixels
    evaluator = FidelityEvaluator(pixels, device=model.device)
    sampling = model.config.sampling
    before = sampling.pixel.low_temperature
    with progress_bar("sampling", len(temperatures) * args.samples * two_stage_steps(sampling)) as advance:
        options: dict[str, Any] = {"seed": args.seed, "batch_size": args.batch_size, "progress": advance}
        tuned, distances = tune_low_temperature(
            sampling,
            lambda choice: model.sample(args.samples, sampler=choice, **options).images,
            evaluator,
            temperatures,
        )
    best = tuned.pixel.low_temperature
    caption = (
        f"Fréchet distance of {args.samples:,} samples to {len(pixels):,} images ({evaluator.extractor.name}; no FID)."
    )
    columns = [f"temperature below sigma {sampling.pixel.low_temperature_sigma:g}", "distance"]
    rows = [[f"{t:g}{' (chosen)' if t == best else ''}", f"{distance:.1f}"] for t, distance in distances.items()]
    print(f"{caption}\n\n{markdown(Table(columns, rows))}", end="")
    if folder.resolve() != source.resolve():
        copy_model_folder(source, folder)
    rewrite_config(folder, replace(model.config, sampling=tuned))
    change = f"stays {best:g}" if best == before else f"{before:g} -> {best:g}"
    note(f"{folder}: sampling.pixel.low_temperature {change}")
    return 0
