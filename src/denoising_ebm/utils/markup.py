"""Names and figures inside Markdown, where nothing in them is markup."""

from __future__ import annotations

import re

#: What begins code, emphasis, links, HTML, a table's cell or an entity, and what makes addresses into links.
_MARKUP = re.compile(r"[\\`*_\[\]<>|~&]|(?<=[A-Za-z])(?=://)|(?<=www)(?=\.)")


def markdown_text(value: object) -> str:
    """Return a text or number for one line of Markdown: shown as it is, whatever its characters mean there.

    Line breaks and control characters become spaces; a pipe does not end a table's cell.
    """
    text = "".join(char if char.isprintable() else " " for char in str(value))
    return _MARKUP.sub(lambda found: "\\" + found[0], " ".join(text.split()))
