"""Files that appear complete or not at all; JSON files that are read, or else named with what to do; markers of folders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and put it in place.

    A full disk or a crash leaves the old file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # A failed write names no file, a failed open the temporary one.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write text as UTF-8 in the way of `write_atomically`; `errors` as for `str.encode`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors=errors))


def write_npz(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as `arr_0` of a NumPy archive in the way of `write_atomically`."""
    import numpy as np

    def write(temporary: Path) -> None:
        # Through an open file, since numpy adds a suffix to names.
        with open(temporary, "wb") as file:
            np.savez(file, array)

    write_atomically(path, write)


def read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Args:
        path: Of the file.
        hint: What the user may do about a damaged one.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds something else; the message names the file and gives the hint.
    """
    hint = hint and f"; {hint}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}){hint}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}{hint}")
    return values


def check_marker(
    marker: Path, settings: Mapping[str, Any], *, what: str, hint: str, shown: bool = True
) -> dict[str, Any] | None:
    """Return what the marker of a folder says, a JSON object with the settings that its files were made with.

    Args:
        marker: The file, directly in the folder that it speaks of.
        settings: What the folder must have been made with; the marker may hold more.
        what: Kind of folder, for messages: `a demo`.
        hint: What the user may do about a folder of other settings.
        shown: Name the settings that differ, with their values.

    Returns:
        The values, or None for a folder that is new or empty.

    Raises:
        ValueError: If the folder holds something else, was made with other settings, or its marker is damaged.
    """
    folder = marker.parent
    if not marker.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder}: exists and is not {what}; choose another folder")
        return None
    found = read_json(marker, "delete its folder to start anew")
    for name, value in settings.items():
        if found.get(name) != value:
            other = f"with {name} {found.get(name)}, not {value}" if shown else f"of other {' or '.join(settings)}"
            raise ValueError(f"{folder}: holds {what} {other}; {hint}")
    return found
