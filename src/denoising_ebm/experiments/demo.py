"""The demo from training to evidence: run it, continue it, or only rebuild its page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.config import Config
from denoising_ebm.datasets.images import load_images, to_float
from denoising_ebm.experiments.demo_page import Evidence, auroc_table, report_metadata, report_sections, summary
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood.detector import Detector, DetectorConfig
from denoising_ebm.ood.features import log_energies
from denoising_ebm.ood.outliers import SYNTHETIC_OOD
from denoising_ebm.presets import preset
from denoising_ebm.samplers import Trajectory
from denoising_ebm.training.checkpoint import STATE_FILE
from denoising_ebm.training.logging import read_metrics
from denoising_ebm.training.trainer import train
from denoising_ebm.utils.device import choose_device
from denoising_ebm.utils.io import read_json, write_text_atomically
from denoising_ebm.viz.report import Table, write_report

MARKER = "demo.json"
REPORT = "report.html"
#: Noise levels at which single energies are compared; those within the model's range are used.
LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
#: Side of the foreign square in pixels.
SQUARE = 8


@dataclass(frozen=True)
class Sizes:
    """How many images the demo looks at.

    Attributes:
        train: Training images; None for all.
        fit: Training images that the detector is fitted on.
        scored: Images of each set that are scored; as many others calibrate the detector.
        samples: Images drawn.
    """

    train: int | None
    fit: int
    scored: int
    samples: int


FULL = Sizes(train=None, fit=1000, scored=1000, samples=64)
FAST = Sizes(train=1000, fit=200, scored=100, samples=16)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        report: The page.
        table: AUROC of each odd set.
        evidence: What the page shows.
    """

    report: Path
    table: Table
    evidence: Evidence


def run_demo(
    folder: Path,
    *,
    minutes: float = 7.0,
    seed: int = 0,
    device: str = "auto",
    sizes: Sizes = FULL,
    overwrite: bool = False,
    config: Config | None = None,
    log: Callable[[str], object] = lambda message: None,
) -> DemoResult | None:
    """Run the demo, or continue it; of a finished one only rebuild the report.

    Args:
        folder: For the run (`run/`) and the report.
        minutes: Minutes of training.
        seed: Of weights, training, samples and pairs.
        device: `auto`, `cpu` or `cuda`.
        sizes: How many images to look at.
        overwrite: Delete what an earlier demo wrote into `folder`.
        config: Train this instead of the preset `fashion-mnist`.
        log: Told what happens, in short lines.

    Returns:
        The result, or None if the user interrupted training, which the next call continues.

    Raises:
        ValueError: If `folder` holds something else, or a finished demo with other settings.
    """
    settings = {"minutes": round(minutes, 3), "seed": seed, "fast": sizes == FAST}
    finished = _prepare(folder, settings, overwrite)
    config = config or preset("fashion-mnist")
    images = load_images("fashion-mnist", split="train", limit=sizes.train, progress=False).pixels
    if finished:
        log(f"{folder}: training is finished; rebuilding its report (--overwrite starts anew)")
        model = DenoisingEBM.from_pretrained(folder / "run", device=device).set_precision("auto")
    else:
        resume = (folder / "run" / STATE_FILE).is_file()
        log(f"{'continuing' if resume else 'training'} on {len(images):,} images for {minutes:.2g} min in all")
        training = replace(config.training, max_minutes=minutes, seed=seed, sample_minutes=min(2.0, minutes))
        result = train(
            images,
            replace(config, training=training),
            folder / "run",
            data_name="Fashion-MNIST, the bundled sample",
            resume=resume,
            device=device,
        )
        if not result.finished:
            return None
        model = result.model
        _write_marker(folder, {**settings, "trained": True})
    evidence = gather(model, images, sizes, seed, read_metrics(folder / "run"), log)
    evidence.detector.save(folder / "run" / "model")
    report = folder / REPORT
    write_report(
        report,
        title="Denoising-EBM on Fashion-MNIST",
        sections=report_sections(evidence),
        metadata=report_metadata(evidence, folder, settings, choose_device(device)),
        summary=summary(evidence),
    )
    return DemoResult(report, auroc_table(evidence), evidence)


