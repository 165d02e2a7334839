"""Damage for files: bytes flipped, cut, doubled and swapped, and trees of values with hostile leaves.

What is drawn depends on the `random.Random` alone, so a finding can be made again from its seed.
"""

from __future__ import annotations

import copy
import json
import math
import random
import struct
import zlib
from collections.abc import Sequence
from typing import Any

_PNG = b"\x89PNG\r\n\x1a\n"
#: Values of 1, 2, 4 and 8 bytes at which sizes, counts and offsets go wrong.
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
#: What a field of a JSON or YAML file may hold in place of what belongs there.
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    "",
    "x" * 10_000,
    "\x1b[2J\n\u202e",
    "../../etc/passwd",
    [],
    {},
    [[[[[[]]]]]],
    {"a": {"b": {"c": 1}}},
    0,
    -1,
    1,
    7,
    10**9,
    10**18,
    -(10**400),
    0.5,
    1e308,
    1e-320,
    math.nan,
    math.inf,
)


def mutate_bytes(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return damaged bytes, never equal to `data` unless by chance.

    Args:
        rng: What damage to do.
        data: A sound file.
        others: Other files, of which pieces may be put in.
    """
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not mutant:
            break
        # Headers are short and decide most: every second place lies in the first 200 bytes.
        limit = len(mutant) if rng.random() < 0.5 else min(len(mutant), 200)
        place = rng.randrange(limit)
        kind = rng.randrange(8)
        if kind <= 1:
            mutant[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            value = (rng.choice(_EDGES) & ((1 << 8 * size) - 1)).to_bytes(size, rng.choice(("little", "big")))
            mutant[place : place + size] = value
        elif kind == 3:
            del mutant[place : place + rng.choice((1, 2, 4, 16, 64, 1024))]
        elif kind == 4:
            mutant[place:place] = rng.randbytes(rng.choice((1, 2, 4, 16, 256)))
        elif kind == 5:
            piece = mutant[place : place + rng.choice((4, 16, 256))]
            mutant[place:place] = piece * rng.choice((1, 3, 50))
        elif kind == 6:
            del mutant[place:]
        else:
            other = rng.choice(others) if others else data
            start = rng.randrange(max(1, len(other)))
            mutant[place : place + rng.choice((8, 64, 512))] = other[start : start + rng.choice((8, 64, 512))]
    return repair_png(bytes(mutant)) if mutant.startswith(_PNG) and rng.random() < 0.7 else bytes(mutant)


def repair_png(data: bytes) -> bytes:
    """Return a PNG file with right checksums, behind which readers look closer at what the chunks say."""
    out, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        body = data[place + 4 : place + 8 + length]
        if place + 12 + length > len(data):
            break
        out += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(out + data[place:])


def mutate_tree(rng: random.Random, tree: Any) -> Any:
    """Return a copy of nested mappings and lists in which some entries are gone, doubled, or hold something else."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 3))):
        branches = [branch for branch in _branches(tree) if branch]
        if not branches:
            return rng.choice(HOSTILE)
        branch = rng.choice(branches)
        key = rng.choice(list(branch)) if isinstance(branch, dict) else rng.randrange(len(branch))
        kind = rng.randrange(8)
        if kind == 0:
            del branch[key]
        elif kind == 1 and isinstance(branch, dict):
            branch[rng.choice(("", "unknown", "__class__", str(key).upper()))] = rng.choice(HOSTILE)
        elif kind == 1:
            branch.extend(branch[:] * rng.choice((1, 100)))
        elif kind == 2 and isinstance(branch[key], int | float) and not isinstance(branch[key], bool):
            branch[key] = rng.choice(
                (-branch[key], branch[key] + 1, branch[key] * 1000, str(branch[key]), [branch[key]])
            )
        elif kind == 3:
            branch[key] = copy.deepcopy(rng.choice(branches))
        else:
            branch[key] = copy.deepcopy(rng.choice(HOSTILE))
    return tree


def _branches(tree: Any) -> list[Any]:
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    found = [tree] if isinstance(tree, dict | list) else []
    return found + [branch for child in children for branch in _branches(child)]


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """Return damaged JSON: most often valid JSON of another content, else damaged bytes or brackets without end."""
    kind = rng.randrange(10)
    if kind == 0:
        return mutate_bytes(rng, data)
    if kind == 1:
        return rng.choice((b"[", b'{"config":')) * rng.choice((10, 1_000, 100_000))
    return json.dumps(mutate_tree(rng, json.loads(data))).encode()


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Return a damaged safetensors file: its header changed and fitted in again, values that are not finite, or bytes."""
    kind = rng.randrange(4)
    (length,) = struct.unpack_from("<Q", data)
    header, body = data[8 : 8 + length], bytearray(data[8 + length :])
    if kind == 0:
        return mutate_bytes(rng, data)
    if kind == 1:
        place = rng.randrange(max(1, len(body) // 4)) * 4
        body[place : place + 4] = struct.pack("<f", rng.choice((math.nan, math.inf, -math.inf, 3e38)))
    else:
        header = json.dumps(mutate_tree(rng, json.loads(header))).encode()
    return struct.pack("<Q", len(header)) + header + bytes(body)
