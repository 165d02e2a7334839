"""Rows that are computed once: each is a file, so that an interrupted reproduction goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from denoising_ebm.config import Config, to_dict
from denoising_ebm.utils.io import read_json, write_text_atomically

SETTINGS_FILE = "reproduce.json"
Log = Callable[[str], object]


def settings_of(options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the settings that rows depend on: all options of a command as text, but for `out` and `only`, and `more`."""
    chosen = {name: str(value) for name, value in options.items() if name not in ("out", "only")}
    return chosen | more


def identity(config: Config) -> dict[str, Any]:
    """Return the settings of a config that figures depend on, as plain values.

    Settings that came after rows were first kept are left out where they change nothing, so that those rows stay valid.
    """
    return to_dict(config)


def settings_hash(values: Any) -> str:
    """Return a hash of plain settings (dictionaries, lists, numbers, texts): 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


class ResultCache:
    """Finished rows of a reproduction, in a folder that belongs to one choice of settings.

    Args:
        folder: Created with the first row, so that a command that is refused before leaves none behind.
        settings: What all rows depend on.
        log: Told of every row.

    Raises:
        ValueError: If the folder holds rows of other settings, or something else.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], log: Log = lambda message: None) -> None:
        self.folder, self._settings, self._log = folder, dict(settings), log
        self._marker = marker = folder / SETTINGS_FILE
        if marker.is_file():
            found = read_json(marker, "delete the folder to start anew")
            for name, value in settings.items():
                if found.get(name) != value:
                    raise ValueError(
                        f"{folder}: holds a reproduction with {name} {found.get(name)}, not {value}; "
                        "give the same, or another --out"
                    )
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder}: exists and is no reproduction; choose another --out")

    def row(self, name: str, make: Callable[[], Mapping[str, Any]], **depends: str) -> dict[str, Any]:
        """Return the figures of a row, made now or before.

        A row that was made from other images, models or networks than now (`depends`) is made anew; one that was made from
        more, as with Inception where it is not asked for now, serves.

        A row that the data or the machine cannot give (a `ValueError` or `FileNotFoundError`) is marked by `missing`, its
        reason; it is tried again the next time, and the others go on.

        Args:
            name: Of the row, unique within the reproduction.
            make: Computes it: plain numbers, texts and lists. `seconds` and `depends` are added.
            depends: Hashes and names of what the row is made from; empty ones are left out.
        """
        path = self.folder / "rows" / f"{re.sub(r'[^A-Za-z0-9.=]+', '-', name)}.json"
        depends = {key: value for key, value in depends.items() if value}
        if path.is_file():
            stored = read_json(path, "delete it to make the row anew")
            if depends.items() <= stored.get("depends", {}).items():
                return stored
        self._log(name)
        self.begin()
        started = time.monotonic()
        try:
            figures = dict(make())
        except (ValueError, FileNotFoundError) as error:
            self._log(f"{name}: left out: {error}")
            return {"missing": str(error)}
        figures |= {"seconds": round(time.monotonic() - started, 3), "depends": depends}
        self._write(path, figures)
        return figures

    def begin(self) -> None:
        """Make the folder one of these settings."""
        if not self._marker.is_file():
            self._write(self._marker, self._settings)

    def _write(self, path: Path, values: Mapping[str, Any]) -> None:
        text = json.dumps(values, indent=1) + "\n"
        write_text_atomically(path, text)
