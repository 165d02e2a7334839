"""`debm tune`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from denoising_ebm.cli.common import check_at_least, note, output_folder
from denoising_ebm.cli.options import HARDWARE, TRAIN_IMAGES, HardwareOptions, ImageOptions


def tune(
    model: str,
    data: str,
    *,
    out: Path | None = None,
    temperatures: list[float] | None = None,
    samples: int = 500,
    images: int = 2000,
    seed: int = 0,
    batch_size: int = 64,
    options: ImageOptions = TRAIN_IMAGES,
    hardware: HardwareOptions = HARDWARE,
) -> None:
    """Fit the sampler to a trained model.

    Chooses sampling.pixel.low_temperature: the factor on the noise variance of the last steps in pixels, those below
    sampling.pixel.low_temperature_sigma. A model that was trained for minutes gets fine detail wrong, and less noise
    there brings its samples nearer to real images; a model that was trained for hours does not need it.

    Samples at each temperature are compared with images of DATA by the Fréchet distance of EfficientNet-lite0
    features. Take images that the model was trained on, and keep test images for results that you report.

    Writes the choice into config.json of the model's folder, or of a copy with --out. Further training undoes it.

    Examples:
        debm tune runs/mine my-images/
        debm tune runs/cifar CIFAR10 --samples 1000
        debm tune fashion-mnist fashion-mnist --out my-fashion

    Args:
        model: Run folder, model folder, name of a bundled model, or Hub id owner/name.
        data: Images to compare with: folder of images or of Parquet files, one such file, bundled dataset (fashion-mnist,
            digits), or hf://owner/name on the Hugging Face Hub.
        out: Folder to write the model to. By default its own.
        temperatures: Candidates, each >= 0, as a list such as [1,0.5]. By default [1, 0.7, 0.5, 0.35, 0.25].
        samples: Samples at each temperature.
        images: Images of DATA to compare with, drawn at random.
        seed: Seed of these draws and of the samples.
        batch_size: Samples that are drawn at once.
        options: How to read DATA.
        hardware: Where to compute.
    """
    check_at_least(2, samples=samples, images=images)
    check_at_least(1, batch_size=batch_size)
    check_at_least(0, seed=seed)
    import torch

    from denoising_ebm.hub import copy_model_folder, find_model_folder, rewrite_config
    from denoising_ebm.quality.evaluator import FidelityEvaluator
    from denoising_ebm.quality.tuning import TEMPERATURES, tune_low_temperature
    from denoising_ebm.samplers import two_stage_steps
    from denoising_ebm.utils.lock import locked
    from denoising_ebm.utils.progress import progress_bar
    from denoising_ebm.viz.report import Table, markdown

    candidates = TEMPERATURES if temperatures is None else tuple(dict.fromkeys(temperatures))
    if not candidates or not all(math.isfinite(t) and t >= 0 for t in candidates):
        raise ValueError(f"--temperatures must be one or more numbers >= 0, got {list(candidates)}")
    source, folder = find_model_folder(model), output_folder(model, out, "the tuned model")
    net = hardware.load_model(model)
    options = options.as_fitted(None, net)
    draws = torch.Generator().manual_seed(seed)
    pixels = options.load(data, net.image_shape, sample=images, generator=draws).pixels
    evaluator = FidelityEvaluator(pixels, device=net.device)
    sampling = net.config.sampling
    with locked(folder, "debm tune"):
        with progress_bar("sampling", len(candidates) * samples * two_stage_steps(sampling)) as progress:
            how: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "progress": progress}
            tuned, distances = tune_low_temperature(
                sampling, lambda choice: net.sample(samples, sampler=choice, **how).images, evaluator, candidates
            )
        before, best = sampling.pixel.low_temperature, tuned.pixel.low_temperature
        caption = (
            f"Fréchet distance (FD) of {samples:,} samples to {len(pixels):,} images ({evaluator.extractor.name})."
        )
        columns = [f"temperature below sigma {sampling.pixel.low_temperature_sigma:g}", "FD"]
        rows = [[f"{t:g}{' (chosen)' if t == best else ''}", f"{distance:.1f}"] for t, distance in distances.items()]
        print(f"{caption}\n\n{markdown(Table(columns, rows))}", end="")
        if folder.resolve() != source.resolve():
            copy_model_folder(source, folder)
        rewrite_config(folder, replace(net.config, sampling=tuned))
    note(
        f"{folder}: sampling.pixel.low_temperature {f'stays {best:g}' if best == before else f'{before:g} -> {best:g}'}"
    )
