"""Sampler settings chosen by what they give: how cold the end of the pixel chain should run for a given model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from denoising_ebm.config import Config
from denoising_ebm.datasets.images import to_uint8
from denoising_ebm.quality.evaluator import FidelityEvaluator

#: From the chain's own, 1, down. Distances are flat around the best, so that a finer grid would follow chance.
TEMPERATURES = (1.0, 0.7, 0.5, 0.35, 0.25)


class Configured(Protocol):
    """A model whose chains follow its `config`."""

    config: Config


def tune_low_temperature(
    model: Configured,
    draw: Callable[[], Tensor],
    evaluator: FidelityEvaluator,
    temperatures: Sequence[float] = TEMPERATURES,
) -> dict[float, float]:
    """Give a model's sampler the `low_temperature` whose samples come nearest to the judge's images.

    Lower ones leave out detail: a model of few minutes gets more of it wrong than right, one of hours does not
    (benchmarks/RESULTS.md).

    Args:
        model: Its `config` is changed; save it to keep the choice.
        draw: Samples of the model as its `config` says at that moment, about in [-1, 1], shape (n, channels, height, width);
            with the same seed each time, so that chance is the same in all.
        judge: Of images that the model may know, such as those it was trained on: test images are to be kept for the end.
        temperatures: To choose from, each >= 0; of equally good ones the first is taken.

    Returns:
        The distance at each temperature.

    Raises:
        ValueError: If there are no temperatures, one is out of range, or samples are not finite. `config` stays what it was.
    """
    if not temperatures:
        raise ValueError("temperatures must be one or more numbers >= 0, got none")
    config = model.config
    configs = {
        temperature: dataclasses.replace(
            config, sampling=dataclasses.replace(config.sampling, low_temperature=temperature)
        )
        for temperature in temperatures
    }
    distances = {}
    try:
        for temperature, changed in configs.items():
            model.config = changed
            images = draw()
            if not bool(images.isfinite().all()):
                raise ValueError(f"samples at temperature {temperature:g} are not finite: the chains diverged")
            distances[temperature] = evaluator.distance(to_uint8(images))
    except BaseException:
        model.config = config
        raise
    model.config = configs[min(distances, key=distances.__getitem__)]
    return distances
