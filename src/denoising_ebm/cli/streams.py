"""Standard output and error of a command: there though closed, and written to the last byte or else an error."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator


def open_streams() -> None:
    """Make standard output and error fit to be written to.

    A closed one (a service, `>&-`) is replaced by one that leads nowhere. Its number must not be left free: a file of
    results would get it, and with it what libraries print. With PYTHONUNBUFFERED Python does not see that only a part of
    a text was written, as on a full disk; a buffer does. What an encoding lacks is printed as an escape.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    # One that a program has put in its place is that program's own.
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        if isinstance(sys.stdout.buffer, io.RawIOBase):
            buffer = io.BufferedWriter(sys.stdout.buffer)
            sys.stdout = io.TextIOWrapper(buffer, encoding=sys.stdout.encoding, line_buffering=True)
        sys.stdout.reconfigure(errors="backslashreplace")


def has_stdout() -> bool:
    """Say whether the process was started with a standard output."""
    return sys.__stdout__ is not None


@contextlib.contextmanager
def flushed_stdout() -> Iterator[None]:
    """Have all that is printed within written at the end, so that an error of it is one of the command.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        yield
    except SystemExit:  # after `--help`
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def drop_unwritten() -> None:
    """Forget what cannot be written: Python would try it again at its end, and complain, with an exit status of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
