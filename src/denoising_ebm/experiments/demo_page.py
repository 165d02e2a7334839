"""The demo's page: evidence in, text, tables and figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.experiments.prose import prose
from denoising_ebm.experiments.settings import sampler_title
from denoising_ebm.model import DenoisingEBM, Samples
from denoising_ebm.ood.anomaly_maps import Z_LIMIT
from denoising_ebm.ood.conformal import fpr_interval, p_values
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.samplers import Trajectory
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.grids import heat_map_sheet, image_grid, trajectory_grid
from denoising_ebm.viz.plots import chain_energies, energy_histograms, png_bytes, training_curves
from denoising_ebm.viz.report import Picture, Section, Table

NORMAL = "test images"
#: Noise levels of the histograms.
HISTOGRAM_SIGMAS = (0.05, 0.2, 1.0)
#: Rate at which test images are flagged.
FPR = 0.05


@dataclass(frozen=True)
class Evidence:
    """What the demo measured."""

    model: DenoisingEBM  #: The trained model.
    metrics: list[dict[str, Any]]  #: Records of the run.
    samples: Samples  #: Drawn by the model's own sampler.
    trajectory: Trajectory  #: The first chains on their way.
    real: Tensor  #: Real test images in [-1, 1], for comparison.
    sigmas: Sequence[float]  #: Noise levels of the energies.
    log_energies: Mapping[str, Tensor]  #: For the test images and each OOD set, float64 `(n, sigmas)`.
    detector: Detector  #: Fitted on training images, calibrated on other test images.
    scores: Mapping[str, Tensor]  #: Its scores of the same sets, `(n,)`.
    shown: Tensor  #: Images of the anomaly maps: untouched ones, then the same with a foreign square.
    maps: Tensor  #: z-scores of each of their pixels, `(n, height, width)`.
    square: tuple[slice, slice]  #: Rows and columns of the square.


def auroc_table(evidence: Evidence) -> Table:
    """AUROC of each OOD set against the test images: by energies at single noise levels, and by the detector."""
    normal = evidence.log_energies[NORMAL]
    records = {
        name: {f"σ {sigma:g}": auroc(normal[:, i], values[:, i]) for i, sigma in enumerate(evidence.sigmas)}
        | {"detector": auroc(evidence.scores[NORMAL], evidence.scores[name])}
        for name, values in evidence.log_energies.items()
        if name != NORMAL
    }
    caption = prose("demo_auroc_caption", normal=len(normal))
    return Table.from_records(records, first="OOD set", caption=caption)


def summary(evidence: Evidence) -> str:
    """The paragraph below the title."""
    metadata = evidence.model.metadata
    return prose("demo_summary", seen=metadata.get("images seen", 0), minutes=metadata.get("minutes"))


def page_metadata(
    evidence: Evidence, folder: Path, settings: Mapping[str, Any], device: torch.device
) -> dict[str, str]:
    """What stands on top of the page."""
    from denoising_ebm import __version__

    model, metadata = evidence.model, evidence.model.metadata
    fast = " --fast" if settings["fast"] else ""
    sampler = sampler_title("two-stage", model.config.sampling)
    return {
        "command": f"debm demo --out {folder} --minutes {settings['minutes']:g} --seed {settings['seed']}{fast}",
        "version": f"denoising-ebm {__version__}",
        "seed": str(settings["seed"]),
        "hardware": describe(device),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "training": f"{metadata.get('training images', 0):,} images, {metadata.get('images seen', 0):,} seen, "
        f"{metadata.get('minutes')} min",
        "sampler": f"{sampler}, {evidence.samples.nfe} network evaluations an image",
        "scored": ", ".join(f"{len(values):,} {name}" for name, values in evidence.log_energies.items()),
        "repeatable": "samples and scores of a given model; training stops by the clock, so two runs differ",
    }


def page_sections(evidence: Evidence) -> list[Section]:
    """The page."""
    return [_samples(evidence), _chains(evidence), _detection(evidence), _maps(evidence), _training(evidence)]


def _samples(evidence: Evidence) -> Section:
    drawn, sampling = evidence.samples, evidence.model.config.sampling
    sampler, steps = sampler_title("two-stage", sampling), sampling.pixel.steps
    sheets = [
        (drawn.semantic, prose("demo_semantic", steps=sampling.semantic.steps), "smooth images of clothes"),
        (drawn.images, prose("demo_images", sampler=sampler, steps=steps), "sampled images of clothes"),
        (evidence.real, prose("demo_real"), "real images of clothes"),
    ]
    pictures = [
        Picture(png_bytes(image_grid(images, columns=8)), caption, alt)
        for images, caption, alt in sheets
        if images is not None
    ]
    text = prose("demo_samples", sampler=sampler, num=len(drawn.images), nfe=drawn.nfe)
    return Section("Samples in two stages", text, pictures=pictures)


def _chains(evidence: Evidence) -> Section:
    trajectory, sampling = evidence.trajectory, evidence.model.config.sampling
    noise = f", begun at h(z) with noise of {sampling.pixel.sigma_max:g}" if sampling.noise_init else ""
    grid = trajectory_grid(trajectory.states, trajectory.labels)
    pictures = [
        Picture(
            png_bytes(grid),
            prose("demo_trajectory", num=len(trajectory.states[0]), noise=noise),
            "each row turns from a blur into a noisy and then a clear image",
        ),
        Picture(
            png_bytes(chain_energies(trajectory.energies)),
            prose("demo_energies"),
            "curves of energy over steps for both stages",
        ),
    ]
    return Section("The chains on their way", prose("demo_chains"), pictures=pictures)


def _detection(evidence: Evidence) -> Section:
    table = auroc_table(evidence)
    best = {row[0]: max(zip(row[1:-1], table.columns[1:-1], strict=True)) for row in table.rows}
    singles = "; ".join(f"{name}, {value:.3f} at {column}" for name, (value, column) in best.items())
    text = prose("demo_detection", singles=singles, fitted=evidence.detector.metadata["fitted on"])
    # With fewer calibration images no p-value is as low.
    if len(evidence.detector.calibration) + 1 >= 1 / FPR:
        text += "\n\n" + _false_positives(evidence)
    pictures = [_histogram(evidence, sigma) for sigma in HISTOGRAM_SIGMAS if sigma in evidence.sigmas]
    figure = energy_histograms(
        {name: values.numpy() for name, values in evidence.scores.items()},
        title="The detector's scores",
        xlabel="score (in-distribution: about 0; larger: more anomalous)",
    )
    alt = "histograms of the scores of four sets of images"
    pictures.append(Picture(png_bytes(figure), "Scores of the detector.", alt))
    return Section("OOD detection", text, table, pictures)


def _false_positives(evidence: Evidence) -> str:
    """Say how many images are flagged at `FPR`, and how many test images that promises."""
    detector, normal = evidence.detector, evidence.scores[NORMAL]
    rates = {name: 100 * float(detector.flag(values, FPR).double().mean()) for name, values in evidence.scores.items()}
    # The other way round too: the rate of one split varies, that of both together hardly.
    exchanged = 100 * float((p_values(normal, detector.calibration) <= FPR).double().mean())
    low, high = fpr_interval(FPR, len(detector.calibration), len(normal))
    return prose(
        "demo_false_positives",
        calibration=len(detector.calibration),
        normal=len(normal),
        rate=rates.pop(NORMAL),
        exchanged=exchanged,
        low=100 * low,
        high=100 * high,
        found=", ".join(f"{rate:.1f} % of {name}" for name, rate in rates.items()),
    )


def _histogram(evidence: Evidence, sigma: float) -> Picture:
    column = evidence.sigmas.index(sigma)
    sets = {name: values[:, column].numpy() for name, values in evidence.log_energies.items()}
    figure = energy_histograms(sets, title=f"Energy at sigma {sigma:g}", xlabel="log energy")
    alt = f"histograms of four sets of images at noise level {sigma:g}"
    return Picture(png_bytes(figure), f"Log energies at sigma {sigma:g}.", alt)


def _maps(evidence: Evidence) -> Section:
    count = len(evidence.shown) // 2
    rows, columns = evidence.square
    inside = evidence.maps[:, rows, columns].flatten(1).mean(1)
    before, after = float(inside[:count].mean()), float(inside[count:].mean())
    labels = [f"max {float(pixel_map.max()):.1f}" for pixel_map in evidence.maps]
    sheet = heat_map_sheet(evidence.shown, evidence.maps, labels, columns=count, limit=Z_LIMIT, signed=True)
    caption = prose("demo_maps_caption", count=count)
    picture = Picture(png_bytes(sheet), caption, "images above maps of where they are anomalous")
    return Section("Where an image is anomalous", prose("demo_maps", before=before, after=after), pictures=[picture])


def _training(evidence: Evidence) -> Section:
    figure = png_bytes(training_curves(evidence.metrics))
    return Section("Training", pictures=[Picture(figure, prose("demo_training"), "falling curves of the losses")])
