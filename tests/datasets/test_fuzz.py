"""Whatever the bytes, an image or a row with a plain reason comes of them: no other exception, no warning."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from denoising_ebm.datasets.decode import Decoding, decode_each
from denoising_ebm.datasets.entries import Entry
from pictures import noise, png, png_chunk, tiff


def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(0, 12, 12)).convert(mode).save(file, kind, **options)
    return file.getvalue()


OTHER = [Image.fromarray(noise(1, 12, 12))]
DEEP = noise(0, 12, 12).astype(np.uint16) * 257
FILES = [
    *(
        saved(kind, mode)
        for kind, mode in (("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "CMYK"), ("BMP", "RGBA"), ("BMP", "P"))
    ),
    *(
        saved(kind, mode)
        for kind, mode in (("GIF", "L"), ("PPM", "RGB"), ("PPM", "1"), ("WEBP", "RGBA"), ("TIFF", "RGBA"))
    ),
    *(saved("TIFF", mode, compression=name) for name, mode in (("tiff_lzw", "RGB"), ("group4", "1"), ("jpeg", "RGB"))),
    *(saved(kind, save_all=True, append_images=OTHER) for kind in ("PNG", "GIF", "WEBP", "TIFF")),
    saved("JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
    *(png(DEEP, 2, interlaced=interlaced) for interlaced in (False, True)),
    *(png(DEEP[..., :channels], colour) for channels, colour in ((1, 0), (2, 4))),
    tiff([(DEEP, {})]),
    tiff([(DEEP, {338: []})], ">", big=True),
    tiff([(DEEP[..., :1].astype(np.float32), {})]),
    *(b"P%d 4 4 %d\n" % (kind, most) + b"1 2 3 " * 40 for kind in (2, 3, 5, 6) for most in (7, 255, 4095, 65535)),
    b"Pf\n4 4\n-1.0\n" + bytes(64),
]
HOW = [
    Decoding(needed=8, max_pixels=2**20),
    Decoding(frames="all", background="ignore", max_pixels=2**20),
    Decoding((0, 100), "#123456", "all", 2**16),
]
CHANGE = st.tuples(st.floats(0, 1), st.sampled_from("byte number cut copy end".split()), st.integers(0, 2**32 - 1))


def changed(raw: bytes, changes: list[tuple[float, str, int]]) -> bytes:
    """Return a file with bytes that are others, missing or doubled; the checksums of a PNG fit again."""
    content = bytearray(raw)
    for share, kind, number in changes:
        at = int(share**2 * len(content))  # headers more often
        if kind == "byte":
            content[at : at + 1] = bytes([number % 256])
        elif kind == "number":
            content[at : at + 4] = struct.pack("<I" if number % 2 else ">I", number)
        elif kind == "cut":
            del content[at : at + number % 40]
        elif kind == "copy":
            content[at:at] = content[number % (len(content) + 1) :][: number % 50]
        else:
            del content[at:]
    if raw.startswith(b"\x89PNG"):
        place = 8
        while (end := place + 12 + int.from_bytes(content[place : place + 4], "big")) <= len(content):
            content[end - 4 : end] = struct.pack(">I", zlib.crc32(content[place + 4 : end - 4]))
            place = end
    return bytes(content)


def check(raw: bytes, how: Decoding) -> None:
    rows = list(decode_each([Entry("x", raw)], how))
    assert (rows and rows == rows[:1]) or how.frames == "all"
    for _, decoded, reason in rows:
        if decoded is None:
            assert reason and not re.search(r"[\n<]|\b0x|Error|None", reason), reason
        else:
            assert not reason and decoded.image.mode in ("L", "RGB") and min(decoded.image.size) >= 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.sampled_from(FILES), st.lists(CHANGE, max_size=5), st.sampled_from(HOW))
def test_damaged_files_are_images_or_rows(raw: bytes, changes: list[tuple[float, str, int]], how: Decoding) -> None:
    check(changed(raw, changes), how)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FILES), st.lists(CHANGE, min_size=1, max_size=30), st.sampled_from(HOW))
def test_many_damaged_files(raw: bytes, changes: list[tuple[float, str, int]], how: Decoding) -> None:
    check(changed(raw, changes), how)


def test_files_that_were_found_to_do_harm() -> None:
    """They took minutes or gigabytes, or wrote to the terminal."""
    frames = png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + png_chunk(
        b"fcTL", struct.pack(">7I", *[0] * 7)[:26]
    )
    endless = png(noise(0), 2, frames)
    assert len(list(decode_each([Entry("x", endless)], Decoding(frames="all")))) <= 2
    gif = saved("GIF", save_all=True, append_images=OTHER)
    at = gif.rindex(b"\x21\xf9\x04") + 8
    large = gif[: at + 5] + b"\xff\xff\xff\xff" + gif[at + 9 :]
    check(large, Decoding(frames="all"))


def test_libtiff_and_pillow_write_nothing_of_damaged_files(capfd: pytest.CaptureFixture[str]) -> None:
    for raw in (saved("TIFF", "1", compression="group4"), saved("TIFF", compression="tiff_lzw")):
        for at in range(8, 60):
            check(raw[:at] + b"\xa5" + raw[at + 1 :], Decoding())
    bands = tiff([(noise(0), {277: [5000]})])
    check(bands, Decoding())
    assert capfd.readouterr() == ("", "")
