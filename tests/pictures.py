"""What tests of images share: pictures, and files that hold them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def noise(seed: int, height: int = 32, width: int = 32, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values[..., 0] if channels == 1 else values


def smooth(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 2, columns, (rows * columns) % 256], -1).astype(np.uint8))


def encoded(array: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def write_parquet(path: Path, images: list[bytes], column: str = "image") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: [{"bytes": image, "path": None} for image in images]}), path)


def png(values: np.ndarray, colour: int, extra: bytes = b"", *, interlaced: bool = False) -> bytes:
    """A PNG file of `(height, width, channels)` in 8 or 16 bits, of which Pillow writes not all; `extra` are more chunks."""
    bits = 8 * values.dtype.itemsize
    height, width = values.shape[:2]
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [values[y::h, x::w] for x, y, w, h in passes] if interlaced else [values]
    rows = [b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for part in parts for row in part if row.size]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(pages: list[tuple[np.ndarray, dict[int, list[int]]]], order: str = "<", *, big: bool = False) -> bytes:
    """A TIFF file without compression: for each page its `(height, width, channels)` and further tags."""
    head, entry, number, offset = (16, "HHQ", "Q", "Q") if big else (8, "HHI", "H", "I")
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    start = magic + (struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "I", 8))
    content, place = b"", head
    for page, (values, further) in enumerate(pages):
        height, width, channels = values.shape
        pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
        tags = {256: [width], 257: [height], 258: [8 * values.dtype.itemsize] * channels, 259: [1]}
        tags |= {262: [2 if channels > 2 else 1], 277: [channels], 278: [height], 279: [len(pixels)]}
        tags |= {339: [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * channels} | further
        tags[273] = [0]
        room = struct.calcsize(offset)
        count = len(tags)
        directory = struct.calcsize(number) + count * (struct.calcsize("=" + entry) + room) + room
        extra, outside = b"", place + directory
        tags[273] = [outside]
        entries = b""
        for tag, numbers in sorted(tags.items()):
            kind = "I" if tag in (254, 256, 257, 273, 278, 279) else "H"
            data = struct.pack(f"{order}{len(numbers)}{kind}", *(numbers if tag != 273 else [0]))
            if len(data) > room:
                entries += struct.pack(order + entry, tag, 3 if kind == "H" else 4, len(numbers))
                entries += struct.pack(order + offset, outside + len(pixels) + len(extra))
                extra += data
                continue
            if tag == 273:
                data = struct.pack(order + "I", outside)
            entries += struct.pack(order + entry, tag, 3 if kind == "H" else 4, len(numbers)) + data.ljust(room, b"\0")
        end = outside + len(pixels) + len(extra)
        end += end % 2
        following = end if page + 1 < len(pages) else 0
        block = struct.pack(order + number, count) + entries + struct.pack(order + offset, following) + pixels + extra
        content += block.ljust(end - place, b"\0")
        place = end
    return start + content
