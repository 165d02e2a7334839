"""Masks: every way to mark a hole gives the hole, or a line that says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from denoising_ebm.datasets.decode import Stored
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.restoration.masks import missing_pixels, read_mask

HOLE = np.zeros((32, 32), dtype=bool)
HOLE[10:20, 8:22] = True
AS_IS = Preprocessing(32, 1)


def gray(inside: int, outside: int = 0) -> Image.Image:
    return Image.fromarray(np.where(HOLE, inside, outside).astype(np.uint8))


def colours(inside: tuple[int, ...], outside: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.where(HOLE[..., None], np.array(inside), np.array(outside)).astype(np.uint8))


def palette(inside: tuple[int, int, int], outside: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(HOLE.astype(np.uint8), mode=None).convert("P")
    picture.putdata(HOLE.astype(int).ravel().tolist())
    picture.putpalette([*outside, *inside])
    return picture


def turned() -> tuple[Image.Image, dict[str, Any]]:
    """Stored on its side, with the EXIF entry that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return gray(255).transpose(Image.Transpose.ROTATE_90), {"exif": exif}


SAME: dict[str, Callable[[], Any]] = {
    "white.png": lambda: gray(255),
    "bit1.png": lambda: gray(255).convert("1"),
    "lines.jpg": lambda: (gray(255).convert("RGB"), {"quality": 90}),
    "red.jpg": lambda: (colours((255, 0, 0), (0, 0, 0)), {"quality": 95}),
    "green.jpg": lambda: (colours((0, 255, 0), (0, 0, 0)), {"quality": 75}),
    "blue.jpg": lambda: (colours((0, 0, 255), (0, 0, 0)), {"quality": 75}),
    "cmyk.jpg": lambda: (gray(255).convert("RGB").convert("CMYK"), {"quality": 90}),
    "coarse.jpg": lambda: (gray(255), {"quality": 10}),
    "white.webp": lambda: (gray(255).convert("RGB"), {"quality": 90}),
    "white.bmp": lambda: gray(255),
    "white.gif": lambda: gray(255),
    "sixteen.png": lambda: Image.fromarray(HOLE.astype(np.uint16) * 65535),
    "sixteen_label.png": lambda: Image.fromarray(HOLE.astype(np.uint16)),
    "float.tif": lambda: Image.fromarray(HOLE.astype(np.float32)),
    "soft_float.tif": lambda: Image.fromarray(HOLE.astype(np.float32) * 0.9 + np.float32(0.05) * (np.arange(32) % 3)),
    "int.tif": lambda: Image.fromarray(HOLE.astype(np.int32) * 7),
    "label.png": lambda: gray(1),
    "label_one_two.png": lambda: gray(2, 1),
    "two_grays.png": lambda: gray(200, 100),
    "red.png": lambda: colours((255, 0, 0), (0, 0, 0)),
    "dark_red.png": lambda: colours((128, 0, 0), (0, 0, 0)),
    "blue.png": lambda: colours((0, 0, 255), (0, 0, 0)),
    "palette.png": lambda: palette((255, 255, 255), (0, 0, 0)),
    "palette_voc.png": lambda: palette((128, 0, 0), (0, 0, 0)),
    "white_on_transparent.png": lambda: colours((255, 255, 255, 255), (255, 255, 255, 0)),
    "black_on_transparent.png": lambda: colours((0, 0, 0, 255), (0, 0, 0, 0)),
    "red_on_transparent.png": lambda: colours((255, 0, 0, 255), (0, 0, 0, 0)),
    "red_on_transparent.webp": lambda: (colours((255, 0, 0, 255), (0, 0, 0, 0)), {"lossless": True}),
    "half_transparent.png": lambda: colours((0, 255, 0, 128), (0, 0, 0, 0)),
    "gray_alpha.png": lambda: colours((0, 255), (0, 0)),
    "opaque_alpha.png": lambda: colours((255, 255, 255, 255), (0, 0, 0, 255)),
    "even_alpha.png": lambda: colours((255, 255, 255, 90), (0, 0, 0, 90)),
    "gray_on_key.png": lambda: (gray(255), {"transparency": 0}),
    "no_alpha.png": lambda: colours((255, 255, 255, 0), (0, 0, 0, 0)),  # alpha bytes that nobody filled
    "turned.jpg": turned,
}


