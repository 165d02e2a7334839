"""Names and figures inside Markdown, where nothing in them is markup."""

from __future__ import annotations

import re

from denoising_ebm.utils.text import printable

#: What begins code, emphasis, links, HTML, a table's cell or an entity, and what makes addresses into links.
_MARKUP = re.compile(r"[\\`*_\[\]<>|~&]|(?<=[A-Za-z])(?=://)|(?<=www)(?=\.)")

#: What begins a heading, list, quotation or rule.
_BLOCK = re.compile(r"^(?=[#=+-]+(?:\s|$)|-{3,})|(?<=\d)(?=[.)]\s)")


def markdown_text(value: object) -> str:
    """Return a text or number for one line of Markdown: shown as it is, whatever its characters mean there.

    White space becomes one blank, other control characters become visible; a pipe does not end a table's cell, and a text
    that would begin a heading, list, quotation or rule does not.
    """
    text = printable(" ".join(str(value).split()))
    return _BLOCK.sub(r"\\", _MARKUP.sub(r"\\\g<0>", text))
