"""Odd images made of normal ones: what each function does, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from denoising_ebm.datasets.images import load_images, to_float
from denoising_ebm.ood import outliers
from denoising_ebm.ood.outliers import SYNTHETIC_OOD
from support import random_pixels


def draw(name: str, pixels: Tensor, seed: int = 0) -> Tensor:
    return SYNTHETIC_OOD[name](pixels, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clothes() -> Tensor:
    return load_images("fashion-mnist", split="test", limit=40).pixels


@pytest.mark.parametrize("name", SYNTHETIC_OOD)
def test_shape_type_and_seed(name: str, clothes: Tensor) -> None:
    for pixels in (clothes, random_pixels(5, channels=3)):
        before = pixels.clone()
        made = draw(name, pixels)
        assert made.shape == pixels.shape and made.dtype == torch.uint8
        assert torch.equal(pixels, before)
        assert torch.equal(made, draw(name, pixels))
    if name != "swapped-channels":  # of gray images there is one
        assert not torch.equal(draw(name, clothes), clothes)


def test_interpolations_are_means_of_two_different_images() -> None:
    pixels = torch.arange(8, dtype=torch.uint8)[:, None, None, None].mul(10).expand(8, 1, 4, 4)
    made = draw("interpolation", pixels)
    partner = 2 * made.int() - pixels.int()
    assert sorted(partner[:, 0, 0, 0].tolist()) == list(range(0, 80, 10))
    assert bool((partner != pixels).all())


def test_noise_has_the_stated_strength() -> None:
    gray = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    noise = to_float(outliers.gaussian_noise(gray, generator, sigma=0.1)) - to_float(gray)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.03) and abs(float(noise.mean())) < 0.005
    impulses = outliers.impulse_noise(gray, generator, share=0.2)
    assert float((impulses == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float((impulses == 255).float().mean()) == pytest.approx(0.1, abs=0.01)
    uniform = draw("uniform-noise", gray)
    assert uniform.float().mean().item() == pytest.approx(127.5, abs=2)
    assert uniform.float().std().item() == pytest.approx(256 / 12**0.5, rel=0.03)


def test_blur_of_an_edge_is_the_normal_distribution() -> None:
    edge = torch.zeros(1, 1, 8, 64, dtype=torch.uint8)
    edge[..., 32:] = 255
    made = outliers.blur(edge, torch.Generator(), sigma=2.0).double()[0, 0, 4] / 255
    expected = torch.as_tensor(stats.norm(31.5, 2.0).cdf(range(64)))
    torch.testing.assert_close(made, expected, rtol=0, atol=0.005)


def test_contrast_and_brightness(clothes: Tensor) -> None:
    x = to_float(clothes)
    made = to_float(outliers.contrast(clothes, torch.Generator(), factor=0.5))
    torch.testing.assert_close(made.std((1, 2, 3)), 0.5 * x.std((1, 2, 3)), rtol=0.02, atol=0)
    torch.testing.assert_close(made.mean((1, 2, 3)), x.mean((1, 2, 3)), rtol=0, atol=0.005)
    gray = torch.full((40, 1, 4, 4), 128, dtype=torch.uint8)
    shift = to_float(draw("brightness", gray)) - to_float(gray)
    assert sorted({round(v, 2) for v in shift.flatten().tolist()}) == [-0.5, 0.5]


def test_pieces_are_all_there_and_moved() -> None:
    pixels = (
        torch.arange(16, dtype=torch.uint8)[None].reshape(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    pixels = pixels.expand(50, 1, 8, 8).contiguous()
    for parts in (2, 4):
        made = outliers.shuffled(pixels, torch.Generator().manual_seed(0), parts=parts)
        assert torch.equal(made.flatten(1).sort().values, pixels.flatten(1).sort().values)
        assert bool((made != pixels).flatten(1).any(1).all())
        size = 8 // parts
        first = {tuple(image[0, :size, :size].flatten().tolist()) for image in made}
        pieces = {
            tuple(pixels[0, 0, i : i + size, j : j + size].flatten().tolist())
            for i in range(0, 8, size)
            for j in range(0, 8, size)
        }
        assert first == pieces  # of 50 images, every piece came to the first place


def test_halves_come_from_two_images(clothes: Tensor) -> None:
    made = draw("spliced", clothes)
    assert torch.equal(made[..., :16], clothes[..., :16])
    rights = [tuple(image.flatten().tolist()) for image in clothes[..., 16:]]
    found = [rights.index(tuple(image.flatten().tolist())) for image in made[..., 16:]]
    assert sorted(found) == list(range(40)) and all(i != j for i, j in enumerate(found))


def test_zoom_enlarges_the_middle() -> None:
    ramp = torch.arange(32.0).mul(8).to(torch.uint8).expand(1, 1, 32, 32)
    made = outliers.zoom(ramp, torch.Generator(), factor=2.0).float()[0, 0, 0]
    inner = made[4:-4]
    assert float((inner[1:] - inner[:-1]).mean()) == pytest.approx(4.0, rel=0.02)


def test_plain_changes() -> None:
    pixels = random_pixels(3, channels=3)
    assert torch.equal(draw("upside-down", pixels), pixels.flip(2).flip(3))
    assert torch.equal(draw("inverted", pixels), 255 - pixels)
    assert torch.equal(draw("swapped-channels", pixels)[:, 0], pixels[:, 2])
    blocks = draw("pixelate", pixels)
    assert torch.equal(blocks[:, :, ::2, ::2], blocks[:, :, 1::2, 1::2])
    assert float(draw("constant", pixels).float().std((2, 3)).max()) == 0


def test_jpeg_loses_detail_and_little_else(clothes: Tensor) -> None:
    error = [
        (outliers.jpeg(clothes, torch.Generator(), quality=q).float() - clothes.float()).square().mean()
        for q in (15, 90)
    ]
    assert float(error[1]) < 0.1 * float(error[0]) < 50
