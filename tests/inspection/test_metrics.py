"""Figures of maps against scikit-learn, hand computations and loops over all thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score
from torch import Tensor

from denoising_ebm.inspection.metrics import (
    FIGURES,
    PixelScores,
    Record,
    _Curves,
    aupimo,
    aupro,
    evaluate_maps,
    image_auroc,
    pixel_auroc,
    pixel_average_precision,
)
from denoising_ebm.ood.metrics import auroc


def _photos(rng: np.random.Generator, side: int, count: int, *, digits: int = 9) -> list[tuple[Tensor, Tensor]]:
    """Noise of different strengths, with one or two raised squares in every second photo; rounded to have ties."""
    photos = []
    for i in range(count):
        values = ndimage.gaussian_filter(rng.standard_normal((side, side + 3 * i)), side / 20) * side / 6
        mask = np.zeros(values.shape, bool)
        if i % 2:
            mask[1 : 1 + side // 4, 2 : 2 + side // 3] = True
            mask[-side // 6 :, -side // 5 :] = i % 4 == 1
            values[mask] += 1
        photos.append((torch.from_numpy(values.round(digits)).float(), torch.from_numpy(mask)))
    return photos


def _scores(photos: list[tuple[Tensor, Tensor]], points: int = 4096) -> list[PixelScores]:
    return [PixelScores.of(values, mask if mask.any() else None, points=points) for values, mask in photos]


def _pooled(photos: list[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    return (np.concatenate([photo[i].numpy().ravel() for photo in photos]) for i in (1, 0))  # type: ignore[return-value]


def _brute_aupro(photos: list[tuple[Tensor, Tensor]], limit: float) -> float:
    """Loop over all thresholds and regions; the trapezoidal rule on a curve that is cut at the limit."""
    masks, values = _pooled(photos)
    curve = [(0.0, 0.0)]
    for t in np.unique(values)[::-1]:
        overlaps = []
        for own, mask in photos:
            labels, num = ndimage.label(mask.numpy(), structure=np.ones((3, 3)))
            overlaps += [(own.numpy()[labels == k] >= t).mean() for k in range(1, num + 1)]
        curve.append(((values[~masks] >= t).mean(), np.mean(overlaps)))
    x, y = np.array(curve).T
    keep = x <= limit
    end = np.searchsorted(x, limit, side="right")
    at_limit = np.interp(limit, x[end - 1 : end + 1], y[end - 1 : end + 1])
    return float(np.trapezoid(np.append(y[keep], at_limit), np.append(x[keep], limit)) / limit)


@pytest.mark.parametrize("digits", [1, 9])
def test_pixel_figures_are_those_of_scikit_learn(digits: int) -> None:
    photos = _photos(np.random.default_rng(0), 16, 6, digits=digits)
    labels, values = _pooled(photos)
    assert pixel_auroc(_scores(photos)) == pytest.approx(roc_auc_score(labels, values), abs=1e-9)
    assert pixel_average_precision(_scores(photos)) == pytest.approx(average_precision_score(labels, values), abs=1e-7)


@pytest.mark.parametrize(("digits", "limit"), [(1, 0.3), (9, 0.3), (9, 0.05), (1, 1.0)])
def test_aupro_is_that_of_a_loop_over_all_thresholds(digits: int, limit: float) -> None:
    photos = _photos(np.random.default_rng(1), 12, 6, digits=digits)
    assert aupro(_scores(photos), limit=limit) == pytest.approx(_brute_aupro(photos, limit), abs=1e-6)


def test_aupro_of_two_regions_by_hand() -> None:
    """Regions of 1 and 2 pixels, 13 normal pixels: overlap 3/4 at no false pixel, 1 from two of them on."""
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, 0] = mask[1, 6] = mask[1, 7] = True
    values = torch.zeros(2, 8)
    values[0, 0], values[1, 6], values[1, 7] = 9.0, 8.0, 3.0
    values[0, 2:4] = 5.0  # 2 of 13 normal pixels
    # Points (0, 1/2), (0, 3/4), (2/13, 3/4), (2/13, 1), (1, 1).
    expected = (2 / 13 * 0.75 + (0.3 - 2 / 13)) / 0.3
    assert aupro([PixelScores.of(values, mask)]) == pytest.approx(expected, abs=1e-6)


def test_aupimo_by_hand() -> None:
    """One normal photo of 4 x 4 pixels, values 1..16: the rate is k/16 just above 16 - k."""
    normal = [PixelScores.of(torch.arange(1.0, 17.0).reshape(4, 4))]
    values, mask = torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.bool)
    mask[0] = True
    values[0] = torch.tensor([20.0, 16.0, 14.5, 3.0])
    # Rates 1/32..1/16 allow no false pixel: only 20 is above 16. Of 1/16..2/16 it is 15, below 20 and 16, of 2/16..3/16 14.
    bounds = (1 / 32, 3 / 16)
    expected = (0.25 * np.log(2) + 0.5 * np.log(2) + 0.75 * np.log(1.5)) / np.log(6)
    found = aupimo(normal, [PixelScores.of(values, mask), normal[0]], bounds=bounds)
    assert found[0] == pytest.approx(expected)
    assert np.isnan(found[1])
    with pytest.raises(ValueError, match="needs normal photos"):
        aupimo([], normal)


def test_aupimo_is_its_definition_on_a_fine_grid_of_rates() -> None:
    photos = _photos(np.random.default_rng(2), 40, 8)
    normal, defective = photos[::2], photos[1::2]
    bounds = (1e-3, 1e-1)
    found = aupimo(_scores(normal), _scores(defective), bounds=bounds)
    candidates = np.unique(np.concatenate([values.numpy().ravel() for values, _ in normal]))
    above = [
        len(v) - np.searchsorted(v, candidates, side="right") for v in (np.sort(x.numpy().ravel()) for x, _ in normal)
    ]
    rates = np.mean(
        [a / x.numel() for a, (x, _) in zip(above, normal, strict=True)], axis=0
    )  # just above each candidate
    middles = np.exp(np.linspace(*np.log(bounds), 4001)[:-1] + np.log(100) / 8000)
    limits = candidates[[np.argmax(rates <= rate) for rate in middles]]
    expected = [np.mean([(values[mask].numpy() > t).mean() for t in limits]) for values, mask in defective]
    assert found == pytest.approx(np.array(expected), abs=2e-3)
    assert 0.1 < found.mean() < 0.99


def test_thinning_moves_no_figure_by_a_thousandth() -> None:
    photos = _photos(np.random.default_rng(3), 150, 6)
    labels, values = _pooled(photos)
    assert len(values) > 100_000
    thinned = _scores(photos)
    assert max(photo.normal.shape[1] for photo in thinned) <= 4096
    assert sum(photo.normal[1].sum() + photo.defective[1].sum() for photo in thinned) == len(values)
    assert pixel_auroc(thinned) == pytest.approx(roc_auc_score(labels, values), abs=1e-3)
    assert pixel_average_precision(thinned) == pytest.approx(average_precision_score(labels, values), abs=1e-3)
    exact = _scores(photos, points=10**6)
    grid = np.unique(values)[::-1]
    assert aupro(thinned) == pytest.approx(float(_Curves.of(exact, grid).figures()["aupro"][0]), abs=1e-3)
    assert aupimo(thinned[::2], thinned[1::2]) == pytest.approx(aupimo(exact[::2], exact[1::2]), abs=1e-3)


def test_image_auroc_and_its_bootstrap_are_those_of_repeated_scores() -> None:
    rng = np.random.default_rng(4)
    inside, outside = rng.standard_normal(9).round(1), (rng.standard_normal(7) + 1).round(1)
    result = image_auroc(inside, torch.from_numpy(outside), resamples=50, seed=6)
    assert result.value == pytest.approx(auroc(inside, outside))
    draws = np.random.default_rng(6)
    repeats = [draws.multinomial(n, np.full(n, 1 / n), size=50) for n in (9, 7)]
    pairs = zip(np.sort(inside)[None].repeat(50, 0), *repeats, strict=True)
    samples = [auroc(own.repeat(a), outside.repeat(b)) for own, a, b in pairs]
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])))


def test_a_photo_that_is_drawn_twice_counts_as_two() -> None:
    photos = _photos(np.random.default_rng(5), 14, 5)
    drawn = np.array([[2, 0, 1, 1, 1], [1, 3, 0, 1, 0]], np.float32)
    samples = _Curves.of(_scores(photos)).figures(drawn)
    for i, times in enumerate(drawn.astype(int)):
        repeated = _scores([photo for photo, n in zip(photos, times, strict=True) for _ in range(n)])
        assert samples["pixel_auroc"][i] == pytest.approx(pixel_auroc(repeated), abs=1e-5)
        assert samples["pixel_ap"][i] == pytest.approx(pixel_average_precision(repeated), abs=1e-5)
        assert samples["aupro"][i] == pytest.approx(aupro(repeated), abs=1e-5)


def _records(limit: float = 1.2) -> list[Record]:
    photos = _photos(np.random.default_rng(6), 30, 12)
    kinds = ["good", "scratch", "good", "stain"] * 3
    return [
        Record(kind, kind == "good", float(x.max()), x, mask, x >= limit, name=f"{i}.png")
        for i, (kind, (x, mask)) in enumerate(zip(kinds, photos, strict=True))
    ]


def test_rows_of_all_and_of_each_kind() -> None:
    records = _records()
    rows = evaluate_maps(iter(records), resamples=100)
    assert [row.kind for row in rows] == ["all", "scratch", "stain"]
    assert [(row.num_normal, row.num_defective) for row in rows] == [(6, 6), (6, 3), (6, 3)]
    assert [row.num_regions for row in rows] == [9, 6, 3]
    for row in rows:
        own = [record for record in records if record.is_normal or row.kind in ("all", record.kind)]
        photos = [(record.anomaly_map, record.mask) for record in own]
        labels, values = _pooled(photos)  # type: ignore[arg-type]
        figures = row.figures
        assert tuple(figures) == FIGURES
        assert figures["pixel_auroc"].value == pytest.approx(roc_auc_score(labels, values), abs=1e-3)
        assert figures["aupro"].value == pytest.approx(aupro(_scores(photos)), abs=1e-3)  # type: ignore[arg-type]
        wrong, scores = [not record.is_normal for record in own], [record.score for record in own]
        assert figures["image_auroc"].value == pytest.approx(roc_auc_score(wrong, scores))
        for unit, truth, marks in (("image", wrong, np.array(scores) >= 1.2), ("pixel", labels, values >= 1.2)):
            expected = precision_recall_fscore_support(truth, marks, average="binary")[:3]
            assert [figures[f"{unit}_{name}"].value for name in ("precision", "recall", "f1")] == pytest.approx(
                expected
            )
        assert all(0 <= figure.low <= figure.value <= figure.high <= 1 for figure in figures.values())
    normal = [record.score >= 1.2 for record in records if record.is_normal]
    assert rows[0].figures["image_false_alarms"].value == np.mean(normal)


def test_the_interval_of_no_alarms_is_the_exact_binomial_one() -> None:
    row, *_ = evaluate_maps(_records(limit=100.0), resamples=20)
    alarms = row.figures["image_false_alarms"]
    assert (alarms.value, alarms.low) == (0, 0)
    assert alarms.high == pytest.approx(1 - 0.025 ** (1 / 6))
    assert row.figures["image_precision"].value == row.figures["pixel_f1"].value == 0


def test_what_records_lack_is_left_out() -> None:
    records = [Record("good" if i < 3 else "bad", i < 3, float(i)) for i in range(6)]
    (row,) = evaluate_maps(records, resamples=20)[:1]
    assert list(row.figures) == ["image_auroc"]
    assert row.figures["image_auroc"].value == 1
    with pytest.raises(ValueError, match="needs normal and defective photos, got 3 and 0"):
        evaluate_maps(records[:3])


def test_bad_records_are_named() -> None:
    with pytest.raises(ValueError, match=r"a\.png: map, mask and marked must have one shape .* got \(2, 3\), \(3, 2\)"):
        Record("x", False, 0.0, torch.zeros(2, 3), torch.zeros(3, 2).bool(), name="a.png")
    with pytest.raises(ValueError, match=r"a\.png: the map has values that are not finite"):
        Record("x", False, 0.0, torch.full((2, 3), float("nan")), name="a.png")
    with pytest.raises(ValueError, match=r"a\.png: the score must be finite, got nan"):
        Record("x", False, float("nan"), name="a.png")
    with pytest.raises(ValueError, match=r"a\.png: a normal photo has defective pixels"):
        Record("x", True, 0.0, torch.zeros(2, 2), torch.ones(2, 2).bool(), name="a.png")
