"""Scores of images that come in chunks are those of all at once; what is kept does not grow with their number."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from denoising_ebm.datasets.images import ImageSet, Unreadable
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood import scoring
from denoising_ebm.ood.conformal import benjamini_hochberg
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import FeatureConfig
from denoising_ebm.ood.scoring import LISTED, SHOWN, MapWriter, Scored, Scorer, TiledMapWriter
from denoising_ebm.ood.table import Score
from support import random_pixels

CONFIG = DetectorConfig(FeatureConfig(sigmas=(0.1, 0.3), feature_sigmas=(0.1,)), num_corrupted=8)


@pytest.fixture
def detector(tiny_model: DenoisingEBM) -> Detector:
    return Detector(tiny_model, CONFIG).fit(random_pixels(60), seed=1)


def in_chunks(images: ImageSet, size: int) -> Iterator[ImageSet]:
    """The images as `stream_images` gives them, unreadable ones in their places."""
    for start in range(0, len(images), size):
        indices = range(start, min(start + size, len(images)))
        lost = tuple(
            each._replace(place=each.place - start)
            for each in images.unreadable
            if start <= each.place < start + size or each.place == len(images) == indices.stop
        )
        yield replace(images.take(list(indices)), unreadable=lost)


def some_images(num: int = 50) -> ImageSet:
    lost = (Unreadable("lost0", "cut", 0), Unreadable("lost1", "cut", 20), Unreadable("lost2", "cut", num))
    pixels = random_pixels(num, seed=9)
    pixels[:20] = torch.randint(0, 256, pixels[:20].shape, dtype=torch.uint8)
    return ImageSet(pixels, tuple(f"{i}.png" for i in range(num)), lost)


def test_chunks_give_the_rows_of_all_at_once(detector: Detector) -> None:
    images = some_images()
    for rate in ({"fpr": 0.1}, {"fdr": 0.3}):
        expected = detector.predict(images, **rate)
        scorer = Scorer(detector.model, detector, fpr=rate.get("fpr"), batch_size=7)
        with Scored() as scored:
            for chunk in in_chunks(images, 13):
                scored.add(chunk, *scorer.rows(chunk))
            if "fdr" in rate:
                scored.flag(rate["fdr"])
            rows = list(scored.rows())
            assert [row.name for row in rows] == [row.name for row in expected]
            assert [row.flagged for row in rows] == [row.flagged for row in expected]
            for name in ("score", "p_value", "energy"):
                values = [[getattr(row, name) for row in table if row.status == "ok"] for table in (rows, expected)]
                np.testing.assert_allclose(*values, rtol=1e-4, atol=2e-4)
            flags = [row.flagged for row in rows if row.status == "ok"]
            assert scored.count == 50 and scored.num_unreadable == 3 and scored.num_flagged == sum(flags) > 0
            assert scored.values.tolist() == [row.score for row in rows if row.status == "ok"]
            best = sorted((row for row in rows if row.status == "ok"), key=lambda row: -row.score)
            assert [kept.row for kept in scored.most_anomalous] == best
            chosen = [images.names.index(row.name) for row in best[:SHOWN]]
            assert torch.equal(scored.shown(), images.pixels[chosen])


def test_flags_of_the_whole_follow_exact_p_values() -> None:
    """Rounded to the digits of the table, p-values would decide otherwise at the edge."""
    p = torch.tensor([1 / 30001, 0.3, 2 / 30001], dtype=torch.float64)
    images = ImageSet(random_pixels(3), ("a", "b", "c"), (Unreadable("x", "cut", 1),))
    rows = [Score("a", score=5.0), Score("x", "unreadable"), Score("b", score=0.0), Score("c", score=4.0)]
    with Scored() as scored:
        scored.add(images, rows, p)
        scored.flag(0.05)
        assert torch.equal(scored.p_values, p) and benjamini_hochberg(p, 0.05).tolist() == [True, False, True]
        assert [row.flagged for row in scored.rows()] == [True, None, False, True]
        assert [kept.row.flagged for kept in scored.most_anomalous] == [True, True, False]


def test_what_is_kept_of_many_images_is_small() -> None:
    """Numbers alone: chunks of 4,000 images of 3 kB leave less than 200 kB each after the first."""
    images = ImageSet(torch.zeros(4000, 3, 32, 32, dtype=torch.uint8), tuple(f"{i}.png" for i in range(4000)))
    rows = [Score(name, score=float(i % 97), p_value=0.5, energy=1.0) for i, name in enumerate(images.names)]
    p = torch.full((4000,), 0.5, dtype=torch.float64)
    with Scored() as scored:
        scored.add(images, rows, p)
        tracemalloc.start()
        try:
            for _ in range(10):
                scored.add(images, rows, p)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 10 * 4000 * 50 and scored.count == 44000
        assert len(scored.most_anomalous) == LISTED
        assert {kept.value for kept in scored.most_anomalous} == {96.0}
        # Of equal ones the first.
        assert [kept.place for kept in scored.most_anomalous[:3]] == [96, 193, 290]


def test_maps_of_chunks_and_their_largest_values(detector: Detector, tmp_path: Path) -> None:
    images = some_images(20)
    scorer = Scorer(detector.model, detector)
    writer, rows = MapWriter(scorer, tmp_path), []
    for chunk in in_chunks(images, 8):
        rows += writer.write(chunk, scorer.rows(chunk)[0])
    maps = detector.maps(images.pixels)
    found = {row.name: row.map_max for row in rows}
    assert [found.pop(name) for name in ("lost0", "lost1", "lost2")] == [None] * 3
    np.testing.assert_allclose(list(found.values()), maps.amax((1, 2)).numpy(), atol=2e-3)
    assert writer.count == 20 and writer.limit == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(images.names)


def test_maps_of_energies_are_on_one_scale(tiny_model: DenoisingEBM, tmp_path: Path) -> None:
    images, scorer = some_images(20), Scorer(tiny_model)
    writer = MapWriter(scorer, tmp_path)
    limits = []
    for chunk in in_chunks(images, 8):
        assert {row.map_max for row in writer.write(chunk, scorer.rows(chunk)[0])} == {None}
        limits.append(writer.limit)
    first = scorer.maps(images.pixels[:8])
    assert limits == [pytest.approx(np.quantile(first.numpy(), 0.995))] * 3 and writer.count == 20


def test_tiled_maps_meet_their_rows(detector: Detector, tmp_path: Path) -> None:
    """Originals of any size, some too small for a map, some without a row, in the order of the source."""
    images = some_images(10)
    originals = [(name, random_pixels(1, seed=i, size=24)[0]) for i, name in enumerate(images.names)]
    originals[4] = ("4.png", random_pixels(1, size=24)[0, :, :8])
    originals.insert(0, ("lost0", random_pixels(1, size=40)[0]))
    originals.append(("beyond the limit", random_pixels(1)[0]))
    refused: list[tuple[str, str]] = []
    scorer = Scorer(detector.model, detector)
    writer = TiledMapWriter(scorer, tmp_path, originals, lambda *why: refused.append(why))
    rows = []
    for chunk in in_chunks(images, 3):
        rows += writer.write(chunk, scorer.rows(chunk)[0])
    found = {row.name: row.map_max for row in rows}
    assert found["lost0"] == pytest.approx(float(detector.maps(originals[0][1][None]).max()), abs=1e-3)
    assert found["4.png"] is None and found["lost1" if "lost1" in found else "lost2"] is None
    assert found["9.png"] == pytest.approx(float(detector.maps(originals[-2][1][None]).max()), abs=1e-3)
    assert refused == [("4.png", "images must be at least 16 x 16, got 8 x 24")]
    assert writer.count == 10 and len(list(tmp_path.iterdir())) == 10
    with Image.open(tmp_path / "9.png") as picture:
        assert picture.size[0] == 48


def test_a_full_disk_of_maps_loses_no_scores(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scoring, "write_maps", full)
    scorer, images = Scorer(detector.model, detector), some_images(4)
    writer = MapWriter(scorer, tmp_path)
    rows = writer.write(images, scorer.rows(images)[0])
    assert writer.failed is not None and writer.count == 0
    assert [row.map_max is None for row in rows if row.status == "ok"] == [False] * 4


def test_images_that_only_their_map_calls_anomalous_are_counted() -> None:
    images = ImageSet(random_pixels(4), ("a", "b", "c", "d"))
    rows = [
        Score("a", score=1.0, p_value=0.11, map_max=3.1, seen=0.3),
        Score("b", score=1.0, p_value=0.10, map_max=3.1, seen=1.0),
        Score("c", score=1.0, p_value=0.5, map_max=2.9, seen=0.99),
        Score("d", score=1.0, p_value=0.5),
    ]
    with Scored() as scored:
        scored.add(images, rows, torch.full((4,), 0.5, dtype=torch.float64))
        assert (scored.num_in_maps_alone, scored.num_cropped) == (1, 2)
