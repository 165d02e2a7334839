"""Tables 1 to 4: each takes the workshop and returns the section of the page that shows it."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from denoising_ebm.config import Drift, PixelMethod
from denoising_ebm.experiments import paper
from denoising_ebm.experiments.experiment import Experiment
from denoising_ebm.experiments.samplers import draw
from denoising_ebm.experiments.settings import ABLATIONS, Variant, ablation_config, with_drift
from denoising_ebm.ood.detector import Detector, DetectorConfig
from denoising_ebm.ood.evaluation import evaluate
from denoising_ebm.ood.features import log_energies
from denoising_ebm.quality.classes import ClassEvaluator
from denoising_ebm.viz.report import Cell, Section, Table

SamplerName = Literal["two-stage"] | PixelMethod
Row = tuple[Variant, SamplerName, Drift | None]
#: The row whose samples the other studies look at too.
DEFAULT: Row = ("denoising", "two-stage", None)
#: Rows of tables 1 and 2: what was trained, how it is drawn from, and the gradient of its chains (None: the model's own).
#: Chains of either gradient stand for both kinds of training, which would else differ in two ways.
ROWS: tuple[Row, ...] = (
    DEFAULT,
    ("denoising", "dpmpp-2m-sde", None),
    ("denoising", "heun", None),
    ("denoising", "mala", None),
    ("denoising", "two-stage", "energy"),
    ("contrastive", "two-stage", "denoiser"),
    ("contrastive", "two-stage", "energy"),
    ("score", "two-stage", None),
    ("score", "dpmpp-2m-sde", None),
)
_QUALITY = ("frechet_distance", "precision", "recall", "density", "coverage", "fid", "inception_score")
_HEADINGS = ("FD", "precision", "recall", "density", "coverage", "FID", "IS")
#: The paper's sigma for table 4.
PAPER_SIGMA = 0.05


def table1(experiment: Experiment) -> Section:
    """Table 1: quality of samples by objective and sampler."""
    return _generation(experiment, "Table 1: samples", paper.TABLE1)


def table2(experiment: Experiment) -> Section:
    """Table 2: the same on the second set."""
    return _generation(experiment, "Table 2: samples of the second set", paper.TABLE2)


def row_name(variant: Variant, sampler: SamplerName, drift: Drift | None) -> str:
    """Return the name of a row of tables 1 and 2."""
    gradient = {"energy": ", exact gradient", "denoiser": ", first term"}
    return f"{variant}, {sampler}{gradient[drift] if drift else ''}"


def _generation(experiment: Experiment, title: str, printed: Mapping[str, tuple[float, float | None]]) -> Section:
    samples = experiment.sizes.samples
    rows: list[list[Cell]] = []
    shown: set[Variant] = set()

    def add(name: str, row: Mapping[str, Any]) -> None:
        if "missing" in row:
            rows.append([f"{name}: {row['missing']}", *[None] * (len(_QUALITY) + 3)])
        else:
            cost = (row.get("nfe"), row.get("s_per_64"), row.get("images seen"))
            diverged = " (a phase of its training diverged)" if row.get("diverged") else ""
            rows.append([name + diverged, *(row[key] for key in _QUALITY), *cost])

    floor = experiment.train[:samples]
    few = "" if len(floor) == samples else f": {len(floor):,} only, so too high"
    add(f"training images (floor{few})", experiment.quality_row("floor", lambda: asdict(experiment.evaluator(floor))))
    for variant, sampler, drift in ROWS:

        def make(
            variant: Variant = variant, sampler: SamplerName = sampler, drift: Drift | None = drift
        ) -> dict[str, Any]:
            metadata = experiment.model(variant).metadata
            seen = {
                "images seen": metadata.get("images seen"),
                "diverged": metadata.get("stages ended by divergence", 0),
            }
            if (variant, sampler, drift) == DEFAULT:
                return experiment.measured(lambda: experiment.samples) | seen
            steps = experiment.sizes.mala_steps if sampler == "mala" else None
            model = experiment.model(variant)
            chosen = with_drift(model.config.sampling, drift) if drift else sampler
            return experiment.measured(partial(draw, model, samples, chosen, steps=steps, seed=experiment.seed)) | seen

        name = row_name(variant, sampler, drift)
        row = experiment.quality_row(name, make)
        add(name, row)
        # They depend on the training and the latent chain alone: once for each variant.
        if "semantic_distance" in row and variant not in shown:
            shown.add(variant)
            rows.append([f"{variant}, h(z^K)", row["semantic_distance"], *[None] * (len(_QUALITY) + 2)])
    for name, (fid, score) in printed.items():
        rows.append([f"paper: {name}", None, None, None, None, None, fid, score, None, None, None])
    caption = (
        f"{experiment.evaluator.protocol(samples, 'test')}; seed {experiment.seed}. Evaluations of the network and seconds on this machine "
        "for 64 images; images that the model has seen in training, on which rows must agree to compare objectives. "
        "Rows `paper` are printed figures for CIFAR-10 or CelebA 64 and 50,000 samples."
    )
    table = Table(["samples", *_HEADINGS, "nfe", "s per 64", "images seen"], rows, caption)
    return Section(title, paper.REASONS["generation"], table)


def table3(experiment: Experiment) -> Section:
    """Table 3: noise range and number of levels, several seeds each."""
    rows: list[list[Cell]] = []
    for name, (sigma_max, levels) in ABLATIONS.items():
        distances: list[float] = []
        for seed in range(experiment.seed, experiment.seed + experiment.sizes.seeds):

            def make(sigma_max: float = sigma_max, levels: int = levels, seed: int = seed) -> dict[str, Any]:
                config = ablation_config(experiment.base, sigma_max, levels, seed, experiment.sizes.ablation_budget)
                model = experiment.train_model(f"ablation-{sigma_max:g}-{levels}-{seed}", config)
                drawn = draw(model, experiment.sizes.ablation_samples, "two-stage", seed=1000 * seed)
                if "stages ended by divergence" in model.metadata:
                    raise ValueError("its training diverged")
                return {
                    "frechet_distance": experiment.evaluator.frechet_distance(drawn.images),
                    "images seen": model.metadata["images seen"],
                }

            row = experiment.row(f"table3, {name}, seed {seed}", make)
            if "frechet_distance" in row:
                distances.append(row["frechet_distance"])
        spread = statistics.stdev(distances) if len(distances) > 1 else None
        mean = statistics.mean(distances) if distances else None
        rows.append([name, mean, spread, len(distances), paper.TABLE3[name]])
    caption = (
        f"Distance of {experiment.sizes.ablation_samples:,} two-stage samples to {experiment.evaluator.count:,} test images, mean and "
        "standard deviation over seeds (weights, batches and samples all drawn anew). The paper's column is FID."
    )
    table = Table(["noise levels", "frechet_distance", "sd over seeds", "seeds", "paper (FID)"], rows, caption)
    return Section("Table 3: noise levels", paper.REASONS["ablation"] + experiment.left_out("table3, "), table)


def classes(experiment: Experiment) -> Section:
    """Samples class by class; the paper has no such table."""
    title, (train_labels, test_labels) = "Samples by class", experiment.labels
    evaluator, sizes = experiment.evaluator, experiment.sizes
    num = min(sizes.samples, sizes.reference, len(experiment.test), len(experiment.train) // 2)

    def make() -> dict[str, Any]:
        # The images of the floor are not among them: the classifier must know them no better than samples.
        fit = experiment.train[: min(sizes.labelled, len(experiment.train) - num)]
        by_class = ClassEvaluator(evaluator.features(fit), train_labels[: len(fit)])
        real = evaluator.features(experiment.test[: sizes.reference])
        figures = {"accuracy": by_class.accuracy(real, test_labels[: len(real)]), "labelled": len(fit)}
        sets = {"samples": experiment.samples.images[:num], "floor": experiment.train[-num:]}
        return figures | {
            name: [asdict(item) for item in by_class(evaluator.features(images), real)] for name, images in sets.items()
        }

    row = experiment.row("classes", make, labels=hashlib.sha256(repr(experiment.labels).encode()).hexdigest()[:32])
    if "missing" in row:
        return Section(title, row["missing"])
    rows: list[list[Cell]] = [
        [
            ours["name"],
            f"{100 * ours['share']:.1f} %",
            f"{100 * ours['real_share']:.1f} %",
            ours["kernel_distance"],
            floor["kernel_distance"],
        ]
        for ours, floor in zip(row["samples"], row["floor"], strict=True)
    ]
    text = (
        "The model knows no classes, so a linear discriminant on the features names its samples, and the real images they "
        f"are compared with: fitted on {row['labelled']:,} labelled training images, right for "
        f"{100 * row['accuracy']:.1f} % of test images. Distances are unbiased kernel distances (that of KID, on other "
        "features), which do not depend on the number of images: the floor is about 0."
    )
    caption = (
        f"{evaluator.extractor.name}; {num:,} two-stage samples, and as many training images as the floor, against "
        f"{evaluator.count:,} test images; seed {experiment.seed}."
    )
    columns = ["class", "share of samples", "share of test images", "kernel distance", "floor"]
    return Section(title, text, Table(columns, rows, caption))


def table4(experiment: Experiment) -> Section:
    """Table 4: odd images told from normal ones."""
    if not experiment.odd:
        return Section("Table 4: odd images", "No odd sets were given: add --ood NAME=DATA.")
    # Half of the test images calibrate the detector.
    scored = min(experiment.sizes.scored, len(experiment.test) // 2)

    config = DetectorConfig(altered=max(4, experiment.sizes.fit // 50))

    def make() -> dict[str, Any]:
        model = experiment.model("denoising")
        normal, calibration = experiment.test[:scored], experiment.test[scored : 2 * scored]
        detector = Detector(model, config)
        detector.fit(experiment.train[: experiment.sizes.fit], calibration=calibration, seed=experiment.seed)
        noise = model.scoring_noise(seed=experiment.seed)

        def energies(pixels: Tensor) -> Tensor:
            with torch.no_grad():
                return log_energies(model, pixels, [PAPER_SIGMA], noise=noise)[:, 0]

        odd = {name: pixels[:scored] for name, pixels in experiment.odd.items()}
        result: dict[str, Any] = {"normal": len(normal)}
        for score, measure in (("detector", detector.score), ("energy", energies)):
            values = evaluate(
                measure(normal), {name: measure(pixels) for name, pixels in odd.items()}, seed=experiment.seed
            )
            result[score] = {item.name: [item.auroc.value, item.auroc.low, item.auroc.high] for item in values}
        return result

    row = experiment.row("table4", make, odd=experiment.ood_hash, detector=str(config))
    if "missing" in row:
        return Section("Table 4: odd images", row["missing"])

    def cell(score: str, name: str) -> str:
        value, low, high = row[score][name]
        return f"{value:.3f} ({low:.3f}-{high:.3f})"

    rows: list[list[Cell]] = [
        [name, cell("detector", name), cell("energy", name), paper.TABLE4.get(name)] for name in row["detector"]
    ]
    caption = (
        f"AUROC against {row['normal']:,} test images, with 95 % bootstrap intervals; seed {experiment.seed}. The detector is "
        f"fitted on {min(experiment.sizes.fit, len(experiment.train)):,} training images; the energy is the paper's score, eq. 7 at "
        f"sigma {PAPER_SIGMA}."
    )
    table = Table(["odd set", "detector", "energy (the paper's score)", "paper (CIFAR-10)"], rows, caption)
    return Section("Table 4: odd images", paper.REASONS["detection"], table)