@pytest.mark.parametrize("name", list(SAME))
def test_all_encodings_mark_the_same_pixels(name: str, tmp_path: Path) -> None:
    made = SAME[name]()
    picture, options = made if isinstance(made, tuple) else (made, {})
    picture.save(tmp_path / name, **options)
    mask = read_mask(tmp_path / name)
    np.testing.assert_array_equal(mask.marked, HOLE)
    np.testing.assert_array_equal(missing_pixels(mask, AS_IS).numpy(), HOLE)
    known = missing_pixels(mask, AS_IS, marks="known")
    np.testing.assert_array_equal(known.numpy(), ~HOLE)


def test_soft_edges_are_cut_in_the_middle(tmp_path: Path) -> None:
    """A straight edge that is blurred alike on both sides stays where it was."""
    half = np.zeros((32, 32), dtype=np.uint8)
    half[:, 20:] = 255
    Image.fromarray(half).filter(ImageFilter.BoxBlur(2)).save(tmp_path / "soft.png")
    mask = read_mask(tmp_path / "soft.png")
    np.testing.assert_array_equal(mask.marked, half > 0)
    assert mask.soft == pytest.approx(2 / 32)  # of columns at 1, 2, 3, 4 fifths those at 2 and 3


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "all.png": (lambda: gray(255, 255), "100 % of the pixels would be filled in"),
    "all_ones.png": (lambda: gray(1, 1), "100 % of the pixels would be filled in"),
    "none.png": (lambda: gray(0), "0 % of the pixels would be filled in"),
    "inverted.png": (lambda: gray(0, 255), "86 % of the pixels would be filled in; give --mask-marks known"),
    "red_on_white.png": (lambda: colours((255, 0, 0), (255, 255, 255)), "86 % of the pixels would be filled in"),
    "labels16.png": (
        lambda: Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) // 400),
        "holds 3 values",
    ),
    "labels.tif": (
        lambda: Image.fromarray((np.arange(1024) // 400).reshape(32, 32).astype(np.float32)),
        "holds 3 values",
    ),
    "labels.png": (lambda: Image.fromarray(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 3), "holds 3 values"),
    "shades.png": (
        lambda: Image.fromarray(np.arange(1024).reshape(32, 32).astype(np.uint8)),
        "neither black nor white",
    ),
    "nonsquare.png": (lambda: gray(255).crop((0, 0, 20, 32)), "the mask is 20x32, the images are 32x32"),
    "big.png": (lambda: gray(255).resize((64, 64), 0), "the mask is 64x64, the images are 32x32; --resize brings"),
    "nan.tif": (lambda: Image.fromarray(np.where(HOLE, np.nan, 0).astype(np.float32)), "not finite"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_not_clear_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    make().save(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        missing_pixels(read_mask(tmp_path / name), AS_IS)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)


def test_pictures_of_several_colours_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 4), dtype=np.uint8)
    pixels[HOLE] = 128, 0, 0, 255
    pixels[~HOLE, 3] = 255
    pixels[9:12, 8:22] = 224, 224, 192, 255  # the border that labels of Pascal VOC have
    Image.fromarray(pixels[..., :3]).save(tmp_path / "voc.png")
    with pytest.raises(ValueError, match=r"voc.png: holds more than two colours"):
        read_mask(tmp_path / "voc.png")
    pixels[25:, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "drawn.png")
    with pytest.raises(ValueError, match=r"drawn.png: is transparent and drawn in several colours"):
        read_mask(tmp_path / "drawn.png")


def test_colours_of_equal_brightness_are_told_apart(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[HOLE], pixels[~HOLE] = (0, 0, 114), (38, 1, 0)
    Image.fromarray(pixels).save(tmp_path / "two.png")
    marked = read_mask(tmp_path / "two.png").marked
    assert (marked == HOLE).all() or (marked == ~HOLE).all()


def test_files_that_are_no_masks_are_refused(tmp_path: Path) -> None:
    gray(255).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no picture")
    gray(255).save(tmp_path / "frames.gif", save_all=True, append_images=[gray(0, 255)])
    for name, reason in (
        ("cut.png", "unreadable mask"),
        ("text.png", "cannot identify the format"),
        ("frames.gif", "holds 2 frames; a mask has one"),
        ("", "is a folder"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_mask(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_mask(tmp_path / "nowhere.png")


# -- masks go the way of the images -----------------------------------------------------------------------------------


def fitted(marked: np.ndarray[Any, Any], preparation: Preprocessing, size: tuple[int, int], folder: Path) -> Any:
    Image.fromarray(marked.astype(np.uint8) * 255).save(folder / "mask.png")
    return missing_pixels(read_mask(folder / "mask.png"), preparation, Stored("PNG", *size)).numpy()


def test_masks_are_cropped_and_resized_with_the_images(tmp_path: Path) -> None:
    """A hole of stored pixels covers, among the model's, all that one of its pixels has a share in."""
    wide = np.zeros((64, 96), dtype=bool)
    wide[21:40, 40:52] = (
        True  # rows 10.5 to 20, columns (40 - 16) / 2 = 12 to 18 of the central square at half its size
    )
    expected = np.zeros((32, 32), dtype=bool)
    expected[10:20, 12:18] = True
    boxed = Preprocessing(32, 1, "box")
    np.testing.assert_array_equal(fitted(wide, boxed, (96, 64), tmp_path), expected)
    # A wider filter reaches further, so the hole grows, and covers every pixel that its content may have changed.
    grown = fitted(wide, Preprocessing(32, 1, "bicubic"), (96, 64), tmp_path)
    assert (grown >= expected).all() and grown.sum() > expected.sum()
    picture, spoiled = (np.full((64, 96), 100, dtype=np.uint8) for _ in range(2))
    spoiled[wide] = 200
    half = [
        np.asarray(Image.fromarray(each[:, 16:80]).resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
        for each in (picture, spoiled)
    ]
    assert np.abs(half[1] - half[0])[~grown].max() <= 2 < np.abs(half[1] - half[0])[~expected].max()
    # --center-crop: the middle 32 pixels as they are.
    cropped = fitted(wide, Preprocessing(32, 1, center_crop=32), (96, 64), tmp_path)
    np.testing.assert_array_equal(cropped, wide[16:48, 32:64])


def test_masks_are_padded_and_stretched_with_the_images(tmp_path: Path) -> None:
    wide = np.zeros((64, 128), dtype=bool)
    wide[20:40, 40:52] = True
    padded = np.zeros((32, 32), dtype=bool)
    padded[8 + 5 : 8 + 10, 10:13] = True  # a quarter of the size, between borders of 8 pixels
    np.testing.assert_array_equal(fitted(wide, Preprocessing(32, 1, "box", aspect="pad"), (128, 64), tmp_path), padded)
    stretched = np.zeros((32, 32), dtype=bool)
    stretched[10:20, 10:13] = True
    np.testing.assert_array_equal(
        fitted(wide, Preprocessing(32, 1, "box", aspect="stretch"), (128, 64), tmp_path), stretched
    )


def test_masks_of_other_sizes(tmp_path: Path) -> None:
    boxed = Preprocessing(32, 1, "box")
    # Of the size that the model takes: made for what it sees.
    np.testing.assert_array_equal(fitted(HOLE, boxed, (96, 64), tmp_path), HOLE)
    # Of the shape of the images, at another scale.
    np.testing.assert_array_equal(fitted(HOLE.repeat(3, 0).repeat(3, 1), boxed, (64, 64), tmp_path), HOLE)
    with pytest.raises(ValueError, match="the mask is 64x64, the images are 96x64 and made 32x32"):
        fitted(HOLE.repeat(2, 0).repeat(2, 1), boxed, (96, 64), tmp_path)
    corner = np.zeros((64, 64), dtype=bool)
    corner[:8, :8] = True
    with pytest.raises(ValueError, match="0 % of the pixels of the part that is seen would be filled in"):
        fitted(corner, Preprocessing(32, 1, center_crop=32), (64, 64), tmp_path)
