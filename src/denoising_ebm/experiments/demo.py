"""The demo from training to evidence: run it, continue it, or only rebuild its page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.config import Config
from denoising_ebm.datasets.images import load_images, to_float
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.experiments.cache import Log
from denoising_ebm.experiments.demo_page import NORMAL, Evidence, auroc_table, page_metadata, page_sections, summary
from denoising_ebm.experiments.demo_photos import inspect_paper, photo_section
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood.corruptions import SYNTHETIC_OOD
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import log_energies
from denoising_ebm.presets import preset
from denoising_ebm.samplers import Trajectory, two_stage_steps
from denoising_ebm.training.checkpoint import has_state
from denoising_ebm.training.logging import read_metrics
from denoising_ebm.training.once import is_finished, train_once
from denoising_ebm.utils.device import choose_device, torch_threads
from denoising_ebm.utils.io import check_marker, write_text_atomically
from denoising_ebm.utils.progress import Bar, no_bar
from denoising_ebm.viz.report import Table, write_report

MARKER = "demo.json"
REPORT = "report.html"
#: Folder of the photographs.
PHOTOS = "photos"
#: Noise levels at which single energies are compared; those within the model's range are used.
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
#: Side of the foreign square in pixels.
SQUARE = 8


@dataclass(frozen=True)
class DemoSizes:
    """How many images the demo looks at."""

    train: int | None  #: Training images; None for all.
    fit: int  #: Training images that the detector is fitted on.
    scored: int  #: Images of each set that are scored; as many others calibrate the detector.
    samples: int  #: Images drawn.
    photo_minutes: float = 0.2  #: Minutes of training on photographs.


FULL = DemoSizes(train=None, fit=1000, scored=1000, samples=64, photo_minutes=2.5)
FAST = DemoSizes(train=1000, fit=200, scored=100, samples=16, photo_minutes=0.2)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found."""

    report: Path  #: The page.
    table: Table  #: AUROC of each OOD set.
    evidence: Evidence  #: What the page shows.


def run_demo(
    folder: Path,
    *,
    minutes: float = 7.0,
    seed: int = 0,
    device: str = "auto",
    sizes: DemoSizes = FULL,
    threads: int | None = None,
    overwrite: bool = False,
    config: Config | None = None,
    log: Log = lambda message: None,
    bar: Bar = no_bar,
) -> DemoResult:
    """Run the demo, or continue it; of a finished one only rebuild the report.

    Args:
        folder: For the run (`run/`) and the report.
        minutes: Minutes of training.
        seed: Of weights, training, samples and pairs.
        device: `auto`, `cpu` or `cuda`.
        sizes: How many images to look at.
        threads: Of torch on the CPU; as many as are free if None, measured before training and after it.
        overwrite: Delete what an earlier demo wrote into `folder`.
        config: Train this instead of the preset `fashion-mnist`.
        log: Told what happens, in short lines.
        bar: Shows how far each part after training is.

    Raises:
        ValueError: If `folder` holds something else, or a demo with other settings.
        KeyboardInterrupt: If the user interrupted; the next call continues.
    """
    settings = {"minutes": round(minutes, 3), "seed": seed, "fast": sizes == FAST}
    run = folder / "run"
    _prepare(folder, settings, overwrite)
    images = load_images("fashion-mnist", split="train", limit=sizes.train, progress=False).pixels
    place = choose_device(device)

    def computing() -> AbstractContextManager[int]:
        return torch_threads(threads if place.type == "cpu" else torch.get_num_threads())

    if is_finished(run):
        log(f"{folder}: training is finished; rebuilding its report (--overwrite starts anew)")
    with computing() as count:
        if not is_finished(run):
            what = "continuing" if has_state(run) else "training"
            on = f" with {count} thread{'s' * (count != 1)}" if place.type == "cpu" else ""
            log(f"{what} on {len(images):,} images for {minutes:.2g} min in all{on}")
        config = config or preset("fashion-mnist")
        training = replace(config.training, max_minutes=minutes, seed=seed, sample_minutes=min(2.0, minutes))
        config = replace(config, training=training)
        name, prepared = "Fashion-MNIST, the bundled sample", Preprocessing(images.shape[-1], images.shape[1])
        model = train_once(images, config, run, data_name=name, preprocessing=prepared, device=device)
    with computing():
        evidence = gather(model, images, sizes, seed, read_metrics(run, log), log, bar)
        evidence.detector.save(run / "model")
        photos = inspect_paper(folder / PHOTOS, minutes=sizes.photo_minutes, seed=seed, device=device, log=log, bar=bar)
        report = folder / REPORT
        write_report(
            report,
            title="Denoising-EBM on Fashion-MNIST",
            sections=[*page_sections(evidence), photo_section(photos)],
            metadata=page_metadata(evidence, folder, settings, place),
            summary=summary(evidence),
        )
    return DemoResult(report, auroc_table(evidence), evidence)