def gather(
    model: DenoisingEBM,
    training_images: Tensor,
    sizes: Sizes,
    seed: int,
    metrics: list[dict[str, Any]],
    log: Callable[[str], object] = lambda message: None,
) -> Evidence:
    """Sample and score: everything that the report shows.

    Args:
        model: The trained model.
        training_images: uint8 `(n, channels, height, width)`, for the detector.
        sizes: How many images to look at.
        seed: Of samples and pairs.
        metrics: Records of the run.
        log: Told what happens.
    """
    log(f"drawing {sizes.samples} samples in two stages")
    trajectory = Trajectory(model.decode)
    drawn = model.sample(sizes.samples, seed=seed, callback=trajectory)
    trajectory.add(drawn.images, "end")

    new = load_images("fashion-mnist", split="test", limit=2 * sizes.scored, progress=False).pixels
    # At random, since exchangeable images are what the promise on false alarms needs.
    new = new[torch.randperm(len(new), generator=torch.Generator().manual_seed(seed))]
    normal, calibration = new[: sizes.scored], new[sizes.scored :]
    log(f"fitting a detector to {min(sizes.fit, len(training_images)):,} training images")
    # As many altered images as keep the demo short.
    detector = Detector(model, DetectorConfig(altered=max(1, sizes.fit // 10)))
    detector.fit(training_images[: sizes.fit], calibration=calibration, seed=seed)
    odd = {
        "interpolations": SYNTHETIC_OOD["interpolation"](normal, torch.Generator().manual_seed(seed)),
        "upside down": SYNTHETIC_OOD["upside-down"](normal, torch.Generator().manual_seed(seed)),
        "digits": load_images("digits", split="test", limit=sizes.scored, progress=False).pixels,
    }
    sets = {"test images": normal, **odd}
    noise = model.config.noise
    levels = [level for level in LEVELS if noise.sigma_min <= level <= noise.sigma_max]
    log(f"scoring {len(normal):,} test images and {len(odd)} odd sets")
    inner = model.scoring_noise(seed=seed) if model.config.energy.inner_noise else None
    originals = normal[:8]
    shown = torch.cat([originals, paste_squares(originals, normal[8:16])])
    return Evidence(
        model=model,
        metrics=metrics,
        samples=drawn,
        trajectory=trajectory,
        real=to_float(normal[: sizes.samples]),
        levels=levels,
        log_energies={name: log_energies(model, pixels, levels, noise=inner) for name, pixels in sets.items()},
        detector=detector,
        scores={name: detector.score(pixels) for name, pixels in sets.items()},
        shown=to_float(shown),
        maps=detector.maps(shown),
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


def _prepare(folder: Path, settings: Mapping[str, Any], overwrite: bool) -> bool:
    """Make the folder ready; True if it holds a finished demo with these settings."""
    marker = folder / MARKER
    if not marker.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder}: exists and is no demo; choose another --out")
        _write_marker(folder, {**settings, "trained": False})
        return False
    if overwrite:
        _write_marker(folder, {**settings, "trained": False})
        shutil.rmtree(folder / "run", ignore_errors=True)
        (folder / REPORT).unlink(missing_ok=True)
        return False
    found = read_json(marker, "--overwrite starts anew")
    for name, value in settings.items():
        if found.get(name) != value:
            raise ValueError(
                f"{folder}: holds a demo with {name} {found.get(name)}, not {value}; "
                "give the same, another --out, or --overwrite to start anew"
            )
    if not found.get("trained") and not (folder / "run" / STATE_FILE).is_file():
        # Ended before its first save: nothing to continue.
        shutil.rmtree(folder / "run", ignore_errors=True)
    return bool(found.get("trained"))


def _write_marker(folder: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values) + "\n"
    write_text_atomically(folder / MARKER, text)
