"""`debm fit-detector`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from denoising_ebm.cli.common import check_at_least, note, output_folder
from denoising_ebm.cli.options import HARDWARE, TRAIN_IMAGES, HardwareOptions, ImageOptions

if TYPE_CHECKING:
    from denoising_ebm.ood.detector import Detector

#: Fewer calibration images, or groups, make a promise that holds on average over detectors only: it is said.
FEW = 9


def fit_detector(
    model: str,
    data: str,
    *,
    out: Path | None = None,
    calibration: str | None = None,
    calibration_split: str | None = None,
    images: int = 5000,
    corrupted_images: int = 100,
    calibration_images: int = 2000,
    groups: str = "auto",
    harmless: Literal["none", "jpeg"] = "none",
    seed: int = 0,
    batch_size: int = 256,
    options: ImageOptions = TRAIN_IMAGES,
    hardware: HardwareOptions = HARDWARE,
) -> None:
    r"""Fit an anomaly detector to normal images.

    It learns the distribution of the model's features on normal images, how slight corruptions of some of them (noise,
    blur, rotation, ...) change these features, and statistics of the energy of each pixel. Scores of calibration
    images then give `debm score` its p-values and its false-alarm rate. Thousands of images are best, and a few
    hundred work.

    Writes detector.json and detector.safetensors into the model's folder, or into --out.

    Calibration images should be new to the model. Images that it was trained on look more normal to it than others,
    and the false-alarm rate would be exceeded. Without --calibration a fifth of the images drawn from DATA is held out
    for it.

    Frames of a scene, shots of a burst or slices of a patient look alike: a detector that knows a scene tells nothing
    about the next one. So fitting and calibration share no group of such images, each group has one say, and a
    false-alarm rate holds for images of new groups. Near copies are found by themselves; where images of a group look
    less alike, say by --groups what belongs together.

    Images look anomalous if they were compressed or resized in another way than those of the detector. It keeps how
    these were stored, and `debm score` says if others come. DATA may hold files of several kinds: where 20 or more
    calibration images are of a kind, the false-alarm rate is kept for that kind.

    Examples:
        debm fit-detector runs/mine normal-images/
        debm fit-detector runs/mine train-images/ --calibration new-normal-images/
        debm fit-detector runs/cifar CIFAR10 --split train --calibration CIFAR10 --calibration-split test
        debm fit-detector fashion-mnist fashion-mnist --out my-detector
        debm fit-detector runs/mine frames/ --groups "^(patient\d+)_"

    Args:
        model: Run folder, model folder, name of a bundled model, or Hub id owner/name.
        data: Normal images: folder of images or of Parquet files, one such file, bundled dataset (fashion-mnist, digits),
            or hf://owner/name on the Hugging Face Hub.
        out: Folder to write the detector to. By default the model's.
        calibration: Normal images that the model was not trained on.
        calibration_split: Part of --calibration to use, that it must have; by default test, or all where it has no parts.
        images: Images to fit to, drawn at random.
        corrupted_images: Images to apply every corruption to.
        calibration_images: Images of --calibration to use, drawn at random. N of them allow false-alarm rates down to
            1 / (N + 1); in groups, N is their number.
        groups: Which images belong together, and are no independent evidence: auto finds near copies; folder, those of a
            folder; prefix, those whose names differ in the number at their end (scene0_001.png is of scene0); a regular
            expression with one group in parentheses, searched for in each name; none.
        harmless: jpeg: compression as JPEG of qualities 70 to 95 is normal, too. Half of the images are fitted to as
            compressed copies, and the false-alarm rate is kept for such copies, of which a detector that saw PNG alone
            flags a third and more. The price is the eye for faint noise and for JPEG itself: with cifar10-small a mean
            AUROC of .94 on corruptions of that kind instead of .98.
        seed: Seed of these draws.
        batch_size: Images in a forward pass.
        options: How to read DATA and --calibration.
        hardware: Where to compute.
    """
    check_at_least(20, images=images)
    check_at_least(1, calibration_images=calibration_images, corrupted_images=corrupted_images, batch_size=batch_size)
    check_at_least(0, seed=seed)
    import torch

    from denoising_ebm.datasets.images import image_hashes
    from denoising_ebm.ood.detector import Detector
    from denoising_ebm.ood.detector_config import DetectorConfig
    from denoising_ebm.ood.groups import check_rule
    from denoising_ebm.utils.lock import locked
    from denoising_ebm.utils.progress import progress_bar

    check_rule(groups)
    folder = output_folder(model, out, "the detector")
    net = hardware.load_model(model)
    options = options.as_fitted(None, net)
    draws = torch.Generator().manual_seed(seed)
    normal = options.load(data, net.image_shape, sample=images, generator=draws)
    held_out = None
    if calibration is None:
        note(
            f"a fifth of the images drawn from {data} is held out for calibration; if the model was trained on them, new "
            "normal images are flagged more often than promised: give new ones with --calibration"
        )
    else:
        others = replace(options, split=calibration_split, limit=None)
        # As many more as may be among those that are fitted to.
        most = calibration_images + len(normal)
        held_out = others.load(
            calibration, net.image_shape, default_split="test", normal_only=True, sample=most, generator=draws
        )
        known = torch.isin(image_hashes(held_out.pixels), image_hashes(normal.pixels))
        if bool(known.all()):
            raise ValueError(f"{calibration}: its images are all among those of {data} that are fitted to")
        if bool(known.any()):
            note(f"{calibration}: {int(known.sum()):,} images that are fitted to as well are left out")
        held_out = held_out.take((~known).nonzero()[:calibration_images, 0])
    config = DetectorConfig(num_corrupted=corrupted_images, harmless=() if harmless == "none" else (harmless,))
    detector = Detector(net, config, preprocessing=options.preprocessing(net))
    work = detector.fit_work(len(normal), None if held_out is None else len(held_out))
    with locked(folder, "debm fit-detector"), progress_bar("fitting", work) as progress:
        detector.fit(normal, calibration=held_out, groups=groups, seed=seed, batch_size=batch_size, progress=progress)
        detector.save(folder)
    _note_groups(detector)
    counts = ", ".join(f"{name} {count:,} images" for name, count in detector.metadata.items())
    note(f"{folder}: detector {counts}; {_promise(detector.num_calibration)}")


def _promise(count: int) -> str:
    """Say what so many calibration images, or groups of them, promise."""
    from denoising_ebm.ood.conformal import fpr_interval

    lowest = 1 / (count + 1)
    promise = f"false-alarm rates down to {lowest:.2g} can be promised"
    if count < FEW:
        low, high = fpr_interval(lowest, count, 10_000)
        promise += f" on average; with so few, that of this detector lies anywhere from {low:.2g} to {high:.2g}"
    return promise


def _note_groups(detector: Detector) -> None:
    """Say what was one group, and what this leaves of the promise."""
    found = detector.grouping
    if found.alike:
        text = (
            f"{found.alike:,} images are not alone in their group (by {found.by}): {found.fitted:,} groups to fit to, "
            f"{found.calibrated:,} for calibration; what is promised counts groups"
        )
        if found.calibrated < 19:
            text += f", so no rate below {1 / (found.calibrated + 1):.2g} is: give images of more groups"
        note(text)
    if found.lookalikes:
        note(
            f"{found.lookalikes:,} images have near copies among the others, but no sign that they come in bursts, so each "
            "stands for itself; if they show few scenes, say by --groups which belong together"
        )
    if found.left_out:
        note(f"{found.left_out:,} calibration images of groups that are fitted to are left out (by {found.by})")
