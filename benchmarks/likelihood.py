"""Bits per dimension of test images in two ways that share no code: by the density network, by the denoiser's integral.

    python benchmarks/likelihood.py runs/cifar10 --data CIFAR10_FOLDER --num 2000 --out likelihood

The first way is one pass of the density network at the smallest noise level, `--draws` draws of noise an image; the second
is the I-MMSE integral over noise levels of the denoiser, which a model without a density network has too. Both estimate the
mean over n of -log2 q(x + sigma_min n), in grey levels, so their difference shows what is wrong with one of them. The bound
is that of -log2 P(x) of the image itself: it has the same integral and a decoder. See docs/likelihood.md.

With `--curve N` both are compared at other noise levels too, on the first N images: where the difference arises.

Results are kept in --out, `--shard` images a file: an interrupted command goes on where it was, and after more training of
the density network the integral is not computed again. It costs 64 network evaluations an image by default, 12 minutes for
1,000 images of 32 x 32 with a network of two million parameters on a CPU core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.likelihood.discrete import bound_of
from denoising_ebm.likelihood.gaussian import GaussianFit
from denoising_ebm.likelihood.immse import Estimate, Quadrature
from denoising_ebm.noise import geometric_sigmas
from denoising_ebm.utils.device import describe
from denoising_ebm.utils.io import write_text_atomically
from denoising_ebm.utils.progress import progress_bar
from denoising_ebm.utils.seeds import ImageNoise
from denoising_ebm.viz.report import Table, print_table

Columns = dict[str, list[float]]


def by_denoiser(
    model: DenoisingEBM, pixels: Tensor, args: argparse.Namespace, anchor: GaussianFit | None
) -> dict[str, Estimate]:
    """Return the integral of some images, and the bound."""
    quadrature = Quadrature(args.levels, 2, model.config.network.sigma_data)
    how: dict[str, Any] = {"quadrature": quadrature, "anchor": anchor, "seed": args.seed, "batch_size": args.batch_size}
    integral = model.bits_per_dim(pixels, method="immse", **how)
    noise = ImageNoise.by_content(args.seed + 1, pixels, "likelihood")
    images, sigma = to_float(pixels).to(model.device), model.config.noise.sigma_min
    return {"integral": integral, "bound": bound_of(integral, model.denoise, images, sigma, generator=noise)}


def by_energy(model: DenoisingEBM, pixels: Tensor, args: argparse.Namespace) -> dict[str, Estimate]:
    """Return the figures of the density network."""
    how: dict[str, Any] = {"draws": args.draws, "seed": args.seed, "batch_size": args.batch_size}
    return {"energy": model.bits_per_dim(pixels, method="energy", **how)}


def in_shards(
    pixels: Tensor,
    name: str,
    compute: Callable[[Tensor], dict[str, Estimate]],
    settings: dict[str, Any],
    args: argparse.Namespace,
) -> Columns:
    """Return columns of figures and of the variances of their draws, computed or read from files."""
    columns: Columns = {}
    with progress_bar(name, len(pixels)) as progress:
        for first in range(0, len(pixels), args.shard):
            part, path = pixels[first : first + args.shard], args.out / f"{name}-{first:06d}.json"
            stored = json.loads(path.read_text()) if path.is_file() else {}
            if stored.get("settings") != settings or stored.get("count") != len(part):
                found = compute(part)
                new = {key: estimate.value.tolist() for key, estimate in found.items()}
                new |= {f"variance of {key}": each.standard_error.square().tolist() for key, each in found.items()}
                stored = {"settings": settings, "count": len(part), "columns": new}
                write_text_atomically(path, json.dumps(stored) + "\n")
            for key, column in stored["columns"].items():
                columns.setdefault(key, []).extend(column)
            progress(len(part))
    return columns


def weights_hash(module: nn.Module) -> str:
    """Return a hash of a network's weights and statistics."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def curve(model: DenoisingEBM, pixels: Tensor, args: argparse.Namespace, anchor: GaussianFit | None) -> dict[str, Any]:
    """Return by noise level what both ways give for -log q_sigma(x + sigma n), in bits per dimension of data units."""
    x = to_float(pixels).to(model.device)
    bit = x[0].numel() * math.log(2)
    low, high = model.config.noise.sigma_min, model.config.noise.sigma_max
    levels = geometric_sigmas(high, low, 10).flip(0).tolist()
    records = {}
    with progress_bar("curve", len(levels)) as progress, torch.no_grad():
        for sigma in levels:
            quadrature = Quadrature(args.levels, 2, model.config.network.sigma_data)
            integral = model.immse(x, sigma, clean=True, quadrature=quadrature, anchor=anchor, seed=args.seed).value
            noise = ImageNoise.by_content(args.seed, pixels, "likelihood")
            draws = [noise.draw(torch.randn, tuple(x.shape), x.dtype).to(x.device) for _ in range(args.draws)]
            energy = torch.stack([model.density_energy(x + sigma * n, sigma).double() for n in draws]).mean(0)
            difference = (energy - integral) / bit
            records[f"{sigma:.3g}"] = {
                "energy": float(energy.mean()) / bit,
                "integral": float(integral.mean()) / bit,
                "difference": float(difference.mean()),
                "standard error": float(difference.std()) / len(x) ** 0.5,
            }
            progress(1)
    return records


