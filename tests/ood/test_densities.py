from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import mahalanobis

from denoising_ebm import PRESETS, DenoisingEBM
from denoising_ebm.datasets.images import load_images, to_float
from denoising_ebm.ood.densities import (
    Density,
    Mahalanobis,
    Mixture,
    Neighbours,
    Principal,
    Single,
    TwoSided,
)
from denoising_ebm.ood.features import log_energies


@pytest.fixture
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-1.0, 0.3, 0.1]], dtype=torch.float64)
    return torch.randn(400, 3, generator=generator, dtype=torch.float64) @ mixing.T + torch.tensor([5.0, -1.0, 0.0])


def test_equals_scipy_with_numpys_covariance(features: torch.Tensor) -> None:
    detector = Mahalanobis().fit(features)
    inverse = np.linalg.inv(np.cov(features.numpy(), rowvar=False))
    others = features[:20] * 1.5 + 0.3
    expected = [mahalanobis(row, features.numpy().mean(0), inverse) for row in others.numpy()]
    np.testing.assert_allclose(detector.score(others).numpy(), expected, rtol=1e-9)


def test_one_feature_is_the_number_of_standard_deviations() -> None:
    detector = Mahalanobis().fit(torch.tensor([[1.0], [3.0], [5.0]]))
    # Mean 3, unbiased variance 4.
    assert detector.score(torch.tensor([[3.0], [7.0], [-1.0]])).tolist() == pytest.approx([0.0, 2.0, 2.0])


