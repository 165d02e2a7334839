"""Tune the training at small cost: one change a row, same minutes, same seed; which gives the lowest denoising error?

    python benchmarks/tune_training.py --data CIFAR10 --minutes 3 --out runs/tune
    python benchmarks/tune_training.py --data CIFAR10 --minutes 3 --out runs/tune --jobs 2     # one thread each
    python benchmarks/tune_training.py --data CIFAR10 --minutes 5 --out runs/batch --samples 1000 --only "batch 128"

A row is a config file's worth of changes to the preset. It is trained, and its denoiser measured on test images: the
mean square error at a few noise levels, and the loss of the training draw (the EDM weights of the preset for all rows, so
that rows with other weights compare), with `--samples` also FD of samples to as many test images. A
row that is finished is kept; the same command goes on with the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from denoising_ebm import load_images, preset, to_float, to_uint8
from denoising_ebm.config import Config, from_dict, to_dict, without_density
from denoising_ebm.experiments.cache import ResultCache, figures_of, settings_hash, settings_of
from denoising_ebm.experiments.drawing import draw
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.noise import append_dims
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.training.objectives import validation_loss
from denoising_ebm.training.trainer import train
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.report import Table, print_table

#: Of the computation of all rows.
VERSION = 1
SIGMAS = (0.05, 0.1, 0.3, 1.0, 3.0)

FULL = {"widths": [32, 64, 96, 96], "decoder_widths": [24, 48, 64, 64], "attention": []}
HALF = FULL | {"decoder_widths": [48, 64, 64]}

#: The changes of each row: section -> field -> value.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "h at 32 px": {"network": FULL},
    "h at 16 px": {"network": HALF},
    "16 wide": {"network": HALF | {"widths": [16, 64, 96, 96]}},
    "48 wide": {"network": HALF | {"widths": [48, 64, 96, 96]}},
    "two blocks": {"network": HALF | {"blocks": 2}},
    "attention at 8 px": {"network": HALF | {"attention": [8]}},
    "96, 128, 128 below": {"network": HALF | {"widths": [32, 96, 128, 128]}},
    "batch 128": {"training": {}},
    "batch 64": {"training": {"batch_size": 64}},
    "batch 32": {"training": {"batch_size": 32}},
    "batch 16": {"training": {"batch_size": 16}},
    "batch 8": {"training": {"batch_size": 8}},
    "batch 16, rate 2e-3": {"training": {"batch_size": 16, "learning_rate": 2e-3}},
    "batch 32, rate 2e-3": {"training": {"batch_size": 32, "learning_rate": 2e-3}},
}


def changed(base: Config, changes: dict[str, dict[str, Any]]) -> Config:
    """Return `base` with the changes of a row."""
    values = to_dict(base)
    for section, fields in changes.items():
        values[section] |= fields
    return from_dict(Config, values)


@torch.no_grad()
def errors(model: DenoisingEBM, pixels: torch.Tensor, seed: int = 0) -> dict[str, float]:
    """Return the mean square error of D, of h on codes of nearly clean images, and the mean energy-weighted loss."""
    x0, row = to_float(pixels), {}
    for sigma in SIGMAS:
        generator, total = torch.Generator().manual_seed(seed), 0.0
        for chunk in x0.split(256):
            noisy = chunk + sigma * torch.randn(chunk.shape, generator=generator)
            total += float((model.denoise(noisy, sigma) - chunk).square().sum())
        row[f"mse {sigma:g}"] = total / x0.numel()
    levels = torch.full((len(x0),), 0.1)
    noisy = x0 + append_dims(levels, x0) * torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    pairs = zip(noisy.split(256), levels.split(256), x0.split(256), strict=True)
    decoded = sum(float((model.decode(model.encode(x, s)) - clean).square().sum()) for x, s, clean in pairs)
    return row | {"mse of h": decoded / x0.numel()}


def config_of(name: str, args: argparse.Namespace) -> Config:
    """Return the configuration of a variant."""
    base = without_density(preset(args.preset))
    budget = {
        "max_minutes": args.minutes,
        "sample_minutes": 0,
        "seed": args.seed,
        "max_images": 10**9,
        "warmup_images": 5000,
        "batch_size": 128,
    }
    return changed(base, VARIANTS[name] | {"training": budget | VARIANTS[name].get("training", {})})


def run_row(name: str, args: argparse.Namespace) -> None:
    """Train and measure one variant in this process, and print its figures as JSON."""
    base, config = without_density(preset(args.preset)), config_of(name, args)
    sizes: dict[str, Any] = {"image_size": config.network.image_size, "channels": config.network.channels}
    pixels = load_images(args.data, split="train", **sizes).pixels
    test = load_images(args.data, split="test", limit=args.test, **sizes).pixels
    folder = args.out / "models" / name.replace(" ", "-").replace(",", "")
    resume = (folder / "state.pt").exists()
    result = train(pixels, config, folder, data_name=args.data, resume=resume, quiet=True)
    if not result.finished:
        raise SystemExit(f"{name}: interrupted and saved; the same command goes on")
    if result.diverged:
        raise SystemExit(f"{name}: its training diverged")
    model = result.model
    row = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "images_seen": model.metadata["images seen"],
        "test_loss": validation_loss(model.denoise, to_float(test).to(model.device), base),
    }
    row |= errors(model, test)
    if args.samples:
        test = load_images(args.data, split="test", limit=args.samples, **sizes).pixels
        samples, _ = draw(model, args.samples, seed=args.seed)
        row["frechet_distance"] = FidelityEvaluator(test).frechet_distance(to_uint8(samples.images.cpu()))
    print(json.dumps(row))


def main() -> None:
    """Run all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preset", default="cifar10-small")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--test", type=int, default=2048, help="test images to measure on")
    parser.add_argument("--samples", type=int, default=0, help="samples to measure FD of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="rows at once, each with its share of the threads")
    parser.add_argument("--out", type=Path, default=Path("runs/tune"))
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        run_row(args.row, args)
        return
    for name in args.only or ():
        if name not in VARIANTS:
            parser.error(f"--only {name!r}: no such variant; there are {'; '.join(VARIANTS)}")
    options = {name: value for name, value in vars(args).items() if name != "row"}
    result_cache = ResultCache(args.out, settings_of(options), version=VERSION)
    names = [name for name in VARIANTS if not args.only or name in args.only]
    threads = max(1, torch.get_num_threads() // args.jobs)

    def start(name: str) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            command = [sys.executable, __file__, *sys.argv[1:], "--row", name]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            found = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
            row: dict[str, Any] = json.loads(found.stdout)
            return row

        row = result_cache.row(name, make, {"config": settings_hash(to_dict(config_of(name, args)))})
        print(name, json.dumps(figures_of(row)), flush=True)
        return figures_of(row)

    with ThreadPoolExecutor(args.jobs) as pool:
        rows = dict(zip(names, pool.map(start, names), strict=True))
    machine = describe(torch.device("cpu"))
    print(f"\n{machine}, {args.jobs} rows at once; {args.minutes:g} minutes a row; seed {args.seed}")
    print_table(Table.from_records(rows, first="variant"))


if __name__ == "__main__":
    main()