def summary(columns: Columns) -> dict[str, dict[str, float]]:
    """Return means with standard errors over images, and how far the two ways agree."""
    values = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
    records: dict[str, dict[str, float]] = {}
    for name in ("energy", "integral", "bound"):
        if name in values:
            noise = float(values[f"variance of {name}"].mean().sqrt())
            record = {"mean": float(values[name].mean()), "standard error": _error(values[name])}
            records[name] = record | {"sd over images": float(values[name].std()), "sd of the draws": noise}
    if "energy" in values:
        difference = values["energy"] - values["integral"]
        both = torch.stack([values["energy"], values["integral"]])
        noise = float((values["variance of energy"] + values["variance of integral"]).mean().sqrt())
        records["energy - integral"] = {
            "mean": float(difference.mean()),
            "standard error": _error(difference),
            "sd over images": float(difference.std()),
            "sd of the draws": noise,
            "correlation": float(torch.corrcoef(both)[0, 1]),
        }
    return records


def _error(values: Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as for `debm info`")
    parser.add_argument("--data", required=True, help="data set, as for load_images")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num", type=int, default=2000, help="the first so many images")
    parser.add_argument("--levels", type=int, default=32, help="parts of the range of noise levels, two draws in each")
    parser.add_argument("--draws", type=int, default=4, help="draws of noise for the density network")
    parser.add_argument(
        "--anchor", type=int, default=2000, help="training images for the Gaussian at sigma_max; 0: isotropic"
    )
    parser.add_argument("--curve", type=int, default=0, help="images for the comparison by noise level")
    parser.add_argument("--out", type=Path, required=True, help="folder of shards and result")
    parser.add_argument("--shard", type=int, default=50, help="images a file")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model, device=args.device)
    how = dict(model.preprocessing.__dict__) if model.preprocessing else {}
    pixels = load_images(args.data, split=args.split, limit=args.num, **how).pixels
    anchor = None
    if args.anchor:
        train = load_images(args.data, split="train", limit=args.anchor, **how).pixels
        anchor = GaussianFit.of(to_float(train).to(model.device))

    settings = {name: getattr(args, name) for name in ("split", "shard", "seed")}
    integral = settings | {name: getattr(args, name) for name in ("levels", "anchor")}
    columns: Columns = {}
    if model.density is not None:
        own = settings | {"draws": args.draws, "weights": weights_hash(model.density)}
        columns = in_shards(pixels, "energy", lambda part: by_energy(model, part, args), own, args)
    own = integral | {"weights": weights_hash(model.dae)}
    columns |= in_shards(pixels, "integral", lambda part: by_denoiser(model, part, args, anchor), own, args)
    records: dict[str, Any] = {"figures": summary(columns)}
    protocol = (
        f"{len(pixels):,} images of the {args.split} split of {args.data}, sigma_min {model.config.noise.sigma_min:g}, "
        f"{args.levels} x 2 levels, {args.draws} draws; {describe(model.device)}"
    )
    print_table(Table.from_records(records["figures"], first="bits per dimension", caption=protocol))
    if args.curve and model.density is not None:
        records["curve"] = curve(model, pixels[: args.curve], args, anchor)
        print_table(Table.from_records(records["curve"], first="sigma", caption=f"{args.curve} images, data units"))
    write_text_atomically(args.out / "result.json", json.dumps(records | {"protocol": protocol}, indent=1) + "\n")


if __name__ == "__main__":
    main()
