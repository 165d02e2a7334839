"""What the bytes of a file say before a pixel is decoded: whether they are an image, and how many pictures it holds."""

from __future__ import annotations

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_TEXT = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
_PNG_NEEDED = {b"tRNS", b"acTL", b"fcTL", b"fdAT"}  # beside those whose name says so
_PNG_MAX_CHUNKS = 2**17
# First byte of the flags, with the bit of animations, without that of opacity.
_WEBP_OPAQUE_ANIMATIONS = [bytes([flags]) for flags in range(256) if flags & 0x12 == 0x02]
_TIFF_TYPE_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_TIFF_MAX_PAGES = 2**16

# What else comes under the name of an image, by its first bytes.
_OTHERS = (
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"PAR1", "a Parquet file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SIMPLE  =", "a FITS file"),
    (b"8BPS", "a Photoshop document"),
    (b"\xff\x0a", "a JPEG XL image, which is not read"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image, which is not read"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image, which is not read"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image, which is not read"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"version https://git-lfs", "a Git LFS pointer; the file itself was not fetched"),
)


class UnreadableImageError(ValueError):
    """Why an image is not read, in plain words that need its name before them."""


def what_it_is(raw: bytes) -> str:
    """Say in plain words what bytes are that are no image of a format which is read."""
    start = raw[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not raw:
        return "the file is empty"
    if not raw.strip(b"\0"):
        return "the file holds nothing but zeros"
    if raw[4:8] == b"ftyp":
        brand = raw[8:12]
        if brand in (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
            return f"is {'an AVIF' if brand.startswith(b'avi') else 'a HEIF'} image, which is not read"
        return "is a video"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "is a web page (HTML), not an image"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "is an SVG drawing, which is not read"
    if start.startswith(b"<"):
        return "is an XML file, not an image"
    if raw[128:132] == b"DICM":
        return "is a DICOM file, which is not read"
    for magic, name in _OTHERS:
        if raw.startswith(magic):
            return f"is {name}" if "image" in name or "pointer" in name else f"is {name}, not an image"
    for magic, name in ((b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"RIFF", "WebP")):
        if raw.startswith(magic):
            return f"is a {name} file with a damaged header"
    if is_tiff(raw):
        return "is a TIFF file that is damaged, or of bands, bits or a compression that are not read"
    return ""


def check_png(raw: bytes) -> bytes:
    """Return the bytes of a PNG file, without texts and colour profiles that are too large to be opened.

    Pillow leaves unnoticed what the checksums say of the pixels.

    Raises:
        UnreadableImageError: If a chunk that it needs does not match its checksum, or there are too many.
    """
    view, place, texts = memoryview(raw), len(_PNG), []
    for _ in range(_PNG_MAX_CHUNKS):
        if place + 12 > len(raw):
            break
        length, kind = _PNG_CHUNK.unpack_from(raw, place)
        end = place + 12 + length
        if end > len(raw):
            break  # cut off, which decoding finds where it matters
        if not kind[0] & 32 or kind in _PNG_NEEDED:
            if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
                raise UnreadableImageError("is damaged: a checksum of the PNG file does not match")
        elif kind in _PNG_TEXT:
            texts.append((place, end))
        place = end
        if kind == b"IEND":
            break
    else:
        raise UnreadableImageError(f"is damaged: a PNG file of more than {_PNG_MAX_CHUNKS:,} chunks")
    if not texts:
        return raw
    # Pillow refuses the whole file for a text of more than 1 MB: deflated, it may stand in a thousandth of that.
    if sum(end - start for start, end in texts) <= 512:
        return raw
    parts, place = [], 0
    for start, end in texts:
        parts.append(raw[place:start])
        place = end
    return b"".join([*parts, raw[place:]])


def is_png(raw: bytes) -> bool:
    """Whether bytes start as a PNG file does."""
    return raw.startswith(_PNG)


def with_opacity(raw: bytes) -> bytes:
    """Return the bytes of a file; those of a WebP animation marked as of one with opacity.

    Encoders leave the mark out where all frames are opaque, though they need not cover all of the picture.
    """
    is_opaque_animation = raw[:4] == b"RIFF" and raw[8:16] == b"WEBPVP8X" and raw[20:21] in _WEBP_OPAQUE_ANIMATIONS
    return raw[:20] + bytes([raw[20] | 0x10]) + raw[21:] if is_opaque_animation else raw


def is_lossless_webp(raw: bytes) -> bool:
    """Whether the pictures of a WebP file are stored without loss, all of them."""
    kinds, place = set(), 12
    while place + 8 <= len(raw):
        kind, length = raw[place : place + 4], int.from_bytes(raw[place + 4 : place + 8], "little")
        kinds.add(kind)
        # A frame of an animation is chunks of its own, behind 16 bytes of where it goes.
        place += 24 if kind == b"ANMF" else 8 + length + length % 2
    return b"VP8L" in kinds and b"VP8 " not in kinds


def is_tiff(raw: bytes) -> bool:
    """Whether bytes start as a TIFF file does."""
    return raw[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tiff_pages(raw: bytes) -> list[int]:
    """Return the numbers of the pages of a TIFF file that are pictures, not reduced copies or masks of others.

    Raises:
        UnreadableImageError: If a directory claims more data than the file holds: the same bytes would be copied for
            every tag.
    """
    order = "<" if raw[:2] == b"II" else ">"
    big = raw[2:4] in (b"+\0", b"\0+")
    # Number of entries, tag and type, number of values, place of the values; bytes of an entry and of what fits into it.
    number, count, inline, size = ("Q", "Q", 8, 20) if big else ("H", "I", 4, 12)
    pages: list[bool] = []
    seen: set[int] = set()
    all_entries = 0
    try:
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), raw, 8 if big else 4)
        while place and place not in seen and len(pages) < _TIFF_MAX_PAGES:
            seen.add(place)
            (entries,) = struct.unpack_from(order + number, raw, place)
            place += struct.calcsize(number)
            all_entries += entries
            if all_entries * size > len(raw):
                break
            claimed, subfile = 0, 0
            for at in range(place, place + entries * size, size):
                tag, kind, values = struct.unpack_from(f"{order}HH{count}", raw, at)
                length = values * _TIFF_TYPE_SIZES.get(kind, 1)
                claimed += length if length > inline else 0
                if tag == 254:
                    (subfile,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), raw, at + size - inline)
            if claimed > len(raw):
                raise UnreadableImageError("is damaged: its tags claim more data than the file holds")
            pages.append(not subfile & 0b101)
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), raw, place + entries * size)
    except struct.error:
        pass  # cut off, which decoding finds where it matters
    pictures = [page for page, is_picture in enumerate(pages) if is_picture]
    return pictures or list(range(max(len(pages), 1)))
