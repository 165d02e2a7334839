from __future__ import annotations

import pytest
import torch
from torch import Tensor

from denoising_ebm.quality.memorization import memorization_test, nearest


def cloud(num: int, generator: torch.Generator, shift: float = 0.0, dim: int = 6) -> Tensor:
    return torch.randn(num, dim, generator=generator) + shift


def test_nearest_is_exact_also_where_distances_are_small(generator: torch.Generator) -> None:
    pool = 1000 + cloud(3000, generator)
    samples = pool[[7, 2500]] + 1e-3
    distance, index = nearest(samples, pool)
    assert index.tolist() == [7, 2500]
    exact = (samples.double() - pool[[7, 2500]].double()).norm(dim=1)
    torch.testing.assert_close(distance, exact, rtol=1e-2, atol=0)
    distance, index = nearest(pool, pool, exclude_itself=True)
    brute = torch.cdist(pool.double(), pool.double()).fill_diagonal_(float("inf")).min(1)
    assert torch.equal(index, brute.indices)


def test_new_samples_are_no_copies(generator: torch.Generator) -> None:
    train, held_out, samples = (cloud(1000, generator) for _ in range(3))
    found = memorization_test(samples, train, held_out)
    low, high = found.interval
    assert low < 0.5 < high and found.p_value > 0.01
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 1000**0.5, rel=0.02)


def test_copies_are_found(generator: torch.Generator) -> None:
    train, held_out, samples = (cloud(1000, generator) for _ in range(3))
    samples[:200] = train[:200] + 0.01 * cloud(200, generator)
    found = memorization_test(samples, train, held_out)
    assert found.index[:200].tolist() == list(range(200))
    assert found.interval[0] > 0.5 and found.p_value < 1e-6
    assert found.nearer == pytest.approx(0.2 + 0.8 * 0.5, abs=0.06)


def test_pools_of_unequal_sizes_are_refused(generator: torch.Generator) -> None:
    x = cloud(10, generator)
    with pytest.raises(ValueError, match="equal sizes, got 10 and 9"):
        memorization_test(x, x, x[:9])
