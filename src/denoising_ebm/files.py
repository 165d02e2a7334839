"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


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
