"""What is usual given other features: regressions against what they estimate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from denoising_ebm.ood.densities import Mahalanobis, Principal
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.ood.regression import Conditional, HeteroscedasticRegression


def test_expectation_finds_mean_and_spread() -> None:
    generator = torch.Generator().manual_seed(1)
    c = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    y = 0.5 * c.square() - 1 + (0.4 * c).exp() * torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    standard = HeteroscedasticRegression(components=1).fit(y, c).standardise(y, c)
    for part in (standard[c[:, 0] < -1], standard[c[:, 0].abs() < 0.5], standard[c[:, 0] > 1]):
        assert abs(float(part.mean())) < 0.12
        # exp(mean log chi^2_1) = 0.28: the log variance is that of the logs, which the floor of 1e-3 raises a little.
        assert float(part.var()) == pytest.approx(1 / 0.2807, rel=0.2)


def conditioned(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw c ~ N(0, 1) and y_j ~ N(c + c^2 / 2, exp(c)), j < 20: mean and log variance are quadratic in c."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 20, generator=generator, dtype=torch.float64)
    return c + c.square() / 2 + (c / 2).exp() * noise, c


def test_conditional_density_against_the_distances_it_estimates() -> None:
    y, c = conditioned(4000, 0)
    density = Conditional(share=1.0, components=1).fit(y, c)
    fresh, given = conditioned(500, 1)
    exact = ((fresh - given - given.square() / 2).square() * (-given).exp()).mean(1).log()
    score = density.score(fresh, given)
    # Up to an offset: E[log chi^2_1] = -1.27, and the rotation to unit variance leaves the ratios.
    difference = score - exact
    assert float(difference.std()) < 0.25 and float(score.std()) > 0.25
    assert np.corrcoef(score.numpy(), exact.numpy())[0, 1] > 0.8


def test_conditional_density_finds_what_a_marginal_one_misses() -> None:
    y, c = conditioned(4000, 0)
    fresh, given = conditioned(1000, 1)
    # Values that are usual, but not beside their c.
    others = fresh[given[:, 0].argsort(descending=True)]
    matched = given[given[:, 0].argsort()]
    conditional, marginal = Conditional(share=1.0, components=1).fit(y, c), Principal(Mahalanobis()).fit(y)
    assert auroc(marginal.score(fresh), marginal.score(others)) == pytest.approx(0.5, abs=1e-9)
    assert auroc(conditional.score(fresh, given), conditional.score(others, matched)) > 0.75


def test_conditional_density_far_outside_and_saved() -> None:
    y, c = conditioned(500, 0)
    density = Conditional(components=1).fit(y, c)
    far = density.score(y + 100, c)
    assert bool(far.isfinite().all()) and float(far.min()) > float(density.score(y, c).max())
    assert bool(density.score(y, 1e6 * c).isfinite().all())
    torch.testing.assert_close(Conditional().load(density.tensors()).score(y, c), density.score(y, c))
    with pytest.raises(ValueError, match="500 rows of features, but 3 of what they are judged by"):
        density.fit(y, c[:3])
    with pytest.raises(ValueError, match="not fitted"):
        Conditional().score(y, c)
