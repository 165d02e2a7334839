"""AUROC of score x density x OOD set, beside pixel-space baselines and the default detector, CIFAR-10 as the normal set.

    python benchmarks/ood_grid.py MODEL --data DATA --out runs/ood [--num 1000] [--fit 4000]

DATA holds the folders cifar10, svhn, celeba64 and cifar100 of Parquet files. Features of every set are kept in --out, so an
interrupted run continues; the tables are printed as Markdown. The last column is what the default detector's settings were
chosen by: corruptions of training images that take no part in fitting, against the same as they are, scored by discriminants
of the other groups of corruptions only; mean AUROC over groups.
The last table knows the OOD images: it says what the features hold, not what a detector can find.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from densities import Conditional, Density, Mahalanobis, Member, Mixture, Neighbours, Principal, TwoSided, table_of
from ood_features import tried_features
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.datasets.images import content_hash
from denoising_ebm.literals import Resize
from denoising_ebm.ood.corruptions import SYNTHETIC_OOD, corruptions
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import FAMILIES, NETWORK_FEATURES, FeatureConfig, compute_features
from denoising_ebm.ood.lda import log_mean_exp
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.utils.device import describe
from denoising_ebm.utils.io import write_atomically
from denoising_ebm.viz.report import print_head, print_row

Features = dict[str, Tensor]

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.4, 1.0)
OOD = ("svhn", "celeba", "cifar100", "interpolation", "constant", "uniform-noise")
ENERGIES = ("energy", "noisy-energy")
SUMS = tuple(family for family in FAMILIES if family not in NETWORK_FEATURES)
DENSITIES: dict[str, Callable[[], Density]] = {
    "Mahalanobis": lambda: Principal(Mahalanobis(), 0.999),
    "mixture of 8": lambda: Principal(Mixture(8), 0.99),
    "5th neighbour": lambda: Principal(Neighbours(5), 0.99),
    "two-sided": TwoSided,
}
GROUPS: dict[str, tuple[str, ...]] = {
    "energy": ("energy",),
    "noisy energy": ("noisy-energy",),
    "score norms (MSMA)": ("score",),
    "curvature": ("curvature",),
    "spectrum": ("spectrum",),
    "spatial": ("spatial",),
    "colour": ("colour",),
    "semantic": ("semantic",),
    "code z": ("latent",),
    "statistics of inner features": ("feature-statistics",),
    "energies, score, curvature": ("energy", "noisy-energy", "score", "curvature"),
}


@dataclass(frozen=True)
class Sets:
    """Features of the training images, the test images, every OOD set, and of corrupted training images."""

    model: DenoisingEBM
    pixels: dict[str, Tensor]
    features: dict[str, Features]  #: At all of SIGMAS.
    corrupted: Features  #: At the default detector's levels, shape (1 + kinds, images, features).
    probe: Features  #: The same of training images that take no part in fitting.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=1000, help="images of each test set")
    parser.add_argument("--fit", type=int, default=4000, help="training images to fit on")
    parser.add_argument("--corrupted", type=int, default=100, help="of these, images to corrupt in every way")
    parser.add_argument("--only", choices=("energies", "detectors"), help="leave out the rest")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model, device="auto").set_precision(args.precision)
    sets = read_sets(model, args)
    metadata = {name: model.metadata.get(name) for name in ("images seen", "held-out denoising loss")}
    counts = f"{args.num} images a set, {args.fit} to fit, {args.corrupted} of them corrupted"
    print(f"{describe(model.device)}; {metadata}; {counts}; seed 0\n")
    print_head(["score", *OOD, "held-out corruptions"])
    if args.only != "detectors":
        energies(sets)
    if args.only is None:
        baselines(sets)
    if args.only != "energies":
        detectors(sets)
        single_directions(sets)
    if args.only is None:
        densities(sets)
        linear_probe(sets)


def show(label: str, score: Callable[[str], Tensor], held_out: float | None = None) -> None:
    inside = score("test")
    print_row([label, *(auroc(inside, score(name)) for name in OOD), held_out])


def energies(sets: Sets) -> None:
    for family, what in (("energy", "without inner noise"), ("noisy-energy", "with inner noise (eq. 7)")):
        for i, sigma in enumerate(SIGMAS):
            show(f"{what}, sigma {sigma:g}", lambda name, i=i, f=family: sets.features[name][f][:, i])  # type: ignore[misc]
    show(
        "with inner noise, sum over sigma (a bound on -log p)",
        lambda name: sets.features[name]["noisy-energy"].exp().sum(1),
    )


def baselines(sets: Sets) -> None:
    show("PNG length", lambda name: lengths(sets.pixels[name], "PNG"))
    show("WebP length", lambda name: lengths(sets.pixels[name], "WEBP"))
    basis = pca(sets.pixels["train"], 100)
    show("PCA reconstruction error, 100 components", lambda name: pca_error(sets.pixels[name], basis))


def detectors(sets: Sets) -> None:
    """The default detector, what it is without its parts and with other settings, and densities in its place."""
    default = DetectorConfig()
    tables = at_levels_of(default, sets)
    cases = {
        "**default: LDA in three blocks, ridge 5, shift 1**": default,
        "one block of features": replace(default, blocks=()),
        "two blocks of features": replace(default, blocks=default.blocks[1:]),
        "features of sums over pixels only": replace(default, blocks=(SUMS,)),
        "features of sums and of the code": replace(default, blocks=((*SUMS, "latent"),)),
        "features of the code and of inner layers": replace(default, blocks=(NETWORK_FEATURES,)),
        "ridge 1": replace(default, ridge=1.0),
        "ridge 20": replace(default, ridge=20.0),
        "shift 0.5": replace(default, shift=0.5),
        "shift 2": replace(default, shift=2.0),
    }
    scores: dict[str, Callable[[str], Tensor]] = {}
    for label, config in cases.items():
        detector = Detector(sets.model, config).fit_features(tables["train"], sets.corrupted)  # type: ignore[arg-type]
        scores[label] = lambda name, d=detector: d.score_features(tables[name])  # type: ignore[misc]
        show(label, scores[label], held_out(detector, sets))
    members = {
        "of sums over pixels": Member(SUMS, Principal(Mahalanobis())),
        "of the code given the energies": Member(("latent",), Conditional(), ENERGIES),
        "of inner features given the energies": Member(("feature-statistics",), Conditional(0.99), ENERGIES),
        "of the code": Member(("latent",), Principal(Mahalanobis())),
        "of inner features": Member(("feature-statistics",), Principal(Mahalanobis())),
    }
    for label, member in members.items():
        member.fit(tables["train"])
        scores[label] = lambda name, m=member: m.score(tables[name])  # type: ignore[misc]

    def largest(*labels: str) -> Callable[[str], Tensor]:
        return lambda name: torch.stack([scores[label](name) for label in labels]).amax(0)

    sums, code, inner, *without_covariates = members
    show("density of sums, and LDA: the larger", largest(next(iter(cases)), sums))
    for label in (sums, code, inner):
        show(f"density {label}", scores[label])
    show("density: the largest of these three", largest(sums, code, inner))
    show("density of the code and inner features", largest(*without_covariates))
    # Too typical may be anomalous too: the distance of inner features from its median, to either side.
    label, train = without_covariates[1], tables["train"]["feature-statistics"]
    middle = members[label].score({"feature-statistics": train[: len(train) // 10]}).median()
    show("Mahalanobis distance of inner features", scores[label])
    show("the same, two-sided: too typical is anomalous too", lambda name: (scores[label](name) - middle).abs())


def single_directions(sets: Sets) -> None:
    """What the discriminant of each corruption sees by itself."""
    config = DetectorConfig()
    tables = at_levels_of(config, sets)
    detector = Detector(sets.model, config).fit_features(tables["train"], sets.corrupted)  # type: ignore[arg-type]
    found = {name: detector.project_features(tables[name]) for name in ("test", *OOD)}  # type: ignore[arg-type]
    for i, kind in enumerate(corruptions(sets.model.config.network.channels)):
        show(f"direction of: {kind}", lambda name, i=i: found[name][:, i])  # type: ignore[misc]


def held_out(detector: Detector, sets: Sets) -> float:
    """Return the mean AUROC of corrupted images, each group of corruptions scored by discriminants of the others."""
    count = len(sets.probe["energy"])
    probe = [{family: table[i] for family, table in sets.probe.items()} for i in range(count)]
    clean, *found = (detector.project_features(features) for features in probe)  # type: ignore[arg-type]
    kinds = list(corruptions(sets.model.config.network.channels).values())
    shift, means = detector.config.shift, []
    for group in dict.fromkeys(kind.group for kind in kinds):
        others = torch.tensor([kind.group != group for kind in kinds])
        inside = log_mean_exp(clean[:, others], shift)
        aurocs = [
            auroc(inside, log_mean_exp(projections[:, others], shift))
            for projections, kind in zip(found, kinds, strict=True)
            if kind.group == group
        ]
        means.append(sum(aurocs) / len(aurocs))
    return sum(means) / len(means)


def densities(sets: Sets) -> None:
    for label, families in GROUPS.items():
        for density, build in DENSITIES.items():
            fitted = build().fit(table_of(sets.features["train"], families))
            show(f"{label}: {density}", lambda n, d=fitted, f=families: d.score(table_of(sets.features[n], f)))  # type: ignore[misc]


def linear_probe(sets: Sets) -> None:
    """A linear classifier of half of the test and half of the OOD images, measured on the other halves."""
    print()
    print_head(["features", *OOD])
    for label, families in {**GROUPS, "all of them": tuple({f for fs in GROUPS.values() for f in fs})}.items():
        normal, cells = table_of(sets.features["test"], families), []
        mean, std = normal.mean(0), normal.std(0).clamp_min(1e-9)
        for name in OOD:
            tables = normal, table_of(sets.features[name], families)
            a, b = (((table - mean) / std).clamp(-6, 6).numpy() for table in tables)
            x = np.concatenate([a[::2], b[::2]])
            y = np.repeat([0, 1], [len(a[::2]), len(b[::2])])
            classifier = LogisticRegression(C=0.01, max_iter=300).fit(x, y)
            scores = [torch.from_numpy(classifier.decision_function(part)) for part in (a[1::2], b[1::2])]
            cells.append(auroc(*scores))
        print_row([label, *cells])


# -- images and features ------------------------------------------------------------------------------------------------


def read_sets(model: DenoisingEBM, args: argparse.Namespace) -> Sets:
    args.out.mkdir(parents=True, exist_ok=True)
    pixels = image_sets(args.data, args.num, args.fit)
    only_energies = args.only == "energies"
    config = FeatureConfig(SIGMAS, feature_sigmas=(0.05,))
    if only_energies:
        config = FeatureConfig(SIGMAS, ("energy", "noisy-energy"))
    detector = Detector(model, replace(DetectorConfig(), num_corrupted=args.corrupted))
    about_model = [model.fingerprint(), model.precision]

    def compute(images: Tensor) -> Features:
        found: Features = dict(compute_features(model, images, config))  # type: ignore[arg-type]
        return found if only_energies else found | tried_features(model, images, SIGMAS)

    features = {
        name: kept(
            args.out / f"{name}.pt", [*about_model, str(config), content_hash(images, "")], partial(compute, images)
        )
        for name, images in pixels.items()
        if name != "more train"
    }
    corrupted: Features = {}
    probe: Features = {}
    if not only_energies:
        kinds = [(name, kind.low, kind.high) for name, kind in corruptions(model.config.network.channels).items()]
        used = [content_hash(pixels[name], "") for name in ("train", "more train")]
        key = [*about_model, str(detector.config), str(kinds), *used]
        corrupted = kept(args.out / "corrupted.pt", key, partial(detector.corrupted_features, pixels["train"]))
        probe = kept(args.out / "probe.pt", key, partial(detector.corrupted_features, pixels["more train"], seed=1))
    return Sets(model, pixels, features, corrupted, probe)


def image_sets(data: Path, num: int, fit: int) -> dict[str, Tensor]:
    def read(name: str, split: str, limit: int, resize: Resize | None = None) -> Tensor:
        return load_images(data / name, split=split, limit=limit, image_size=32, resize=resize, progress=False).pixels

    train, test = read("cifar10", "train", fit + 100), read("cifar10", "test", 2 * num)
    sets = {"train": train[:fit], "more train": train[fit:], "test": test[:num], "svhn": read("svhn", "train", num)}
    sets["celeba"] = read("celeba64", "train", num, "bilinear")
    sets["cifar100"] = read("cifar100", "test", num)
    for name in ("interpolation", "constant", "uniform-noise"):
        sets[name] = SYNTHETIC_OOD[name](test[num:], torch.Generator().manual_seed(0))
    return sets


def kept(path: Path, key: list[str], compute: Callable[[], object]) -> Features:
    """Compute features, or read those of an earlier run with the same model and counts."""
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        if saved["key"] == key:
            found: Features = saved["features"]
            return found
    features = compute()
    write_atomically(path, lambda temporary: torch.save({"key": key, "features": features}, temporary))
    return features  # type: ignore[return-value]


def at_levels_of(config: DetectorConfig, sets: Sets) -> dict[str, Features]:
    """Return the features of every set at a detector's levels, of those of SIGMAS; inner features have one level anyway."""
    chosen = torch.tensor([SIGMAS.index(sigma) for sigma in config.features.sigmas])
    return {
        name: {
            family: values
            if family in NETWORK_FEATURES
            else values.unflatten(1, (len(SIGMAS), -1))[:, chosen].flatten(1)
            for family, values in features.items()
        }
        for name, features in sets.features.items()
    }


# -- baselines in pixels ------------------------------------------------------------------------------------------------


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
