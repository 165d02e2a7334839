"""AUROC of score x density x odd set, beside pixel-space baselines and the default detector, CIFAR-10 as the normal set.

    python benchmarks/ood_grid.py MODEL --data DATA --out runs/ood [--num 2000] [--fit 5000]

DATA holds the folders cifar10, svhn, celeba64 and cifar100 of Parquet files. Features of every set are kept in --out, so an
interrupted run continues; the tables are printed as Markdown. Odd sets made of training images ("design") are what the
default detector was chosen on; the test sets were not.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.ood.densities import Density, Mahalanobis, Mixture, Neighbours, Principal
from denoising_ebm.ood.detectors import DetectorConfig, Member, OODDetector
from denoising_ebm.ood.features import FAMILIES, Family, FeatureConfig, compute_features
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.ood.outliers import DESIGN, OUTLIERS

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5)
ODD = ("svhn", "celeba", "interpolation", "cifar100", "constant", "uniform-noise")
DENSITIES: dict[str, Callable[[], Density]] = {
    "Mahalanobis": lambda: Principal(Mahalanobis(), 0.999),
    "mixture of 8": lambda: Principal(Mixture(8), 0.99),
    "5th neighbour": lambda: Principal(Neighbours(5), 0.99),
}
GROUPS: dict[str, tuple[Family, ...]] = {
    "energy": ("energy",),
    "noised energy": ("noised-energy",),
    "score norms (MSMA)": ("score",),
    "curvature": ("curvature",),
    "spectrum": ("spectrum",),
    "spatial": ("spatial",),
    "channels": ("channels",),
    "semantic": ("semantic",),
    "code z": ("latent",),
    "pooled features": ("pooled",),
    "energies, score, curvature": ("energy", "noised-energy", "score", "curvature"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=2000, help="images of each test set")
    parser.add_argument("--fit", type=int, default=5000, help="training images to fit on")
    parser.add_argument("--design", type=int, default=500, help="images of each design set; 0 for none")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model, device="auto").set_precision(args.precision)
    sets = image_sets(args.data, args.num, args.fit, args.design)
    families = tuple(family for family in FAMILIES if family != "gradient")
    config = FeatureConfig(SIGMAS, families, inner_sigmas=(0.05,))
    args.out.mkdir(parents=True, exist_ok=True)
    features = {name: kept(args.out / f"{name}.pt", model, pixels, config) for name, pixels in sets.items()}

    groups = (("test", ODD), ("design none", [f"design {name}" for name in DESIGN] if args.design else []))
    print("| score | " + " | ".join(ODD) + " | design mean |\n|---|" + "---|" * (len(ODD) + 1))

    def show(label: str, score: Callable[[str], Tensor]) -> None:
        found = []
        for normal, odd in groups:
            inside = score(normal) if odd else None
            found.append([auroc(inside, score(name)) for name in odd] if inside is not None else [])
        mean = f"{np.mean(found[1]):.3f}" if found[1] else "-"
        print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in found[0]) + f" | {mean} |", flush=True)

    for i, sigma in enumerate(SIGMAS):
        show(f"-U^c alone, sigma {sigma:g}", lambda name, i=i: features[name]["energy"][:, i])
    for i, sigma in enumerate(SIGMAS):
        show(f"-U^c of eq. 7 with its noise, sigma {sigma:g}", lambda name, i=i: features[name]["noised-energy"][:, i])
    show("sum over sigma of eq. 7 (a bound on -log p)", lambda name: features[name]["noised-energy"].exp().sum(1))
    pixels = {name: images for name, images in sets.items()}
    show("PNG length", lambda name: lengths(pixels[name], "PNG"))
    show("-PNG length", lambda name: -lengths(pixels[name], "PNG"))
    show("WebP length", lambda name: lengths(pixels[name], "WEBP"))
    basis = pca(pixels["train"], 100)
    show("PCA reconstruction error, 100 components", lambda name: pca_error(pixels[name], basis))
    for label, members in detectors().items():
        for combine in ("max", "mean") if len(members) > 1 else ("max",):
            detector = OODDetector(model, DetectorConfig(config, members, combine)).fit_columns(features["train"])
            name = f"{label}: {combine}" if len(members) > 1 else label
            show(name, lambda name, d=detector: d.combine(features[name]))
    for label, families in GROUPS.items():
        for density, build in DENSITIES.items():
            fitted = build().fit(table(features["train"], families))
            show(f"{label}: {density}", lambda name, f=fitted, fs=families: f.score(table(features[name], fs)))


def detectors() -> dict[str, tuple[Member, ...]]:
    """The default detector, its parts, what it is without each, and with others."""
    sums, code, inner = DetectorConfig().members
    by_spectrum = replace(code, given=(*code.given, "spectrum"))
    return {
        "**default detector**": (sums, code, inner),
        "only sums over levels": (sums,),
        "only code given energies": (code,),
        "only inner features given energies": (inner,),
        "without sums": (code, inner),
        "without code": (sums, inner),
        "without inner features": (sums, code),
        "code, not given anything": (Member(("latent",)),),
        "inner features, not given anything": (Member(("pooled",)),),
        "default, code and inner features not given anything": (sums, Member(("latent",)), Member(("pooled",))),
        "code given energies and spectrum": (by_spectrum,),
        "default + spatial": (sums, code, inner, Member(("spatial",))),
        "default + spatial given energies": (sums, code, inner, Member(("spatial",), "conditional", given=code.given)),
        "default + semantic": (sums, code, inner, Member(("semantic",))),
    }


def image_sets(data: Path, num: int, fit: int, design: int) -> dict[str, Tensor]:
    """Images by set; the design sets are made of training images that fitting does not see."""

    def read(name: str, split: str, limit: int, resize: str | None = None) -> Tensor:
        return load_images(data / name, split=split, limit=limit, image_size=32, resize=resize, progress=False).pixels

    train, test = read("cifar10", "train", fit + design), read("cifar10", "test", 2 * num)
    sets = {"train": train[:fit], "test": test[:num], "svhn": read("svhn", "train", num)}
    sets["celeba"] = read("celeba64", "train", num, "bilinear")
    sets["cifar100"] = read("cifar100", "test", num)
    for name in ("interpolation", "constant", "uniform-noise"):
        sets[name] = OUTLIERS[name](test[num:], torch.Generator().manual_seed(0))
    if design:
        sets["design none"] = train[fit:]
        for name, make in DESIGN.items():
            sets[f"design {name}"] = make(train[fit:], torch.Generator().manual_seed(0))
    return sets


def kept(path: Path, model: DenoisingEBM, pixels: Tensor, config: FeatureConfig) -> dict[Family, Tensor]:
    """Compute features, or read those of an earlier run with the same model and counts."""
    key = [model.fingerprint(), len(pixels)]
    if path.is_file():
        saved = torch.load(path)
        if saved["key"] == key:
            return saved["features"]
    features = compute_features(model, pixels, config)
    torch.save({"key": key, "features": features}, path)
    return features


def table(features: dict[Family, Tensor], families: Sequence[Family]) -> Tensor:
    return torch.cat([features[family] for family in families], dim=1)


def lengths(pixels: Tensor, kind: str) -> Tensor:
    sizes = []
    for image in pixels.permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {"optimize": True}))
        sizes.append(float(buffer.tell()))
    return torch.tensor(sizes)


def pca(pixels: Tensor, components: int) -> tuple[Tensor, Tensor]:
    x = to_float(pixels).flatten(1).double()
    mean = x.mean(0)
    _, vectors = torch.linalg.eigh((x - mean).mT @ (x - mean))
    return mean, vectors[:, -components:]


def pca_error(pixels: Tensor, basis: tuple[Tensor, Tensor]) -> Tensor:
    mean, vectors = basis
    x = to_float(pixels).flatten(1).double() - mean
    return (x - x @ vectors @ vectors.mT).square().sum(1)


if __name__ == "__main__":
    main()
