"""`log_prob`, `immse` and `bits_per_dim` of a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoising_ebm.config import EnergyConfig
from denoising_ebm.likelihood.immse import Quadrature
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.calibration import normalise
from support import random_pixels, randomise, tiny_config


@pytest.fixture
def density_model() -> DenoisingEBM:
    model = DenoisingEBM(replace(tiny_config(), energy=EnergyConfig(inner_noise=False, density=True)))
    randomise(model)
    return model.eval()


def noisy(sigma: float, num: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return random_pixels(num) / 127.5 - 1 + sigma * torch.randn(num, 1, 16, 16, generator=generator)


def test_log_prob_by_the_energy(density_model: DenoisingEBM) -> None:
    x = noisy(0.05)
    with pytest.raises(ValueError, match=r"not normalised.*immse"):
        density_model.log_prob(x)
    normalise(density_model, random_pixels(20) / 127.5 - 1, images_per_level=4)
    expected = density_model.density(x, 0.05) + density_model.density.log_normaliser(torch.tensor([0.05]))
    torch.testing.assert_close(density_model.log_prob(x), -expected)
    torch.testing.assert_close(density_model.log_prob(x, 0.2), -density_model.density_energy(x, 0.2))


def test_log_prob_by_the_integral(tiny_model: DenoisingEBM) -> None:
    x, quadrature = noisy(0.2), Quadrature(3, 2)
    found = tiny_model.immse(x, 0.2, quadrature=quadrature)
    assert found.standard_error.isfinite().all()
    torch.testing.assert_close(tiny_model.log_prob(x, 0.2, method="immse", quadrature=quadrature), -found.value)
    for level in (0.05 * (1 - 1e-7), 1 + 1e-7):  # as out of a float32 tensor
        assert tiny_model.log_prob(noisy(0.05), level, method="immse", quadrature=quadrature).isfinite().all()
    # An image's figure depends on the seed and the image alone.
    alone = tiny_model.immse(x[1:2], 0.2, quadrature=quadrature, batch_size=1)
    torch.testing.assert_close(alone.value, found.value[1:2], rtol=1e-5, atol=1e-3)
    other = tiny_model.immse(x, 0.2, quadrature=quadrature, seed=1)
    assert float((other.value - found.value).abs().min()) > 0.01


def test_bits_per_dim_by_the_energy(density_model: DenoisingEBM) -> None:
    pixels = random_pixels(5)
    normalise(density_model, random_pixels(20) / 127.5 - 1, images_per_level=4)
    found = density_model.bits_per_dim(pixels)
    assert found.value.shape == (5,) and found.standard_error.isnan().all()
    alone = density_model.bits_per_dim(pixels[3:4], batch_size=1)
    torch.testing.assert_close(alone.value, found.value[3:4], rtol=1e-5, atol=1e-4)
    many = density_model.bits_per_dim(pixels, draws=20)
    error = many.standard_error * (1 + 20) ** 0.5
    assert float(((found.value - many.value) / error).abs().max()) < 5


def test_bits_per_dim_by_the_integral_and_as_a_bound(tiny_model: DenoisingEBM) -> None:
    pixels, quadrature = random_pixels(3), Quadrature(4, 2)
    done: list[int] = []
    found = tiny_model.bits_per_dim(pixels, method="immse", quadrature=quadrature, batch_size=2, progress=done.append)
    assert done == [2, 1]
    nats = tiny_model.immse(pixels / 127.5 - 1, clean=True, quadrature=quadrature)
    same = tiny_model.bits_per_dim(pixels, method="immse", quadrature=quadrature, batch_size=3)
    torch.testing.assert_close(found.value, same.value, rtol=1e-5, atol=1e-4)
    # The unit is a grey level, of which there are 255 / 2 in one of data units.
    bits = nats.value / (256 * torch.tensor(2.0).log()) + (torch.tensor(255 / 2)).log2()
    assert float(((found.value - bits) / (found.standard_error * 2**0.5)).abs().max()) < 20
    bound = tiny_model.bits_per_dim(pixels, method="bound", quadrature=quadrature)
    assert bound.value.isfinite().all() and (bound.value > 0).all()


def test_no_images(tiny_model: DenoisingEBM) -> None:
    assert tiny_model.immse(torch.empty(0, 1, 16, 16)).value.shape == (0,)
    assert tiny_model.bits_per_dim(random_pixels(1)[:0], method="immse").value.shape == (0,)


def test_what_is_refused(tiny_model: DenoisingEBM, density_model: DenoisingEBM) -> None:
    x = noisy(0.05)
    with pytest.raises(ValueError, match=r"no density network.*--initial MODEL.*immse"):
        tiny_model.log_prob(x)
    with pytest.raises(ValueError, match=r"no density network"):
        tiny_model.bits_per_dim(random_pixels(1))
    for sigma in (0.04, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"sigma must be within the model's noise levels, 0.05 to 1, got"):
            tiny_model.log_prob(x, sigma, method="immse")
    with pytest.raises(ValueError, match=r"shape \(batch, 1, 16, 16\), got \(3, 1, 16, 15\)"):
        tiny_model.log_prob(x[..., 1:], method="immse")
    with pytest.raises(ValueError, match=r"within \[-1, 1\] but for noise of sigma 0.05, got a value of size 2"):
        density_model.log_prob(x.index_fill(3, torch.tensor([0]), 2.0))
    with pytest.raises(ValueError, match=r"within \[-1, 1\], got a value of size"):
        tiny_model.immse(torch.full_like(x, 1.2), clean=True)
    with pytest.raises(ValueError, match=r"got a value of size nan"):
        density_model.log_prob(torch.full_like(x, float("nan")))
    with pytest.raises(ValueError, match=r"unknown method 'ais': use energy or immse"):
        tiny_model.log_prob(x, method="ais")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown method 'ais': use energy, immse or bound"):
        tiny_model.bits_per_dim(random_pixels(1), method="ais")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images of 8 bits, uint8, got torch.float32"):
        tiny_model.bits_per_dim(x, method="immse")
    with pytest.raises(ValueError, match=r"draws must be >= 1"):
        tiny_model.bits_per_dim(random_pixels(1), draws=0)
