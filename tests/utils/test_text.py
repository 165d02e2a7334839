from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoising_ebm.utils.text import csv_line, print_line, printable, stderr_is_terminal, valid_unicode


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b.png", "a b.png"),
        ("Übung 図 \u00a0x.png", "Übung 図 \u00a0x.png"),
        ("\x1b[31mred\x1b]0;title\x07.png", r"\x1b[31mred\x1b]0;title\x07.png"),
        ("two\nlines\r\tand", r"two\nlines\r\tand"),
        ("\x9b31m", r"\x9b31m"),  # an escape sequence of one byte
        ("photo\u202egnp.exe", r"photo\u202egnp.exe"),
        ("\u2066\u200e\ufeff\u2028", r"\u2066\u200e\ufeff\u2028"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        ("\ud800", r"\ud800"),
        ("👩\u200d🔬 می\u200cخواهم", "👩\u200d🔬 می\u200cخواهم"),
        ("C:\\new", "C:\\new"),
    ],
)
def test_what_is_not_for_showing_becomes_visible(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_one_line_that_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert printable(shown) == shown and len(shown.splitlines()) <= 1 and not set(shown) & {"\x1b", "\u202e"}
    shown.encode()
    valid_unicode(text).encode()


def test_valid_unicode_changes_nothing_else() -> None:
    assert valid_unicode("a\nb\x1b\u202e") == "a\nb\x1b\u202e"
    assert valid_unicode(os.fsdecode(b"\xff\n") + "\ud800") == "\\xff\n\\ud800"


def test_lines_go_to_stderr_or_nowhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    print_line("a\x1b[2J")
    assert capsys.readouterr().err == "a\\x1b[2J\n"
    monkeypatch.setattr(sys, "stderr", None)
    print_line("b")
    assert capsys.readouterr().out == "" and not stderr_is_terminal()
    with open(tmp_path / "closed", "w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
    print_line("c")
    assert not stderr_is_terminal()


@pytest.mark.parametrize(
    "text",
    [
        *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\tx", "\rx", "\nx", " =1", "\u00a0=1", "\ufeff=1"),
        *("=cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", '"=1"', "\uff1d1", "\uff0b1", "\uff0d1", "\uff201", "\x00=1"),
    ],
)
def test_no_text_is_a_formula(text: str) -> None:
    (cells,) = csv.reader(io.StringIO(csv_line(["a", text, text]), newline=""))
    assert cells == ["a", f"'{text}", f"'{text}"]


@pytest.mark.parametrize("text", ["a=1", "1-2", "x@y", "", "(-1)", "a\nb\r\nc\rd", 'a"b', "a,b;c\td", "Ü", "'quoted'"])
def test_other_text_stays_itself(text: str) -> None:
    (cells,) = csv.reader(io.StringIO(csv_line([text, "end"]), newline=""))
    assert cells == [text, "end"]


def test_numbers_stay_numbers_in_csv() -> None:
    assert csv_line([-0.5, -3, None, True, False, 1e-7, os.fsdecode(b"\xff")]) == "-0.5,-3,,true,false,1e-07,\\xff\n"
    # Where semicolons part cells, none of the name may begin one.
    assert csv_line(["a;=1"]) == '"a;=1"\n'


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=2))
def test_any_text_comes_back_from_csv(texts: list[str]) -> None:
    (cells,) = csv.reader(io.StringIO(csv_line(texts), newline=""))
    assert [cell.removeprefix("'") if cell != text else cell for cell, text in zip(cells, texts, strict=True)] == texts
