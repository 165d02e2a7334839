"""A folder belongs to one command at a time: two that write into it would leave a mixture."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from denoising_ebm.utils.io import LOCK_FILE, clear_temporaries, make_folder, process_runs

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

#: What file systems without locks answer.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass
class _Held:
    """A lock of this process."""

    descriptor: int
    thread: int


_HELD: dict[str, _Held] = {}
_GUARD = threading.Lock()


@contextmanager
def locked(folder: str | Path, what: str) -> Iterator[None]:
    """Have a folder to oneself while the context lasts; the folder is made if it is missing.

    The lock lies on the file `.lock`, which names the process, and ends with the process however that ends. Where the file
    system has no locks, the process that `.lock` names is asked for instead. Of the processes of `torchrun` the first
    takes the lock, since it alone writes; within a thread it may be taken again. Temporary files that writers left when
    they were killed are removed.

    Args:
        folder: The folder, with all below it.
        what: The command that takes it, for the message to others: `debm train`.

    Raises:
        ValueError: If another process or thread has it.
        OSError: If no file can be made there.
    """
    folder = Path(folder)
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    key = os.path.realpath(folder)
    with _GUARD:
        held = _HELD.get(key)
    if held is not None and held.thread == threading.get_ident():
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, not a folder")
    made = make_folder(folder)
    try:
        descriptor = _take(folder, what, held is not None)
        with _GUARD:
            _HELD[key] = _Held(descriptor, threading.get_ident())
        try:
            clear_temporaries(folder)
            yield
        finally:
            _release(folder, key)
    finally:
        # A command that was refused, or had nothing to write, leaves no folder behind.
        for each in reversed(made):
            with suppress(OSError):
                each.rmdir()


def _take(folder: Path, what: str, by_thread: bool) -> int:
    """Return the descriptor of the lock file, locked and with our name in it; `by_thread`: another thread of ours has it."""
    path = folder / LOCK_FILE
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            if error.errno == errno.ENOENT and make_folder(folder):
                # Its last user removed the folder, which was empty, just now.
                continue
            # What stands in its place is named, else the folder that takes no file.
            place = path if error.errno in (errno.EISDIR, errno.ELOOP) else folder
            raise OSError(error.errno, error.strerror, str(place)) from None
        try:
            if not _lock(descriptor, by_thread):
                raise ValueError(_refusal(folder, descriptor))
            if _is_at(descriptor, path):
                # On a full disk the lock is one without a name.
                with suppress(OSError):
                    os.ftruncate(descriptor, 0)
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    os.write(descriptor, f"{os.getpid()} {socket.gethostname()} {what}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Removed by its last user between our opening and locking it.
        os.close(descriptor)


def _lock(descriptor: int, by_thread: bool) -> bool:
    """Lock an open file; False if another has it locked."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    holder = _holder(descriptor)
    if holder is None:
        return True
    if holder[0] == os.getpid():
        # In containers the process before us had our number.
        return not by_thread
    return holder[1] == socket.gethostname() and not process_runs(holder[0])


def _holder(descriptor: int) -> tuple[int, str, str] | None:
    """Return the process, machine and command that a lock file names, or None."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    words = os.read(descriptor, 1000).decode("utf-8", "replace").rstrip("\n").split(" ", 2)
    if len(words) < 3 or not words[0].isascii() or not words[0].isdigit():
        return None
    return int(words[0]), words[1], words[2]


def _refusal(folder: Path, descriptor: int) -> str:
    holder = _holder(descriptor)
    who, here = "another process", True
    if holder is not None:
        here = holder[1] == socket.gethostname()
        who = f"{holder[2]} (process {holder[0]}{'' if here else f' on {holder[1]}'})"
    hint = "wait until it has ended, or choose another folder"
    if fcntl is None or not here:
        hint += f"; if it no longer runs, delete {LOCK_FILE} there"
    return f"{folder}: in use by {who}; {hint}"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _release(folder: Path, key: str) -> None:
    with _GUARD:
        held = _HELD.pop(key, None)
    if held is None:
        # A forked process leaves the lock to its parent.
        return
    try:
        # While it is locked: who opens it meanwhile finds it gone, and makes another.
        with suppress(OSError):
            if _is_at(held.descriptor, folder / LOCK_FILE):
                os.unlink(folder / LOCK_FILE)
    finally:
        os.close(held.descriptor)


def _forget() -> None:
    """Let go of the parent's locks in a forked process, or they would last until it ends too."""
    for held in _HELD.values():
        with suppress(OSError):
            os.close(held.descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
