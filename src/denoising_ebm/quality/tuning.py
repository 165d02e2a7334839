"""Sampler settings chosen by what they give: the temperature of the last steps in pixels for a given model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from denoising_ebm.config import SamplingConfig
from denoising_ebm.datasets.images import to_uint8
from denoising_ebm.quality.evaluator import FidelityEvaluator

#: From the sampler's own, 1, down. Distances are flat around the best, so that a finer grid would follow chance.
TEMPERATURES = (1.0, 0.7, 0.5, 0.35, 0.25)


def tune_low_temperature(
    sampling: SamplingConfig,
    draw: Callable[[SamplingConfig], Tensor],
    evaluator: FidelityEvaluator,
    temperatures: Sequence[float] = TEMPERATURES,
) -> tuple[SamplingConfig, dict[float, float]]:
    """Choose the `low_temperature` whose samples come nearest to the evaluator's images.

    Lower ones leave out detail: a model of few minutes gets more of it wrong than right, one of hours does not
    (docs/ablations.md).

    Args:
        sampling: The sampler to be tuned.
        draw: Samples by a sampler, about in [-1, 1], shape (n, channels, height, width); with the same seed each time, so
            that chance is the same in all.
        evaluator: Of images that the model may know, such as those it was trained on: test images are kept for the end.
        temperatures: To choose from, each >= 0; of equally good ones the first is taken.

    Returns:
        The sampler with the best one, and the Fréchet distance at each.

    Raises:
        ValueError: If there are no temperatures, one is out of range, or samples are not finite.
    """
    if not temperatures:
        raise ValueError("temperatures must be one or more numbers >= 0, got none")
    choices = {
        temperature: replace(sampling, pixel=replace(sampling.pixel, low_temperature=temperature))
        for temperature in temperatures
    }
    distances = {}
    for temperature, choice in choices.items():
        images = draw(choice)
        if not bool(images.isfinite().all()):
            raise ValueError(f"samples at temperature {temperature:g} are not finite: the chains diverged")
        distances[temperature] = evaluator.frechet_distance(to_uint8(images))
    return choices[min(distances, key=distances.__getitem__)], distances
