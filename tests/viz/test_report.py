from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from denoising_ebm.viz.grids import image_grid
from denoising_ebm.viz.plots import png_bytes
from denoising_ebm.viz.report import (
    Picture,
    Section,
    Table,
    markdown,
    markdown_page,
    print_head,
    print_row,
    print_table,
    render_report,
    write_report,
)

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What the tests ask of a page; fails where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open:
            self.text.append((self.open[-1], data.strip()))

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.text if name == tag]


@pytest.fixture
def pictures() -> list[Picture]:
    grids = [image_grid(torch.full((4, 1, 6, 6), level), columns=2) for level in (-0.5, 0.5)]
    return [Picture(png_bytes(grid), f"Stage {i}.", f"grid {i}") for i, grid in enumerate(grids, start=1)]


@pytest.fixture
def sections(pictures: list[Picture]) -> list[Section]:
    table = Table(
        ["set", "AUROC", "images"], [["digits", 0.98765, 1000], ["noise", 1.0, 12], ["none", None, None]], "OOD"
    )
    return [
        Section("Samples", "One.\n\nTwo,\nstill two.", pictures=pictures),
        Section("OOD images", table=table),
        Section("Again", pictures=pictures[:1]),
    ]


def test_page_has_every_part_in_order(tmp_path: Path, sections: list[Section]):
    path = tmp_path / "new" / "report.html"
    write_report(path, title="A run", sections=sections, metadata={"seed": "0", "images": "2,000"}, summary="Short.")
    page = Page(path.read_text(encoding="utf-8"))
    assert page.texts("h1") == ["A run"] and page.texts("title") == ["A run"]
    assert page.texts("h2") == ["Contents", "Samples", "OOD images", "Again"]
    assert page.texts("p") == ["Short.", "One.", "Two,\nstill two."]
    assert dict(zip(page.texts("dt"), page.texts("dd"), strict=True)) == {"seed": "0", "images": "2,000"}
    assert page.texts("b") == ["Figure 1.", "Figure 2.", "Table 1.", "Figure 3."]
    assert page.texts("figcaption") == ["Stage 1.", "Stage 2.", "Stage 1."]
    identifiers = {attributes.get("id") for _, attributes in page.tags}
    links = [attributes["href"] for attributes in page.attributes("a")]
    assert links == ["#section-1", "#section-2", "#section-3"]
    assert {str(link)[1:] for link in links} <= identifiers
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_pictures_are_embedded_byte_for_byte(sections: list[Section], pictures: list[Picture]):
    images = Page(render_report(title="t", sections=sections)).attributes("img")
    for attributes, picture in zip(images, [*pictures, pictures[0]], strict=True):
        kind, data = str(attributes["src"]).split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True) == picture.png
        assert (attributes["alt"], attributes["width"], attributes["height"]) == (picture.alt, "30", "30")


def test_numbers_of_a_column_line_up(sections: list[Section]):
    page = Page(render_report(title="t", sections=sections))
    assert page.texts("td") == ["digits", "0.9877", "1,000", "noise", "1.0000", "12", "none", "–", "–"]
    assert [attributes.get("class") for attributes in page.attributes("th")] == [None, "number", "number"]


def test_text_is_escaped(pictures: list[Picture]):
    evil = '<script>alert(1)</script> & "quotes" {{ 1 + 1 }}'
    section = Section(evil, evil, Table([evil], [[evil]], evil), [Picture(pictures[0].png, evil, evil)])
    html = render_report(title=evil, sections=[section] * 3, metadata={evil: evil}, summary=evil)
    page = Page(html)
    assert page.attributes("script") == []
    assert "2 &" not in html
    for tag in ("h1", "h2", "p", "dt", "dd", "th", "td", "caption", "figcaption", "a"):
        assert evil in page.texts(tag)
    assert page.attributes("img")[0]["alt"] == evil


def test_page_needs_nothing_from_outside(sections: list[Section]):
    html = render_report(title="t", sections=sections, metadata={"a": "b"}, summary="s")
    assert "http" not in html and "//" not in re.sub(r"base64,[^\"]*", "", html)
    assert "url(" not in html and "@import" not in html
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})


def test_short_page_has_no_contents():
    assert Page(render_report(title="t", sections=[Section("Only", "Text.")])).attributes("nav") == []


def test_failure_leaves_the_old_page(tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match=r"figure 1 \('c'\) is not a PNG"):
        write_report(path, title="t", sections=[Section("s", pictures=[Picture(b"JFIF", "c", "a")])])
    assert path.read_text() == "old"
    with pytest.raises(ValueError, match="has 2 columns, but a row of 1"):
        Table(["a", "b"], [["1"]], "t")


def test_markdown_is_the_same_page(sections: list[Section]):
    text = markdown_page(sections, title="Run", metadata={"seed": "3"}, pictures="pictures/")
    assert text.startswith("# Run\n\n- seed: 3\n\n## ")
    # Numbers stand as on the page: four digits for the largest of a column, a dash for none.
    assert "| set | AUROC | images |\n|---|---|---|\n| digits | 0.9877 | 1,000 |\n| noise | 1.0000 | 12 |" in text
    assert [line for line in text.splitlines() if line.startswith("!")][:2] == [
        "![grid 1](pictures/1.png)",
        "![grid 2](pictures/2.png)",
    ]
    assert "\n\n\n" not in text and text.endswith("\n") and "\n\nTwo,\nstill two.\n\n" in text


def test_markdown_cells_keep_their_bars():
    assert markdown(Table(["a"], [["1 | 3"]])).splitlines()[-1] == "| 1 \\| 3 |"


def test_records_become_rows() -> None:
    records = {"ours": {"frechet_distance": 455.0, "nfe": 31}, "rival": {"nfe": 36, "note": "x"}}
    table = Table.from_records(records, {"FD": "frechet_distance", "NFE": "nfe"}, first="method", caption="c")
    assert table == Table(["method", "FD", "NFE"], [["ours", 455.0, 31], ["rival", None, 36]], "c")
    assert Table.from_records(records, first="method").columns == ["method", "frechet_distance", "nfe", "note"]
    assert Table.from_records(records, ["note"]).rows == [["ours", None], ["rival", "x"]]


def test_printed_tables_line_up_and_are_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table(["set", "n"], [["a", 1000], ["longer | name", 2]], "Caption."))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Caption.", ""] and len({len(line) for line in lines[2:]}) == 1
    assert lines[2].split() == ["|", "set", "|", "n", "|"] and set(lines[3]) == {"|", "-", ":"}
    assert lines[4].endswith("| 1,000 |") and lines[5].endswith("|     2 |") and "longer \\| name" in lines[5]


def test_rows_that_come_one_by_one_are_a_markdown_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_head(["score", "AUROC"])
    print_row(["a | b", 0.98765])
    print_row(["c", None])
    assert capsys.readouterr().out.splitlines() == [
        "| score | AUROC |",
        "|---|---|",
        "| a \\| b | 0.988 |",
        "| c | – |",
    ]


def test_names_are_no_markup_in_the_markdown_page() -> None:
    name = "a|b <script>x</script> [y](https://e.org) `c` *d*\n# e"
    table = Table(["set", "AUROC"], [[name, 0.5]], caption=name)
    text = markdown_page([Section(name, f"{name}\n- f", table)], title=name, metadata={name: name})
    assert not re.search(r"(?<!\\)[<\[`]|[a-z]://|^- f", text, re.M)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [len(re.split(r"(?<!\\)\|", row)) for row in rows] == [4, 4]
    # On a terminal cells are as they are, but for the ends of cells.
    assert "<script>" in markdown(table)
