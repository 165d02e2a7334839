from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoising_ebm.utils.text import print_line, printable, stderr_is_terminal, valid_unicode


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
