"""The demo's page: numbers in, text, tables and figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.model import DenoisingEBM, Samples
from denoising_ebm.ood.conformal import fpr_interval, p_values
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.ood.pictures import Z_LIMIT
from denoising_ebm.samplers import Trajectory
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.grids import heat_map_sheet, image_grid, trajectory_grid
from denoising_ebm.viz.plots import chain_energies, energy_histograms, png_bytes, training_curves
from denoising_ebm.viz.report import Picture, Section, Table

NORMAL = "test images"
#: Noise levels of the AUROC table and of the histograms.
TABLE_LEVELS, HISTOGRAM_LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0), (0.05, 0.2, 1.0)


@dataclass(frozen=True)
class Evidence:
    """What the demo measured.

    Attributes:
        model: The trained model.
        metrics: Records of the run.
        samples: Two-stage samples.
        trajectory: The first chains on their way.
        real: Real test images in [-1, 1], for comparison.
        levels: Noise levels of the energies.
        log_energies: For the test images and each odd set, float64 `(n, levels)`.
        detector: Fitted on training images, calibrated on other test images.
        scores: Its scores of the same sets, `(n,)`.
        shown: Images of the heat maps: untouched ones, then the same with a foreign square.
        maps: How odd each of their pixels is, z-scores, `(n, height, width)`.
        square: Rows and columns of the square.
    """

    model: DenoisingEBM
    metrics: list[dict[str, Any]]
    samples: Samples
    trajectory: Trajectory
    real: Tensor
    levels: Sequence[float]
    log_energies: Mapping[str, Tensor]
    detector: Detector
    scores: Mapping[str, Tensor]
    shown: Tensor
    maps: Tensor
    square: tuple[slice, slice]


def auroc_table(evidence: Evidence) -> Table:
    """AUROC of each odd set against the test images: by energies at single noise levels, and by the detector."""
    columns = [level for level in TABLE_LEVELS if level in evidence.levels]
    normal = evidence.log_energies[NORMAL]
    rows: list[list[str | float]] = []
    for name, values in evidence.log_energies.items():
        if name == NORMAL:
            continue
        at = [evidence.levels.index(level) for level in columns]
        single = [auroc(normal[:, i], values[:, i]) for i in at]
        rows.append([name, *single, auroc(evidence.scores[NORMAL], evidence.scores[name])])
    caption = (
        "AUROC, the chance that an odd image scores above a test image, by the energy at one sigma or by the detector."
    )
    return Table(["odd set", *(f"σ {level:g}" for level in columns), "detector"], rows, caption)


def summary(evidence: Evidence) -> str:
    """The paragraph below the title."""
    minutes, seen = evidence.model.metadata.get("minutes"), evidence.model.metadata.get("images seen", 0)
    return (
        "One energy-based model, trained without labels, draws images in two stages, says how normal an image is, and "
        f"shows where it is odd. This one saw {seen:,} images in {minutes} minutes; all figures below are its own."
    )


def report_metadata(
    evidence: Evidence, folder: Path, settings: Mapping[str, Any], device: torch.device
) -> dict[str, str]:
    """The facts on top of the page."""
    from denoising_ebm import __version__

    model = evidence.model
    fast = " --fast" if settings["fast"] else ""
    counts = ", ".join(f"{len(values):,} {name}" for name, values in evidence.log_energies.items())
    return {
        "command": f"debm demo --out {folder} --minutes {settings['minutes']:g} --seed {settings['seed']}{fast}",
        "version": f"denoising-ebm {__version__}",
        "seed": str(settings["seed"]),
        "hardware": describe(device),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "training": f"{model.metadata.get('training images', 0):,} images, {model.metadata.get('images seen', 0):,} seen, "
        f"{model.metadata.get('minutes')} min",
        "scored": counts,
        "repeatable": "samples and scores of a given model; training stops by the clock, so two runs differ",
    }


def report_sections(evidence: Evidence) -> list[Section]:
    """The page."""
    return [_samples(evidence), _chains(evidence), _odd(evidence), _where(evidence), _training(evidence)]


def _samples(evidence: Evidence) -> Section:
    drawn = evidence.samples
    pictures = [
        (drawn.semantic, "Semantic images h(z), the end of the latent chains.", "smooth images of clothes"),
        (
            drawn.images,
            "The images that the pixel chains made of them, in the same order.",
            "sampled images of clothes",
        ),
        (evidence.real, "Real test images, for comparison.", "real images of clothes"),
    ]
    return Section(
        "Samples in two stages",
        "A Langevin chain in the latent space gives the layout; the decoder h turns its end into a smooth image. A second "
        "chain, in pixels, begins at that image under noise and makes of it what is shown. Nothing is selected: these are "
        "the first images of the seed.",
        pictures=[
            Picture(png_bytes(image_grid(images, columns=8, scale=2)), caption, alt)
            for images, caption, alt in pictures
            if images is not None
        ],
    )


def _chains(evidence: Evidence) -> Section:
    trajectory = evidence.trajectory
    sampling = evidence.model.config.sampling
    grid = trajectory_grid(trajectory.states, trajectory.labels)
    noise = f", started with noise of level {sampling.pixel.sigma_max:g} on h(z)" if sampling.noise_init else ""
    return Section(
        "The chains on their way",
        "Noise levels fall from step to step in both spaces, so the chains see a smooth energy first and a sharp "
        "one last.",
        pictures=[
            Picture(
                png_bytes(grid),
                f"Eight chains, a row each. z k: decoded latent state after k steps; x k: pixels after k steps{noise}; "
                "end: after the final denoising.",
                "each row turns from a blur into a noisy and then a clear image",
            ),
            Picture(
                png_bytes(chain_energies(trajectory.energies)),
                "Energies of the same chains before each step, at the noise level of that step.",
                "curves of energy over steps for both stages",
            ),
        ],
    )


def _odd(evidence: Evidence) -> Section:
    table = auroc_table(evidence)
    best = {row[0]: max(zip(row[1:-1], table.columns[1:-1], strict=True)) for row in table.rows}
    detector, scores = evidence.detector, evidence.scores
    count, total = len(detector.calibration), len(scores[NORMAL])
    text = (
        "The model saw none of these images. Test images are normal; odd ones are means of two test images "
        "(interpolations), test images upside down, and handwritten digits. A high energy calls an image odd. Highest AUROC "
        "of a single level: "
        + "; ".join(f"{name}, {value:.3f} at {level}" for name, (value, level) in best.items())
        + ". Which level that is depends on the odd set, which one does not know beforehand. An AUROC below 0.5 means that "
        "the odd images have the lower energies: smoother ones often do.\n\n"
        "The last column is the detector's. It learned in which directions images become odd from slight alterations of "
        "training images (noise, blur, a turn, a pasted piece, ...), and how normal ones spread from "
        f"{detector.metadata['fitted on']:,} more; it saw no image of these sets."
    )
    if count >= 19:
        shares = {name: float(detector.flag(values, 0.05).double().mean()) for name, values in scores.items()}
        caught = ", ".join(f"{share:.1%} of {name}" for name, share in shares.items() if name != NORMAL)
        # The other way round too: the rate of one split varies, that of both together hardly.
        exchanged = float((p_values(scores[NORMAL], detector.calibration) <= 0.05).double().mean())
        low, high = fpr_interval(0.05, count, total)
        text += (
            f" Beside {count:,} test images kept for calibration, flagging p-values of at most .05 flags "
            f"{shares[NORMAL]:.1%} of the {total:,} others, and {exchanged:.1%} where these take the place of those for "
            f"calibration (5 % or less is promised on average over calibration images, {low:.1%} to {high:.1%} for nineteen "
            f"of twenty sets of them); and {caught}."
        )
    pictures = [_histogram(evidence, level) for level in HISTOGRAM_LEVELS if level in evidence.levels]
    figure = energy_histograms(
        {name: values.numpy() for name, values in scores.items()},
        title="The detector's scores",
        xlabel="score (0 = usual, larger = more odd)",
    )
    alt = "histograms of the scores of four sets of images"
    pictures.append(Picture(png_bytes(figure), "Scores of the detector.", alt))
    return Section("Odd images", text, table, pictures)


def _histogram(evidence: Evidence, level: float) -> Picture:
    column = evidence.levels.index(level)
    sets = {name: values[:, column].numpy() for name, values in evidence.log_energies.items()}
    figure = energy_histograms(sets, title=f"Energy at noise level {level:g}", xlabel="log energy")
    alt = f"histograms of four sets of images at noise level {level:g}"
    return Picture(png_bytes(figure), f"Log energies at sigma {level:g}.", alt)


def _where(evidence: Evidence) -> Section:
    count = len(evidence.shown) // 2
    rows, columns = evidence.square
    inside = evidence.maps[:, rows, columns].flatten(1).mean(1)
    before, after = float(inside[:count].mean()), float(inside[count:].mean())
    labels = [f"max {float(pixel_map.max()):.1f}" for pixel_map in evidence.maps]
    sheet = heat_map_sheet(evidence.shown, evidence.maps, labels, columns=count, limit=Z_LIMIT, signed=True)
    return Section(
        "Where an image is odd",
        "The energy of an image is a sum over its pixels. A map shows how far the energy of each pixel lies from what it "
        "is in normal images at the same place, in standard deviations. In the second row the central 8 x 8 pixels come "
        f"from another test image: there the mean is {after:.2f}, against {before:.2f} at the same place before.",
        pictures=[
            Picture(
                png_bytes(sheet),
                "Test images as they are, then with a foreign square, above z-scores: red above the usual, blue below.",
                "images above maps of where they are odd",
            )
        ],
    )


def _training(evidence: Evidence) -> Section:
    picture = Picture(
        png_bytes(training_curves(evidence.metrics)),
        "Losses and gradient norm of the run, against training images seen.",
        "falling curves of the losses",
    )
    return Section("Training", pictures=[picture])