def gather(
    model: DenoisingEBM,
    training_images: Tensor,
    sizes: DemoSizes,
    seed: int,
    metrics: list[dict[str, Any]],
    log: Log = lambda message: None,
    bar: Bar = no_bar,
) -> Evidence:
    """Sample, fit a detector, score and map: everything that the report shows.

    Args:
        model: The trained model.
        training_images: uint8 `(n, channels, height, width)`, for the detector.
        sizes: How many images to look at.
        seed: Of samples and pairs.
        metrics: Records of the run.
        log: Told what happens.
        bar: Shows how far each part is.
    """

    def part(number: int, what: str, total: int) -> AbstractContextManager[Callable[[int], object]]:
        log(f"{number} of 4: {what}")
        return bar(f"{number} of 4", total)

    trajectory = Trajectory(model.decode)
    steps = two_stage_steps(model.config.sampling)
    with part(1, f"drawing {sizes.samples} samples", sizes.samples * steps) as advance:
        drawn = model.sample(sizes.samples, seed=seed, callback=trajectory, progress=advance)
    trajectory.add(drawn.images, "end")

    new = load_images("fashion-mnist", split="test", limit=2 * sizes.scored, progress=False).pixels
    # At random, since exchangeable images are what the promise on false alarms needs.
    new = new[torch.randperm(len(new), generator=torch.Generator().manual_seed(seed))]
    normal, calibration = new[: sizes.scored], new[sizes.scored :]
    fitted = training_images[: sizes.fit]
    # As many corrupted images as keep the demo short.
    detector = Detector(model, DetectorConfig(num_corrupted=max(1, sizes.fit // 10)))
    work = detector.fit_work(len(fitted), len(calibration))
    with part(2, f"fitting a detector to {len(fitted):,} training images", work) as advance:
        detector.fit(fitted, calibration=calibration, seed=seed, progress=advance)

    generator = torch.Generator()
    sets = {
        NORMAL: normal,
        "interpolations": SYNTHETIC_OOD["interpolation"](normal, generator.manual_seed(seed)),
        "upside down": SYNTHETIC_OOD["upside-down"](normal, generator.manual_seed(seed)),
        "digits": load_images("digits", split="test", limit=sizes.scored, progress=False).pixels,
    }
    noise = model.config.noise
    sigmas = [sigma for sigma in SIGMAS if noise.sigma_min <= sigma <= noise.sigma_max]
    inner = model.scoring_noise(seed=seed) if model.config.energy.inner_noise else None
    total = sum(len(pixels) for pixels in sets.values())
    with part(
        3, f"scoring {len(normal):,} test images and {len(sets) - 1} OOD sets", (1 + len(sigmas)) * total
    ) as advance:
        energies = {
            name: log_energies(model, pixels, sigmas, noise=inner, progress=advance) for name, pixels in sets.items()
        }
        scores = {name: detector.score(pixels, progress=advance) for name, pixels in sets.items()}

    originals = normal[:8]
    shown = torch.cat([originals, paste_squares(originals, normal[8:16])])
    with part(4, "mapping anomalies, and writing the report", len(shown)) as advance:
        maps = detector.maps(shown, progress=advance)
    return Evidence(
        model=model,
        metrics=metrics,
        samples=drawn,
        trajectory=trajectory,
        real=to_float(normal[: sizes.samples]),
        sigmas=sigmas,
        log_energies=energies,
        detector=detector,
        scores=scores,
        shown=to_float(shown),
        maps=maps,
        square=_square(originals),
    )


def paste_squares(images: Tensor, others: Tensor) -> Tensor:
    """Return copies of uint8 images whose central 8x8 square comes from others."""
    rows, columns = _square(images)
    result = images.clone()
    result[..., rows, columns] = others[..., rows, columns]
    return result


def _square(images: Tensor) -> tuple[slice, slice]:
    top, left = ((side - SQUARE) // 2 for side in images.shape[-2:])
    return slice(top, top + SQUARE), slice(left, left + SQUARE)


def _prepare(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the folder one of a demo with these settings."""
    marker = folder / MARKER
    if overwrite and marker.is_file():
        for part in ("run", PHOTOS):
            shutil.rmtree(folder / part, ignore_errors=True)
        (folder / REPORT).unlink(missing_ok=True)
        marker.unlink()
    elif check_marker(
        marker, settings, what="a demo", hint="give the same, another --out, or --overwrite to start anew"
    ):
        return
    write_text_atomically(marker, json.dumps(settings) + "\n")
