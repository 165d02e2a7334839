"""FID, KID and the EfficientNet distance of stored samples, side by side.

    debm sample runs/cifar10 --n 10000 --npz samples.npz --out ''
    python benchmarks/fid.py --images samples.npz --reference CIFAR10_FOLDER --reference-split test

Samples are NPZ files as `debm sample --npz` writes them (uint8, `(n, h, w, c)`), safetensors files with one tensor of images
(uint8 `(n, c, h, w)` or `(n, h, w, c)`, or floats in -1 to 1, `(n, c, h, w)`), or anything that `load_images` reads, such as
a folder of PNG files. Several paths are measured one after another, each against the same reference.

Inception sees about eight images a second on one CPU core. Features are kept, 500 images a file, in --features (by default
the user's cache), by the content of the images: an interrupted command goes on where it was, and a reference costs once.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from denoising_ebm import load_images, to_uint8
from denoising_ebm.quality.extractors import EfficientNetLite0Features, FeatureExtractor
from denoising_ebm.quality.features import cached_features
from denoising_ebm.quality.frechet import FeatureStatistics, frechet_distance
from denoising_ebm.quality.inception import InceptionFeatures
from denoising_ebm.quality.kid import subset_kernel_distance
from denoising_ebm.quality.prdc import prdc
from denoising_ebm.utils.device import choose_device, describe
from denoising_ebm.utils.io import write_text_atomically
from denoising_ebm.utils.progress import progress_bar
from denoising_ebm.viz.report import Table, print_table


def read_samples(path: Path) -> Tensor:
    """Return samples as uint8 `(n, c, h, w)`.

    Raises:
        ValueError: If a file holds no array of images.
    """
    if path.suffix not in (".npz", ".safetensors"):
        return load_images(path, default_split="all" if path.is_dir() else "train").pixels
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
            images = torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False))
    else:
        tensors = [tensor for tensor in load_file(path).values() if tensor.ndim == 4]
        if len(tensors) != 1:
            raise ValueError(f"{path}: holds {len(tensors)} tensors of four dimensions, not one")
        images = tensors[0]
    if images.is_floating_point() and images.ndim == 4:
        images = to_uint8(images)
    if images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"{path}: holds {images.dtype} {tuple(images.shape)}, no images")
    return images.contiguous()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=Path, nargs="+", default=[], help="samples; none to compute the reference alone"
    )
    parser.add_argument("--limit", type=int, help="the first so many of each")
    parser.add_argument("--reference", required=True, help="data set, as for load_images")
    parser.add_argument("--reference-split", default="test")
    parser.add_argument("--reference-limit", type=int, help="the first so many of it")
    parser.add_argument(
        "--floor-split", help="also measure as many images of this split of the reference, as the floor"
    )
    parser.add_argument("--features", type=Path, help="folder of features")
    parser.add_argument("--no-inception", action="store_true", help="the EfficientNet distance alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    device = choose_device(args.device)
    efficientnet = EfficientNetLite0Features().to(device)
    inception = None if args.no_inception else InceptionFeatures().to(device)

    def features(pixels: Tensor, extractor: FeatureExtractor) -> Tensor:
        return cached_features(pixels, extractor, folder=args.features, bar=progress_bar)

    sets = {str(path): read_samples(path)[: args.limit] for path in args.images}
    reference = load_images(args.reference, split=args.reference_split, limit=args.reference_limit).pixels
    if args.floor_split:
        num = max((len(pixels) for pixels in sets.values()), default=len(reference))
        sets[f"floor: {args.floor_split}"] = load_images(args.reference, split=args.floor_split, limit=num).pixels
    for name, pixels in sets.items():
        if pixels.shape[1:] != reference.shape[1:]:
            raise ValueError(
                f"{name}: images of {tuple(pixels.shape[1:])}, the reference has {tuple(reference.shape[1:])}"
            )

    real = features(reference, efficientnet)
    statistics = FeatureStatistics.from_features(real)
    if inception is not None:
        real_inception = features(reference, inception)
        statistics_inception = FeatureStatistics.from_features(real_inception)
    records: dict[str, dict[str, Any]] = {}
    for name, pixels in sets.items():
        found = features(pixels, efficientnet)
        record: dict[str, Any] = {"n": len(pixels)}
        if inception is not None:
            seen = features(pixels, inception)
            record["FID"] = frechet_distance(FeatureStatistics.from_features(seen), statistics_inception)
            record["KID"], record["sd of KID"] = subset_kernel_distance(seen, real_inception)
        record["FD"] = frechet_distance(FeatureStatistics.from_features(found), statistics)
        # Neighbours within all pairs: of as many images as memory and time allow.
        overlap = prdc(found[:10000], real[:10000])
        record |= {"precision": overlap.precision, "recall": overlap.recall}
        record |= {"density": overlap.density, "coverage": overlap.coverage}
        records[name] = record
        print(f"{name}: {record}", file=sys.stderr, flush=True)
    names = efficientnet.name if inception is None else f"FD: {efficientnet.name}; FID and KID: {inception.name}"
    protocol = f"{len(reference):,} images of the {args.reference_split} split of {args.reference}; {names}"
    if args.json:
        record = {"records": records, "protocol": protocol, "hardware": describe(device)}
        write_text_atomically(args.json, json.dumps(record, indent=1) + "\n")
    print_table(Table.from_records(records, first="samples", caption=f"Against {protocol}; {describe(device)}."))


if __name__ == "__main__":
    main()
