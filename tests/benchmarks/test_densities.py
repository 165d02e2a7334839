"""Densities that the detector was chosen against, and features that were tried for it: against other computations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import mahalanobis

from denoising_ebm import DenoisingEBM, to_float
from denoising_ebm.ood.metrics import auroc
from support import random_pixels

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from densities import Conditional, Density, Mahalanobis, Member, Mixture, Neighbours, Principal, TwoSided
from ood_features import tried_features


@pytest.fixture
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-1.0, 0.3, 0.1]], dtype=torch.float64)
    return torch.randn(400, 3, generator=generator, dtype=torch.float64) @ mixing.T + torch.tensor([5.0, -1.0, 0.0])


def test_mahalanobis_equals_scipys(features: torch.Tensor) -> None:
    inverse = np.linalg.inv(np.cov(features.numpy(), rowvar=False, bias=True))
    others = features[:20] * 1.5 + 0.3
    expected = [mahalanobis(row, features.numpy().mean(0), inverse) for row in others.numpy()]
    np.testing.assert_allclose(Mahalanobis().fit(features).score(others).exp().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(3), "shape"),
        (torch.randn(3, 3), "more than 3"),
        (torch.full((9, 2), float("nan")), "not finite"),
        (torch.ones(9, 2), "singular"),
    ],
)
def test_mahalanobis_refuses_what_it_cannot_fit(rows: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mahalanobis().fit(rows)


def test_two_sided_counts_spreads_of_each_side() -> None:
    """A skewed column: 5 to the median, 1 below and 4 above it at one standard deviation."""
    draws = torch.as_tensor(stats.norm.ppf(torch.linspace(0.00005, 0.99995, 10000).numpy()))
    skewed = torch.where(draws < 0, 5 + draws, 5 + 4 * draws)[:, None]
    scores = TwoSided().fit(skewed).score(torch.tensor([[5.0], [4.0], [9.0], [13.0]]))
    assert scores.tolist() == pytest.approx([0.0, 1.0, 1.0, 2.0], abs=0.01)


def test_mixture_against_scipy(features: torch.Tensor) -> None:
    """Of one component it is the normal density; of two, far apart, each row is scored by its own."""
    single = Mixture(components=1, regularisation=0.0).fit(features)
    expected = stats.multivariate_normal(features.mean(0).numpy(), np.cov(features.numpy(), rowvar=False, bias=True))
    np.testing.assert_allclose(single.score(features).numpy(), -expected.logpdf(features.numpy()), rtol=1e-6)
    both = Mixture(components=2, regularisation=0.0).fit(torch.cat([features, features + 1000]))
    scores = both.score(torch.cat([features, features + 1000])).numpy()
    np.testing.assert_allclose(scores[:400], -expected.logpdf(features.numpy()) + np.log(2), rtol=1e-4)
    np.testing.assert_allclose(scores[400:], scores[:400], rtol=1e-4)


def test_neighbours_are_counted_from_the_nearest() -> None:
    rows = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    found = [Neighbours(k).fit(rows).score(torch.tensor([[2.9], [8.0]])).exp().tolist() for k in (1, 3)]
    assert found == [pytest.approx([0.1, 1.0]), pytest.approx([2.9, 7.0])]


def test_principal_components_change_no_distance(features: torch.Tensor) -> None:
    scaled = features * torch.tensor([1.0, 1e4, 1e-3])
    found = Principal(Mahalanobis(), share=1.0).fit(scaled).score(scaled)
    torch.testing.assert_close(found, Mahalanobis().fit(features).score(features), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", [TwoSided, Mahalanobis, lambda: Mixture(2), Neighbours, lambda: Principal(Mixture(2))])
def test_others_columns_are_refused(make: Callable[[], Density], features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expect(ed|ing) 3 features|has 2 features"):
        make().fit(features).score(features[:, :2])


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
    far = density.score(fresh + 100, given)
    assert bool(far.isfinite().all()) and float(far.min()) > float(score.max())


def test_conditional_density_finds_what_a_marginal_one_misses() -> None:
    y, c = conditioned(4000, 0)
    fresh, given = conditioned(1000, 1)
    # Values that are normal, but not beside their c.
    others = fresh[given[:, 0].argsort(descending=True)]
    matched = given[given[:, 0].argsort()]
    conditional = Conditional(share=1.0, components=1).fit(y, c)
    marginal = Principal(Mahalanobis(), share=1.0).fit(y)
    assert auroc(marginal.score(fresh), marginal.score(others)) == pytest.approx(0.5, abs=1e-9)
    assert auroc(conditional.score(fresh, given), conditional.score(others, matched)) > 0.75


def test_members_are_standard_on_images_they_were_not_fitted_to() -> None:
    y, c = conditioned(500, 0)
    table = {"features": y, "energy": c}
    for member in (Member(("features",), TwoSided()), Member(("features",), Conditional(), ("energy",))):
        held = member.fit(table).score({family: values[:50] for family, values in table.items()})
        assert float(held.mean()) == pytest.approx(0, abs=1e-9) and float(held.std()) == pytest.approx(1)


def test_tried_features_against_their_formulas(tiny_model: DenoisingEBM) -> None:
    pixels, sigmas = random_pixels(5), (0.05, 0.3)
    found = tried_features(tiny_model, pixels, sigmas, batch_size=3)
    noise = torch.randn((1, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    for i in range(5):
        x = to_float(pixels[i : i + 1])
        for j, sigma in enumerate(sigmas):
            with torch.no_grad():
                per_pixel = tiny_model.energy_map(x, sigma, noise)
                z = tiny_model.encode(x, sigma)
                h = tiny_model.decode(z)
                semantic = [(x - h).square().sum(), z.square().sum(), tiny_model.energy(h, sigma)[0]]
            regions = per_pixel.reshape(4, 4, 4, 4).mean((1, 3))
            spots = [regions.min(), regions.flatten().quantile(0.5), regions.max()]
            spatial = torch.stack([*(per_pixel.quantile(q) for q in (0.1, 0.25, 0.5, 0.75, 0.95, 1.0)), *spots])
            for family, expected in (("spatial", spatial / per_pixel.mean()), ("semantic", torch.stack(semantic))):
                size = len(expected)
                row = found[family][i, j * size : (j + 1) * size].float()
                torch.testing.assert_close(row, expected.log(), rtol=2e-3, atol=2e-4)
