"""Pages and tables: one self-contained HTML page, the same as Markdown, tables on a terminal."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, StrictUndefined
from PIL import Image

from denoising_ebm.utils.io import write_atomically, write_text_atomically
from denoising_ebm.utils.markup import markdown_text
from denoising_ebm.utils.text import printable

Cell: TypeAlias = str | int | float | None

# Pictures narrower than this share a row; wider ones have it to themselves.
HALF_WIDTH = 640


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        png: The bytes of a PNG file, embedded unchanged.
        caption: Shown below, after "Figure n.".
        alt: What it shows, for those who cannot see it.
    """

    png: bytes
    caption: str
    alt: str


@dataclass(frozen=True)
class Table:
    """A table of the page; columns of numbers are aligned right, their floats with equal decimals.

    Attributes:
        columns: Headings.
        rows: Cells of each row, as many as headings; None shows as a dash.
        caption: Shown above, after "Table n.".
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def __post_init__(self) -> None:
        """Refuse rows of a wrong length."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.caption!r} has {len(self.columns)} columns, but a row of {len(row)}")

    @classmethod
    def from_records(
        cls,
        records: Mapping[str, Mapping[str, Any]],
        columns: Mapping[str, str] | Sequence[str] = (),
        *,
        first: str = "",
        caption: str = "",
    ) -> Table:
        """Return a table with a row for each record; a value that a record lacks is a dash.

        Args:
            records: Name of each row to its values.
            columns: Heading of each column to its key in the records, or keys that are headings; all keys if empty.
            first: Heading of the column of names.
            caption: As for `Table`.
        """
        columns = columns or list(dict.fromkeys(key for record in records.values() for key in record))
        keys = columns if isinstance(columns, Mapping) else {key: key for key in columns}
        rows = [[name, *(record.get(key) for key in keys.values())] for name, record in records.items()]
        return cls([first, *keys], rows, caption)


@dataclass(frozen=True)
class Section:
    """A part of the page: heading, then text, table and pictures, each optional.

    Attributes:
        title: The heading, also shown in the contents.
        text: Plain paragraphs, separated by empty lines.
        table: Below the text.
        pictures: Below the table; small ones stand side by side.
    """

    title: str
    text: str = ""
    table: Table | None = None
    pictures: Sequence[Picture] = ()


def write_report(
    path: str | Path,
    *,
    title: str,
    sections: Sequence[Section],
    metadata: Mapping[str, str] | None = None,
    summary: str = "",
) -> None:
    """Write the page. The file appears complete or not at all; missing folders are made.

    Args:
        path: The HTML file to write or replace.
        title: Of the page.
        sections: In order.
        metadata: Shown at the top: command, seed, hardware, counts.
        summary: Plain paragraphs below the title.

    Raises:
        ValueError: If a picture is not a PNG.
    """
    html = render_report(title=title, sections=sections, metadata=metadata, summary=summary)
    write_text_atomically(Path(path), html)


