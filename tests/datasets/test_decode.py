from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from denoising_ebm.datasets.images import load_images
from pictures import encoded, noise, smooth, write_parquet


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos", "box"])
def test_resize_is_pillows(tmp_path: Path, name: str) -> None:
    picture = smooth(90, 61)
    picture.save(tmp_path / "x.png")
    # 61 of 90 columns: 14 are cut on the left.
    expected = picture.crop((14, 0, 75, 61)).resize((16, 16), Image.Resampling[name.upper()])
    found = load_images(tmp_path / "x.png", image_size=16, resize=name).pixels[0]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_preparation_of_celeba(tmp_path: Path) -> None:
    picture = smooth(178, 218)
    picture.save(tmp_path / "x.png")
    expected = picture.crop((19, 39, 159, 179)).resize((64, 64), Image.Resampling.LANCZOS)
    found = load_images(tmp_path, center_crop=140, image_size=64, resize="lanczos").pixels[0]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected))
    cropped = load_images(tmp_path, center_crop=140).pixels[0]
    assert np.array_equal(cropped.permute(1, 2, 0).numpy(), np.asarray(picture.crop((19, 39, 159, 179))))


def test_images_of_the_right_size_are_not_resampled(folder: Path) -> None:
    assert torch.equal(load_images(folder, image_size=32, resize="bicubic").pixels, load_images(folder).pixels)


def test_pixel_modes(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)

    def read(image: Image.Image, suffix: str = "png", **options: Any) -> torch.Tensor:
        image.save(tmp_path / f"x.{suffix}")
        return load_images(tmp_path / f"x.{suffix}", **options).pixels[0]

    gray = Image.fromarray(ramp)
    assert np.array_equal(read(gray), ramp[None])
    assert np.array_equal(read(Image.fromarray(ramp.astype(np.uint16) * 257)), ramp[None])
    (tmp_path / "x.pgm").write_bytes(b"P5 16 16 65535\n" + (ramp.astype(">u2") * 257).tobytes())
    assert np.array_equal(load_images(tmp_path / "x.pgm").pixels[0], ramp[None])
    assert np.array_equal(read(gray.point(lambda v: 255 * (v > 99), "1")), 255 * (ramp[None] > 99))
    half = gray.copy()
    half.putalpha(Image.fromarray(np.where(ramp > 99, 255, 0).astype(np.uint8)))
    assert np.array_equal(read(half, background="black"), np.where(ramp > 99, ramp, 0)[None])
    assert np.array_equal(read(half), np.where(ramp > 99, ramp, 255)[None])
    assert np.array_equal(read(half, background="ignore"), ramp[None])
    with pytest.raises(ValueError, match=r"background must be white, black, ignore or #rrggbb, got '.{,80}$"):
        read(half, background="a\n" * 10_000)  # of a stranger's detector
    red = np.where(ramp[..., None] > 99, ramp[..., None], np.array([200, 10, 20]))
    assert np.array_equal(read(half, background="#c80a14").permute(1, 2, 0), red)
    color = Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], -1))
    transparent = color.copy()
    transparent.putalpha(0)
    assert np.array_equal(read(color).permute(1, 2, 0), np.asarray(color))
    assert np.array_equal(read(transparent, background="ignore").permute(1, 2, 0), np.asarray(color))
    with pytest.raises(ValueError, match=r"is wholly transparent; --background ignore reads its colours$"):
        read(transparent)
    palette = color.quantize(16)
    assert np.array_equal(read(palette).permute(1, 2, 0), np.asarray(palette.convert("RGB")))
    cmyk = read(color.convert("CMYK"), "tif").permute(1, 2, 0)
    assert np.array_equal(cmyk, np.asarray(color.convert("CMYK").convert("RGB")))


def test_rotation_written_by_cameras_is_applied(tmp_path: Path) -> None:
    picture = smooth(20, 20)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    picture.save(tmp_path / "x.png", exif=exif)
    found = load_images(tmp_path).pixels[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.rot90(np.asarray(picture), -1))


