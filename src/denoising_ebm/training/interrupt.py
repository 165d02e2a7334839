"""Ctrl-C, a closed terminal, a limit on time: requests to save and stop, instead of an end in the middle of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU")


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn signals that end a process into an event while the context lasts; a second one acts as usual.

    They are SIGINT, SIGTERM, SIGHUP (the terminal was closed) and SIGXCPU (a soft limit on seconds is used up). What the
    caller ignores, as under `nohup`, stays ignored, but for SIGINT, which shells turn off for what runs in the background.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    numbers = [signal.Signals[name] for name in _NAMES if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    # None: set by something else than Python, which could not be put back.
    previous = {
        number: handler
        for number, handler in handlers.items()
        if handler is not None and (handler != signal.SIG_IGN or number == signal.SIGINT)
    }

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
