"""AUROC of score x density x odd set, beside pixel-space baselines and the default detector, CIFAR-10 as the normal set.

    python benchmarks/ood_grid.py MODEL --data DATA --out runs/ood [--num 1000] [--fit 4000]

DATA holds the folders cifar10, svhn, celeba64 and cifar100 of Parquet files. Features of every set are kept in --out, so an
interrupted run continues; the tables are printed as Markdown. The last column is what the default detector's settings were
chosen by: alterations of training images that take no part in fitting, against the same as they are, scored by discriminants
of the other groups of alterations only; mean AUROC over groups.
The last table knows the odd images: it says what the features hold, not what a detector can find.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.datasets.images import content_hash
from denoising_ebm.ood.alterations import alterations
from denoising_ebm.ood.densities import Density, Mahalanobis, Mixture, Neighbours, Principal, TwoSided
from denoising_ebm.ood.detector import Detector, DetectorConfig
from denoising_ebm.ood.features import FAMILIES, Family, FeatureConfig, compute_features
from denoising_ebm.ood.lda import FisherDiscriminants
from denoising_ebm.ood.members import Member, Opinion
from denoising_ebm.ood.members import table_of as table
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.ood.outliers import SYNTHETIC_OOD
from denoising_ebm.utils.device import describe
from denoising_ebm.utils.io import write_atomically

Table = dict[Family, Tensor]

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.4, 1.0)
ODD = ("svhn", "celeba", "cifar100", "interpolation", "constant", "uniform-noise")
ENERGIES: tuple[Family, ...] = ("energy", "noised-energy")
DENSITIES: dict[str, Callable[[], Density]] = {
    "Mahalanobis": lambda: Principal(Mahalanobis(), 0.999),
    "mixture of 8": lambda: Principal(Mixture(8), 0.99),
    "5th neighbour": lambda: Principal(Neighbours(5), 0.99),
    "two-sided": TwoSided,
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


@dataclass(frozen=True)
class Sets:
    """Features of the training images, the test images, every odd set, and of altered training images."""

    model: DenoisingEBM
    pixels: dict[str, Tensor]
    features: dict[str, Table]  #: At all of SIGMAS.
    altered: Table  #: At the default detector's levels, shape (1 + kinds, images, columns).
    probe: Table  #: The same of training images that take no part in fitting.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=1000, help="images of each test set")
    parser.add_argument("--fit", type=int, default=4000, help="training images to fit on")
    parser.add_argument("--altered", type=int, default=100, help="of these, images to alter in every way")
    parser.add_argument("--only", choices=("energies", "detectors"), help="leave out the rest")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model, device="auto").set_precision(args.precision)
    sets = read_sets(model, args)
    metadata = {name: model.metadata.get(name) for name in ("images seen", "held-out denoising loss")}
    counts = f"{args.num} images a set, {args.fit} to fit, {args.altered} of them altered"
    print(f"{describe(model.device)}; {metadata}; {counts}; seed 0\n")
    print("| score | " + " | ".join(ODD) + " | held-out alterations |\n|---|" + "---|" * (len(ODD) + 1))
    if args.only != "detectors":
        energies(sets)
    if args.only is None:
        baselines(sets)
    if args.only != "energies":
        detectors(sets)
        discriminants_alone(sets)
    if args.only is None:
        densities(sets)
        ceiling(sets)


def show(label: str, score: Callable[[str], Tensor], held_out: float | None = None) -> None:
    inside = score("test")
    found = " | ".join(f"{auroc(inside, score(name)):.3f}" for name in ODD)
    print(f"| {label} | {found} | {'-' if held_out is None else f'{held_out:.3f}'} |", flush=True)


def energies(sets: Sets) -> None:
    for family, what in (("energy", "U^c without inner noise"), ("noised-energy", "U^c of eq. 7")):
        for i, sigma in enumerate(SIGMAS):
            show(f"{what}, sigma {sigma:g}", lambda name, i=i, f=family: sets.features[name][f][:, i])  # type: ignore[misc]
    show("sum over sigma of eq. 7 (a bound on -log p)", lambda n: sets.features[n]["noised-energy"].exp().sum(1))


def baselines(sets: Sets) -> None:
    show("PNG length", lambda name: lengths(sets.pixels[name], "PNG"))
    show("WebP length", lambda name: lengths(sets.pixels[name], "WEBP"))
    basis = pca(sets.pixels["train"], 100)
    show("PCA reconstruction error, 100 components", lambda name: pca_error(sets.pixels[name], basis))


def detectors(sets: Sets) -> None:
    """The default detector, what it is without its parts and with other settings, and others."""
    default = DetectorConfig().members[0]
    sums = tuple(family for family in default.families if family not in ("latent", "pooled"))
    code = Member(("latent",), "conditional", given=ENERGIES)
    inner = Member(("pooled",), "conditional", given=ENERGIES, share=0.99)
    cases: dict[str, tuple[Member, ...]] = {
        "**default: discriminants**": (default,),
        "in one block": (replace(default, blocks=()),),
        "in two blocks": (replace(default, blocks=default.blocks[1:]),),
        "of sums alone": (replace(default, families=sums, blocks=()),),
        "of sums and code": (replace(default, families=(*sums, "latent"), blocks=()),),
        "of code and inner features": (replace(default, families=("latent", "pooled"), blocks=()),),
        "ridge 1": (replace(default, ridge=1.0),),
        "ridge 20": (replace(default, ridge=20.0),),
        "shift 0.5": (replace(default, shift=0.5),),
        "shift 2": (replace(default, shift=2.0),),
        "discriminants and density of sums: max": (default, Member(sums)),
        "densities: sums": (Member(sums),),
        "densities: code given energies": (code,),
        "densities: inner features given energies": (inner,),
        "densities: these three, max": (Member(sums), code, inner),
        "densities: code and inner features, given nothing": (Member(("latent",)), Member(("pooled",))),
    }
    config = DetectorConfig()
    tables = {name: narrowed(each, config.features.sigmas) for name, each in sets.features.items()}
    for label, members in cases.items():
        detector = Detector(sets.model, replace(config, members=members)).fit_columns(tables["train"], sets.altered)
        held = None
        if len(members) == 1 and members[0].density == "discriminants":
            held = held_out(members[0], tables, sets)
        show(label, lambda name, d=detector: d.combine(tables[name]), held)  # type: ignore[misc]
    # Too usual is odd too: the distance of inner features from its median, to either side.
    pooled = tables["train"]["pooled"]
    density = Principal(Mahalanobis(), 0.99).fit(pooled[len(pooled) // 8 :])
    fresh = density.score(pooled[: len(pooled) // 8]).log()
    show("distance of inner features", lambda n: density.score(tables[n]["pooled"]).log())
    show(
        "the same, two-sided: too usual is odd too",
        lambda n: (density.score(tables[n]["pooled"]).log() - fresh.median()).abs(),
    )


def discriminants_alone(sets: Sets) -> None:
    """What each alteration's discriminant sees by itself."""
    member, sigmas = DetectorConfig().members[0], DetectorConfig().features.sigmas
    tables = {name: narrowed(each, sigmas) for name, each in sets.features.items()}
    density = FisherDiscriminants(ridge=member.ridge, shift=member.shift)
    Opinion(member, density).fit(tables["train"], sets.altered)
    heads = {
        name: density.heads(table(tables[name], member.families), table(tables[name], member.given))
        for name in ("test", *ODD)
    }
    for i, kind in enumerate(alterations(sets.model.config.network.channels)):
        show(f"discriminant of: {kind}", lambda name, i=i: heads[name][:, i])  # type: ignore[misc]


