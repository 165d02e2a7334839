"""Corruptions and synthetic OOD sets: what each does, by measures that only that one moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from denoising_ebm.datasets.images import load_images, to_float, to_uint8
from denoising_ebm.ood.corruptions import (
    CORRUPTIONS,
    SYNTHETIC_OOD,
    Change,
    Corruption,
    corrupt,
    corruptions,
    shuffle,
)
from support import random_pixels


@pytest.fixture(scope="module")
def clothes() -> Tensor:
    return load_images("fashion-mnist", split="test", limit=24).pixels


@pytest.fixture(scope="module")
def colours(clothes: Tensor) -> Tensor:
    """Real images as the three channels of one."""
    return torch.cat(list(clothes.split(8)), dim=1)


def corrupted(name: str, pixels: Tensor, seed: int = 0, **changes: object) -> Tensor:
    corruption = replace(CORRUPTIONS[name], **changes)  # type: ignore[arg-type]
    return corruption(pixels, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_repeats_by_seed_and_keeps_its_input(name: str, colours: Tensor) -> None:
    before = colours.clone()
    made = corrupted(name, colours)
    assert made.shape == colours.shape and made.dtype == torch.uint8
    assert torch.equal(colours, before) and torch.equal(corrupted(name, colours), made)
    assert not torch.equal(made, colours)


@pytest.mark.parametrize("size", [16, 32, 48])
def test_gray_images_of_any_size_are_corrupted_but_not_in_colour(size: int) -> None:
    pixels = random_pixels(4, size=size)
    chosen = corruptions(1)
    assert set(CORRUPTIONS) - set(chosen) == {name for name, each in CORRUPTIONS.items() if each.group == "colour"}
    for each in chosen.values():
        assert each(pixels, torch.Generator().manual_seed(0)).shape == pixels.shape
    assert corruptions(3) == CORRUPTIONS


def test_strengths_are_drawn_between_their_bounds() -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(strength.flatten())
        return x

    pixels = torch.zeros(4000, 1, 1, 1, dtype=torch.uint8)
    for logarithmic, median in ((False, 5.05), (True, 1.0)):
        Corruption("tone", watch, 0.1, 10.0, logarithmic)(pixels, torch.Generator().manual_seed(0))
        assert 0.1 <= float(seen[-1].min()) < 0.2 and 9.5 < float(seen[-1].max()) <= 10.0
        # Of 4,000 draws the median's standard error is 0.8 % of the range: 0.08, or 3.6 % in logs.
        assert float(seen[-1].median()) == pytest.approx(median, rel=0.15 if logarithmic else 0.07)


def test_contrast_scales_every_deviation_from_the_mean(colours: Tensor) -> None:
    x = to_float(colours)
    made = to_float(corrupted("less contrast", colours, low=0.5, high=0.5))
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(made, mean + 0.5 * (x - mean), rtol=0, atol=1 / 255)


def test_less_colour_ends_in_gray(colours: Tensor) -> None:
    made = to_float(corrupted("less colour", colours, low=0.0, high=0.0))
    gray = to_float(colours).mean(1, keepdim=True).expand_as(made)
    torch.testing.assert_close(made, gray, rtol=0, atol=1.01 / 255)


def test_tints_move_their_channel_only(colours: Tensor) -> None:
    for i, name in enumerate(("red", "green", "blue")):
        more, less = (to_float(corrupted(f"{how} {name}", colours)) - to_float(colours) for how in ("more", "less"))
        others = [j for j in range(3) if j != i]
        assert not more[:, others].any() and not less[:, others].any()
        assert float(more[:, i].min()) >= 0 and float(less[:, i].max()) <= 0
        assert 0.05 < float(more[:, i].max()) < 0.42


def test_detail_and_flatness_split_an_image_at_one_scale(clothes: Tensor) -> None:
    """`less detail` with strength 0 is the coarse part, `flat` with strength 0 the mean and the rest."""
    gray = to_uint8(0.3 * to_float(clothes))
    coarse = to_float(corrupted("less detail", gray, low=0.0, high=0.0))
    fine = to_float(corrupted("flat", gray, low=0.0, high=0.0))
    mean = to_float(gray).mean((2, 3), keepdim=True)
    torch.testing.assert_close(coarse + fine - mean, to_float(gray), rtol=0, atol=3 / 255)


def test_noise_has_its_strength_and_gray_noise_one_value_for_all_channels() -> None:
    gray = torch.full((8, 3, 32, 32), 128, dtype=torch.uint8)
    for name in ("noise", "gray noise"):
        made = to_float(corrupted(name, gray, low=0.1, high=0.1)) - to_float(gray)
        assert float(made.std()) == pytest.approx(0.1, rel=0.05)
        assert bool((made[:, :1] == made).all()) == (name == "gray noise")
    impulses = corrupted("impulses", gray, low=0.2, high=0.2)
    assert float((impulses != 128).float().mean()) == pytest.approx(0.2, abs=0.01)


def test_fog_of_black_images_is_a_cloud_of_falling_spectrum() -> None:
    black = torch.zeros(64, 1, 32, 32, dtype=torch.uint8)
    assert torch.equal(corrupted("fog", black), black)  # no light, no fog: it scales with the brightest pixel
    half = torch.full((64, 1, 32, 32), 128, dtype=torch.uint8)
    cloud = to_float(corrupted("fog", half, low=1.0, high=1.0))
    power = torch.fft.rfft2(cloud - cloud.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))
    # Amplitude 1 / f: power falls by four from one octave to the next.
    rows, columns = torch.fft.fftfreq(32)[:, None] * 32, torch.arange(17.0)
    radius = (rows.square() + columns.square()).sqrt()
    low, high = (float(power[(radius > r - 0.5) & (radius < r + 0.5)].mean()) for r in (4, 8))
    assert low / high == pytest.approx(4, rel=0.2)


def test_turns_and_mirrors() -> None:
    pixels = random_pixels(3, channels=3)
    assert torch.equal(corrupted("turned left", corrupted("turned right", pixels)), pixels)
    assert torch.equal(corrupted("upside down", pixels), corrupted("turned left", corrupted("turned left", pixels)))
    assert torch.equal(corrupted("negative", pixels), 255 - pixels)


def test_rotation_by_half_a_turn_and_no_warp_are_exact() -> None:
    pixels = random_pixels(3)
    x = to_float(pixels)
    torch.testing.assert_close(
        to_float(corrupted("rotated", pixels, low=torch.pi, high=torch.pi)), x.flip(2, 3), rtol=0, atol=2 / 255
    )
    torch.testing.assert_close(to_float(corrupted("warped", pixels, low=0.0, high=0.0)), x, rtol=0, atol=1.01 / 255)


def test_a_pasted_piece_comes_from_the_image_before() -> None:
    pixels = torch.arange(6, dtype=torch.uint8).mul(40)[:, None, None, None].expand(6, 3, 32, 32).contiguous()
    made = corrupted("pasted", pixels)
    for i in range(6):
        assert set(made[i].flatten().tolist()) == {40 * i, 40 * ((i - 1) % 6)}
        foreign = (made[i, 0] != 40 * i).nonzero()
        sides = foreign.max(0).values - foreign.min(0).values + 1
        assert len(foreign) == int(sides.prod()) and 4 <= int(sides.min()) <= int(sides.max()) <= 25


def test_resampling_loses_detail_and_zooming_moves_edges(clothes: Tensor) -> None:
    def roughness(pixels: Tensor) -> float:
        x = to_float(pixels)
        return float((x[..., 1:] - x[..., :-1]).square().mean())

    assert roughness(corrupted("resampled", clothes, low=0.4, high=0.4)) < 0.7 * roughness(clothes)
    assert roughness(corrupted("pixelated", clothes, low=0.5, high=0.5)) < roughness(clothes)
    ramp = torch.arange(32.0).mul(8).to(torch.uint8).expand(8, 1, 32, 32).contiguous()
    slope = (to_float(ramp)[..., 9:-8] - to_float(ramp)[..., 8:-9]).mean()
    for name, low, factor in (("zoomed in", 0.5, 0.5), ("zoomed out", 0.25, 1.5)):
        made = to_float(corrupted(name, ramp, low=low, high=low))
        assert float((made[..., 9:-8] - made[..., 8:-9]).mean()) == pytest.approx(factor * float(slope), rel=0.15)


# -- synthetic OOD sets -------------------------------------------------------------------------------------------------


def of_strength(change: str | Change, pixels: Tensor, strength: float) -> Tensor:
    chosen = CORRUPTIONS[change].change if isinstance(change, str) else change
    return corrupt(pixels, chosen, strength, torch.Generator().manual_seed(0))


def draw(name: str, pixels: Tensor, seed: int = 0) -> Tensor:
    return SYNTHETIC_OOD[name](pixels, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SYNTHETIC_OOD)
def test_sets_have_shape_type_and_seed(name: str, clothes: Tensor) -> None:
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


def test_sets_of_noise_have_the_stated_strength() -> None:
    gray = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    noise = to_float(of_strength("noise", gray, 0.1)) - to_float(gray)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.03) and abs(float(noise.mean())) < 0.005
    impulses = of_strength("impulses", gray, 0.2)
    assert float((impulses == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float((impulses == 255).float().mean()) == pytest.approx(0.1, abs=0.01)
    uniform = draw("uniform-noise", gray)
    assert uniform.float().mean().item() == pytest.approx(127.5, abs=2)
    assert uniform.float().std().item() == pytest.approx(256 / 12**0.5, rel=0.03)


def test_blur_of_an_edge_is_the_normal_distribution() -> None:
    edge = torch.zeros(1, 1, 8, 64, dtype=torch.uint8)
    edge[..., 32:] = 255
    made = of_strength("blur", edge, 2.0).double()[0, 0, 4] / 255
    expected = torch.as_tensor(stats.norm(31.5, 2.0).cdf(range(64)))
    torch.testing.assert_close(made, expected, rtol=0, atol=0.005)


def test_sets_of_contrast_and_brightness(clothes: Tensor) -> None:
    x = to_float(clothes)
    made = to_float(of_strength("less contrast", clothes, 0.5))
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
        made = of_strength(shuffle(parts), pixels, 1.0)
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
    assert sorted(found) == list(range(len(clothes))) and all(i != j for i, j in enumerate(found))


def test_zoom_enlarges_the_middle() -> None:
    ramp = torch.arange(32.0).mul(8).to(torch.uint8).expand(1, 1, 32, 32)
    made = draw("zoom", ramp).float()[0, 0, 0]
    inner = made[4:-4]
    assert float((inner[1:] - inner[:-1]).mean()) == pytest.approx(4.0, rel=0.02)


def test_sets_of_plain_changes() -> None:
    pixels = random_pixels(3, channels=3)
    assert torch.equal(draw("upside-down", pixels), pixels.flip(2).flip(3))
    assert torch.equal(draw("inverted", pixels), 255 - pixels)
    assert torch.equal(draw("swapped-channels", pixels)[:, 0], pixels[:, 2])
    blocks = draw("pixelate", pixels)
    assert torch.equal(blocks[:, :, ::2, ::2], blocks[:, :, 1::2, 1::2])
    assert float(draw("constant", pixels).float().std((2, 3)).max()) == 0


def test_jpeg_loses_detail_and_little_else(clothes: Tensor) -> None:
    error = [(of_strength("jpeg", clothes, q).float() - clothes.float()).square().mean() for q in (15, 90)]
    assert float(error[1]) < 0.1 * float(error[0]) < 50
