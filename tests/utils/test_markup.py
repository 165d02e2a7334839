from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoising_ebm.utils.markup import markdown_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fashion-MNIST, 9,488 images (1 thread)", "Fashion-MNIST, 9,488 images (1 thread)"),
        ("a | b", r"a \| b"),
        ("a\n\n---\nb", "a --- b"),
        ("---", r"\---"),
        ("# a", r"\# a"),
        ("1. a", "1\\. a"),
        ("- a", r"\- a"),
        ("-5", "-5"),
        ("3.5", "3.5"),
        ("<b>&amp;", r"\<b\>\&amp;"),
        ("[a](b) `c` *d* ~e~ \\", r"\[a\](b) \`c\` \*d\* \~e\~ \\"),
        ("https://e.org www.e.org", r"https\://e.org www\.e.org"),
        ("a\x1b[31m", r"a\\x1b\[31m"),
    ],
)
def test_nothing_is_markup(text: str, expected: str) -> None:
    assert markdown_text(text) == expected


@given(st.text())
def test_always_one_line_without_a_bare_pipe(text: str) -> None:
    shown = markdown_text(text)
    assert shown.isprintable() or not shown
    without_escapes = shown.replace("\\\\", "")
    assert without_escapes.count("|") == without_escapes.count("\\|")