def held_out(member: Member, tables: dict[str, Table], sets: Sets) -> float:
    """Return the mean AUROC of altered images, each group of alterations judged by discriminants of the others."""
    density = FisherDiscriminants(ridge=member.ridge, shift=member.shift)
    Opinion(member, density).fit(tables["train"], sets.altered)
    probe = zip(table(sets.probe, member.families), table(sets.probe, member.given), strict=True)
    normal, *heads = (density.heads(features, given) for features, given in probe)
    kinds = list(alterations(sets.model.config.network.channels).values())
    means = []
    for group in dict.fromkeys(kind.group for kind in kinds):
        others = torch.tensor([kind.group != group for kind in kinds])
        inside = torch.logsumexp(member.shift * normal[:, others], 1)
        scores = [
            auroc(inside, torch.logsumexp(member.shift * odd[:, others], 1))
            for odd, kind in zip(heads, kinds, strict=True)
            if kind.group == group
        ]
        means.append(sum(scores) / len(scores))
    return sum(means) / len(means)


def densities(sets: Sets) -> None:
    for label, families in GROUPS.items():
        for density, build in DENSITIES.items():
            fitted = build().fit(table(sets.features["train"], families))
            show(f"{label}: {density}", lambda name, f=fitted, fs=families: f.score(table(sets.features[name], fs)))  # type: ignore[misc]


