"""How images were stored: what a detector keeps, what differs from it, and what the detector makes of compressed images."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images
from denoising_ebm.config import from_dict
from denoising_ebm.datasets.decode import Stored
from denoising_ebm.datasets.images import ImageSet
from denoising_ebm.ood.anomaly_maps import AnomalyMapConfig
from denoising_ebm.ood.calibration import Calibration, Scores
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import FeatureConfig
from denoising_ebm.ood.image_storage import (
    KINDS,
    StorageRecord,
    StorageTally,
    jpeg_copies,
    kinds_of,
    unlike_each_other,
    unlike_fitting,
)
from denoising_ebm.ood.metrics import auroc
from support import random_pixels

PNG, JPEG_75, JPEG_95 = Stored("PNG", 32, 32), Stored("JPEG", 32, 32, quality=75), Stored("JPEG", 32, 32, quality=95)
LOSSLESS = KINDS.index("lossless")

SMALL = DetectorConfig(
    FeatureConfig(sigmas=(0.1,), families=("energy", "noisy-energy")),
    covariates=("energy",),
    blocks=(),
    num_corrupted=10,
    maps=AnomalyMapConfig(sigmas=(0.2,), clean_sigmas=(), num_noise_samples=1, blur=1.0),
)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Real images at half their size."""
    images = load_images("fashion-mnist", limit=400).pixels.float()
    return torch.nn.functional.avg_pool2d(images, 2).round().to(torch.uint8)


def images_of(pixels: Tensor, *stored: Stored | None) -> ImageSet:
    """Return images that were stored in these ways by turns."""
    ways = tuple(stored[i % len(stored)] for i in range(len(pixels)))
    return ImageSet(pixels, tuple(map(str, range(len(pixels)))), stored=ways)


def test_a_record_counts_formats_qualities_sizes_scales_and_few_levels() -> None:
    pixels = random_pixels(10)
    pixels[0] = pixels[0] // 64 * 64
    shrunk = Stored("JPEG", 640, 480, quality=93, scale=30.0)
    record = StorageRecord.of(images_of(pixels, PNG, shrunk, None, PNG, JPEG_75))
    assert record.kinds == {"JPEG 70-79": 2, "JPEG 90-100": 2, "lossless": 4, "unknown": 2}
    assert record.formats == {"": 2, "JPEG": 4, "PNG": 4} and record.qualities == {"75": 2, "95": 2}
    assert record.sizes == {"32x32": 6, "640x480": 2} and record.scales == (1.0, 1.0, 30.0)
    assert record.few_levels == 1 and record.images == 10
    assert from_dict(StorageRecord, asdict(record)) == record
    with pytest.raises(ValueError, match="storage: kinds: lossless: expected int, got 'x'"):
        from_dict(StorageRecord, {"kinds": {"lossless": "x"}}, where="storage")
    with pytest.raises(ValueError, match="storage: counts must be >= 0 and scales > 0"):
        from_dict(StorageRecord, {"images": -1}, where="storage")
    both = record.joined(StorageRecord.of(images_of(pixels[1:5], PNG)))
    assert both.images == 14 and both.kinds["lossless"] == 8 and both.scales == (1.0, 1.0, 30.0)


def test_each_kind_has_its_place() -> None:
    """Files of detectors hold these numbers."""
    qualities = [10, 49, 50, 69, 70, 79, 80, 89, 90, 100, None]
    found = kinds_of([*(Stored("JPEG", 8, 8, quality=q) for q in qualities), PNG, None, Stored("WEBP", 8, 8)])
    assert found.tolist() == [4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 1, 0, 2]
    assert kinds_of([Stored("lossless WEBP", 8, 8)]).tolist() == [1]
    assert KINDS[4:10] == ("JPEG below 50", "JPEG 50-69", "JPEG 70-79", "JPEG 80-89", "JPEG 90-100", "JPEG")


def test_what_differs_from_fitting_is_said_with_counts() -> None:
    fitted = StorageRecord.of(images_of(random_pixels(50), PNG))
    new = StorageTally([JPEG_75] * 412 + [PNG] * 88)
    said = unlike_fitting(new, fitted, [LOSSLESS], harmless=False)
    assert said is not None and "\n" not in said
    assert said.startswith("412 of 500 images are JPEG of quality about 75; the detector saw 50 PNG: ")
    assert said.endswith("fit it with such images or with --harmless jpeg")
    # The same formats, or a way of storing that calibration covers, is no news; neither are a few.
    assert unlike_fitting(StorageTally([PNG, Stored("BMP", 32, 32)]), fitted, [LOSSLESS], harmless=False) is None
    covered = [LOSSLESS, int(kinds_of([JPEG_75]))]
    assert unlike_fitting(new, fitted, covered, harmless=True) is None
    assert unlike_fitting(StorageTally([JPEG_75] * 2 + [PNG] * 300), fitted, [LOSSLESS], harmless=False) is None
    # Nothing is known of images without files, nor by detectors of before.
    assert unlike_fitting(StorageTally([None] * 9), fitted, [], harmless=False) is None
    assert unlike_fitting(new, StorageRecord(), [], harmless=False) is None


