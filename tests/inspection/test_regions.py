"""Regions of hand-made maps, and the promise per photo: exact by ranks, and by its distribution on random fields."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats
from torch import Tensor

from denoising_ebm.inspection.regions import (
    content_hash_of,
    cross_p_values,
    cross_rate,
    find_regions,
    find_regions_cross,
    promise,
    refuse_known,
    smallest_rate,
    threshold,
)
from denoising_ebm.ood.conformal import flagged, fpr_interval, p_values

_MAXIMA = torch.arange(1.0, 20.0)  # 19 photos: 20 p-values, 1/20 for what is above 19


def test_regions_of_a_small_map_are_those_counted_by_hand() -> None:
    anomaly_map = torch.zeros(6, 8)
    anomaly_map[0, 0] = 18.5  # touches the next by a corner: one region
    anomaly_map[1, 1] = 30.0
    anomaly_map[1, 2] = 20.0
    anomaly_map[4:6, 5:8] = 19.5
    anomaly_map[5, 7] = 18.2
    anomaly_map[3, 0] = 17.9  # p = 3/20
    mask, regions = find_regions(anomaly_map, _MAXIMA, 0.1)
    assert torch.equal(mask, anomaly_map > 18)
    first, second = regions
    assert (first.number, first.p_value, first.peak, first.position) == (1, 1 / 20, 30.0, (1, 1))
    assert (first.area, first.box, first.centroid) == (3, (0, 0, 2, 3), pytest.approx((2 / 3, 1.0)))
    assert (second.number, second.p_value, second.peak, second.area) == (2, 1 / 20, 19.5, 6)
    assert (second.box, second.centroid) == ((4, 5, 6, 8), (4.5, 6.0))
    assert find_regions(anomaly_map, _MAXIMA, 0.15)[1][2].p_value == 3 / 20
    larger, regions = find_regions(anomaly_map, _MAXIMA, 0.1, min_area=4)
    assert [region.area for region in regions] == [6]
    assert torch.equal(larger.nonzero()[:, 0].unique(), torch.tensor([4, 5]))


def test_a_normal_map_has_no_region() -> None:
    mask, regions = find_regions(torch.full((4, 5), 19.0), _MAXIMA, 0.05)
    assert not mask.any() and regions == []


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=10, max_size=40),
    st.sampled_from([0.1, 0.15, 0.37, 0.5]),
    st.booleans(),
)
def test_a_value_is_above_the_threshold_where_its_p_value_is_small(
    maxima: list[float], alpha: float, grouped: bool
) -> None:
    values = torch.tensor(maxima)
    groups = torch.arange(len(values)) % 9 if grouped else None
    near = torch.cat([values, torch.nextafter(values, torch.tensor(9.0)), torch.nextafter(values, torch.tensor(-9.0))])
    p = p_values(values, near, groups=groups)
    num = 9 if grouped else len(values)
    expected = flagged(p, alpha, num)
    assert torch.equal(near >= threshold(values, alpha, groups=groups), expected)


def test_few_photos_are_told_what_they_can_promise() -> None:
    assert smallest_rate(19) == 0.05
    assert promise(20) == "20 normal photos can promise rates from 0.048 on"
    assert promise(99) == "99 normal photos can promise rates from 0.01 on"
    assert promise(300) == "300 normal photos can promise rates from 0.0034 on"
    message = (
        "0.01 needs at least 99 calibration photos, there are 20: 20 normal photos can promise rates from 0.048 on"
    )
    with pytest.raises(ValueError, match=message):
        threshold(torch.arange(20.0), 0.01)
    with pytest.raises(ValueError, match="calibration groups of photos, there are 2"):
        threshold(torch.arange(20.0), 0.1, groups=torch.arange(20) % 2)
    with pytest.raises(ValueError, match=r"must be in \(0, 1\), got 1"):
        threshold(torch.arange(20.0), 1.0)
    with pytest.raises(ValueError, match="there are 0"):
        threshold(torch.zeros(0), 0.1)


def test_bad_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="a map must be finite, 1 values are not"):
        find_regions(torch.tensor([[0.0, float("nan")]]), _MAXIMA, 0.1)
    with pytest.raises(ValueError, match=r"shape \(height, width\), got \(1, 2, 2\)"):
        find_regions(torch.zeros(1, 2, 2), _MAXIMA, 0.1)
    with pytest.raises(ValueError, match="calibration maxima must be finite"):
        find_regions(torch.zeros(2, 2), torch.full((30,), float("inf")), 0.1)
    with pytest.raises(ValueError, match="min_area must be >= 1, got 0"):
        find_regions(torch.zeros(2, 2), _MAXIMA, 0.1, min_area=0)


def _maxima_of_fields(count: int, rng: np.random.Generator, strength: float = 1.0) -> Tensor:
    """Maxima of smooth Gaussian fields whose strength varies from photo to photo."""
    fields = rng.standard_normal((count, 24, 32)).astype(np.float32)
    fields = ndimage.gaussian_filter(fields, (0, 2, 2), mode="wrap")
    fields *= strength * np.exp(0.5 * rng.standard_normal((count, 1, 1))).astype(np.float32)
    return torch.from_numpy(fields.max((1, 2)))


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_the_rate_of_normal_photos_with_any_region_is_kept_over_random_splits(alpha: float) -> None:
    """Over 200 splits: so many lie within the 95 % interval that fewer would have a chance of 1 in 1,000."""
    rng = np.random.default_rng(4)
    maxima = _maxima_of_fields(1200, rng)
    stronger = _maxima_of_fields(600, rng, strength=2.0)
    low, high = fpr_interval(alpha, 600, 600)
    rates, shifted = [], []
    for _ in range(200):
        order = torch.from_numpy(rng.permutation(1200))
        limit = threshold(maxima[order[:600]], alpha)
        rates.append(float((maxima[order[600:]] >= limit).double().mean()))
        shifted.append(float((stronger >= limit).double().mean()))
    assert sum(low <= rate <= high for rate in rates) >= stats.binom.ppf(0.001, 200, 0.95)
    spread = (alpha * (1 - alpha) * 2 / 600) ** 0.5  # of the rate of one split
    assert np.mean(rates) == pytest.approx(alpha, abs=4 * spread / 200**0.5)
    assert not any(low <= rate <= high for rate in shifted)


def test_any_region_of_a_field_means_that_its_maximum_is_flagged() -> None:
    rng = np.random.default_rng(0)
    calibration = _maxima_of_fields(100, rng)
    for _ in range(30):
        field = torch.from_numpy(ndimage.gaussian_filter(rng.standard_normal((24, 32)), 2, mode="wrap")).float() * 1.5
        p = float(p_values(calibration, field.max()[None]))
        mask, regions = find_regions(field, calibration, 0.3)
        assert bool(mask.any()) == (p <= 0.3) == bool(regions)
        assert not regions or regions[0].p_value == p


def test_cross_p_values_are_the_formula_over_single_photos() -> None:
    rng = np.random.default_rng(1)
    calibration = torch.from_numpy(rng.integers(0, 6, 11)).double()  # with ties
    folds = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1])
    scores = torch.from_numpy(rng.integers(0, 7, (3, 4, 5))).double()
    expected = torch.ones(4, 5).double()
    for i in range(11):
        expected += calibration[i] >= scores[folds[i]]
    assert torch.equal(cross_p_values(calibration, folds, scores), expected / 12)


def test_cross_p_values_of_one_model_are_the_conformal_ones() -> None:
    scores = torch.tensor([[0.5, 3.0, 18.5, 40.0]])
    cross = cross_p_values(_MAXIMA, torch.zeros(19, dtype=torch.int64), scores)
    assert torch.allclose(cross, p_values(_MAXIMA, scores[0]))


def test_cross_conformal_leave_one_out_keeps_its_rate() -> None:
    """The score is the distance from the mean of the other photos: leave-one-out is exchangeable, about alpha of alarms."""
    rng, alarms = np.random.default_rng(2), 0
    for _ in range(1000):
        photos, new = torch.from_numpy(rng.standard_normal(19)), float(rng.standard_normal())
        means = (photos.sum() - photos) / 18
        p = cross_p_values((photos - means).abs(), torch.arange(19), (new - means).abs())
        alarms += bool(p <= 0.1 + 1e-9)
    assert 0.07 < alarms / 1000 < 0.13


def test_cross_regions_are_those_of_their_p_values() -> None:
    maps = torch.zeros(2, 5, 6)
    maps[0, 1, 1:3], maps[1, 1, 1:3] = torch.tensor([60.0, 50.0]), torch.tensor([42.0, 50.0])
    maps[0, 4, 4], maps[1, 4, 4] = 50.0, 16.5  # above the whole of fold 0; of fold 1, 18 is larger
    folds = torch.arange(19) % 2
    mask, (first, second) = find_regions_cross(maps, _MAXIMA, folds, 0.1)
    assert mask.sum() == 3
    assert (first.p_value, first.peak, first.position, first.area) == (1 / 20, 51.0, (1, 1), 2)
    assert (second.number, second.p_value, second.peak, second.position) == (2, 2 / 20, 33.25, (4, 4))
    with pytest.raises(ValueError, match="at least 99 calibration photos, there are 19: 19 normal"):
        find_regions_cross(maps, _MAXIMA, folds, 0.01)
    with pytest.raises(ValueError, match=r"folds must be numbered 0\.\.1"):
        find_regions_cross(maps, _MAXIMA, torch.zeros(19, dtype=torch.int64), 0.1)


def test_cross_rate_is_twice_the_rate_for_leave_one_out() -> None:
    assert cross_rate(0.05, 30, 30) == pytest.approx(0.1)
    assert cross_rate(0.05, 30, 10) == pytest.approx(0.1 + (2 / 3) / 11)
    assert cross_rate(0.05, 1000, 5) == pytest.approx(0.1 + 1.6 / 201)


def test_photos_of_fitting_are_refused_for_calibration(generator: torch.Generator) -> None:
    photos = [torch.randint(256, (1, 4 + i, 5), generator=generator, dtype=torch.uint8) for i in range(5)]
    hashes = [content_hash_of(photo) for photo in photos]
    assert len(set(hashes)) == 5
    assert content_hash_of(photos[0].clone()) == hashes[0]
    assert content_hash_of(torch.zeros(1, 2, 3)) != content_hash_of(torch.zeros(1, 3, 2))
    assert torch.tensor(hashes, dtype=torch.int64).tolist() == hashes
    names = dict(zip("abcde", hashes, strict=True))
    refuse_known(names, [hashes[0] + 1])
    with pytest.raises(ValueError, match=r"2 of 5 calibration photos are among those of fitting \(b, e\): no false"):
        refuse_known(names, [hashes[4], hashes[1]])
