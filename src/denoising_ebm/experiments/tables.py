"""Tables 1 to 4, and samples by class: each study takes the experiment and returns its section of the page."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.config import Drift, SamplerName
from denoising_ebm.datasets.images import content_hash, to_uint8
from denoising_ebm.experiments import paper
from denoising_ebm.experiments.drawing import draw
from denoising_ebm.experiments.experiment import Experiment
from denoising_ebm.experiments.prose import prose
from denoising_ebm.experiments.settings import (
    ABLATIONS,
    Variant,
    ablation_config,
    sampler_title,
    with_drift,
)
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import log_energies
from denoising_ebm.ood.metrics import evaluate
from denoising_ebm.quality.classes import ClassEvaluator
from denoising_ebm.viz.report import Section, Table


@dataclass(frozen=True)
class Case:
    """A row of tables 1 and 2.

    Attributes:
        variant: What was trained.
        sampler: How it is drawn from.
        drift: Of its chains; None for the model's own.
    """

    variant: Variant
    sampler: SamplerName
    drift: Drift | None = None


#: Both drifts stand for both kinds of training, which would else differ in two ways. The first is the one whose samples the
#: other studies look at too.
CASES = (
    Case("denoising", "two-stage"),
    Case("denoising", "dpmpp-2m-sde"),
    Case("denoising", "heun"),
    Case("denoising", "mala"),
    Case("denoising", "two-stage", "energy"),
    Case("contrastive", "two-stage", "denoiser"),
    Case("contrastive", "two-stage", "energy"),
    Case("score", "two-stage"),
    Case("score", "dpmpp-2m-sde"),
)
QUALITY = {
    "FD": "frechet_distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "FID": "fid",
    "KID": "kid",
}
COST = {"NFE": "nfe", "s per 64": "s_per_64", "images seen": "images_seen"}
#: The paper's sigma for table 4.
PAPER_SIGMA = 0.05


# -- tables 1 and 2 -----------------------------------------------------------------------------------------------------


def table1(experiment: Experiment, cases: Sequence[Case] = CASES) -> Section:
    """Table 1: quality of samples by objective and sampler."""
    return _generation(experiment, cases, "Table 1: samples", paper.TABLE1)


def table2(experiment: Experiment, cases: Sequence[Case] = CASES) -> Section:
    """Table 2: the same on the second set."""
    return _generation(experiment, cases, "Table 2: samples of the second set", paper.TABLE2)


def case_title(experiment: Experiment, case: Case) -> str:
    """Return the name of a row of tables 1 and 2."""
    drift = {"energy": ", exact gradient", "denoiser": ", denoiser drift"}[case.drift] if case.drift else ""
    return f"{case.variant}: {sampler_title(case.sampler, experiment.sampling(case.variant))}{drift}"


def _generation(experiment: Experiment, cases: Sequence[Case], title: str, printed: Mapping[str, float]) -> Section:
    records = _floor(experiment) | _measured(experiment, cases)
    records |= {f"paper: {name}": {"fid": fid} for name, fid in printed.items()}
    caption = experiment.prose("generation_caption", experiment.sizes.samples)
    return Section(
        title, prose("generation"), Table.from_records(records, QUALITY | COST, first="samples", caption=caption)
    )


def _floor(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return what as many training images reach."""
    images = experiment.train[: experiment.sizes.samples]
    few = "" if len(images) == experiment.sizes.samples else f": {len(images):,} only, so too high"
    row = experiment.quality_row("floor", lambda: asdict(experiment.evaluator(images)))
    return {f"training images (floor{few})": row}


