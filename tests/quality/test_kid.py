from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from denoising_ebm.quality.kid import KernelDistance, kernel_distance, subset_kernel_distance


def cloud(num: int, generator: torch.Generator, shift: float = 0.0, dim: int = 16) -> Tensor:
    return torch.randn(num, dim, generator=generator) + shift


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_kernel_distance_is_torch_fidelitys(shift: float, generator: torch.Generator) -> None:
    """One subset of all vectors is the estimate on the whole sets."""
    a, b = cloud(400, generator, shift), cloud(400, generator)
    metric: Any = import_module("torch_fidelity.metric_kid")
    expected = metric.kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=400, verbose=False)
    assert kernel_distance(a, b) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3, abs=1e-7)


def test_kernel_distance_is_unbiased_at_few_and_unequal_numbers(generator: torch.Generator) -> None:
    """Of equal distributions the mean is 0; of others it is that of many images."""
    pairs = [(cloud(12, generator), cloud(30, generator)) for _ in range(400)]
    values = np.array([kernel_distance(a, b) for a, b in pairs])
    assert abs(values.mean()) < 3 * values.std() / 400**0.5 and (values < 0).any()
    moved = np.array([kernel_distance(a + 0.5, b) for a, b in pairs])
    truth = kernel_distance(cloud(8000, generator, 0.5), cloud(8000, generator))
    assert abs(moved.mean() - truth) < 3 * moved.std() / 400**0.5 + 0.02 * truth
    assert truth > 10 * values.std() / 400**0.5


def test_kernel_distance_by_hand() -> None:
    """a = 1, 3 and b = 0, 1, 2 in one dimension: kernels (xy + 1)^3."""
    a, b = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    within_a, within_b = 4**3, (1 + 1 + 3**3) / 3
    between = (1 + 2**3 + 3**3 + 1 + 4**3 + 7**3) / 6
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between)


def test_kernel_distance_refuses() -> None:
    with pytest.raises(ValueError, match="at least 2 feature vectors a set, got 1 and 2"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"shapes \(n, d\) and \(m, d\)"):
        kernel_distance(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_kid_is_torch_fidelitys(shift: float, generator: torch.Generator) -> None:
    """The same subsets, of sets of unequal numbers; torch-fidelity computes in float32."""
    a, b = cloud(150, generator, shift), cloud(120, generator)
    metric: Any = import_module("torch_fidelity.metric_kid")
    expected = metric.kid_features_to_metric(a, b, kid_subsets=20, kid_subset_size=60, verbose=False)
    found = subset_kernel_distance(a, b, subsets=20, size=60)
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3, abs=1e-6)
    assert found.deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-3)


def test_kid_of_few_vectors_takes_all_of_the_smaller_set() -> None:
    a, b = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    # Of b two vectors are drawn; whichever they are, the distance is that of the pair.
    pairs = [kernel_distance(a, b[list(pair)]) for pair in ((0, 1), (0, 2), (1, 2))]
    found = subset_kernel_distance(a, b, subsets=200)
    assert min(pairs) < found.mean < max(pairs)
    # Each of the three is drawn a third of the time: 5 standard errors.
    assert abs(found.mean - np.mean(pairs)) < 5 * np.std(pairs) / 200**0.5
    assert found.deviation == pytest.approx(np.std(pairs), rel=0.3)
    assert subset_kernel_distance(a, a + 1, subsets=3) == KernelDistance(kernel_distance(a, a + 1), 0.0)


def test_kid_refuses() -> None:
    with pytest.raises(ValueError, match="subsets >= 1 and size >= 2, got 0 and 5"):
        subset_kernel_distance(torch.zeros(9, 3), torch.zeros(9, 3), subsets=0, size=5)
    with pytest.raises(ValueError, match="at least 2 feature vectors a set, got 1 and 1"):
        subset_kernel_distance(torch.zeros(1, 3), torch.zeros(2, 3))
