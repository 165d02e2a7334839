"""Alterations: what each does, by measures that only that one moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoising_ebm.datasets.images import load_images, to_float, to_uint8
from denoising_ebm.ood.alterations import ALTERATIONS, Alteration, alterations
from support import random_pixels


@pytest.fixture(scope="module")
def clothes() -> Tensor:
    return load_images("fashion-mnist", split="test", limit=24).pixels


@pytest.fixture(scope="module")
def colours(clothes: Tensor) -> Tensor:
    """Real images as the three channels of one."""
    return torch.cat(list(clothes.split(8)), dim=1)


def alter(name: str, pixels: Tensor, seed: int = 0, **changes: object) -> Tensor:
    alteration = replace(ALTERATIONS[name], **changes)  # type: ignore[arg-type]
    return alteration(pixels, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ALTERATIONS)
def test_repeats_by_seed_and_keeps_its_input(name: str, colours: Tensor) -> None:
    before = colours.clone()
    made = alter(name, colours)
    assert made.shape == colours.shape and made.dtype == torch.uint8
    assert torch.equal(colours, before) and torch.equal(alter(name, colours), made)
    assert not torch.equal(made, colours)


@pytest.mark.parametrize("size", [16, 32, 48])
def test_gray_images_of_any_size_are_altered_but_not_in_colour(size: int) -> None:
    pixels = random_pixels(4, size=size)
    chosen = alterations(1)
    assert set(ALTERATIONS) - set(chosen) == {name for name, each in ALTERATIONS.items() if each.group == "colour"}
    for each in chosen.values():
        assert each(pixels, torch.Generator().manual_seed(0)).shape == pixels.shape
    assert alterations(3) == ALTERATIONS


def test_strengths_are_drawn_between_their_bounds() -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(strength.flatten())
        return x

    pixels = torch.zeros(4000, 1, 1, 1, dtype=torch.uint8)
    for logarithmic, median in ((False, 5.05), (True, 1.0)):
        Alteration("tone", watch, 0.1, 10.0, logarithmic)(pixels, torch.Generator().manual_seed(0))
        assert 0.1 <= float(seen[-1].min()) < 0.2 and 9.5 < float(seen[-1].max()) <= 10.0
        # Of 4,000 draws the median's standard error is 0.8 % of the range: 0.08, or 3.6 % in logs.
        assert float(seen[-1].median()) == pytest.approx(median, rel=0.15 if logarithmic else 0.07)


def test_contrast_scales_every_deviation_from_the_mean(colours: Tensor) -> None:
    x = to_float(colours)
    made = to_float(alter("less contrast", colours, low=0.5, high=0.5))
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(made, mean + 0.5 * (x - mean), rtol=0, atol=1 / 255)


def test_less_colour_ends_in_gray(colours: Tensor) -> None:
    made = to_float(alter("less colour", colours, low=0.0, high=0.0))
    gray = to_float(colours).mean(1, keepdim=True).expand_as(made)
    torch.testing.assert_close(made, gray, rtol=0, atol=1.01 / 255)


def test_tints_move_their_channel_only(colours: Tensor) -> None:
    for i, name in enumerate(("red", "green", "blue")):
        more, less = (to_float(alter(f"{how} {name}", colours)) - to_float(colours) for how in ("more", "less"))
        others = [j for j in range(3) if j != i]
        assert not more[:, others].any() and not less[:, others].any()
        assert float(more[:, i].min()) >= 0 and float(less[:, i].max()) <= 0
        assert 0.05 < float(more[:, i].max()) < 0.42


def test_detail_and_flatness_split_an_image_at_one_scale(clothes: Tensor) -> None:
    """`less detail` with strength 0 is the coarse part, `flat` with strength 0 the mean and the rest."""
    gray = to_uint8(0.3 * to_float(clothes))
    coarse = to_float(alter("less detail", gray, low=0.0, high=0.0))
    fine = to_float(alter("flat", gray, low=0.0, high=0.0))
    mean = to_float(gray).mean((2, 3), keepdim=True)
    torch.testing.assert_close(coarse + fine - mean, to_float(gray), rtol=0, atol=3 / 255)


def test_noise_has_its_strength_and_gray_noise_one_value_for_all_channels() -> None:
    gray = torch.full((8, 3, 32, 32), 128, dtype=torch.uint8)
    for name in ("noise", "gray noise"):
        made = to_float(alter(name, gray, low=0.1, high=0.1)) - to_float(gray)
        assert float(made.std()) == pytest.approx(0.1, rel=0.05)
        assert bool((made[:, :1] == made).all()) == (name == "gray noise")
    impulses = alter("impulses", gray, low=0.2, high=0.2)
    assert float((impulses != 128).float().mean()) == pytest.approx(0.2, abs=0.01)


def test_fog_of_black_images_is_a_cloud_of_falling_spectrum() -> None:
    black = torch.zeros(64, 1, 32, 32, dtype=torch.uint8)
    assert torch.equal(alter("fog", black), black)  # no light, no fog: it scales with the brightest pixel
    half = torch.full((64, 1, 32, 32), 128, dtype=torch.uint8)
    cloud = to_float(alter("fog", half, low=1.0, high=1.0))
    power = torch.fft.rfft2(cloud - cloud.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))
    # Amplitude 1 / f: power falls by four from one octave to the next.
    rows, columns = torch.fft.fftfreq(32)[:, None] * 32, torch.arange(17.0)
    radius = (rows.square() + columns.square()).sqrt()
    low, high = (float(power[(radius > r - 0.5) & (radius < r + 0.5)].mean()) for r in (4, 8))
    assert low / high == pytest.approx(4, rel=0.2)


def test_turns_and_mirrors() -> None:
    pixels = random_pixels(3, channels=3)
    assert torch.equal(alter("turned left", alter("turned right", pixels)), pixels)
    assert torch.equal(alter("upside down", pixels), alter("turned left", alter("turned left", pixels)))
    assert torch.equal(alter("negative", pixels), 255 - pixels)


def test_rotation_by_half_a_turn_and_no_warp_are_exact() -> None:
    pixels = random_pixels(3)
    x = to_float(pixels)
    torch.testing.assert_close(
        to_float(alter("rotated", pixels, low=torch.pi, high=torch.pi)), x.flip(2, 3), rtol=0, atol=2 / 255
    )
    torch.testing.assert_close(to_float(alter("warped", pixels, low=0.0, high=0.0)), x, rtol=0, atol=1.01 / 255)


def test_a_pasted_piece_comes_from_the_image_before() -> None:
    pixels = torch.arange(6, dtype=torch.uint8).mul(40)[:, None, None, None].expand(6, 3, 32, 32).contiguous()
    made = alter("pasted", pixels)
    for i in range(6):
        assert set(made[i].flatten().tolist()) == {40 * i, 40 * ((i - 1) % 6)}
        foreign = (made[i, 0] != 40 * i).nonzero()
        sides = foreign.max(0).values - foreign.min(0).values + 1
        assert len(foreign) == int(sides.prod()) and 4 <= int(sides.min()) <= int(sides.max()) <= 25


def test_resampling_loses_detail_and_zooming_moves_edges(clothes: Tensor) -> None:
    def roughness(pixels: Tensor) -> float:
        x = to_float(pixels)
        return float((x[..., 1:] - x[..., :-1]).square().mean())

    assert roughness(alter("resampled", clothes, low=0.4, high=0.4)) < 0.7 * roughness(clothes)
    assert roughness(alter("pixelated", clothes, low=0.5, high=0.5)) < roughness(clothes)
    ramp = torch.arange(32.0).mul(8).to(torch.uint8).expand(8, 1, 32, 32).contiguous()
    slope = (to_float(ramp)[..., 9:-8] - to_float(ramp)[..., 8:-9]).mean()
    for name, low, factor in (("zoomed in", 0.5, 0.5), ("zoomed out", 0.25, 1.5)):
        made = to_float(alter(name, ramp, low=low, high=low))
        assert float((made[..., 9:-8] - made[..., 8:-9]).mean()) == pytest.approx(factor * float(slope), rel=0.15)
