"""The page of a folder: studies finished by this command and by those before it, which may have had other targets."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from denoising_ebm.utils.io import DamagedFileError, read_json, write_text_atomically
from denoising_ebm.viz.report import Picture, Section, Table, write_pages

Metadata = Mapping[str, Sequence[str]]


class Page:
    """`index.html`, `results.md` and `pictures/` in a folder, of studies that are kept in its `studies/`.

    Args:
        folder: For all of it.
        order: Names of all studies, in the order of the page.
        metadata: Of this command, shown on top, each a list; what earlier commands add stands beside it.
        sources: Hashes of what the studies are made from. One that was made from something else is not shown; one that is
            not named here is.
    """

    def __init__(self, folder: Path, order: Sequence[str], metadata: Metadata, sources: Mapping[str, str]) -> None:
        self.path = folder / "index.html"
        self._folder, self._order, self._metadata, self._sources = folder, order, metadata, sources
        self._shown: dict[str, tuple[Section, Metadata]] = {}
        for name in order:
            if self._file(name).is_file():
                hint = "delete it, and the same target makes it anew from its rows"
                kept = read_json(self._file(name), hint)
                try:
                    if sources.get(name, kept["source"]) == kept["source"]:
                        self._shown[name] = _to_section(kept["section"]), kept["metadata"]
                except (KeyError, TypeError, ValueError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    raise DamagedFileError(f"{self._file(name)}: damaged ({reason}); {hint}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._shown

    def add(self, name: str, section: Section, *, keep: bool = True) -> None:
        """Add a study, or replace it, and write all. With `keep` later commands show it too."""
        self._shown[name] = section, self._metadata
        if keep:
            source = self._sources.get(name, "")
            values = {"source": source, "metadata": self._metadata, "section": _to_values(section)}
            write_text_atomically(self._file(name), json.dumps(values) + "\n")
        shown = [self._shown[name] for name in self._order if name in self._shown]
        union: dict[str, dict[str, None]] = {}
        for _, metadata in shown:
            for key, lines in metadata.items():
                union.setdefault(key, {}).update(dict.fromkeys(lines))
        write_pages(
            self._folder,
            title="The paper's tables and figures",
            sections=[section for section, _ in shown],
            metadata={key: "; ".join(lines) for key, lines in union.items()},
        )

    def _file(self, name: str) -> Path:
        return self._folder / "studies" / f"{name}.json"


def _to_values(section: Section) -> dict[str, Any]:
    """Return a section as JSON holds it, pictures as text."""
    pictures = [
        asdict(picture) | {"png": base64.b64encode(picture.png).decode("ascii")} for picture in section.pictures
    ]
    return asdict(replace(section, pictures=())) | {"pictures": pictures}


def _to_section(values: Mapping[str, Any]) -> Section:
    pictures = [Picture(**picture | {"png": base64.b64decode(picture["png"])}) for picture in values["pictures"]]
    table = None if values["table"] is None else Table(**values["table"])
    return Section(values["title"], values["text"], table, pictures)