def test_gray_webp_and_palette_serve_both_channel_counts(tmp_path: Path) -> None:
    gray = noise(0, channels=1)
    for suffix in ("webp", "gif"):
        Image.fromarray(gray).save(tmp_path / f"x.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
        assert np.array_equal(load_images(tmp_path / f"x.{suffix}", channels=1).pixels[0], gray[None])
        assert np.array_equal(load_images(tmp_path / f"x.{suffix}", channels=3).pixels[0], np.stack([gray] * 3))
        assert load_images(tmp_path / f"x.{suffix}").pixels.shape[1] == 1


@pytest.mark.parametrize(
    ("kind", "options", "stored"),
    [
        ("WEBP", {"lossless": True}, "lossless WEBP"),
        ("WEBP", {"quality": 80}, "WEBP"),
        ("TIFF", {}, "TIFF"),
        ("TIFF", {"compression": "tiff_lzw"}, "TIFF"),
        ("TIFF", {"compression": "jpeg", "quality": 40}, "JPEG"),
        ("JPEG", {"quality": 40}, "JPEG"),
    ],
)
def test_files_say_whether_their_pixels_lost_something(
    tmp_path: Path, kind: str, options: dict[str, Any], stored: str
) -> None:
    """A file of one format may hold what was compressed with loss, or without."""
    smooth(16, 16).save(tmp_path / "x", kind, **options)
    found = load_images(tmp_path / "x").stored[0]
    assert found is not None and found.format == stored
    assert found.quality == (40 if stored == "JPEG" else None)


def test_frames_of_an_animation_lost_something_if_one_did(tmp_path: Path) -> None:
    frames = [smooth(16, 16), smooth(16, 16).rotate(90)]
    for name, lossless in (("a", True), ("b", False)):
        frames[0].save(tmp_path / f"{name}.webp", save_all=True, append_images=frames[1:], lossless=lossless)
    formats = [stored and stored.format for stored in load_images(tmp_path, frames="all").stored]
    assert formats == ["lossless WEBP", "lossless WEBP", "WEBP", "WEBP"]


def test_gray_beside_color_becomes_rgb_unless_told(folder: Path) -> None:
    gray = noise(9, channels=1)
    Image.fromarray(gray).save(folder / "b.png")
    images = load_images(folder)
    assert np.array_equal(images.pixels[1].numpy(), np.stack([gray] * 3))
    with pytest.raises(ValueError, match=r"photos/b\.png: the image has 1 channel, the model takes 3; --convert"):
        load_images(folder, channels=3)
    with pytest.raises(ValueError, match=r"photos/a\.png: the image has 3 channels, the model takes 1; --convert"):
        load_images(folder, channels=1)


def test_convert_brings_gray_and_colour_to_what_is_asked(folder: Path) -> None:
    Image.fromarray(noise(9, channels=1)).save(folder / "b.png")
    to_rgb = load_images(folder, channels=3, convert=True)
    assert np.array_equal(to_rgb.pixels[1].numpy(), np.stack([noise(9, channels=1)] * 3))
    to_gray = load_images(folder, channels=1, convert=True)
    red, green, blue = to_rgb.pixels[0].double()
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    assert float((to_gray.pixels[0, 0].double() - luma).abs().max()) <= 1
    assert np.array_equal(to_gray.pixels[1, 0].numpy(), noise(9, channels=1))


def test_images_that_are_cropped_already_stay_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(noise(1, 16, 16)).save(tmp_path / "a.png")
    smooth(48, 40).save(tmp_path / "b.png")
    images = load_images(tmp_path, image_size=16, channels=3, resize="box", center_crop=32)
    assert np.array_equal(images.pixels[0].numpy(), noise(1, 16, 16).transpose(2, 0, 1))
    expected = smooth(48, 40).crop((8, 4, 40, 36)).resize((16, 16), Image.Resampling.BOX)
    assert np.array_equal(images.pixels[1].numpy(), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("stored", ["folder", "parquet"])
def test_truncated_images_are_named_and_skipped(tmp_path: Path, kind: str, stored: str) -> None:
    whole = encoded(noise(0), "PNG")
    broken = encoded(noise(1), kind)
    broken = broken[: len(broken) // 2]
    if stored == "folder":
        (tmp_path / "a.png").write_bytes(whole)
        (tmp_path / f"b.{kind.lower()}").write_bytes(broken)
        (tmp_path / "c.png").write_bytes(b"")
        names = ("a.png", f"b.{kind.lower()}", "c.png")
    else:
        write_parquet(tmp_path / "train.parquet", [whole, broken, b""])
        names = ("train.parquet#0", "train.parquet#1", "train.parquet#2")
    images = load_images(tmp_path)
    assert np.array_equal(images.pixels.numpy(), noise(0).transpose(2, 0, 1)[None])
    assert images.names == names[:1]
    assert tuple(image.name for image in images.unreadable) == names[1:]
    assert all(image.reason and "\n" not in image.reason for image in images.unreadable)
    with pytest.raises(ValueError, match=f"{names[1]}: unreadable image: "):
        load_images(tmp_path, strict=True)


def test_pixels_without_a_range_are_unreadable(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"none of 1 images can be read; x\.tif: has floating-point pixels, .*--range"):
        load_images(tmp_path)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    Image.fromarray(noise(0)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"none of 1 images can be read; x\.png: is a PostScript document"):
        load_images(tmp_path)


def test_different_sizes_are_refused(folder: Path) -> None:
    Image.fromarray(noise(4, 40, 40)).save(folder / "b.png")
    with pytest.raises(ValueError, match=r"sizes differ: a\.png is 32x32, b\.png is 40x40; .*--resize"):
        load_images(folder)
    with pytest.raises(ValueError, match=r"photos/b\.png: is 40x40, expected 32x32; --resize"):
        load_images(folder, image_size=32)
    assert load_images(folder, image_size=32, resize="box").pixels.shape == (3, 3, 32, 32)


def test_oblong_and_small_images_are_refused(tmp_path: Path) -> None:
    smooth(48, 32).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png: is 48x32, not square; .*--resize"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match=r"x\.png: is 48x32, smaller than the center crop of 40$"):
        load_images(tmp_path, center_crop=40)
