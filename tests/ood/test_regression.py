"""Features adjusted for covariates: regressions against what they estimate, principal components, kept tensors."""

from __future__ import annotations

import pytest
import torch

from denoising_ebm.ood.regression import LIMIT, CovariateAdjustment, HeteroscedasticRegression, PrincipalComponents


def conditioned(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw c ~ N(0, 1) and y_j ~ N(c^2 / 2 - 1, exp(.8 c)), j < 3: mean and log variance are quadratic in c."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return 0.5 * c.square() - 1 + (0.4 * c).exp() * noise, c


def test_regression_finds_mean_and_spread() -> None:
    y, c = conditioned(20_000, 1)
    standard = HeteroscedasticRegression.fit(y, c, components=1).standardise(y, c)
    for part in (standard[c[:, 0] < -1], standard[c[:, 0].abs() < 0.5], standard[c[:, 0] > 1]):
        assert abs(float(part.mean())) < 0.12
        # exp(mean log chi^2_1) = 0.28: the log variance is that of the logs, which the floor of 1e-3 raises a little.
        assert float(part.var()) == pytest.approx(1 / 0.2807, rel=0.2)


def test_adjusted_features_are_standard_at_every_covariate() -> None:
    y, c = conditioned(20_000, 2)
    adjusted = CovariateAdjustment.fit(1e3 * y + 7, c)(1e3 * y + 7, c)
    for part in (adjusted, adjusted[c[:, 0] < -1], adjusted[c[:, 0] > 1]):
        assert abs(float(part.mean())) < 0.1 and float(part.std()) == pytest.approx(1, rel=0.1)
    far = CovariateAdjustment.fit(y, c)(y + 1e6, 1e6 * c)
    assert bool((far.abs() <= LIMIT).all())


def test_principal_components_are_white_and_leave_out_what_does_not_vary() -> None:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-1.0, 0.3, 0.1]], dtype=torch.float64)
    table = torch.randn(400, 3, generator=generator, dtype=torch.float64) @ mixing.T + torch.tensor([5.0, -1.0, 0.0])
    table = torch.cat([table, table[:, :1] * 1e4, torch.ones(400, 1)], dim=1)
    components = PrincipalComponents.fit(table, 5)(table)
    torch.testing.assert_close(torch.cov(components.mT), torch.eye(3).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(components.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-8)
    first = PrincipalComponents.fit(table, 1)(table)
    torch.testing.assert_close(first[:, 0], components[:, 0])


def test_far_outside_and_kept() -> None:
    y, c = conditioned(500, 0)
    regression = HeteroscedasticRegression.fit(y, c)
    assert bool(regression.standardise(y, 1e6 * c).isfinite().all())
    again = HeteroscedasticRegression.from_tensors(regression.tensors())
    assert torch.equal(again.standardise(y, c), regression.standardise(y, c))
    with pytest.raises(ValueError, match="500 rows of features, but 3 of covariates"):
        HeteroscedasticRegression.fit(y, c[:3])
    with pytest.raises(ValueError, match="500 rows of features, but 3 of covariates"):
        regression.standardise(y, c[:3])
    with pytest.raises(ValueError, match="expected 1 features, as in fit, got 2"):
        regression.standardise(y, torch.cat([c, c], dim=1))
