from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from denoising_ebm import PRESETS, DenoisingEBM
from denoising_ebm.images import load_images, to_float
from denoising_ebm.ood.detectors import MahalanobisDetector
from denoising_ebm.ood.features import log_energies


@pytest.fixture
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-1.0, 0.3, 0.1]], dtype=torch.float64)
    return torch.randn(400, 3, generator=generator, dtype=torch.float64) @ mixing.T + torch.tensor([5.0, -1.0, 0.0])


def test_equals_scipy_with_numpys_covariance(features: torch.Tensor) -> None:
    detector = MahalanobisDetector().fit(features)
    inverse = np.linalg.inv(np.cov(features.numpy(), rowvar=False))
    others = features[:20] * 1.5 + 0.3
    expected = [mahalanobis(row, features.numpy().mean(0), inverse) for row in others.numpy()]
    np.testing.assert_allclose(detector.score(others).numpy(), expected, rtol=1e-9)


def test_one_feature_is_the_number_of_standard_deviations() -> None:
    detector = MahalanobisDetector().fit(torch.tensor([[1.0], [3.0], [5.0]]))
    # Mean 3, unbiased variance 4.
    assert detector.score(torch.tensor([[3.0], [7.0], [-1.0]])).tolist() == pytest.approx([0.0, 2.0, 2.0])


def test_invariant_under_linear_maps(features: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(4)
    linear = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    plain = MahalanobisDetector().fit(features).score(features)
    mapped = MahalanobisDetector().fit(features @ linear + 7).score(features @ linear + 7)
    torch.testing.assert_close(mapped, plain, rtol=1e-7, atol=1e-9)


def test_squared_distances_of_the_fitted_rows_add_up_to_their_degrees_of_freedom(features: torch.Tensor) -> None:
    detector = MahalanobisDetector().fit(features)
    # Trace of S^-1 S times (n - 1).
    assert float(detector.score(features).square().sum()) == pytest.approx(399 * 3)


def test_sees_a_broken_correlation_that_no_single_feature_shows() -> None:
    generator = torch.Generator().manual_seed(5)
    common = torch.randn(1000, 1, generator=generator)
    ordinary = torch.cat([common, common + 0.1 * torch.randn(1000, 1, generator=generator)], dim=1)
    detector = MahalanobisDetector().fit(ordinary)
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
        MahalanobisDetector().fit(rows)


def test_refuses_to_score_before_fit_or_with_other_features(features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="fit first"):
        MahalanobisDetector().score(features)
    with pytest.raises(ValueError, match="expected 3 features"):
        MahalanobisDetector().fit(features).score(features[:, :2])


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
    noise = model.scoring_noise(draws=2, seed=1)
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
