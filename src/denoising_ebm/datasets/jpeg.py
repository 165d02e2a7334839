"""How strongly a JPEG file was compressed."""

from __future__ import annotations

import numpy as np

# Of the JPEG standard (table K.1), in rows: libjpeg scales it by the quality.
_LUMINANCE = np.array(
    """
    16 11 10 16  24  40  51  61
    12 12 14 19  26  58  60  55
    14 13 16 24  40  57  69  56
    14 17 22 29  51  87  80  62
    18 22 37 56  68 109 103  77
    24 35 55 64  81 104 113  92
    49 64 78 87 103 121 120 101
    72 92 95 98 112 100 103  99
    """.split(),
    dtype=np.int64,
)
_QUALITIES = np.arange(1, 101)
_SCALES = np.where(_QUALITIES < 50, 5000 // _QUALITIES, 200 - 2 * _QUALITIES)
_TABLES = ((_LUMINANCE * _SCALES[:, None] + 50) // 100).clip(1, 255)


def jpeg_quality(tables: dict[int, list[int]]) -> int | None:
    """Return the quality at which libjpeg would have used the most similar table of luminance."""
    table = np.array(tables.get(0, ()))
    if table.shape != (64,):
        return None
    return int(_QUALITIES[np.abs(_TABLES - table).sum(1).argmin()])
