"""Made defects: where they say that they are, and only what can be seen."""

from __future__ import annotations

import numpy as np
import pytest

from denoising_ebm.inspection.defects import (
    DEFECTS,
    HARMLESS,
    VISIBLE,
    Photo,
    alter,
    change_harmlessly,
    noise_level,
    smooth_field,
)


def paper(rng: np.random.Generator, channels: int = 3, shape: tuple[int, int] = (64, 80)) -> Photo:
    texture = 0.1 * smooth_field(shape, 3, rng) + 0.02 * rng.standard_normal((channels, *shape))
    return (0.2 + texture).astype(np.float32)


@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_defect_changes_its_region_alone(kind: str, channels: int) -> None:
    rng = np.random.default_rng(0)
    photo, donor = paper(rng, channels), paper(rng, channels)
    before = photo.copy(), donor.copy()
    for _ in range(5):
        changed, region = DEFECTS[kind](photo, donor, rng)
        assert changed.shape == photo.shape
        assert region.shape == photo.shape[1:]
        outside = np.abs(changed - photo).max(0)[~region]
        # Soft edges fade out.
        assert outside.size == 0 or outside.max() < 0.08
    np.testing.assert_array_equal(photo, before[0])
    np.testing.assert_array_equal(donor, before[1])


@pytest.mark.parametrize("kind", DEFECTS)
def test_most_defects_can_be_seen_and_masks_are_where_pixels_changed(kind: str) -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(12):
        photo, donor = paper(rng), paper(rng)
        altered = alter(photo, donor, rng, {kind: DEFECTS[kind]})
        assert altered.kind == kind
        assert altered.photo.dtype == np.float32
        assert np.abs(altered.photo).max() <= 1
        if altered.mask.any():
            found += 1
            change = np.abs(altered.photo - photo).max(0)
            assert np.median(change[altered.mask]) > VISIBLE
    assert found >= 6


def test_an_alteration_that_cannot_be_seen_is_none() -> None:
    rng = np.random.default_rng(0)
    photo = paper(rng)
    nothing = {"nothing": lambda photo, donor, rng: (photo + np.float32(0.001), np.ones(photo.shape[1:], bool))}
    assert not alter(photo, photo, rng, nothing).mask.any()


def test_kinds_of_the_user_are_drawn_among_the_others() -> None:
    def cross(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, np.ndarray]:
        changed, region = photo.copy(), np.zeros(photo.shape[1:], bool)
        changed[:, 10:12], region[10:12] = 1, True
        return changed, region

    rng = np.random.default_rng(0)
    kinds = [alter(paper(rng), paper(rng), rng, {**DEFECTS, "cross": cross}).kind for _ in range(80)]
    assert "cross" in kinds
    assert len(set(kinds)) > 8


def test_a_draw_is_a_function_of_its_seed() -> None:
    photo, donor = paper(np.random.default_rng(0)), paper(np.random.default_rng(1))
    first, second, other = (alter(photo, donor, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.photo, second.photo)
    assert not np.array_equal(first.photo, other.photo)


@pytest.mark.parametrize("change", HARMLESS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_harmless_changes_are_small(change: str, channels: int) -> None:
    rng = np.random.default_rng(2)
    photo = paper(rng, channels)
    for _ in range(5):
        changed = HARMLESS[change](photo, rng)
        assert changed.shape == photo.shape
        # Pixels move with the texture under a shift; the photo as a whole stays what it was.
        assert np.abs(changed - photo).mean() < 0.25


def test_no_harmless_change_without_a_chance() -> None:
    photo = paper(np.random.default_rng(0))
    assert change_harmlessly(photo, np.random.default_rng(0), chance=0.0) is photo
    assert not np.array_equal(change_harmlessly(photo, np.random.default_rng(0), chance=1.0), photo)


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_noise_level_of_white_noise_on_a_slope(sigma: float) -> None:
    rng = np.random.default_rng(0)
    slope = np.linspace(-0.5, 0.5, 128, dtype=np.float32)[None, :, None] * np.ones((1, 1, 128), np.float32)
    assert noise_level(slope + sigma * rng.standard_normal((1, 128, 128))) == pytest.approx(sigma, rel=0.05)
    assert noise_level(slope) < 1e-6


def test_smooth_fields_have_unit_variance_and_their_scale() -> None:
    rng = np.random.default_rng(0)
    fine, coarse = (smooth_field((128, 128), scale, rng) for scale in (2, 16))
    for field in (fine, coarse):
        assert field.std() == pytest.approx(1, abs=1e-3)
    steps = [np.abs(np.diff(field, axis=0)).mean() for field in (fine, coarse)]
    assert steps[0] > 4 * steps[1]