def _measured(experiment: Experiment, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Return the rows of all cases, and of the semantic images of each variant, by name."""
    records: dict[str, dict[str, Any]] = {}
    for case in cases:
        title = case_title(experiment, case)
        row = experiment.quality_row(title, partial(_measure, experiment, case))
        if "missing" in row:
            records[f"{title}: {row['missing']}"] = {}
            continue
        records[title + (" (a stage of its training diverged)" if row["diverged"] else "")] = row
        semantic = f"{case.variant}: h(z), the semantic images"
        # They depend on the training and the latent chain alone: once for each variant.
        if "semantic_frechet_distance" in row and semantic not in records:
            records[semantic] = {"frechet_distance": row["semantic_frechet_distance"]}
    return records


def _measure(experiment: Experiment, case: Case) -> dict[str, Any]:
    model, sizes = experiment.model(case.variant), experiment.sizes
    if case == CASES[0]:
        drawn = experiment.samples
    else:
        sampler = with_drift(model.config.sampling, case.drift) if case.drift else case.sampler
        steps = sizes.mala_steps if case.sampler == "mala" else None
        drawn = draw(model, sizes.samples, sampler, steps=steps, seed=experiment.seed)
    metadata = model.metadata
    seen, diverged = metadata.get("images seen"), metadata.get("stages ended by divergence", 0)
    return experiment.measure(drawn) | {"images_seen": seen, "diverged": diverged}


# -- table 3 ------------------------------------------------------------------------------------------------------------


def table3(experiment: Experiment) -> Section:
    """Table 3: noise range and number of levels, several seeds each."""
    records: dict[str, dict[str, Any]] = {}
    for name, (sigma_max, num_sigmas) in ABLATIONS.items():
        distances = _ablation(experiment, name, sigma_max, num_sigmas)
        records[name] = {
            "FD": statistics.mean(distances) if distances else None,
            "sd over seeds": statistics.stdev(distances) if len(distances) > 1 else None,
            "seeds": len(distances),
            "paper (FID)": paper.TABLE3[name],
        }
    caption = experiment.prose("ablation_caption", experiment.sizes.ablation_samples)
    text = prose("ablation") + experiment.left_out("table3, ")
    return Section("Table 3: noise levels", text, Table.from_records(records, first="noise levels", caption=caption))


def _ablation(experiment: Experiment, name: str, sigma_max: float, num_sigmas: int) -> list[float]:
    """Return the distances of the seeds that could be trained."""
    sizes = experiment.sizes

    def make(seed: int) -> dict[str, Any]:
        config = ablation_config(experiment.base, sigma_max, num_sigmas, seed, sizes.ablation_budget)
        model = experiment.train_model(f"ablation-{sigma_max:g}-{num_sigmas}-{seed}", config)
        samples, _ = draw(model, sizes.ablation_samples, seed=seed)
        if model.metadata.get("stages ended by divergence"):
            raise ValueError("its training diverged")
        distance = experiment.evaluator.frechet_distance(to_uint8(samples.images.cpu()))
        return {"frechet_distance": distance, "images_seen": model.metadata["images seen"]}

    seeds = range(experiment.seed, experiment.seed + sizes.seeds)
    rows = [experiment.row(f"table3, {name}, seed {seed}", partial(make, seed)) for seed in seeds]
    return [row["frechet_distance"] for row in rows if "frechet_distance" in row]


# -- samples by class ---------------------------------------------------------------------------------------------------


def classes(experiment: Experiment) -> Section:
    """Samples class by class; the paper has no such table."""
    title, sizes = "Samples by class", experiment.sizes
    num = min(sizes.samples, sizes.reference, len(experiment.test), len(experiment.train) // 2)
    labels = hashlib.sha256(repr(experiment.images.labels).encode()).hexdigest()[:32]
    row = experiment.row("classes", partial(_classes, experiment, num), labels=labels)
    if "missing" in row:
        return Section(title, row["missing"])
    records = {
        ours["name"]: {
            "share of samples": f"{100 * ours['share']:.1f} %",
            "share of test images": f"{100 * ours['real_share']:.1f} %",
            "kernel distance": ours["kernel_distance"],
            "floor": floor["kernel_distance"],
        }
        for ours, floor in zip(row["samples"], row["floor"], strict=True)
    }
    caption = experiment.prose("classes_caption", num)
    text = prose("classes", labelled=row["labelled"], accuracy=100 * row["accuracy"])
    return Section(title, text, Table.from_records(records, first="class", caption=caption))


def _classes(experiment: Experiment, num: int) -> dict[str, Any]:
    """Return the figures of each class, of samples and of as many training images."""
    evaluator, sizes, (train_labels, test_labels) = experiment.evaluator, experiment.sizes, experiment.images.labels
    # The images of the floor are not among them: the classifier must know them no better than samples.
    fit = experiment.train[: min(sizes.labelled, len(experiment.train) - num)]
    by_class = ClassEvaluator(evaluator.features(fit), train_labels[: len(fit)])
    real = evaluator.features(experiment.test[: sizes.reference])
    sets = {"samples": experiment.sample_pixels[:num], "floor": experiment.train[-num:]}
    return {
        "accuracy": by_class.accuracy(real, test_labels[: len(real)]),
        "labelled": len(fit),
        **{name: [asdict(item) for item in by_class(evaluator.features(each), real)] for name, each in sets.items()},
    }


# -- table 4 ------------------------------------------------------------------------------------------------------------


def table4(experiment: Experiment) -> Section:
    """Table 4: OOD detection."""
    title, sets = "Table 4: OOD detection", experiment.images.ood
    if not sets:
        return Section(title, "No OOD sets were given: add --ood NAME=DATA.")
    config = DetectorConfig(num_corrupted=max(4, experiment.sizes.fit // 50))
    hashes = " ".join(f"{name}:{content_hash(pixels)}" for name, pixels in sets.items())
    row = experiment.row("table4", partial(_detection, experiment, config), ood=hashes, detector=str(config))
    if "missing" in row:
        return Section(title, row["missing"])
    records = {
        name: {
            "detector": _interval(row["detector"][name]),
            "energy (the paper's score)": _interval(row["energy"][name]),
            "paper (CIFAR-10)": f"{printed:g}" if (printed := paper.TABLE4.get(name)) else None,
        }
        for name in row["detector"]
    }
    fit = min(experiment.sizes.fit, len(experiment.train))
    caption = prose("detection_caption", normal=row["normal"], seed=experiment.seed, fit=fit, sigma=PAPER_SIGMA)
    return Section(title, prose("detection"), Table.from_records(records, first="OOD set", caption=caption))


def _detection(experiment: Experiment, config: DetectorConfig) -> dict[str, Any]:
    """Return the AUROC of each OOD set, by the detector and by the paper's score."""
    model, sizes, test, seed = experiment.model("denoising"), experiment.sizes, experiment.test, experiment.seed
    # Half of the test images calibrate the detector.
    scored = min(sizes.scored, len(test) // 2)
    detector = Detector(model, config)
    detector.fit(experiment.train[: sizes.fit], calibration=test[scored : 2 * scored], seed=seed)
    noise = model.scoring_noise(seed=seed)

    @torch.no_grad()
    def energy(pixels: Tensor) -> Tensor:
        return log_energies(model, pixels, [PAPER_SIGMA], noise=noise)[:, 0]

    result: dict[str, Any] = {"normal": scored}
    for name, score in (("detector", detector.score), ("energy", energy)):
        ood = {key: score(pixels[:scored]) for key, pixels in experiment.images.ood.items()}
        found = evaluate(score(test[:scored]), ood, seed=seed)
        result[name] = {item.name: [item.auroc.value, item.auroc.low, item.auroc.high] for item in found}
    return result


def _interval(numbers: Sequence[float]) -> str:
    value, low, high = numbers
    return f"{value:.3f} ({low:.3f}-{high:.3f})"
