"""Hashes in JSON files, by which damage of a file, and a mixture of files that do not belong together, are noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from denoising_ebm.utils.parsing import shown

#: Entry of a JSON file with hashes by the names of files, its own among them.
HASHES = "sha256"


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, some 2 ms for each megabyte at worst."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(values: Mapping[str, Any], name: str, others: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a JSON file with an entry of hashes: its own values' and those of the files beside it.

    Args:
        values: Of the file.
        name: Of the file.
        others: Hashes of other files by name, as from `file_hash`.
    """
    plain = {key: value for key, value in values.items() if key != HASHES}
    return {**plain, HASHES: {**others, name: _values_hash(plain, others)}}


def hashes_of(values: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the entry of hashes that a JSON file holds, empty where it has none.

    Raises:
        ValueError: If it is not a mapping of texts.
    """
    found = values.get(HASHES, {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{path}: {HASHES}: expected a mapping from names of files to texts, got {shown(found)}")
    return found


def replaced_name(name: str) -> str:
    """Return the name under which a JSON file has the hash of what a file replaces, until it has."""
    return f"{name} before"


def check_own_hash(values: Mapping[str, Any], path: Path) -> None:
    """Refuse a JSON file whose values are others than were written; files without hashes pass.

    Raises:
        ValueError: If they are.
    """
    others = dict(hashes_of(values, path))
    expected = others.pop(path.name, None)
    plain = {key: value for key, value in values.items() if key != HASHES}
    if expected is not None and expected != _values_hash(plain, others):
        raise ValueError(
            f"{path}: was changed after it was written, or is damaged (its values do not fit {HASHES}); if you changed it "
            f'on purpose, delete "{path.name}" from its entry {HASHES}'
        )


def check_file_hash(values: Mapping[str, Any], path: Path, file: Path, hint: str) -> None:
    """Refuse a file beside a JSON file that is another than the one it was written with; without a hash it passes.

    Args:
        values: Of the JSON file.
        path: Of the JSON file.
        file: The file beside it.
        hint: What the user may do.

    Raises:
        ValueError: If it is another.
    """
    hashes = hashes_of(values, path)
    expected = [hashes[name] for name in (file.name, replaced_name(file.name)) if name in hashes]
    if expected and file_hash(file) not in expected:
        raise ValueError(
            f"{file}: is damaged, or not the file that {path.name} was written with (its SHA-256 is another); {hint}"
        )


def _values_hash(values: Mapping[str, Any], others: Mapping[str, str]) -> str:
    text = json.dumps({**values, HASHES: others}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
