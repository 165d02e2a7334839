"""One picture in many encodings: the same pixels, or a reason in plain words."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from denoising_ebm.datasets.decode import Decoded, Decoding, decode_each
from denoising_ebm.datasets.entries import Entry
from denoising_ebm.datasets.images import load_images
from denoising_ebm.datasets.levels import parse_range
from pictures import encoded, noise, png, png_chunk, smooth, tiff

RGB = noise(0)
GRAY = noise(1, channels=1)
DEEP = RGB.astype(np.uint16) * 257
OPAQUE = np.full((32, 32, 1), 255, np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(raw: bytes, **how: Any) -> list[tuple[str, Decoded | None, str]]:
    return [(entry.name, decoded, reason) for entry, decoded, reason in decode_each([Entry("x", raw)], Decoding(**how))]


def one(raw: bytes, **how: Any) -> Decoded:
    ((_, decoded, reason),) = read(raw, **how)
    assert decoded is not None, reason
    return decoded


def reason(raw: bytes, **how: Any) -> str:
    ((_, decoded, why),) = read(raw, **how)
    assert decoded is None and why and "\n" not in why
    return why


def pixels(raw: bytes, **how: Any) -> np.ndarray:
    return np.asarray(one(raw, **how).image)


DEEP_FILES = {
    "png": png(DEEP, 2),
    "interlaced png": png(DEEP, 2, interlaced=True),
    "png with opacity": png(np.concatenate([DEEP, OPAQUE * np.uint16(257)], -1), 6),
    "little-endian tiff": tiff([(DEEP, {})]),
    "big-endian tiff": tiff([(DEEP, {})], ">"),
    "bigtiff": tiff([(DEEP, {})], big=True),
    "tiff with opacity": tiff([(np.concatenate([DEEP, OPAQUE * np.uint16(257)], -1), {338: [2]})]),
    "ppm": b"P6 32 32 65535\n" + DEEP.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("name", DEEP_FILES)
def test_colour_of_16_bits_keeps_its_high_byte(name: str) -> None:
    decoded = one(DEEP_FILES[name])
    assert np.array_equal(np.asarray(decoded.image), RGB)
    assert (decoded.stored.bits, decoded.stored.highest, decoded.stored.notes) == (16, int(DEEP.max()), ())


TWELVE = {
    "rgb png": (png(RGB.astype(np.uint16) * 16, 2), RGB),
    "rgb tiff": (tiff([(RGB.astype(np.uint16) * 16, {})], ">"), RGB),
    "ppm": (b"P6 32 32 65535\n" + (RGB.astype(np.uint16) * 16).astype(">u2").tobytes(), RGB),
    "gray png": (png(GRAY[..., None].astype(np.uint16) * 16, 0), GRAY),
    "gray tiff": (tiff([(GRAY[..., None].astype(np.uint16) * 16, {})]), GRAY),
    "gray png with opacity": (
        png(np.stack([GRAY.astype(np.uint16) * 16, np.full_like(GRAY, 1, np.uint16) * 65535], -1), 4),
        GRAY,
    ),
    "pgm": (b"P5 32 32 65535\n" + (GRAY.astype(np.uint16) * 16).astype(">u2").tobytes(), GRAY),
    "plain pgm": (b"P2 32 32 65535\n" + " ".join(map(str, (GRAY.astype(int) * 16).ravel())).encode(), GRAY),
}


@pytest.mark.parametrize("name", TWELVE)
def test_a_range_scales_levels_of_12_bits(name: str) -> None:
    """Times 16 in 16 bits, they give the 8-bit picture to the level; without the range 16 levels are left."""
    raw, expected = TWELVE[name]
    assert np.array_equal(pixels(raw, value_range=(0, 4095)), expected)
    assert np.array_equal(pixels(raw), expected >> 4)


def test_what_a_file_says_of_its_range_is_known() -> None:
    """A PGM names its largest level, a TIFF its bits and whether 0 is white."""
    twelve = one(b"P5 32 32 4095\n" + (GRAY.astype(np.uint16) * 16).astype(">u2").tobytes())
    assert np.array_equal(np.asarray(twelve.image), GRAY)
    assert (twelve.stored.bits, twelve.stored.highest) == (12, None)
    plain = b"P2 32 32 4095\n" + " ".join(map(str, (GRAY.astype(int) * 16).ravel())).encode()
    assert np.array_equal(pixels(plain), GRAY)
    assert np.array_equal(pixels(b"P5 32 32 15\n" + (GRAY >> 4).tobytes()), (GRAY >> 4) * 17)
    inverted = (65535 - GRAY.astype(np.uint16) * 257)[..., None]
    assert np.array_equal(pixels(tiff([(inverted, {262: [0]})])), GRAY)
    assert np.array_equal(pixels(tiff([(255 - GRAY[..., None], {262: [0]})])), GRAY)


def test_levels_without_a_known_range_need_one() -> None:
    levels = GRAY.astype(np.float32)[..., None] / 255
    assert (
        reason(tiff([(levels, {})]))
        == "has floating-point pixels, whose range the file does not say; --range LOW,HIGH says it"
    )
    assert np.array_equal(pixels(tiff([(levels, {})]), value_range=(0, 1)), GRAY)
    # Values of 250 to 505, as of a thermal camera.
    assert np.array_equal(pixels(tiff([(levels * 255 + 250, {})]), value_range=(250, 505)), GRAY)
    levels[3, 4] = np.nan
    assert reason(tiff([(levels, {})]), value_range=(0, 1)) == "has pixels that are not finite numbers"
    for kind, bits in ((np.int32, "32"), (np.int16, "16")):
        whole = GRAY.astype(kind)[..., None]
        assert reason(tiff([(whole, {})])).startswith(f"has {bits}-bit integer pixels")
        assert np.array_equal(pixels(tiff([(whole, {})]), value_range=(0, 255)), GRAY)
        assert np.array_equal(pixels(tiff([(whole - 100, {})]), value_range=(-100, 155)), GRAY)
    (cut,) = one(tiff([(whole, {})]), value_range=(0, 99)).stored.notes
    assert cut == "levels outside of 0 to 99 cut off"
    assert reason(tiff([(DEEP, {284: [2]})])) == "has 16-bit channels in planes of their own, which are not read"


def test_bytes_with_a_sign_and_portable_float_maps_need_a_range() -> None:
    signed = tiff([((GRAY.astype(int) - 128).astype(np.int8)[..., None], {})])
    assert reason(signed).startswith("has signed 8-bit integer pixels, whose range the file does not say; --range")
    assert np.array_equal(pixels(signed, value_range=(-128, 127)), GRAY)
    floats = b"Pf\n32 32\n-1.0\n" + (GRAY[::-1] / 255).astype("<f4").tobytes()
    assert reason(floats).startswith("has floating-point pixels, whose range the file does not say; --range")
    assert np.array_equal(pixels(floats, value_range=(0, 1)), GRAY)


def test_levels_of_12_bits_in_a_text_that_names_65535_are_told() -> None:
    text = b"P2\n32 32\n65535\n" + b" ".join(b"%d" % level for level in (16 * GRAY.astype(int)).flat)
    assert one(text).stored.highest == 16 * int(GRAY.max())


@pytest.mark.parametrize(
    ("text", "expected"), [("4095", (0, 4095)), ("0,1", (0, 1)), ("-1024, 3071", (-1024, 3071)), ("2.5", (0, 2.5))]
)
def test_ranges_are_written_as_one_or_two_numbers(text: str, expected: tuple[float, float]) -> None:
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "a", "1,2,3", "5,5", "9,1", "nan", "0,inf", "0"])
def test_other_ranges_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="LOW"):
        parse_range(text)


def test_opacity_that_is_full_changes_nothing() -> None:
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        decoded = one(saved(Image.fromarray(np.concatenate([RGB, OPAQUE], -1)), kind, **options))
        assert np.array_equal(np.asarray(decoded.image), RGB) and decoded.stored.notes == ()


def test_opacity_that_is_empty_is_unused_in_a_bmp_and_refused_elsewhere() -> None:
    empty = Image.fromarray(np.concatenate([RGB, OPAQUE * 0], -1))
    rows = np.concatenate([RGB[::-1, :, ::-1], OPAQUE * 0], -1).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 32, 32, 1, 32, 3, len(rows), 0, 0, 0, 0) + masks + bytes(52)
    bmp = one(struct.pack("<2sIHHI", b"BM", 122 + len(rows), 0, 0, 122) + header + rows)
    assert np.array_equal(np.asarray(bmp.image), RGB) and bmp.stored.notes == ("empty opacity ignored",)
    for raw in (saved(empty, "PNG"), png(np.concatenate([DEEP, OPAQUE * np.uint16(0)], -1), 6)):
        assert reason(raw) == "is wholly transparent; --background ignore reads its colours"
        assert np.array_equal(pixels(raw, background="ignore"), RGB)


def test_a_drawing_lies_over_white_and_one_that_would_vanish_is_refused() -> None:
    drawn = np.zeros((32, 32, 4), np.uint8)
    drawn[8:20, 8:20, 3] = 255
    black = one(saved(Image.fromarray(drawn), "PNG"))
    assert np.array_equal(np.asarray(black.image), np.where(drawn[..., 3:] == 255, 0, 255).repeat(3, -1))
    assert black.stored.notes == ("transparent: laid over white",)
    drawn[..., :3] = 255
    white = saved(Image.fromarray(drawn), "PNG")
    assert reason(white).startswith("shows nothing when it is laid over white; give another --background")
    assert np.array_equal(pixels(white, background="black"), drawn[..., 3:].repeat(3, -1))
    assert pixels(white, background="#000")[0, 0].tolist() == [0, 0, 0]


def test_a_transparent_level_is_transparency_in_every_depth() -> None:
    gray = GRAY[..., None].astype(np.uint16) * 257
    raw = png(gray, 0, png_chunk(b"tRNS", struct.pack(">H", gray[0, 0, 0])))
    assert np.array_equal(pixels(raw), np.where(GRAY == GRAY[0, 0], 255, GRAY))
    raw = png(DEEP, 2, png_chunk(b"tRNS", struct.pack(">HHH", *DEEP[0, 0].tolist())))
    assert np.array_equal(pixels(raw), np.where((RGB == RGB[0, 0]).all(-1, keepdims=True), 255, RGB))
    raw = png(RGB, 2, png_chunk(b"tRNS", struct.pack(">HHH", *RGB[0, 0].tolist())))
    assert np.array_equal(pixels(raw), np.where((RGB == RGB[0, 0]).all(-1, keepdims=True), 255, RGB))


def test_of_more_than_four_bands_the_first_three_are_read() -> None:
    """Also where the fourth is called opacity, but holds a picture: near infrared, by programs that know RGBA alone."""
    four = np.concatenate([RGB, GRAY[..., None]], -1)
    five = np.concatenate([four, GRAY[..., None]], -1)
    for raw, bands in (
        (tiff([(four, {338: [0]})]), 4),
        (tiff([(four, {338: [2]})]), 4),
        (tiff([(five, {338: [0, 0]})]), 5),
    ):
        decoded = one(raw)
        assert np.array_equal(np.asarray(decoded.image), RGB)
        assert decoded.stored.notes == (f"first 3 of {bands} bands",)
    mask = np.concatenate([RGB, np.where(GRAY[..., None] > 99, 255, 0).astype(np.uint8)], -1)
    masked = one(tiff([(mask, {338: [2]})]))
    assert masked.stored.notes == ("transparent: laid over white",)
    assert np.array_equal(np.asarray(masked.image), np.where(GRAY[..., None] > 99, RGB, 255))


FRAMES = [noise(seed) for seed in (5, 6, 7)]


def test_of_gray_and_another_band_that_is_no_opacity_the_first_is_read_and_it_is_said() -> None:
    pair = np.stack([GRAY, GRAY[::-1]], -1)
    found = one(tiff([(pair, {338: [0]})]))
    assert found.stored.notes == ("first 1 of 2 bands",)
    assert np.array_equal(np.asarray(found.image), GRAY)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_what_no_frame_covers_is_transparent(kind: str) -> None:
    """Encoders store the part of a frame that is not transparent, and may say that all of it is opaque."""
    frames = [Image.new("RGBA", (32, 32), (0, 0, 0, 0)) for _ in range(2)]
    for place, frame in enumerate(frames):
        frame.paste((200, 20, 30, 255), (4, 4 + 8 * place, 20, 12 + 8 * place))
    options = {"lossless": True} if kind == "WEBP" else {"disposal": 2} if kind == "GIF" else {"disposal": 1}
    found = one(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert found.stored.notes == ("first of 2 frames", "transparent: laid over white")
    expected = np.full((32, 32, 3), 255, np.uint8)
    expected[4:12, 4:20] = 200, 20, 30
    assert np.array_equal(np.asarray(found.image), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_frames_are_counted_and_all_can_be_had(kind: str) -> None:
    images = [Image.fromarray(frame) for frame in FRAMES]
    expected = FRAMES
    if kind == "GIF":
        images = [image.convert("L") for image in images]
        expected = [np.asarray(image) for image in images]
    options = {"lossless": True} if kind == "WEBP" else {}
    raw = saved(images[0], kind, save_all=True, append_images=images[1:], **options)
    first = one(raw)
    assert np.array_equal(np.asarray(first.image), expected[0])
    assert (first.stored.frames, first.stored.notes) == (3, ("first of 3 frames",))
    found = read(raw, frames="all")
    assert [name for name, _, _ in found] == ["x#0", "x#1", "x#2"]
    for (_, decoded, _), frame in zip(found, expected, strict=True):
        assert decoded is not None and decoded.stored.notes == ()
        assert np.array_equal(np.asarray(decoded.image), frame)
    assert [name for name, _, _ in read(encoded(RGB, "PNG"), frames="all")] == ["x"]


def test_reduced_copies_and_masks_in_a_tiff_are_no_pages() -> None:
    """As of pyramids, and a thumbnail before the picture."""
    small = RGB[::2, ::2]
    decoded = one(tiff([(small, {254: [1]}), (RGB, {}), (small, {254: [1]})]))
    assert np.array_equal(np.asarray(decoded.image), RGB)
    assert (decoded.stored.frames, decoded.stored.notes) == (1, ())
    stack = tiff([(RGB, {}), (small, {254: [1]}), (RGB[::-1], {})])
    found = read(stack, frames="all")
    assert [name for name, _, _ in found] == ["x#0", "x#1"]
    assert np.array_equal(np.asarray(found[1][1].image), RGB[::-1])  # type: ignore[union-attr]


def test_frames_are_drawn_one_by_one(tmp_path: Path) -> None:
    import torch

    pages = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in range(40)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(tmp_path / "b.png")
    drawn = load_images(tmp_path, frames="all", sample=6, generator=torch.Generator().manual_seed(0))
    assert len(drawn) == 6 and len(set(drawn.names)) == 6
    levels = {f"a.tif#{level}": level for level in range(40)} | {"b.png": 99}
    assert drawn.pixels[:, 0, 0, 0].tolist() == [levels[name] for name in drawn.names]
    assert [int(name.partition("#")[2] or 99) for name in drawn.names] != list(range(6))
    assert len(load_images(tmp_path, frames="all")) == 41
    assert load_images(tmp_path, frames="all", limit=3).names == ("a.tif#0", "a.tif#1", "a.tif#2")


def test_a_turn_by_exif_counts_before_size(tmp_path: Path) -> None:
    picture = smooth(24, 40)
    exif = picture.getexif()
    for orientation, transpose in ((3, "ROTATE_180"), (6, "ROTATE_270"), (8, "ROTATE_90"), (2, "FLIP_LEFT_RIGHT")):
        exif[0x0112] = orientation
        expected = picture.transpose(Image.Transpose[transpose])
        turned = [saved(picture, "PNG", exif=exif), saved(picture, "WEBP", exif=exif, lossless=True)]
        turned.append(tiff([(np.asarray(picture), {274: [orientation]})]))
        for raw in turned:
            decoded = one(raw)
            assert np.array_equal(np.asarray(decoded.image), np.asarray(expected))
            assert (decoded.stored.width, decoded.stored.height) == expected.size
    deep = np.asarray(picture).astype(np.uint16) * 257
    assert np.array_equal(pixels(tiff([(deep, {274: [6]})])), np.rot90(np.asarray(picture), -1))


@pytest.mark.parametrize("data", [b"Exif\0\0garbagegarbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
def test_broken_exif_is_no_reason(data: bytes) -> None:
    plain, broken = saved(Image.fromarray(RGB), "JPEG"), saved(Image.fromarray(RGB), "JPEG", exif=data)
    assert np.array_equal(pixels(broken), pixels(plain))
    assert np.array_equal(pixels(saved(Image.fromarray(RGB), "PNG", exif=data)), RGB)


def test_the_quality_of_a_jpeg_is_that_it_was_saved_in() -> None:
    for quality in (5, 30, 49, 50, 51, 75, 90, 95, 100):
        stored = one(saved(Image.fromarray(RGB), "JPEG", quality=quality)).stored
        assert (stored.format, stored.quality, stored.bits) == ("JPEG", quality, 8)
    assert one(saved(Image.fromarray(RGB), "PNG")).stored.quality is None


OTHERS = {
    "nothing": (b"", "the file is empty"),
    "zeros": (bytes(100), "the file holds nothing but zeros"),
    "html": (b"\n<!DOCTYPE html><html>", "is a web page (HTML), not an image"),
    "zip": (b"PK\x03\x04" + bytes(30), "is a ZIP archive or an office document, not an image"),
    "pdf": (b"%PDF-1.7\n", "is a PDF document, not an image"),
    "svg": (b"<?xml version='1.0'?><svg xmlns=''/>", "is an SVG drawing, which is not read"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(20), "is a HEIF image, which is not read"),
    "avif": (b"\0\0\0\x18ftypavif" + bytes(20), "is an AVIF image, which is not read"),
    "jxl": (b"\xff\x0a" + bytes(20), "is a JPEG XL image, which is not read"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer; the file itself was not fetched"),
    "text": (b"hello", "cannot identify the format (read are PNG, JPEG, WEBP, BMP, GIF, PPM, TIFF)"),
    "half a jpeg": (saved(Image.fromarray(RGB), "JPEG")[:900], "is cut off: its pixels end early"),
    "half a png": (encoded(RGB, "PNG")[:900], "is cut off: its pixels end early"),
    "half a bmp": (encoded(RGB, "BMP")[:900], "is cut off: its pixels end early"),
    "half a pgm": (b"P5 32 32 255\n" + bytes(99), "is cut off: its pixels end early"),
    "half a deep pgm": (b"P5 32 32 4095\n" + bytes(99), "is cut off: its pixels end early"),
    "8 bands": (
        tiff([(np.zeros((8, 8, 8), np.uint8), {338: [0] * 5})]),
        "is a TIFF file that is damaged, or of bands, bits or a compression that are not read",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_image_is_told_in_the_same_plain_words(name: str) -> None:
    raw, expected = OTHERS[name]
    assert reason(raw) == expected == reason(raw)


def test_a_jpeg_without_its_end_mark_is_whole() -> None:
    for seed in range(20):
        raw = saved(Image.fromarray(noise(seed)), "JPEG")
        assert raw.endswith(b"\xff\xd9") and np.array_equal(pixels(raw[:-2]), pixels(raw))
        assert reason(raw[:-20]) == "is cut off: its pixels end early"


def test_a_bit_that_flipped_in_a_png_is_noticed() -> None:
    """Pillow reads on where the data are stored as they are."""
    row = b"".join(b"\0" + line.tobytes() for line in RGB)
    idat = zlib.compress(row, 0)
    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    raw = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", idat) + png_chunk(b"IEND", b"")
    assert np.array_equal(pixels(raw), RGB)
    flipped = bytearray(raw)
    flipped[1000] ^= 1
    assert reason(bytes(flipped)) == "is damaged: a checksum of the PNG file does not match"


def test_texts_and_profiles_that_unpack_to_much_do_not_keep_a_png_from_being_read() -> None:
    for kind in (b"zTXt", b"iCCP"):
        raw = png(RGB, 2, png_chunk(kind, b"a\0\0" + zlib.compress(bytes(3_000_000))))
        assert np.array_equal(pixels(raw), RGB)


def test_tags_that_claim_the_same_bytes_many_times_are_refused() -> None:
    """Each would be copied: 1,000 tags of 1 MB in a file of 1 MB."""
    content = bytearray(tiff([(RGB, {})]))
    size = len(content)
    entries = b"".join(struct.pack("<HHII", 40000 + i, 1, size - 8, 8) for i in range(100))
    directory = struct.pack("<H", 100) + entries + struct.pack("<I", 0)
    content[4:8] = struct.pack("<I", size)
    assert reason(bytes(content + directory)) == "is damaged: its tags claim more data than the file holds"
    endless = bytearray(tiff([(RGB, {}), (RGB, {})]))
    first = struct.unpack_from("<I", endless, 4)[0]
    (count,) = struct.unpack_from("<H", endless, first)
    struct.pack_into("<I", endless, first + 2 + 12 * count, first)  # the next page is the first again
    assert len(read(bytes(endless), frames="all")) == 1


def test_too_many_pixels_are_refused_by_the_header() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    expected = "is 60000x60000, more than the 67,108,864 pixels that are decoded; --max-pixels raises the limit"
    assert reason(bomb) == expected
    assert "is damaged" in reason(bomb, max_pixels=2**40) or "cut off" in reason(bomb, max_pixels=2**40)
    size = 32 * 32
    assert one(encoded(RGB, "PNG"), max_pixels=size).stored.width == 32
    for raw, most in ((encoded(RGB, "PNG"), size), (png(DEEP, 2), 2 * size), (encoded(RGB, "WEBP"), 4 * size)):
        assert np.array_equal(pixels(raw, max_pixels=most), RGB)
        assert f"more than the {size - 1:,} pixels" in reason(raw, max_pixels=most - 1)
    # A second frame of a GIF can be larger than the first.
    gif = saved(Image.fromarray(GRAY), "GIF", save_all=True, append_images=[Image.fromarray(GRAY[::-1])])
    at = gif.rindex(b"\x21\xf9\x04") + 8  # the second image, after its control block
    assert gif[at : at + 5] == b"\x2c\0\0\0\0"
    grown = gif[: at + 5] + struct.pack("<HH", 60_000, 60_000) + gif[at + 9 :]
    found = read(grown, frames="all")
    assert found[0][1] is not None and found[1][1] is None and "--max-pixels" in found[1][2]


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(tmp_path: Path) -> None:
    """As an aerial photograph of 200 megapixels, which fits no other way; smooth, it is the same picture."""
    rows, columns = np.mgrid[:2100, :8200]
    picture = Image.fromarray((127 + 60 * np.sin(rows / 300) + 60 * np.cos(columns / 500)).astype(np.uint8))
    picture.save(tmp_path / "x.jpg", quality=95)
    how: dict[str, Any] = {"image_size": 32, "resize": "box", "aspect": "stretch"}
    found = load_images(tmp_path, **how, max_pixels=2**21)
    expected = np.asarray(picture.resize((32, 32), Image.Resampling.BOX), np.int64)
    assert np.abs(found.pixels[0, 0].numpy() - expected).max() <= 2
    (stored,) = found.stored
    assert stored is not None and (stored.width, stored.height) == (8200, 2100)
    assert stored.scale == pytest.approx((8200 * 2100) ** 0.5 / 32, rel=1e-3)
    with pytest.raises(ValueError, match="8200x2100, more than the 2,097,152 pixels"):
        load_images(tmp_path, center_crop=32, image_size=32, max_pixels=2**21)
