from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from denoising_ebm.quality.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
)


def gaussian(mean: Tensor, covariance: Tensor, count: int = 1001) -> FeatureStatistics:
    """Statistics with exactly these moments."""
    return FeatureStatistics(mean.double(), covariance.double() * (count - 1), count)


def random_features(seed: int, count: int, length: int) -> Tensor:
    """Correlated features, away from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(length, length, generator=generator, dtype=torch.float64)
    return torch.randn(count, length, generator=generator, dtype=torch.float64) @ mixing + 3


def reference_distance(a: Tensor, b: Tensor) -> float:
    """The formula with scipy's general matrix square root."""
    x, y = a.numpy(), b.numpy()
    covariance_x, covariance_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(covariance_x @ covariance_y).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(covariance_x + covariance_y - 2 * root))


class PixelMean:
    """Two features of an image: mean, and mean of its first row."""

    name = "pixel means"
    num_features = 2

    def __call__(self, images: Tensor) -> Tensor:
        x = images.float()
        return torch.stack([x.mean(dim=(1, 2, 3)), x[:, :, 0].mean(dim=(1, 2))], dim=1)


def test_shift_and_scale_of_gaussians():
    zero, one = torch.zeros(3), torch.eye(3)
    shift = torch.tensor([1.0, 2.0, 2.0])
    assert frechet_distance(gaussian(zero, one), gaussian(shift, one)) == pytest.approx(9.0, abs=1e-12)
    # Deviations 1 and 3 in three dimensions: 3 (1 - 3)^2.
    assert frechet_distance(gaussian(zero, one), gaussian(zero, 9 * one)) == pytest.approx(12.0, abs=1e-12)
    # Independent dimensions add: (1-2)^2 + (2-5)^2 + (3-3)^2.
    a, b = torch.diag(torch.tensor([1.0, 4.0, 9.0])), torch.diag(torch.tensor([4.0, 25.0, 9.0]))
    assert frechet_distance(gaussian(zero, a), gaussian(zero, b)) == pytest.approx(10.0, abs=1e-12)


def test_identity_and_symmetry():
    a = FeatureStatistics.from_features(random_features(0, 200, 12))
    b = FeatureStatistics.from_features(random_features(1, 300, 12))
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a, b) > 1


def test_agrees_with_scipy():
    x, y = random_features(2, 400, 24), random_features(3, 300, 24)
    ours = frechet_distance(FeatureStatistics.from_features(x), FeatureStatistics.from_features(y))
    assert ours == pytest.approx(reference_distance(x, y), rel=1e-9)


def test_fewer_samples_than_features():
    # Two covariances of rank 9 in 40 dimensions on orthogonal subspaces: the cross term vanishes, the traces remain.
    features = torch.zeros(10, 40, dtype=torch.float64)
    features[:, :20] = random_features(4, 10, 20) - 3
    features -= features.mean(dim=0)
    a = FeatureStatistics.from_features(features)
    b = FeatureStatistics.from_features(features.roll(20, dims=1))
    traces = float(a.covariance.trace() + b.covariance.trace())
    assert frechet_distance(a, b) == pytest.approx(traces, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-10 * traces)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_streaming_equals_at_once(batch_size: int):
    features = random_features(5, 100, 6) + 1e6
    streamed = FeatureStatistics.empty(6)
    for batch in torch.split(features, batch_size):
        streamed.update(batch)
    assert streamed.count == 100
    torch.testing.assert_close(streamed.mean, features.mean(dim=0), rtol=1e-14, atol=0)
    torch.testing.assert_close(streamed.covariance, torch.cov(features.T), rtol=1e-8, atol=1e-8)


def test_statistics_refuse_bad_features():
    statistics = FeatureStatistics.from_features(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"must have shape \(n, 3\), got \(2, 4\)"):
        statistics.update(torch.ones(2, 4))
    with pytest.raises(ValueError, match="not finite"):
        statistics.update(torch.tensor([[1.0, float("nan"), 0.0]]))
    with pytest.raises(ValueError, match="at least 2 feature vectors, got 1"):
        frechet_distance(statistics, statistics)
    with pytest.raises(ValueError, match="different lengths: 3 and 2"):
        frechet_distance(statistics, FeatureStatistics.empty(2))


def test_distance_of_images_is_that_of_their_features():
    generator = torch.Generator().manual_seed(6)
    a = torch.randint(0, 256, (50, 1, 4, 4), generator=generator, dtype=torch.uint8)
    b = torch.randint(0, 128, (60, 1, 4, 4), generator=generator, dtype=torch.uint8)
    extractor = PixelMean()
    expected = reference_distance(extractor(a).double(), extractor(b).double())
    found = frechet_distance(*(feature_statistics(images, extractor, batch_size=16) for images in (a, b)))
    assert found == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="batch_size must be > 0, got 0"):
        feature_statistics(a, extractor, batch_size=0)
    with pytest.raises(ValueError, match="must be uint8"):
        feature_statistics(a.float(), extractor)