def write_pages(
    folder: Path, *, title: str, sections: Sequence[Section], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a page into a folder twice: as `index.html`, and as `results.md` with its pictures in `pictures/`.

    Args:
        folder: Created if missing.
        title: As for `write_report`.
        sections: As for `write_report`.
        metadata: As for `write_report`.
    """
    write_report(folder / "index.html", title=title, sections=sections, metadata=metadata)
    text = markdown_page(sections, title=title, metadata=metadata or {}, pictures="pictures/")
    write_text_atomically(folder / "results.md", text, errors="backslashreplace")
    pictures = [picture for section in sections for picture in section.pictures]
    for number, picture in enumerate(pictures, 1):
        write_atomically(folder / "pictures" / f"{number}.png", partial(Path.write_bytes, data=picture.png))


def render_report(
    *, title: str, sections: Sequence[Section], metadata: Mapping[str, str] | None = None, summary: str = ""
) -> str:
    """The page of `write_report` as a string, for the same arguments."""
    source = resources.files("denoising_ebm").joinpath("viz/templates/report.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    figure_number = table_number = 0
    blocks = []
    for section in sections:
        table = None
        if section.table is not None:
            table_number += 1
            table = _table_view(section.table, table_number)
        pictures = []
        for picture in section.pictures:
            figure_number += 1
            pictures.append(_picture_view(picture, figure_number))
        text = _paragraphs(section.text)
        blocks.append({"title": section.title, "text": text, "table": table, "pictures": pictures})
    return environment.from_string(source).render(
        title=title, summary=_paragraphs(summary), metadata=dict(metadata or {}), sections=blocks
    )


def markdown(table: Table, *, aligned: bool = False, escape: bool = False) -> str:
    """Return a table as Markdown, its numbers as on the page.

    Args:
        table: The table.
        aligned: Pad columns, for a terminal.
        escape: Let nothing in a cell be markup, for a file; on a terminal cells are read as they are.
    """
    cells = [_format_column([row[i] for row in table.rows]) for i in range(len(table.columns))]
    columns = [[head, *column] for head, column in zip(table.columns, cells, strict=True)]
    columns = [[markdown_text(cell) if escape else cell.replace("|", "\\|") for cell in column] for column in columns]
    rules = ["---"] * len(columns)
    if aligned:
        widths = [max(3, *map(len, column)) for column in columns]
        numeric = [all(_is_number(cell) for cell in column) for column in cells]
        columns = [
            [cell.rjust(width) if right else cell.ljust(width) for cell in column]
            for column, width, right in zip(columns, widths, numeric, strict=True)
        ]
        rules = ["-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    head, *rows = ["| " + " | ".join(row) + " |" for row in zip(*columns, strict=True)]
    return "\n".join([head, "|" + "|".join(rules) + "|", *rows]) + "\n"


def print_table(table: Table) -> None:
    """Print a table below its caption: aligned for a terminal, and still Markdown."""
    if table.caption:
        print(table.caption, end="\n\n")
    print(markdown(table, aligned=True), end="", flush=True)


def print_head(columns: Sequence[str]) -> None:
    """Print the head of a Markdown table whose rows come one by one, by `print_row`, since they take minutes each."""
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)


def print_row(cells: Sequence[Cell], *, decimals: int = 3) -> None:
    """Print a row below `print_head`; floats with so many decimals, since the rows to come are not known."""
    texts = [_format_cell(cell, decimals).replace("|", "\\|") for cell in cells]
    print("| " + " | ".join(texts) + " |", flush=True)


def markdown_page(sections: Sequence[Section], *, title: str, metadata: Mapping[str, str], pictures: str = "") -> str:
    """Return a page as Markdown; a section's pictures are links to `pictures` and their number, `1.png` and so on.

    All texts are plain, as on the page: names of folders and sets in them are no markup.
    """
    plain = markdown_text
    lines = [f"# {plain(title)}", "", *(f"- {plain(name)}: {plain(value)}" for name, value in metadata.items())]
    number = 0
    for section in sections:
        lines += [""] * (lines[-1] != "") + [f"## {plain(section.title)}", ""]
        for part in _paragraphs(section.text):
            lines += [*map(plain, part.split("\n")), ""]
        if section.table is not None:
            lines += [f"*{plain(section.table.caption)}*", "", markdown(section.table, escape=True).rstrip(), ""]
        for picture in section.pictures:
            number += 1
            lines += [f"![{plain(picture.alt)}]({pictures}{number}.png)", "", f"*{plain(picture.caption)}*", ""]
    return "\n".join(lines).rstrip() + "\n"


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _picture_view(picture: Picture, number: int) -> dict[str, object]:
    try:
        with Image.open(io.BytesIO(picture.png), formats=["PNG"]) as image:
            width, height = image.size
    except OSError as error:
        raise ValueError(f"figure {number} ({picture.caption!r}) is not a PNG") from error
    return {
        "data": base64.b64encode(picture.png).decode("ascii"),
        "caption": picture.caption,
        "alt": picture.alt,
        "number": number,
        "width": width,
        "height": height,
        "small": width < HALF_WIDTH,
    }


def _table_view(table: Table, number: int) -> dict[str, object]:
    cells = [_format_column([row[i] for row in table.rows]) for i in range(len(table.columns))]
    numeric = [all(_is_number(cell) for cell in column) for column in cells]
    return {
        "number": number,
        "caption": table.caption,
        "columns": list(zip(table.columns, numeric, strict=True)),
        "rows": [list(zip(row, numeric, strict=True)) for row in zip(*cells, strict=True)],
    }


def _format_column(cells: Sequence[Cell]) -> list[str]:
    """Cells as text; floats with the decimals which give the largest of them four digits."""
    floats = [abs(cell) for cell in cells if isinstance(cell, float) and math.isfinite(cell) and cell != 0]
    decimals = min(6, max(0, 4 - math.ceil(math.log10(max(floats))))) if floats else 1
    return [_format_cell(cell, decimals) for cell in cells]


def _format_cell(cell: Cell, decimals: int) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:,.{decimals}f}"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return printable(cell)


def _shown(value: Any) -> Any:
    """Return a value of the page, its text as lines that do nothing but show themselves."""
    return "\n".join(map(printable, value.split("\n"))) if isinstance(value, str) else value


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+−]?[\d,]*\.?\d+(e[-+]?\d+)?\s?%?|–|nan|-?inf", text) is not None
