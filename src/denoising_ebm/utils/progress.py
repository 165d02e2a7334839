"""How far long work is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import IO, cast

from denoising_ebm.utils.text import Stderr, print_line

#: Shows how far work is, by its description and its total count; yields the function that takes what was done since.
Bar = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], object]]]

#: Seconds between lines where there is no terminal.
EVERY = 20.0


@contextlib.contextmanager
def no_bar(description: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show nothing, in the place of `progress_bar`."""
    yield lambda count: None


@contextlib.contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Show on stderr how far work is; yields the function that takes the count of what was done since its last call.

    Args:
        description: Of the work.
        total: Count of all of it; None where it is not known.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=cast(IO[str], Stderr()))
    if not console.is_terminal:
        yield _lines(description, total)
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def _lines(description: str, total: int | None) -> Callable[[int], object]:
    """Return a function that prints a line if the last is older than `EVERY` seconds."""
    started = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done, now = done + count, time.monotonic()
        if now - last >= EVERY:
            last = now
            if total is None:
                print_line(f"{description}: {done:,}")
                return
            left = (total / done - 1) * (now - started) / 60 if done else math.inf
            print_line(f"{description}: {done / max(total, 1):.0%}, {left:.1f} min left")

    return advance