def test_invariant_under_linear_maps(features: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(4)
    linear = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    plain = Mahalanobis().fit(features).score(features)
    mapped = Mahalanobis().fit(features @ linear + 7).score(features @ linear + 7)
    torch.testing.assert_close(mapped, plain, rtol=1e-7, atol=1e-9)


def test_squared_distances_of_the_fitted_rows_add_up_to_their_degrees_of_freedom(features: torch.Tensor) -> None:
    detector = Mahalanobis().fit(features)
    # Trace of S^-1 S times (n - 1).
    assert float(detector.score(features).square().sum()) == pytest.approx(399 * 3)


def test_sees_a_broken_correlation_that_no_single_feature_shows() -> None:
    generator = torch.Generator().manual_seed(5)
    common = torch.randn(1000, 1, generator=generator)
    ordinary = torch.cat([common, common + 0.1 * torch.randn(1000, 1, generator=generator)], dim=1)
    detector = Mahalanobis().fit(ordinary)
    assert float(detector.score(torch.tensor([[1.0, -1.0]]))) > 5 * float(detector.score(torch.tensor([[1.0, 1.0]])))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(3), "shape"),
        (torch.randn(3, 3), "more than 3"),
        (torch.full((9, 2), float("nan")), "not finite"),
        (torch.ones(9, 2), "singular"),
    ],
)
def test_refuses_what_it_cannot_fit(rows: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mahalanobis().fit(rows)


def test_refuses_to_score_before_fit_or_with_other_features(features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="fit first"):
        Mahalanobis().score(features)
    with pytest.raises(ValueError, match="expected 3 features"):
        Mahalanobis().fit(features).score(features[:, :2])


def test_shrinkage_damps_covariances_only(features: torch.Tensor) -> None:
    detector = Mahalanobis(shrinkage=1.0).fit(features)
    expected = ((features - features.mean(0)) / features.std(0)).square().sum(1).sqrt()
    torch.testing.assert_close(detector.score(features), expected)


def test_single_is_the_sum() -> None:
    rows = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    assert Single().fit(rows).score(rows).tolist() == [3.0, -0.5]


def test_two_sided_counts_spreads_of_each_side() -> None:
    """A skewed column: 5 to the median, 1 below and 4 above it at one standard deviation."""
    draws = torch.as_tensor(stats.norm.ppf(torch.linspace(0.00005, 0.99995, 10000).numpy()))
    skewed = torch.where(draws < 0, 5 + draws, 5 + 4 * draws)[:, None]
    detector = TwoSided().fit(skewed)
    scores = detector.score(torch.tensor([[5.0], [4.0], [9.0], [13.0]]))
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
    assert Neighbours(k=1).fit(rows).score(torch.tensor([[2.9], [8.0]])).tolist() == pytest.approx([0.1, 1.0])
    assert Neighbours(k=3).fit(rows).score(torch.tensor([[2.9], [8.0]])).tolist() == pytest.approx([2.9, 7.0])


def test_principal_components_are_white_and_change_no_distance(features: torch.Tensor) -> None:
    plain, inner = Mahalanobis().fit(features), Mahalanobis()
    scaled = features * torch.tensor([1.0, 1e4, 1e-3])
    detector = Principal(inner).fit(scaled)
    torch.testing.assert_close(detector.score(scaled), plain.score(features), rtol=1e-6, atol=1e-8)
    projected = detector._project(scaled)
    torch.testing.assert_close(torch.cov(projected.mT), torch.eye(3).double(), rtol=0, atol=1e-8)


def test_principal_share_and_residual() -> None:
    """Three columns, two of them the same: one component holds two thirds of the variance."""
    generator = torch.Generator().manual_seed(6)
    a, b = torch.randn(2, 500, 1, generator=generator, dtype=torch.float64).unbind(0)
    a, b = a - a.mean(), b - b.mean()
    b = b - a * (a.T @ b) / (a.T @ a)
    rows = torch.cat([a, a, b], dim=1)
    detector = Principal(Single(), share=0.6, residual=True).fit(rows)
    assert detector.tensors()["basis"].shape == (3, 1)
    projected = detector._project(rows)
    torch.testing.assert_close(projected[:, 1].exp(), (b / b.std()).square()[:, 0], rtol=1e-6, atol=1e-9)
    assert Principal(Single(), share=0.7).fit(rows).tensors()["basis"].shape == (3, 2)


@pytest.mark.parametrize(
    "make",
    [Single, TwoSided, Mahalanobis, lambda: Mixture(2), Neighbours, lambda: Principal(Mixture(2), 0.9, residual=True)],
)
def test_kept_tensors_give_the_same_scores(make: Callable[[], Density], features: torch.Tensor) -> None:
    detector = make().fit(features)
    kept = {name: tensor.clone() for name, tensor in detector.tensors().items()}
    assert torch.equal(make().load(kept).score(features), detector.score(features))
    with pytest.raises(ValueError, match="expected 3 features"):
        detector.score(features[:, :2])
    with pytest.raises(ValueError, match="fit first"):
        make().score(features)


def test_too_few_rows_are_refused(features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="at least 5 images, got 4"):
        Neighbours(5).fit(features[:4])
    with pytest.raises(ValueError, match="8 components needs more images"):
        Mixture(8).fit(features[:10])


@pytest.fixture(scope="module")
def model() -> DenoisingEBM:
    torch.manual_seed(0)
    return DenoisingEBM(PRESETS["fashion-mnist"]).eval()


def test_log_energies_are_the_models_energies_whatever_the_batch(model: DenoisingEBM) -> None:
    pixels = load_images("fashion-mnist", split="test", limit=7).pixels
    sigmas, calls = (0.05, 0.5), []
    result = log_energies(model, pixels, sigmas, batch_size=3, progress=calls.append)
    assert result.dtype == torch.float64 and sum(calls) == 14
    with torch.no_grad():
        expected = torch.stack([model.energy(to_float(pixels), sigma) for sigma in sigmas], dim=1).double().log()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_log_energies_use_the_given_noise(model: DenoisingEBM) -> None:
    pixels = load_images("fashion-mnist", split="test", limit=4).pixels
    noise = model.scoring_noise(num_samples=2, seed=1)
    with torch.no_grad():
        expected = model.energy(to_float(pixels), 0.2, noise).double().log()
    result = log_energies(model, pixels, [0.2], noise=noise)
    torch.testing.assert_close(result[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(result, log_energies(model, pixels, [0.2]), rtol=1e-3)


def test_log_energies_refuses_bad_levels_and_floats(model: DenoisingEBM) -> None:
    pixels = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="sigmas"):
        log_energies(model, pixels, [0.1, -0.1])
    with pytest.raises(ValueError, match="uint8"):
        log_energies(model, to_float(pixels), [0.1])
