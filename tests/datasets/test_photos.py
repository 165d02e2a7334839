"""Photos of any size: their kinds and masks by folders, bits and bands as stored, and what bad input gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from denoising_ebm.datasets.photos import PhotoSet, open_photos


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def ramp(height: int, width: int, start: int = 0) -> np.ndarray:
    return ((np.arange(height * width).reshape(height, width) + start) % 256).astype(np.uint8)


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    for i in range(4):
        save(tmp_path / f"train/good/{i:03}.png", ramp(20, 30, i))
    for i in range(2):
        save(tmp_path / f"test/good/{i:03}.png", ramp(20, 30, 10 + i))
        save(tmp_path / f"test/crack/{i:03}.png", ramp(20, 30, 20 + i))
        save(tmp_path / f"test/dent/{i:03}.png", ramp(20, 30, 30 + i))
        for k, kind in enumerate(("crack", "dent")):
            mask = np.zeros((20, 30), np.uint8)
            mask[i : i + 3 + k, 4:6] = 255
            save(tmp_path / f"ground_truth/{kind}/{i:03}_mask.png", mask)
    return tmp_path


def test_mvtec_is_read_without_options(mvtec: Path) -> None:
    train = open_photos(mvtec, default_split="train", normal_only=True)
    assert train.names == [f"train/good/{i:03}.png" for i in range(4)]
    test = open_photos(mvtec, default_split="test")
    assert [(photo.kind, photo.is_normal) for photo in test] == 2 * [("crack", False)] + 2 * [("dent", False)] + 2 * [
        ("good", True)
    ]
    # Masks belong to the kind, not only to the number.
    assert [int(photo.mask.sum()) for photo in test] == [6, 6, 8, 8, 0, 0]
    assert test[1].mask[1:4, 4:6].all()
    assert test.has_masks
    assert test.notes == ()


def test_several_sets_in_one_folder_keep_their_masks(mvtec: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "sets"
    for name in ("a", "b"):
        for part in ("train", "test", "ground_truth"):
            shutil.copytree(mvtec / part, root / name / part)
    mask = np.zeros((20, 30), np.uint8)
    mask[:10] = 255
    save(root / "b/ground_truth/crack/000_mask.png", mask)
    photos = open_photos(root, default_split="test")
    found = {photo.name: int(photo.mask.sum()) for photo in photos}
    assert found["a/test/crack/000.png"] == 6
    assert found["b/test/crack/000.png"] == 300


def test_good_beside_other_folders(tmp_path: Path) -> None:
    for name in ("Good/1.png", "Good/2.png", "defective/1.png"):
        save(tmp_path / name, ramp(9, 8))
    photos = open_photos(tmp_path, default_split="test")
    assert [(photo.name, photo.is_normal) for photo in photos] == [
        ("Good/1.png", True),
        ("Good/2.png", True),
        ("defective/1.png", False),
    ]
    assert photos[0].mask is None
    normal = open_photos(tmp_path, default_split="train", normal_only=True)
    assert normal.names == ["Good/1.png", "Good/2.png"]
    assert photos.without(normal).names == ["defective/1.png"]


def test_visa_as_distributed(tmp_path: Path) -> None:
    save(tmp_path / "Data/Images/Normal/0.png", ramp(6, 6))
    save(tmp_path / "Data/Images/Anomaly/0.png", ramp(6, 6))
    save(tmp_path / "Data/Masks/Anomaly/0.png", np.eye(6, dtype=np.uint8))
    photos = open_photos(tmp_path)
    assert [(photo.kind, photo.is_normal, int(photo.mask.sum())) for photo in photos] == [
        ("Anomaly", False, 6),
        ("Normal", True, 0),
    ]


def test_photos_without_kinds(tmp_path: Path) -> None:
    save(tmp_path / "a.png", ramp(5, 7))
    photo = open_photos(tmp_path)[0]
    assert (photo.kind, photo.is_normal, photo.mask) == (None, None, None)
    assert len(open_photos(tmp_path / "a.png")) == 1


def test_photos_keep_their_size(tmp_path: Path) -> None:
    save(tmp_path / "wide.png", ramp(3, 50))
    save(tmp_path / "tall.png", ramp(41, 2))
    assert {photo.name: tuple(photo.pixels.shape) for photo in open_photos(tmp_path)} == {
        "wide.png": (1, 3, 50),
        "tall.png": (1, 41, 2),
    }


def test_values_lie_between_black_and_white(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.array([[0, 51, 255]], np.uint8))
    torch.testing.assert_close(open_photos(tmp_path)[0].x, torch.tensor([[[-1.0, -0.6, 1.0]]]))


def test_16_bits_keep_their_levels(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 32768, 65535]], np.uint16)
    save(tmp_path / "a.png", levels)
    photo = open_photos(tmp_path)[0]
    assert photo.pixels.tolist() == [levels.tolist()]
    torch.testing.assert_close(photo.x, torch.from_numpy(levels.astype(np.float32) / 65535 * 2 - 1)[None])


def test_a_range_says_what_is_black_and_white(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.array([[1000, 3000, 5000, 6000]], np.uint16))
    photos = open_photos(tmp_path, value_range=(1000, 5000))
    assert photos[0].x.tolist() == [[[-1, 0, 1, 1]]]
    assert photos.remarks() == []


def test_16_bits_that_use_little_of_their_range_are_remarked_on(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.array([[0, 4080]], np.uint16))
    photos = open_photos(tmp_path)
    list(photos)
    assert photos.remarks() == [
        "16-bit photos use levels up to 4,080 of 65,535 alone, so all look dark; --range 4095 would take the range of "
        "their bits"
    ]


@pytest.mark.parametrize("shape", [(9, 11), (9, 11, 5), (5, 9, 11)])
def test_arrays_of_bands(tmp_path: Path, shape: tuple[int, ...]) -> None:
    # Bands last are told from bands first by their number, where the other side is longer than sixteen.
    shape = tuple(4 * side if side > 5 else side for side in shape)
    array = np.random.default_rng(0).random(shape, np.float32)
    np.save(tmp_path / "a.npy", array)
    photo = open_photos(tmp_path)[0]
    bands = array[None] if array.ndim == 2 else array if len(array) == 5 else array.transpose(2, 0, 1)
    np.testing.assert_allclose(photo.x.numpy(), 2 * bands - 1, atol=1e-6)


def test_pages_of_a_tiff_file_as_bands(tmp_path: Path) -> None:
    pages = [Image.fromarray(ramp(6, 7, start)) for start in (0, 50, 100, 150)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    photo = open_photos(tmp_path, channels=4)[0]
    np.testing.assert_array_equal(photo.pixels.numpy(), [np.asarray(page) for page in pages])
    assert photo.notes == ("4 pages as bands",)
    assert open_photos(tmp_path)[0].notes == ("first of 4 frames",)


def test_gray_in_a_set_of_colour(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8))
    save(tmp_path / "b.png", ramp(4, 4))
    photos = open_photos(tmp_path)
    assert [len(photo.pixels) for photo in photos] == [3, 3]
    assert photos.remarks() == ["1 photo: gray, taken as colour"]


def test_a_set_reads_one_photo_at_a_time(tmp_path: Path) -> None:
    import gc
    import weakref

    for i in range(5):
        save(tmp_path / f"{i}.png", ramp(64, 64, i))
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    for photo in open_photos(tmp_path):
        alive.append(weakref.ref(photo.pixels))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
    # The one at hand, and the one before it until its name is taken.
    assert most <= 2


def other_channels(folder: Path) -> PhotoSet:
    save(folder / "a.png", ramp(4, 4))
    save(folder / "b.png", np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8))
    return open_photos(folder)


def mask_of_another_size(folder: Path) -> PhotoSet:
    save(folder / "test/good/0.png", ramp(4, 4))
    save(folder / "test/crack/0.png", ramp(4, 4))
    save(folder / "ground_truth/crack/0_mask.png", ramp(5, 4))
    return open_photos(folder)


def cut_off(folder: Path) -> PhotoSet:
    path = save(folder / "a.png", np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:800])
    return open_photos(folder)


def beyond_its_range(folder: Path) -> PhotoSet:
    np.save(folder / "a.npy", np.array([[0.0, 7.0]]))
    return open_photos(folder)


def not_finite(folder: Path) -> PhotoSet:
    np.save(folder / "a.npy", np.array([[0.0, np.nan]]))
    return open_photos(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_channels, r"b\.png: has 3 channels, the photos before have 1: bring all to one kind"),
        (mask_of_another_size, r"0_mask\.png: the mask is 4 x 5, its photo .*test/crack/0\.png is 4 x 4"),
        (cut_off, r"a\.png: unreadable photo: is cut off"),
        (beyond_its_range, r"a\.npy: has floating-point values beyond 0 to 1; --range LOW,HIGH says their range"),
        (not_finite, r"a\.npy: unreadable photo: holds values that are not finite"),
    ],
)
def test_a_bad_photo_gets_one_line_with_its_name(tmp_path: Path, make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(make(tmp_path))  # type: ignore[operator]


def test_masks_of_no_photo_are_counted(mvtec: Path) -> None:
    save(mvtec / "ground_truth/crack/999_mask.png", ramp(20, 30))
    assert open_photos(mvtec).notes == ("1 mask of no photo, first ground_truth/crack/999_mask.png",)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channels": 17}, ValueError, "channels must be within 1..16, got 17"),
        ({"value_range": (5, 5)}, ValueError, "value_range must be two finite numbers"),
        ({"split": "extra"}, FileNotFoundError, "no split 'extra'; splits found: test, train"),
    ],
)
def test_options_that_cannot_be(mvtec: Path, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_photos(mvtec, **options)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_photos(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no photos"):
        open_photos(tmp_path)