def test_resizing_otherwise_than_in_fitting_is_said() -> None:
    fitted = StorageRecord.of(images_of(random_pixels(20), Stored("PNG", 64, 64, scale=2.0)))
    said = unlike_fitting(StorageTally([PNG] * 30), fitted, [LOSSLESS], harmless=False)
    assert said is not None and "30 of 30 images were at their own size, those of the detector shrunk 2.0 times" in said
    said = unlike_fitting(StorageTally([Stored("PNG", 16, 16, scale=0.5)] * 3), fitted, [LOSSLESS], harmless=False)
    assert said is not None and "3 of 3 images were enlarged 2.0 times" in said
    alike = StorageTally([Stored("PNG", 70, 70, scale=2.2)] * 9)
    assert unlike_fitting(alike, fitted, [LOSSLESS], harmless=False) is None


def test_images_of_few_colours_are_said_where_those_of_fitting_had_many() -> None:
    pixels = random_pixels(40)
    many = StorageRecord.of(images_of(pixels, PNG))
    said = unlike_fitting(StorageTally([PNG] * 40, pixels // 64 * 64), many, [LOSSLESS], harmless=False)
    assert said is not None and said.startswith(
        "40 of 40 images have at most 16 gray levels (few colours, or drawings), 0 of 40 of the detector's: "
    )
    few = StorageRecord.of(images_of(pixels // 64 * 64, PNG))
    assert unlike_fitting(StorageTally([PNG] * 40, pixels // 64 * 64), few, [LOSSLESS], harmless=False) is None
    assert unlike_fitting(StorageTally([PNG] * 40, pixels), many, [LOSSLESS], harmless=False) is None


def test_sets_of_an_evaluation_are_compared_with_each_other() -> None:
    pixels = random_pixels(40)
    normal, same = StorageRecord.of(images_of(pixels, PNG)), StorageRecord.of(images_of(pixels, PNG, PNG))
    assert unlike_each_other(normal, {"a": same, "made": StorageRecord.of(images_of(pixels, None))}) is None
    copy = StorageRecord.of(images_of(pixels, JPEG_75))
    resized = StorageRecord.of(images_of(pixels, Stored("PNG", 64, 64, scale=2.0)))
    said = unlike_each_other(normal, {"same": same, "copy": copy, "resized": resized})
    assert said == (
        "the sets were stored in different ways (normal: 40 PNG, at their own size; copy: 40 JPEG of quality about 75; "
        "resized: shrunk 2.0 times): this may be what tells them apart"
    )
    flat = StorageRecord.of(images_of(pixels // 64 * 64, PNG))
    said = unlike_each_other(normal, {"flat": flat})
    assert said is not None and "flat: 40 of 40 images with at most 16 gray levels" in said


def test_jpeg_copies_are_of_the_qualities_they_are_counted_as(pixels: Tensor) -> None:
    copies, kinds = jpeg_copies(pixels[:60], torch.Generator().manual_seed(0))
    assert {KINDS[kind] for kind in kinds.tolist()} == {"JPEG 70-79", "JPEG 80-89", "JPEG 90-100"}
    error = (copies.float() - pixels[:60].float()).square().mean((1, 2, 3))
    assert float(error[kinds == 6].mean()) > float(error[kinds == 8].mean()) > 0


def test_a_detector_keeps_how_its_images_were_stored(model: DenoisingEBM, pixels: Tensor, tmp_path: Path) -> None:
    images = images_of(pixels[:200], PNG, JPEG_75)
    detector = Detector(model, SMALL).fit(images, groups="none")
    assert detector.storage.kinds == {"JPEG 70-79": 100, "lossless": 100} and detector.storage.images == 200
    detector.save(tmp_path)
    again = Detector.load(tmp_path, model)
    assert again.storage == detector.storage and again.grouping == detector.grouping
    new = images_of(pixels[200:300], PNG, JPEG_75)
    scores = detector.score(new.pixels)
    torch.testing.assert_close(again.p_values(scores, new.stored), detector.p_values(scores, new.stored))
    # Some 20 calibration images of each kind: each is compared with its own.
    assert again.unlike_fitting(StorageTally(new.stored)) is None
    said = again.unlike_fitting(StorageTally([JPEG_95] * 5))
    assert said is not None and "the detector saw 100 PNG, 100 JPEG of quality about 75" in said
    rows = again.predict(new, fpr=0.1)
    assert [row.flagged for row in rows] == (detector.p_values(scores, new.stored) <= 0.1 + 1e-9).tolist()


def test_harmless_compression_is_calibrated_by_copies(model: DenoisingEBM, pixels: Tensor, tmp_path: Path) -> None:
    config = replace(SMALL, harmless=("jpeg",))
    counts: list[int] = []
    detector = Detector(model, config).fit(images_of(pixels[:300], PNG), groups="none", progress=counts.append)
    assert sum(counts) == detector.fit_work(300)
    detector.save(tmp_path)
    again = Detector.load(tmp_path, model)
    assert again.config == config and len(again.calibration) == 60
    # Three copies of each of 60 images: enough of every kind.
    kinds = again._calibration.copies.kinds
    assert len(kinds) == 180 and set(kinds.tolist()) == {6, 7, 8}
    qualities = {6: 75, 7: 85, 8: 95}
    for kind, quality in qualities.items():
        said = again.unlike_fitting(StorageTally([Stored("JPEG", 16, 16, quality=quality)] * 9))
        assert said is None and int((kinds == kind).sum()) >= 19
    # Fitted to other images than without, and calibrated on the same ones.
    plain = Detector(model, SMALL).fit(images_of(pixels[:300], PNG), groups="none")
    assert torch.equal(plain._hashes["calibrated"], detector._hashes["calibrated"])
    assert not torch.equal(plain.score(pixels[300:310]), detector.score(pixels[300:310]))
    # What is compressed already is not compressed again, and has no copies.
    compressed = Detector(model, config).fit(images_of(pixels[:300], JPEG_75), groups="none")
    torch.testing.assert_close(compressed.score(pixels[300:310]), plain.score(pixels[300:310]), rtol=1e-6, atol=1e-6)


def test_maps_of_another_scale_are_told_by_scale_and_mean(model: DenoisingEBM, pixels: Tensor) -> None:
    shrunk = Stored("PNG", 64, 64, scale=4.0)
    detector = Detector(model, SMALL).fit(images_of(pixels[:200], shrunk), groups="none")
    means = detector.maps(pixels[200:300]).mean((1, 2)).tolist()
    assert detector.unlike_normal_maps(means) is None
    said = detector.unlike_normal_maps(means, own_size=True)
    assert said is not None and "at their own size, those of the detector were shrunk 4.0 times" in said
    low = [mean - 3 for mean in means]
    said = detector.unlike_normal_maps(low)
    assert said is not None and "half of 100 maps have a mean z-score below -" in said
    assert detector.unlike_normal_maps([mean + 3 for mean in means]) is None and detector.unlike_normal_maps([]) is None


@pytest.mark.slow
def test_jpeg_copies_keep_the_promise_where_fitting_saw_both() -> None:
    """Of both kinds at most .05 are flagged, over 20 splits; to a detector that saw PNG alone the copies are anomalous."""
    model = DenoisingEBM.from_pretrained("fashion-mnist")
    images = load_images("fashion-mnist", split="test", limit=500).pixels
    train = load_images("fashion-mnist", limit=200).pixels
    generator = torch.Generator().manual_seed(0)
    copies, kinds = jpeg_copies(images, generator)
    features = FeatureConfig(sigmas=(0.1,), families=("energy", "noisy-energy", "spectrum"))
    config = DetectorConfig(features, covariates=("energy",), blocks=(), num_corrupted=5)
    both = train.clone()
    both[::2] = jpeg_copies(train[::2], generator)[0]
    shares: dict[str, list[float]] = {"PNG": [], "JPEG": []}
    detector = Detector(model, config).fit(
        images_of(both, JPEG_75, PNG), calibration=images_of(images[:20], PNG), groups="none"
    )
    scores = {"PNG": detector.score(images), "JPEG": detector.score(copies)}
    ways = {"PNG": [PNG] * 500, "JPEG": [Stored("JPEG", 32, 32, quality=75 + 10 * (k - 6)) for k in kinds.tolist()]}
    for seed in range(20):
        order = torch.randperm(500, generator=torch.Generator().manual_seed(seed))
        held, new = order[:250], order[250:]
        values = torch.cat([scores["PNG"][held[:125]], scores["JPEG"][held[125:]]])
        stored = [*(ways["PNG"][i] for i in held[:125]), *(ways["JPEG"][i] for i in held[125:])]
        detector._calibration = Calibration(Scores.of(values, kinds=kinds_of(stored)))
        for name, part in shares.items():
            found = detector.flag(scores[name][new], 0.05, [ways[name][i] for i in new])
            part.append(float(found.double().mean()))
    for part in shares.values():
        # 20 splits share 500 images: as if 500 had been judged once, at 4 standard errors.
        assert sum(part) / 20 < 0.05 + 4 * (0.05 * 0.95 / 500) ** 0.5
    alone = Detector(model, config).fit(images_of(train, PNG), calibration=images_of(images[:100], PNG), groups="none")
    assert auroc(alone.score(images[400:]), alone.score(copies[400:])) > 0.65