def ceiling(sets: Sets) -> None:
    """A linear classifier of half of the test and half of the odd images, measured on the other halves."""
    print("\n| features | " + " | ".join(ODD) + " |\n|---|" + "---|" * len(ODD))
    for label, families in {**GROUPS, "all of them": tuple({f for fs in GROUPS.values() for f in fs})}.items():
        normal, cells = table(sets.features["test"], families), []
        centre, spread = normal.mean(0), normal.std(0).clamp_min(1e-9)
        for name in ODD:
            odd = table(sets.features[name], families)
            a, b = (((x - centre) / spread).clamp(-6, 6).numpy() for x in (normal, odd))
            x = np.concatenate([a[::2], b[::2]])
            y = np.repeat([0, 1], [len(a[::2]), len(b[::2])])
            classifier = LogisticRegression(C=0.01, max_iter=300).fit(x, y)
            scores = [torch.from_numpy(classifier.decision_function(part)) for part in (a[1::2], b[1::2])]
            cells.append(f"{auroc(*scores):.3f}")
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


# -- images and features ------------------------------------------------------------------------------------------------


def read_sets(model: DenoisingEBM, args: argparse.Namespace) -> Sets:
    args.out.mkdir(parents=True, exist_ok=True)
    pixels = image_sets(args.data, args.num, args.fit)
    families = ENERGIES if args.only == "energies" else tuple(family for family in FAMILIES if family != "gradient")
    config = FeatureConfig(SIGMAS, families, inner_sigmas=(0.05,) if "latent" in families else ())
    detector = Detector(model, replace(DetectorConfig(), altered=args.altered))
    features = {}
    for name, images in pixels.items():
        if name == "more train":
            continue
        key = [model.fingerprint(), model.precision, str(config), content_hash(images, "")]
        compute = partial(compute_features, model, images, config)
        features[name] = kept(args.out / f"{name}.pt", key, compute)
    altered: Table = {}
    probe: Table = {}
    if args.only != "energies":
        kinds = [(name, kind.low, kind.high) for name, kind in alterations(model.config.network.channels).items()]
        used = [content_hash(pixels[name], "") for name in ("train", "more train")]
        key = [model.fingerprint(), model.precision, str(detector.config), str(kinds), *used]
        altered = kept(args.out / "altered.pt", key, partial(detector.altered_columns, pixels["train"]))
        probe = kept(args.out / "probe.pt", key, partial(detector.altered_columns, pixels["more train"], seed=1))
    return Sets(model, pixels, features, altered, probe)


def image_sets(data: Path, num: int, fit: int) -> dict[str, Tensor]:
    def read(name: str, split: str, limit: int, resize: str | None = None) -> Tensor:
        return load_images(data / name, split=split, limit=limit, image_size=32, resize=resize, progress=False).pixels

    train, test = read("cifar10", "train", fit + 100), read("cifar10", "test", 2 * num)
    sets = {"train": train[:fit], "more train": train[fit:], "test": test[:num], "svhn": read("svhn", "train", num)}
    sets["celeba"] = read("celeba64", "train", num, "bilinear")
    sets["cifar100"] = read("cifar100", "test", num)
    for name in ("interpolation", "constant", "uniform-noise"):
        sets[name] = SYNTHETIC_OOD[name](test[num:], torch.Generator().manual_seed(0))
    return sets


def kept(path: Path, key: list[str], compute: Callable[[], Table]) -> Table:
    """Compute features, or read those of an earlier run with the same model and counts."""
    if path.is_file():
        saved = torch.load(path)
        if saved["key"] == key:
            found: Table = saved["features"]
            return found
    features = compute()
    write_atomically(path, lambda temporary: torch.save({"key": key, "features": features}, temporary))
    return features


def narrowed(features: Table, sigmas: Sequence[float]) -> Table:
    """Return features at some of the levels of SIGMAS; those of inner features have one level anyway."""
    chosen = torch.tensor([SIGMAS.index(sigma) for sigma in sigmas])
    return {
        family: values
        if family in ("latent", "pooled")
        else values.unflatten(1, (len(SIGMAS), -1))[:, chosen].flatten(1)
        for family, values in features.items()
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
