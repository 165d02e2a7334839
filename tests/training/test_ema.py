from __future__ import annotations

import math

import pytest
import torch

from denoising_ebm import DenoisingEBM
from denoising_ebm.training.ema import AveragedWeights
from runs import assert_equal


def fill(model: DenoisingEBM, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_average_of_constant_weights(tiny_model: DenoisingEBM) -> None:
    average = AveragedWeights(tiny_model, 0.999)
    for _ in range(20):
        average.update_parameters(tiny_model)
    assert_equal(list(average.module.parameters()), list(tiny_model.parameters()))


def test_average_of_a_ramp(tiny_model: DenoisingEBM) -> None:
    """With w_n = n and a constant decay d the average is n - (1 - d^n) d / (1 - d)."""
    d, n = 0.15, 30  # below the warm-up's smallest decay 2 / 11
    average = AveragedWeights(tiny_model, d)
    for i in range(n + 1):
        fill(tiny_model, float(i))
        average.update_parameters(tiny_model)
    expected = n - (1 - d**n) * d / (1 - d)
    for parameter in average.module.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))


def test_average_forgets_the_first_weights(tiny_model: DenoisingEBM) -> None:
    """The warm-up leaves the product of (1 + i) / (10 + i) of them, not 0.999^n."""
    average = AveragedWeights(tiny_model, 0.999)
    fill(tiny_model, 1.0)
    average.update_parameters(tiny_model)  # the first update copies
    fill(tiny_model, 0.0)
    for _ in range(50):
        average.update_parameters(tiny_model)
    expected = math.prod((1 + i) / (10 + i) for i in range(1, 51))
    value = next(average.module.parameters()).detach().flatten()[0]
    assert float(value) == pytest.approx(expected, rel=1e-4)


def test_average_copies_buffers(tiny_model: DenoisingEBM, generator: torch.Generator) -> None:
    average = AveragedWeights(tiny_model, 0.999)
    average.update_parameters(tiny_model)
    tiny_model.dae.unet.whitening.update(torch.randn(20, 4, generator=generator) + 5)
    average.update_parameters(tiny_model)
    averaged = average.module
    assert isinstance(averaged, DenoisingEBM)
    assert torch.equal(averaged.dae.unet.whitening.mean, tiny_model.dae.unet.whitening.mean)
