"""`debm fit-detector`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from denoising_ebm.cli.common import check_at_least, note, output_folder
from denoising_ebm.cli.options import HARDWARE, TRAIN_IMAGES, HardwareOptions, ImageOptions


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
    seed: int = 0,
    batch_size: int = 256,
    options: ImageOptions = TRAIN_IMAGES,
    hardware: HardwareOptions = HARDWARE,
) -> None:
    """Fit an anomaly detector to normal images.

    It learns the distribution of the model's features on normal images, how slight corruptions of some of them (noise,
    blur, rotation, ...) change these features, and statistics of the energy of each pixel. Scores of calibration
    images then give `debm score` its p-values and its false-alarm rate. Thousands of images are best, and a few
    hundred work.

    Writes detector.json and detector.safetensors into the model's folder, or into --out.

    Calibration images should be new to the model. Images that it was trained on look more normal to it than others,
    and the false-alarm rate would be exceeded. Without --calibration a fifth of the images drawn from DATA is held out
    for it.

    Examples:
        debm fit-detector runs/mine normal-images/
        debm fit-detector runs/mine train-images/ --calibration new-normal-images/
        debm fit-detector runs/cifar CIFAR10 --split train --calibration CIFAR10 --calibration-split test
        debm fit-detector fashion-mnist fashion-mnist --out my-detector

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
            1 / (N + 1).
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
    from denoising_ebm.ood.detector import Detector, DetectorConfig
    from denoising_ebm.utils.progress import progress_bar

    folder = output_folder(model, out, "the detector")
    net = hardware.load_model(model)
    options = options.as_fitted(None, net)
    draws = torch.Generator().manual_seed(seed)
    pixels = options.load(data, net.image_shape, sample=images, generator=draws).pixels
    held_out = None
    if calibration is None:
        note(
            f"a fifth of the images drawn from {data} is held out for calibration; if the model was trained on them, new "
            "normal images are flagged more often than promised: give new ones with --calibration"
        )
    else:
        others = replace(options, split=calibration_split, limit=None)
        # As many more as may be among those that are fitted to.
        most = calibration_images + len(pixels)
        held_out = others.load(calibration, net.image_shape, default_split="test", sample=most, generator=draws).pixels
        known = torch.isin(image_hashes(held_out), image_hashes(pixels))
        if bool(known.all()):
            raise ValueError(f"{calibration}: its images are all among those of {data} that are fitted to")
        if bool(known.any()):
            note(f"{calibration}: {int(known.sum()):,} images that are fitted to as well are left out")
        held_out = held_out[~known][:calibration_images]
    config = DetectorConfig(num_corrupted=corrupted_images)
    detector = Detector(net, config, preprocessing=options.preprocessing(net))
    work = detector.fit_work(len(pixels), None if held_out is None else len(held_out))
    with progress_bar("fitting", work) as progress:
        detector.fit(pixels, calibration=held_out, seed=seed, batch_size=batch_size, progress=progress)
    detector.save(folder)
    counts = ", ".join(f"{name} {count:,} images" for name, count in detector.metadata.items())
    lowest = 1 / (len(detector.calibration) + 1)
    note(f"{folder}: detector {counts}; false-alarm rates down to {lowest:.2g} can be promised")
