from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from denoising_ebm.quality.prdc import prdc


def cloud(num: int, generator: torch.Generator, shift: float = 0.0, dim: int = 6) -> Tensor:
    return torch.randn(num, dim, generator=generator) + shift


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_precision_and_recall_are_torch_fidelitys(shift: float, generator: torch.Generator) -> None:
    generated, real = 0.8 * cloud(2300, generator, shift), cloud(1500, generator)
    metric: Any = import_module("torch_fidelity.metric_prc")
    expected = metric.prc_features_to_metric(generated, real, verbose=False)
    found = prdc(generated, real)
    assert found.precision == pytest.approx(expected["precision"], rel=1e-3)
    assert found.recall == pytest.approx(expected["recall"], rel=1e-3)
    assert 0.1 < found.recall < found.precision < 1


def test_density_and_coverage_by_hand() -> None:
    """Real points 0, 1, 2, 10, 20 on a line; with k = 1 their balls have radii 1, 1, 1, 8, 10."""
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0], [20.0]])
    generated = torch.tensor([[0.5], [1.5], [-5.0], [30.0]])
    found = prdc(generated, real, k=1, k_density=1)
    # 0.5 lies in the balls of 0 and 1, 1.5 in those of 1 and 2 (10 reaches to 2), -5 in none, 30 in that of 20.
    assert found.density == pytest.approx((2 + 2 + 0 + 1) / 4)
    assert found.coverage == pytest.approx(4 / 5)
    assert found.precision == pytest.approx(3 / 4)
    # Balls of generated: 0.5 and 1.5 of radius 1, -5 of 5.5, 30 of 28.5: all real points but none lies outside.
    assert found.recall == pytest.approx(1.0)


def test_equal_sets_overlap_wholly(generator: torch.Generator) -> None:
    x = cloud(400, generator)
    found = prdc(x, x)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
    # Every point lies in its own ball and in those it is one of the five nearest neighbours of: k + 1 on average.
    assert found.density == pytest.approx(6 / 5)


def test_far_sets_do_not_overlap(generator: torch.Generator) -> None:
    found = prdc(cloud(50, generator, 100.0), cloud(60, generator))
    assert (found.precision, found.recall, found.density, found.coverage) == (0.0, 0.0, 0.0, 0.0)


def test_refusals(generator: torch.Generator) -> None:
    x = cloud(10, generator)
    with pytest.raises(ValueError, match="more than 5 images a set, got 10 and 5"):
        prdc(x, x[:5])
    with pytest.raises(ValueError, match="features must have shapes"):
        prdc(x, x[:, :2])
    with pytest.raises(ValueError, match="k must be >= 1"):
        prdc(x, x, k=0)
