"""What tests of images share: pictures, and files that hold them."""

from __future__ import annotations

import io
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
