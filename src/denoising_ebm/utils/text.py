"""Text from outside (names of files, words of damaged files) on terminals, in pages and tables; lines on stderr."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import unicodedata
from collections.abc import Iterable

# Format characters that spelling needs (Persian, Indian scripts, joined emoji), which reorder and hide nothing.
_JOINERS = "\u200c\u200d"
#: Characters of a library's own words on what failed, which can quote a whole file.
_LONGEST_REASON = 200


def printable(text: object) -> str:
    r"""Return text on one line that does nothing but show itself.

    Control characters, escape sequences, line ends and marks that turn the direction of writing become visible, in
    Python's own spelling (`\x1b`, `\n`, `\u202e`); a byte of a file name that is not UTF-8 becomes `\xff`.
    """
    shown = str(text)
    return shown if shown.isprintable() else "".join(map(_visible, shown))


def reason_of(error: BaseException) -> str:
    """Return why something failed, in a line: what the system says without the name of a file, or an error's first line."""
    if isinstance(error, OSError) and error.strerror:
        # The system's words are capitalised, ours are not.
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error).strip().partition("\n")[0][:_LONGEST_REASON] or type(error).__name__


def counted(count: int, noun: str) -> str:
    """Return a count of things in words: `1 image`, `1,200 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def valid_unicode(text: str) -> str:
    r"""Return text that can be encoded: a byte of a file name that is not UTF-8 becomes `\xff`, all else stays."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(_visible(character) if "\ud800" <= character <= "\udfff" else character for character in text)
    return text


def csv_line(cells: Iterable[object]) -> str:
    r"""Return a line of CSV with its end, whose text no spreadsheet takes for a formula.

    Text that begins with = + - @ (also in their wide forms, also after blanks), tab, CR or LF gets an apostrophe in front,
    as OWASP advises; numbers stay as they are. None is left empty, booleans are `true` and `false`, and a byte of a file
    name that is not UTF-8 becomes `\xff`. Line ends within text are kept, in quotation marks.
    """
    return ",".join(map(_csv_cell, cells)) + "\n"


def print_line(text: object) -> None:
    """Print a line on stderr, made `printable`; where nobody can read it (closed, full, hung up) work goes on without."""
    # Without a stderr `print` would take stdout, where results go.
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            print(printable(text), file=sys.stderr, flush=True)


def stderr_is_terminal() -> bool:
    """Say whether somebody watches stderr."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


class Stderr(io.TextIOBase):
    """stderr as it is now, for what draws on it for long: where nobody can read it any more, it takes what it is given."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    def write(self, text: str) -> int:
        """Write as far as possible."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):  # ValueError: closed
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush as far as possible."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Say whether somebody watches."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"


def _csv_cell(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if not isinstance(cell, str):
        return str(cell)
    text = valid_unicode(cell)
    # What a spreadsheet may drop before it looks.
    first = next((each for each in text if each.isprintable() and not each.isspace() and each not in "\"'"), "")
    if text[:1] in ("\t", "\r", "\n") or unicodedata.normalize("NFKC", first) in ("=", "+", "-", "@"):
        text = f"'{text}"
    # Some countries' spreadsheets part cells at semicolons or tabs.
    quoted = re.search(r"[,;\t\r\n\"]", text) is not None
    return '"' + text.replace('"', '""') + '"' if quoted else text


def _visible(character: str) -> str:
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs":
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"  # as `os.fsdecode` keeps a byte
    return repr(character)[1:-1]
