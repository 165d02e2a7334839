"""Rows that are computed once: each is a file, so that an interrupted study goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from denoising_ebm.utils.io import DamagedFileError, check_marker, read_json, write_text_atomically

MARKER = "reproduce.json"
_ADDED = ("name", "seconds", "version", "depends", "hash")
_HINT = "delete it to make the row anew"
Log = Callable[[str], object]


def settings_of(options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the settings that rows depend on: all options of a command as text, but for `out` and `only`, and `more`."""
    return {name: str(value) for name, value in options.items() if name not in ("out", "only")} | more


def settings_hash(values: Any) -> str:
    """Return a hash of plain settings (dictionaries, lists, numbers, texts): 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


class ResultCache:
    """Finished rows in a folder, which belongs to one choice of settings.

    Args:
        folder: Created with the first row, so that a command that is refused before leaves none behind.
        settings: What all rows depend on.
        version: Of the computation of all rows, raised by hand when it changes: a folder of another version is refused.
        log: Told of every row.

    Raises:
        ValueError: If the folder holds rows of other settings or of another version, or something else.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], *, version: int = 1, log: Log = lambda message: None
    ) -> None:
        self.folder, self.settings, self._log = folder, dict(settings), log
        self._marked = {**settings, "version": version}
        hint = "give the same, or another --out"
        check_marker(folder / MARKER, self._marked, what="a reproduction", hint=hint)

    def row(
        self,
        name: str,
        make: Callable[[], Mapping[str, Any]],
        depends: Mapping[str, str] | None = None,
        *,
        version: int = 1,
    ) -> dict[str, Any]:
        """Return the figures of a row, made now or before.

        A row of another version, or made from other images, models or networks than now (`depends`), is made anew. One that
        was made from more, as with Inception where it is not asked for now, serves.

        A row that the data or the machine cannot give (a `ValueError` or `FileNotFoundError`) is marked by `missing`, its
        reason; it is tried again the next time, and the others go on.

        Args:
            name: Of the row, unique in the folder.
            make: Computes it: plain numbers, texts and lists. `name`, `seconds`, `version`, `depends` and `hash`
                are added.
            depends: Hashes and names of what the row is made from; empty ones are left out.
            version: Of its computation, raised by hand when that changes.
        """
        path = self.folder / "rows" / f"{re.sub(r'[^A-Za-z0-9.=]+', '-', name).strip('-')}.json"
        depends = {key: value for key, value in (depends or {}).items() if value}
        if path.is_file():
            stored = read_json(path, _HINT)
            if stored.get("hash", _hash(stored)) != _hash(stored) or not isinstance(stored.get("depends", {}), dict):
                raise DamagedFileError(f"{path}: damaged: it does not have the hash that it was written with; {_HINT}")
            if stored.get("version") == version and depends.items() <= stored.get("depends", {}).items():
                return stored
        self._log(name)
        self.begin()
        started = time.monotonic()
        try:
            figures = dict(make())
        except (ValueError, FileNotFoundError) as error:
            self._log(f"{name}: left out: {error}")
            return {"missing": str(error)}
        seconds = round(time.monotonic() - started, 3)
        figures |= {"name": name, "seconds": seconds, "version": version, "depends": depends}
        figures["hash"] = _hash(figures)
        write_text_atomically(path, json.dumps(figures, indent=1) + "\n")
        return figures

    def begin(self) -> None:
        """Make the folder one of these settings."""
        if not (self.folder / MARKER).is_file():
            write_text_atomically(self.folder / MARKER, json.dumps(self._marked, indent=1) + "\n")


def figures_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a row without what the cache adds to them."""
    return {name: value for name, value in row.items() if name not in _ADDED}


def _hash(row: Mapping[str, Any]) -> str:
    """Return the hash of a row, by its figures as JSON gives them back."""
    return settings_hash(json.loads(json.dumps({name: value for name, value in row.items() if name != "hash"})))
