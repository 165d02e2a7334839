"""Photos of any size, their kinds and masks, by layouts and formats."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from denoising_ebm.datasets.bands import with_directory
from denoising_ebm.datasets.images import to_float
from denoising_ebm.datasets.photos import Photo, PhotoSet, open_photos
from pictures import noise, png, tiff


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def write(path: Path, raw: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def fill(folder: Path, names: Iterable[str]) -> Path:
    """Write photos of 6 x 8 pixels, each of its own; masks mark as many pixels of the first row as their name says last."""
    for seed, name in enumerate(names):
        if "mask" in name.lower() or "ground" in name.lower():
            mask = np.zeros((6, 8), np.uint8)
            mask[0, : seed % 7 + 1] = 255
            save(folder / name, mask)
        else:
            save(folder / name, noise(seed, 6, 8))
    return folder


def by_name(photos: PhotoSet) -> dict[str, Photo]:
    return {photo.name: photo for photo in photos}


def marked(photo: Photo) -> int | None:
    return None if photo.mask is None else int(photo.mask.sum())


# -- layouts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    names = ["train/good/000.png", "test/good/000.png", "test/scratch/000.png", "test/scratch/001.png"]
    masks = ["ground_truth/scratch/000_mask.png", "ground_truth/scratch/001_mask.png"]
    return fill(tmp_path / "bottle", names + masks)


def test_mvtec(mvtec: Path) -> None:
    photos = open_photos(mvtec)
    assert photos.names == ("test/good/000.png", "test/scratch/000.png", "test/scratch/001.png", "train/good/000.png")
    assert photos.kinds == ("good", "scratch", "scratch", "good")
    assert photos.is_normal == (True, False, False, True)
    assert photos.has_masks
    assert [marked(photo) for photo in photos] == [0, 5, 6, 0]
    assert photos.remarks()[0] == "4 photos: good 2, scratch 2"
    assert torch.equal(photos[1].pixels, torch.from_numpy(noise(2, 6, 8)).permute(2, 0, 1))
    assert photos[1].mask is not None
    assert photos[1].mask.nonzero().tolist() == [[0, column] for column in range(5)]


def test_parts_and_normal_photos(mvtec: Path) -> None:
    assert open_photos(mvtec, split="TRAINING").names == ("train/good/000.png",)
    assert open_photos(mvtec, split="test").kinds == ("good", "scratch", "scratch")
    normal = open_photos(mvtec, normal_only=True)
    assert normal.names == ("test/good/000.png", "train/good/000.png")
    assert "only the 2 normal photos taken, not 2 others (scratch 2)" in normal.remarks()
    assert open_photos(mvtec, split="test", normal_only=True).names == ("test/good/000.png",)
    assert open_photos(mvtec, limit=2).kinds == ("good", "scratch")
    with pytest.raises(FileNotFoundError, match="no split 'validation'"):
        open_photos(mvtec, split="validation")


def test_case_and_synonyms_do_not_matter(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", ["Training/GOOD/1.PNG", "Testing/Dent/1.PNG", "Ground_Truth/Dent/1_MASK.png"])
    photos = open_photos(folder)
    assert list(zip(photos.kinds, photos.is_normal, strict=True)) == [("Dent", False), ("GOOD", True)]
    assert marked(photos[0]) == 3


def test_several_products(tmp_path: Path) -> None:
    names = [f"{item}/{rest}" for item in ("bottle", "cable") for rest in ("train/good/0.png", "test/bent/0.png")]
    folder = fill(
        tmp_path / "all", [*names, "bottle/ground_truth/bent/0_mask.png", "cable/ground_truth/bent/0_mask.png"]
    )
    photos = by_name(open_photos(folder))
    assert {name: marked(photo) for name, photo in photos.items()} == {
        "bottle/train/good/0.png": 0,
        "bottle/test/bent/0.png": 5,
        "cable/train/good/0.png": 0,
        "cable/test/bent/0.png": 6,
    }
    # There is no normal photo beside `test/bent`, but elsewhere.
    assert [photo.is_normal for photo in photos.values()] == [False, True, False, True]
    assert open_photos(folder, normal_only=True).kinds == ("good", "good")


def test_visa_as_distributed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "candle", ["Data/Images/Normal/000.JPG", "Data/Images/Anomaly/000.JPG"])
    save(folder / "Data/Masks/Anomaly/000.png", np.eye(6, 8, dtype=np.uint8) * 3)  # labels from 1
    photos = open_photos(folder)
    assert [(photo.kind, photo.is_normal, marked(photo)) for photo in photos] == [
        ("Anomaly", False, 6),
        ("Normal", True, 0),
    ]


def test_visa_of_one_class_names_masks_as_photos(tmp_path: Path) -> None:
    folder = fill(tmp_path / "c", ["train/good/0.JPG", "test/good/1.JPG", "test/bad/0.JPG", "ground_truth/bad/0.png"])
    assert [marked(photo) for photo in open_photos(folder)] == [4, 0, 0]


def test_good_beside_defective(tmp_path: Path) -> None:
    photos = open_photos(fill(tmp_path / "x", ["good/0.png", "defective/0.png"]))
    assert list(zip(photos.kinds, photos.is_normal, strict=True)) == [("defective", False), ("good", True)]
    assert not photos.has_masks
    assert [marked(photo) for photo in photos] == [None, None]


def test_kinds_below_a_judged_folder_are_judged_by_it(tmp_path: Path) -> None:
    photos = open_photos(fill(tmp_path / "x", ["good/red/0.png", "defective/red/0.png"]))
    assert list(zip(photos.kinds, photos.is_normal, strict=True)) == [("red", False), ("red", True)]


def test_flat_folder(tmp_path: Path) -> None:
    photos = open_photos(fill(tmp_path / "x", ["a.png", "b.png", "b_mask.png"]))
    assert photos.names == ("a.png", "b.png")
    assert photos.kinds == (None, None)
    assert photos.is_normal == (None, None)
    assert [marked(photo) for photo in photos] == [None, 3]


def test_folders_of_classes_say_nothing_of_normality(tmp_path: Path) -> None:
    assert open_photos(fill(tmp_path / "x", ["cat/0.png", "dog/0.png"])).is_normal == (None, None)


def test_masks_of_parts_with_the_same_names(tmp_path: Path) -> None:
    names = ["images/train/0.png", "images/val/0.png", "masks/train/0.png", "masks/val/0.png"]
    assert [marked(photo) for photo in open_photos(fill(tmp_path / "x", names))] == [3, 4]


def test_several_masks_of_a_photo_add_up(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", ["train/good/000.png", "test/logical/000.png"])
    for place in range(2):
        mask = np.zeros((6, 8), np.uint8)
        mask[place] = 255
        save(folder / f"ground_truth/logical/000/00{place}.png", mask)
    assert marked(open_photos(folder, split="test")[0]) == 16


def test_masks_without_image_and_defects_without_mask_are_named(mvtec: Path) -> None:
    fill(mvtec, ["ground_truth/scratch/007_mask.png", "test/scratch/002.png"])
    lines = open_photos(mvtec).remarks()
    assert "1 mask without an image: ground_truth/scratch/007_mask.png" in lines
    assert "1 anomalous photo without a mask: test/scratch/002.png" in lines


def test_mask_of_another_size_names_both_files(mvtec: Path) -> None:
    save(mvtec / "ground_truth/scratch/001_mask.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"001_mask\.png: is 8x8, but its photo .*scratch/001\.png is 8x6"):
        open_photos(mvtec)[2]


def test_unreadable_mask_is_named(mvtec: Path) -> None:
    (mvtec / "ground_truth/scratch/001_mask.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"001_mask\.png: the mask"):
        open_photos(mvtec)[2]


def test_mask_of_two_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"would be the mask of test/a/0\.jpg and of test/a/0\.png"):
        open_photos(fill(tmp_path / "x", ["test/a/0.png", "test/a/0.jpg", "ground_truth/a/0.png", "train/good/0.png"]))


SHAPE = np.arange(48).reshape(6, 8) % 5 == 0


@pytest.mark.parametrize(
    "mask",
    [
        SHAPE.astype(np.uint8) * 255,
        SHAPE.astype(np.uint8),
        SHAPE,
        SHAPE.astype(np.uint16) * 40000,
        np.stack([SHAPE * 0, SHAPE * 0, SHAPE * 200], -1).astype(np.uint8),
        np.stack([SHAPE * 0, SHAPE * 0, SHAPE * 0, SHAPE * 255], -1).astype(np.uint8),
        np.where(SHAPE, 200, np.arange(48).reshape(6, 8)).astype(np.uint8),  # many levels: half of the largest
    ],
    ids=["white", "ones", "bits", "16 bits", "colour", "opacity", "levels"],
)
def test_encodings_of_masks(tmp_path: Path, mask: np.ndarray) -> None:
    save(tmp_path / "x/a.png", noise(0, 6, 8))
    save(tmp_path / "x/masks/a.png", mask)
    photo = open_photos(tmp_path / "x")[0]
    assert photo.mask is not None
    assert np.array_equal(photo.mask.numpy(), SHAPE)


def test_masks_as_arrays_and_jpeg(tmp_path: Path) -> None:
    save(tmp_path / "x/a.png", noise(0, 6, 8))
    save(tmp_path / "x/b.png", noise(0, 16, 16))
    save(tmp_path / "x/masks/a.npy", SHAPE)
    half = np.zeros((16, 16), np.uint8)
    half[:, :8] = 255
    save(tmp_path / "x/masks/b.jpg", half)
    photos = open_photos(tmp_path / "x")
    assert [np.array_equal(np.asarray(photo.mask), want) for photo, want in zip(photos, (SHAPE, half > 0), strict=True)]
    assert [marked(photo) for photo in photos] == [int(SHAPE.sum()), 128]


# -- formats --------------------------------------------------------------------------------------------------------

DEEP = np.random.default_rng(0).integers(0, 65536, (6, 8, 3), dtype=np.uint16)
BANDS = np.random.default_rng(1).integers(0, 65536, (6, 8, 7), dtype=np.uint16)


def only(path: Path, **how: object) -> Photo:
    (photo,) = open_photos(path, strict=True, **how)  # type: ignore[arg-type]
    return photo


def test_8_bits(tmp_path: Path) -> None:
    photo = only(save(tmp_path / "a.png", noise(0, 5, 9)))
    assert photo.pixels.dtype == torch.uint8
    assert torch.equal(photo.x, to_float(photo.pixels))
    assert photo.x.shape == (3, 5, 9)


@pytest.mark.parametrize(
    "raw",
    [
        png(DEEP, 2),
        png(DEEP, 2, interlaced=True),
        tiff([(DEEP, {})]),
        tiff([(DEEP, {})], ">"),
        tiff([(DEEP, {})], big=True),
    ],
)
def test_16_bits_are_kept(tmp_path: Path, raw: bytes) -> None:
    photo = only(write(tmp_path / "a.tif", raw))
    assert photo.pixels.dtype == torch.int32
    assert np.array_equal(photo.pixels.numpy(), DEEP.transpose(2, 0, 1))
    assert np.allclose(photo.x.numpy(), DEEP.transpose(2, 0, 1) / 65535 * 2 - 1, atol=1e-6)


def test_16_bits_of_gray(tmp_path: Path) -> None:
    photo = only(save(tmp_path / "a.png", DEEP[..., 0]))
    assert np.array_equal(photo.pixels.numpy(), DEEP[None, ..., 0])


def test_opacity_of_16_bits_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.full((6, 8, 1), 65535, np.uint16)
    alpha[0] = 0
    alpha[1] = 13107  # a fifth
    photo = only(write(tmp_path / "a.png", png(np.concatenate([DEEP, alpha], -1), 6)))
    expected = DEEP.astype(float)
    expected[0] = 65535
    expected[1] = DEEP[1] / 5 + 65535 * 4 / 5
    assert np.abs(photo.pixels.numpy() - expected.transpose(2, 0, 1)).max() <= 1
    assert photo.notes == ("transparent: laid over white",)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_exif_turns_8_and_16_bits_alike(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.zeros((16, 24), np.uint8 if kind == "jpg" else np.uint16)
    array[:8, :8] = np.iinfo(array.dtype).max
    path = tmp_path / f"a.{kind}"
    Image.fromarray(array).save(path, exif=exif)
    # The white corner: top left, right, bottom right, left, then with sides swapped.
    corner = [(0, 0), (0, -1), (-1, -1), (-1, 0), (0, 0), (0, -1), (-1, -1), (-1, 0)][orientation - 1]
    photo = only(path)
    assert photo.x.shape[1:] == ((16, 24) if orientation < 5 else (24, 16))
    assert {at: float(photo.x[(0, *at)]) > 0.9 for at in [(0, 0), (0, -1), (-1, -1), (-1, 0)]} == {
        at: at == corner for at in [(0, 0), (0, -1), (-1, -1), (-1, 0)]
    }


def test_range_of_deep_files(tmp_path: Path) -> None:
    levels = np.arange(0, 4800, 100, dtype=np.uint16).reshape(6, 8)
    save(tmp_path / "x/a.png", levels)
    photo = only(tmp_path / "x", value_range=(95, 4095))
    assert np.allclose(photo.x[0].numpy(), np.clip((levels - 95.0) / 4000 * 2 - 1, -1, 1), atol=1e-6)
    assert photo.notes == ("levels outside of 95 to 4095 cut off",)
    plain = open_photos(tmp_path / "x")
    assert next(iter(plain)).value_range == (0, 65535)
    assert "1 of 1 16-bit photos use levels up to 4700 of 65535 only; --range 8191 scales them" in plain.remarks()


def test_levels_that_a_file_names(tmp_path: Path) -> None:
    levels = np.arange(0, 4800, 100, dtype=np.uint16).reshape(6, 8).clip(0, 4095)
    photo = only(write(tmp_path / "a.pgm", b"P5\n8 6\n4095\n" + levels.astype(">u2").tobytes()))
    assert np.array_equal(photo.pixels[0].numpy(), levels)
    assert photo.value_range == (0, 4095)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 5), (5, 20, 30), (20, 30, 16), (3, 10, 12)])
def test_arrays(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random(shape)
    white = {"f": 1.0, "u": 256.0 ** np.dtype(dtype).itemsize - 1}[np.dtype(dtype).kind]
    array: np.ndarray = (values * white).astype(dtype)
    photo = only(save(tmp_path / "a.npy", array))
    first = array[None] if array.ndim == 2 else array if shape[0] < shape[2] else array.transpose(2, 0, 1)
    assert np.allclose(photo.pixels.numpy(), first)
    assert np.allclose(photo.x.numpy(), first / white * 2 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4), np.nan), "not finite"),
        (np.full((4, 4), np.inf, np.float32), "not finite"),
        (np.linspace(-2, 5, 16).reshape(4, 4), "levels from -2 to 5, not 0 to 1; --range"),
        (np.zeros((4, 4), np.int64), "array of int64"),
        (np.zeros((4, 4, 4), np.uint8), "neither its first nor its last axis"),
        (np.zeros((20, 20, 17), np.uint8), "neither its first nor its last axis"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.array([[{}]]), "damaged, or an array of no numbers"),
    ],
)
def test_arrays_that_are_no_photos(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.npy: .*{message}"):
        only(save(tmp_path / "a.npy", array))


def test_floats_with_a_range(tmp_path: Path) -> None:
    array = np.linspace(-2, 5, 16, dtype=np.float32).reshape(4, 4)
    expected = np.clip((array + 2) / 6 * 2 - 1, -1, 1)
    for path in (save(tmp_path / "a.npy", array), save(tmp_path / "b.tif", array)):
        assert np.allclose(only(path, value_range=(-2, 4)).x[0].numpy(), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"b\.tif: .*--range"):
        only(tmp_path / "b.tif")


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
@pytest.mark.parametrize("array", [BANDS, (BANDS >> 8).astype(np.uint8), (BANDS / 65535).astype(np.float32)])
def test_tiff_of_seven_bands(tmp_path: Path, array: np.ndarray, order: str, big: bool) -> None:
    photo = only(write(tmp_path / "a.tif", tiff([(array, {338: [0, 0, 0, 0]})], order, big=big)))
    assert np.array_equal(photo.pixels.numpy(), array.transpose(2, 0, 1))


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("predictor", [1, 2])
def test_arrangements_of_bands(tmp_path: Path, planes: bool, tiled: bool, predictor: int) -> None:
    array = np.random.default_rng(2).integers(0, 65536, (40, 40, 5), dtype=np.uint16)
    parts = [array[..., band, None] for band in range(5)] if planes else [array]
    pieces, height, width = [], 16, 16 if tiled else 40
    for part in parts:
        padded = np.pad(part, ((0, 8), (0, 8), (0, 0)))
        for top in range(0, 40, height):
            for left in range(0, 40, width):
                piece = padded[top : top + height, left : left + width]
                piece = piece if tiled else piece[: 40 - top]
                before = np.pad(piece, ((0, 0), (1, 0), (0, 0)))[:, :-1]
                pieces.append(zlib.compress((piece - before if predictor == 2 else piece).astype("<u2").tobytes()))
    places = np.cumsum([8, *map(len, pieces)]).tolist()[:-1]
    tags = {256: [40], 257: [40], 258: [16] * 5, 259: [8], 262: [1], 277: [5], 284: [1 + planes], 317: [predictor]}
    if tiled:
        tags |= {322: [16], 323: [16], 324: places, 325: [len(piece) for piece in pieces]}
    else:
        tags |= {273: places, 278: [16], 279: [len(piece) for piece in pieces]}
    path = write(tmp_path / "a.tif", with_directory(b"II*\0\0\0\0\0" + b"".join(pieces), tags))
    assert np.array_equal(only(path).pixels.numpy(), array.transpose(2, 0, 1))


def test_tiff_of_two_and_four_bands(tmp_path: Path) -> None:
    for count, extra in ((2, [0]), (4, [0])):
        photo = only(write(tmp_path / f"{count}.tif", tiff([(BANDS[..., :count], {338: extra})])))
        assert np.array_equal(photo.pixels.numpy(), BANDS[..., :count].transpose(2, 0, 1))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_gray_pages_of_one_size_are_bands(tmp_path: Path, compression: str) -> None:
    pages = [Image.fromarray(BANDS[..., band]) for band in range(7)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression=compression)
    photo = only(tmp_path / "a.tif")
    assert np.array_equal(photo.pixels.numpy(), BANDS.transpose(2, 0, 1))


def test_other_pages_are_left_out_with_a_note(tmp_path: Path) -> None:
    pages = [Image.fromarray(noise(seed, 6, 8)) for seed in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    photos = open_photos(tmp_path / "x.tif")
    assert photos[0].notes == ("first of 3 frames",)
    assert np.array_equal(photos[0].pixels.numpy(), noise(0, 6, 8).transpose(2, 0, 1))
    assert "hold several frames or pages (3)" in photos.remarks()[0]


@pytest.mark.parametrize("planes", [1, 2])
def test_floats_in_colour(tmp_path: Path, planes: int) -> None:
    array = np.random.default_rng(0).random((4, 6, 3), dtype=np.float32)
    stored = array if planes == 1 else array.transpose(2, 0, 1)
    tags = {256: [6], 257: [4], 258: [32] * 3, 259: [1], 262: [2], 277: [3], 278: [4], 284: [planes], 339: [3] * 3}
    tags |= {273: [8], 279: [288]} if planes == 1 else {273: [8, 104, 200], 279: [96] * 3}
    path = write(tmp_path / "a.tif", with_directory(b"II*\0\0\0\0\0" + stored.astype("<f4").tobytes(), tags))
    assert np.array_equal(only(path).pixels.numpy(), array.transpose(2, 0, 1))


def test_too_many_bands_and_pixels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="17 bands"):
        only(write(tmp_path / "a.tif", tiff([(np.zeros((4, 4, 17), np.uint8), {338: [0] * 16})])))
    with pytest.raises(ValueError, match=r"b\.png: is 8x6, more than the 47 pixels"):
        only(save(tmp_path / "b.png", noise(0, 6, 8)), max_pixels=47)
    with pytest.raises(ValueError, match=r"c\.png: is 8x6 of more than 8 bits, more than the 47 pixels"):
        only(save(tmp_path / "c.png", DEEP[..., 0]), max_pixels=95)


# -- sets -----------------------------------------------------------------------------------------------------------


def test_channels_are_those_of_the_first(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(0, 6, 8, 1))
    save(tmp_path / "b.png", noise(1, 6, 8))
    photos = open_photos(tmp_path)
    with pytest.raises(ValueError, match=r"b\.png: has 3 channels, the first photo \(a\.png\) 1"):
        photos[1]
    with pytest.raises(ValueError, match=r"1 photo of 2 do not fit: .*b\.png"):
        photos.check()
    assert photos.channels == 1
    assert "mixed channels: 1 of 1 channel, 1 of 3 channels" in photos.remarks()


def test_gray_among_colour_is_repeated_unless_strict(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(0, 6, 8))
    save(tmp_path / "b.png", noise(1, 6, 8, 1))
    photos = open_photos(tmp_path)
    assert photos[1].notes == ("gray, repeated in three channels",)
    assert torch.equal(photos[1].pixels, torch.from_numpy(noise(1, 6, 8, 1)).expand(3, 6, 8))
    with pytest.raises(ValueError, match=r"b\.png: has 1 channel, 3 are asked for"):
        open_photos(tmp_path, channels=3, strict=True)[1]


def test_unreadable_photos_are_listed(tmp_path: Path) -> None:
    save(tmp_path / "b.png", noise(1, 6, 8))
    write(tmp_path / "a.png", b"")
    photos = open_photos(tmp_path)
    assert photos.channels == 3
    assert [photo.name for photo in photos] == ["b.png"]
    assert [tuple(one) for one in photos.unreadable] == [("a.png", "the file is empty", 0)]
    assert photos.check().names == ("b.png",)
    assert "1 photo cannot be read: a.png the file is empty" in photos.remarks()
    with pytest.raises(ValueError, match=r"a\.png: the file is empty"):
        photos[0]
    with pytest.raises(ValueError, match=r"a\.png"):
        list(open_photos(tmp_path, strict=True))
    with pytest.raises(ValueError, match="none of 1 photo can be read"):
        photos.take([0]).check()


def test_mixed_depths_are_counted(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(0, 6, 8, 1))
    save(tmp_path / "b.png", DEEP[..., 0])
    photos = open_photos(tmp_path)
    for _ in range(2):
        list(photos)
    assert "mixed bit depths: 1 of 8 bits, 1 of 16 bits" in photos.remarks()


def test_take_and_places(mvtec: Path) -> None:
    photos = open_photos(mvtec)
    taken = photos.take(torch.tensor([2, 0]))
    assert taken.names == ("test/scratch/001.png", "test/good/000.png")
    assert (len(taken), marked(taken[1]), taken[-1].name) == (2, 0, "test/good/000.png")
    with pytest.raises(IndexError):
        taken[2]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"channels": 0}, "channels"),
        ({"channels": 17}, "channels"),
        ({"limit": 0}, "limit"),
        ({"value_range": (1.0, 1.0)}, "value_range"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"background": "nocolour"}, "background"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, how: dict[str, object], message: str) -> None:
    save(tmp_path / "a.png", noise(0, 6, 8))
    with pytest.raises(ValueError, match=message):
        open_photos(tmp_path, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["digits", "hf://owner/name"])
def test_other_sources(source: str) -> None:
    with pytest.raises(ValueError, match=f"{source}: photos are read from a folder"):
        open_photos(source)


def test_memory_does_not_grow_with_the_number_of_photos(tmp_path: Path) -> None:
    peaks = []
    for count in (40, 400):
        for number in range(count):
            path = tmp_path / str(count) / f"{number:03}.npy"
            save(path, np.full((64, 64, 3), number % 256, np.uint8))
        photos = open_photos(tmp_path / str(count))
        next(iter(photos))  # what is imported late
        tracemalloc.start()
        assert sum(1 for _ in photos) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Photos are of 12 KiB each: ten would show.
    assert peaks[1] < peaks[0] + 10 * 64 * 64 * 3
