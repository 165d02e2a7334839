"""The readers that `fuzz.py` tries: each makes sound files in a folder, and damages and reads one of them at a time."""

from __future__ import annotations

import io
import random
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet

from denoising_ebm import load_images
from denoising_ebm.datasets.images import ImageSet
from denoising_ebm.restoration.masks import read_mask
from denoising_ebm.training.logging import read_metrics, trim_metrics

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from fuzzing import KINDS, MisreadError, Readers, changed_bytes, judge  # type: ignore[import-not-found]

#: Damages a file, reads it and raises a `MisreadError` where the reader does not stand it.
Try = Callable[[random.Random], object]

_PNG = b"\x89PNG\r\n\x1a\n"


def _repair_png(data: bytes) -> bytes:
    """Return a PNG file with right checksums, behind which readers look closer at what the chunks say."""
    out, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if place + 12 + length > len(data):
            break
        body = data[place + 4 : place + 8 + length]
        out += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(out + data[place:])


def _damages(files: list[Path]) -> Callable[[random.Random], Path]:
    """Return a function that writes one of the files damaged, after the one before is sound again."""
    sound = {file: file.read_bytes() for file in files}
    last = [files[0]]

    def damage(rng: random.Random) -> Path:
        last[0].write_bytes(sound[last[0]])
        last[0] = file = rng.choice(files)
        data = changed_bytes(sound[file], rng)
        if rng.random() < 0.1:
            # A piece of another format.
            other = sound[rng.choice(files)]
            place = rng.randrange(len(data) + 1)
            data = data[:place] + other[rng.randrange(len(other)) :]
        file.write_bytes(_repair_png(data) if data.startswith(_PNG) and rng.random() < 0.7 else data)
        return file

    return damage


# -- images -----------------------------------------------------------------------------------------------------------


def _images(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    gray = Image.fromarray(rng.integers(0, 256, (24, 32), dtype=np.uint8))
    rgb = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    rgba = Image.fromarray(rng.integers(0, 256, (24, 32, 4), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 4096, (24, 32), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("gray.png", gray, {}),
        ("rgb.png", rgb, {}),
        ("rgba.png", rgba, {}),
        ("palette.png", rgb.quantize(16), {"transparency": 3}),
        ("bit.png", gray.convert("1"), {}),
        ("deep.png", deep, {}),
        ("apng.png", rgb, {"save_all": True, "append_images": [rgb.rotate(90), rgb]}),
        ("gray.jpg", gray, {}),
        ("rgb.jpg", rgb, {"exif": exif}),
        ("progressive.jpg", rgb, {"progressive": True}),
        ("cmyk.jpg", rgb.convert("CMYK"), {}),
        ("animated.gif", gray, {"save_all": True, "append_images": [gray.rotate(90), gray]}),
        ("rgb.webp", rgb, {}),
        ("lossless.webp", rgba, {"lossless": True}),
        ("rgb.bmp", rgb, {}),
        ("gray.pgm", gray, {}),
        ("deep.pgm", deep, {}),
        ("rgb.ppm", rgb, {}),
        ("rgb.tif", rgb, {"compression": "tiff_lzw"}),
        ("deep.tif", deep, {}),
        ("real.tif", Image.fromarray(rng.random((24, 32), dtype=np.float32)), {}),
        ("pages.tif", gray, {"save_all": True, "append_images": [gray, gray]}),
        ("jpeg.tif", rgb, {"compression": "jpeg"}),
        ("cmyk.tif", rgb.convert("CMYK"), {}),
    ]
    for name, image, options in made:
        image.save(folder / name, **options)
    return [folder / name for name, _, _ in made]


def _rows_of_images(images: ImageSet) -> bool:
    """Whether there is an image of the right size or a row with a plain reason."""
    reasons = [unreadable.reason for unreadable in images.unreadable]
    plain = all(reason.isprintable() and 0 < len(reason) < 500 and " at 0x" not in reason for reason in reasons)
    return plain and images.pixels.shape[1:] == (3, 16, 16) and len(images) + len(reasons) > 0


def image(folder: Path) -> Try:
    """Return a trial of the decoder of images."""
    damage = _damages(_images(folder))
    settings: list[dict[str, Any]] = [{}, {"frames": "all"}, {"value_range": (0, 4095)}, {"background": "ignore"}]

    def once(rng: random.Random) -> object:
        file, chosen = damage(rng), rng.choice(settings)
        options: dict[str, Any] = {"channels": 3, "convert": True, "resize": "bilinear", "skip_unfit": True, **chosen}
        return judge(lambda: load_images(file, image_size=16, **options), _rows_of_images, folder)

    return once


def mask(folder: Path) -> Try:
    """Return a trial of the reader of masks."""
    damage = _damages(_images(folder))

    def once(rng: random.Random) -> object:
        file = damage(rng)
        return judge(lambda: read_mask(file), lambda found: found.marked.ndim == 2 and found.marked.size > 0, folder)

    return once


# -- tables, logs -----------------------------------------------------------------------------------------------------


def table(folder: Path) -> Try:
    """Return a trial of the reader of Parquet files."""
    rng, encoded = np.random.default_rng(0), []
    for _ in range(6):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    rows = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)]
    labels = [0, 1, 0, 1, 0, 1]
    made: dict[str, tuple[pa.Table, dict[str, Any]]] = {
        "struct": (pa.table({"image": rows, "label": labels}), {}),
        "plain": (pa.table({"image": encoded, "label": labels}), {"compression": "none", "use_dictionary": False}),
        "zstd": (pa.table({"image": rows, "name": ["x"] * 6}), {"compression": "zstd", "data_page_version": "2.0"}),
    }
    for name, (content, options) in made.items():
        parquet.write_table(content, folder / f"{name}.parquet", row_group_size=4, **options)
    damage = _damages([folder / f"{name}.parquet" for name in made])

    def once(rng: random.Random) -> object:
        file, draw = damage(rng), rng.choice((None, 3))
        options: dict[str, Any] = {"channels": 3, "convert": True, "resize": "bilinear", "skip_unfit": True}
        options |= {"sample": draw, "generator": torch.Generator().manual_seed(0)}
        return judge(lambda: load_images(file, image_size=16, **options), _rows_of_images, folder)

    return once


def log(folder: Path) -> Try:
    """Return a trial of the reader of a run's log."""
    lines = [f'{{"images_seen": {8 * i}, "step": {i}, "stage": "denoising", "loss": 0.5}}\n' for i in range(20)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    damage = _damages([folder / "metrics.jsonl"])

    def read() -> list[dict[str, Any]]:
        trim_metrics(folder, 10)
        return read_metrics(folder)

    def once(rng: random.Random) -> object:
        damage(rng)
        return judge(read, lambda records: all(isinstance(record["step"], int) for record in records), folder)

    return once


def _written(kind: str) -> Callable[[Path], Try]:
    """Return the trial of a reader of what the package itself writes, which `fuzzing.py` shares with the tests."""

    def prepare(folder: Path) -> Try:
        readers = Readers(folder)

        def once(rng: random.Random) -> object:
            readers.restore()
            return getattr(readers, kind)(rng)

        return once

    return prepare


READERS: dict[str, Callable[[Path], Try]] = {
    "image": image,
    "mask": mask,
    "table": table,
    "log": log,
    **{kind: _written(kind) for kind in KINDS},
}
__all__ = ["READERS", "MisreadError", "Try"]
