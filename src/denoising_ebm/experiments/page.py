"""The page of a folder: studies finished by this command and by those before it, which may have had other targets."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from denoising_ebm.utils.io import read_json, write_atomically, write_text_atomically
from denoising_ebm.viz.report import Picture, Section, Table, markdown_page, write_report

TITLE = "The paper's tables and figures"


class Page:
    """`index.html`, `results.md` and `pictures/` in a folder, of studies that are kept in its `studies/`.

    Args:
        folder: For all of it.
        order: Names of all studies, in the order of the page.
        facts: Of this command, shown on top, each a list; what earlier commands add stands beside it.
        sources: Hashes of what the studies are made from. One that was made from something else is not shown; one that is
            not named here is.
    """

    def __init__(
        self,
        folder: Path,
        order: Sequence[str],
        metadata: Mapping[str, Sequence[str]],
        sources: Mapping[str, str],
    ) -> None:
        self.path = folder / "index.html"
        self._folder, self._order, self._metadata, self._sources = folder, order, metadata, sources
        self._shown: dict[str, tuple[Section, Mapping[str, Sequence[str]]]] = {}
        for name in order:
            if self._file(name).is_file():
                kept = read_json(self._file(name), "delete it, and the same target makes it anew from its rows")
                if sources.get(name, kept["source"]) == kept["source"]:
                    self._shown[name] = _to_section(kept["section"]), kept["metadata"]

    def __contains__(self, name: str) -> bool:
        return name in self._shown

    def add(self, name: str, section: Section, *, keep: bool = True) -> None:
        """Add a study, or replace it, and write all. With `keep` later commands show it too."""
        self._shown[name] = section, self._metadata
        if keep:
            source = self._sources.get(name, "")
            values = {"source": source, "metadata": self._metadata, "section": _to_values(section)}
            write_text_atomically(self._file(name), json.dumps(values) + "\n")
        self._write()

    def _file(self, name: str) -> Path:
        return self._folder / "studies" / f"{name}.json"

    def _write(self) -> None:
        shown = [self._shown[name] for name in self._order if name in self._shown]
        sections = [section for section, _ in shown]
        metadata = {key: "; ".join(values) for key, values in _union([metadata for _, metadata in shown]).items()}
        write_report(self.path, title=TITLE, sections=sections, metadata=metadata)
        text = markdown_page(sections, title=TITLE, metadata=metadata, pictures="pictures/")
        write_text_atomically(self._folder / "results.md", text)
        pictures = [picture for section in sections for picture in section.pictures]
        for number, picture in enumerate(pictures, 1):
            write_atomically(self._folder / "pictures" / f"{number}.png", partial(Path.write_bytes, data=picture.png))


def _union(all_facts: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Return every value of every fact once, in the order in which they come."""
    union: dict[str, dict[str, None]] = {}
    for metadata in all_facts:
        for key, values in metadata.items():
            union.setdefault(key, {}).update(dict.fromkeys(values))
    return {key: list(values) for key, values in union.items()}


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
