"""Files that appear complete or not at all; JSON files that are read, or else named with what to do; markers of folders."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from denoising_ebm.utils.parsing import parse_json

if TYPE_CHECKING:
    import numpy.typing as npt


#: Who writes into a folder (`utils.lock`).
LOCK_FILE = ".lock"
_TEMPORARY = re.compile(r"\..+\.(\d{1,10})\.tmp", re.DOTALL)
#: Bytes of a file's name, on all usual file systems.
_NAME_LIMIT = 255
#: Seconds after which no write is under way any more.
_LONGEST_WRITE = 24 * 3600.0
#: What file systems answer that cannot flush folders.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}


def write_atomically(path: Path, write: Callable[[Path], object], *, previous: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and put it in place.

    A full disk or a crash, at any moment, leaves the old file as it was, or the new one.

    Args:
        path: Of the file; its folder is made if it is missing.
        write: Fills the file that it is given.
        previous: Name in the same folder under which the file that is replaced is kept.

    Raises:
        OSError: If it cannot be written; it names `path`.
    """
    temporary = _temporary(path)
    try:
        with errors_named(path):
            make_folder(path.parent)
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                _keep(path, previous)
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def errors_named(path: str | Path) -> Iterator[None]:
    """Have errors of files name this one: a failed write names none, a failed open a temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _temporary(path: Path) -> Path:
    """Return `.NAME.PID.tmp`, with as much of the name as fits."""
    end = f".{os.getpid()}.tmp"
    name = path.name
    while len(os.fsencode(name)) + 1 + len(end) > _NAME_LIMIT:
        name = name[:-1]
    return path.with_name(f".{name}{end}")


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, so that it is never without its first."""
    link = _temporary(previous)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        # A file system without links.
        os.replace(path, previous)
        return
    try:
        os.replace(link, previous)
    finally:
        # It stays where both are names of one file.
        with suppress(OSError):
            link.unlink(missing_ok=True)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder that lasts, with those above it; return those that were missing, outermost first."""
    missing: list[Path] = []
    place = folder
    while not place.exists() and place != place.parent:
        missing.append(place)
        place = place.parent
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)
    return missing[::-1]


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where that can be done: new and replaced files are found after a crash."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _NO_FOLDER_SYNC:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def process_runs(number: int) -> bool:
    """Say whether a process of this machine runs; True where that cannot be told."""
    if os.name != "posix":
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def is_leftover(path: Path) -> bool:
    """Say whether a file is a lock, or what a writer left when it was killed: neither makes a folder one of something."""
    return path.name == LOCK_FILE or _TEMPORARY.fullmatch(path.name) is not None


def clear_temporaries(folder: Path) -> None:
    """Remove the temporary files of writers that no longer run; to be called by who has the folder to itself."""
    for path in _entries(folder):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        writer = int(match[1])
        with suppress(OSError):
            status = path.lstat()
            # A number is given to another process some day, in containers to the very next one.
            old = time.time() - status.st_mtime > _LONGEST_WRITE
            if stat.S_ISREG(status.st_mode) and (writer == os.getpid() or old or not process_runs(writer)):
                path.unlink()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write several files that belong together, in the way of `write_atomically`: all are complete before one is replaced.

    A full disk leaves all old files as they were. A crash between two replacements, some microseconds, leaves new files
    before old ones, in the order given.
    """
    temporaries = {path: _temporary(path) for path in files}
    try:
        for path, content in files.items():
            with errors_named(path):
                make_folder(path.parent)
                temporaries[path].write_bytes(content)
                with open(temporaries[path], "rb") as file:
                    os.fsync(file.fileno())
        for path in files:
            with errors_named(path):
                os.replace(temporaries[path], path)
        for folder in dict.fromkeys(path.parent for path in files):
            with errors_named(folder):
                sync_folder(folder)
    finally:
        for temporary in temporaries.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write text as UTF-8 in the way of `write_atomically`; `errors` as for `str.encode`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors=errors))


def write_npz(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as `arr_0` of a NumPy archive in the way of `write_atomically`."""
    import numpy as np

    def write(temporary: Path) -> None:
        # Through an open file, since numpy adds a suffix to names.
        with open(temporary, "wb") as file:
            np.savez(file, array)

    write_atomically(path, write)


def open_regular_file(path: str | Path) -> BinaryIO:
    """Open a file for reading, if it is one: a pipe would block, a device never end.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is something else; the message names it and says what it is.
    """
    # Asked before, since opening a device can act on it, and after, since something else may stand there by then.
    _check_regular(path, os.stat(path).st_mode)
    flags = os.O_RDONLY
    for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, flag, 0)
    descriptor = os.open(path, flags)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_regular_file(path: str | Path, max_bytes: int | None = None) -> bytes:
    """Return the content of a file, as `open_regular_file` opens it.

    Args:
        path: Of the file.
        max_bytes: Longer files are refused before they are read.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no regular file or too long; the message names it.
    """
    with open_regular_file(path) as file:
        if max_bytes is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        if size <= max_bytes:
            # Once more than allowed, since a file can grow.
            content = file.read(max_bytes + 1)
            size = max(size, len(content))
            if len(content) <= max_bytes:
                return content
    raise ValueError(f"{path}: has {size:,} bytes, more than the {max_bytes:,} that are read")


def special_kind(mode: int) -> str:
    """Return what a file of this `st_mode` is, in words; nothing for a regular file."""
    kinds = [
        (stat.S_ISREG, ""),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    ]
    return next((words for is_kind, words in kinds if is_kind(mode)), "a device")


def _check_regular(path: str | Path, mode: int) -> None:
    if kind := special_kind(mode):
        raise ValueError(f"{path}: is {kind}, not a file")


class DamagedFileError(ValueError):
    """A file that does not hold what its writer wrote."""


def read_json(path: Path, hint: str = "", *, max_bytes: int = 2**30) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Args:
        path: Of the file.
        hint: What the user may do about a damaged one.
        max_bytes: Longer files are refused; of a stranger's file see `parsing.MAX_JSON`.

    Raises:
        OSError: If it cannot be read.
        DamagedFileError: If it holds something else; the message names the file and gives the hint.
    """
    hint = hint and f"; {hint}"
    content = read_regular_file(path, max_bytes)
    try:
        values = parse_json(content)
    except ValueError as error:
        raise DamagedFileError(f"{path}: not valid JSON ({error}){hint}") from None
    if not isinstance(values, dict):
        raise DamagedFileError(f"{path}: expected a JSON object, found {type(values).__name__}{hint}")
    return values


def check_marker(
    marker: Path, settings: Mapping[str, Any], *, what: str, hint: str, shown: bool = True
) -> dict[str, Any] | None:
    """Return what the marker of a folder says, a JSON object with the settings that its files were made with.

    Args:
        marker: The file, directly in the folder that it speaks of.
        settings: What the folder must have been made with; the marker may hold more.
        what: Kind of folder, for messages: `a demo`.
        hint: What the user may do about a folder of other settings.
        shown: Name the settings that differ, with their values.

    Returns:
        The values, or None for a folder that is new or empty, but for what `is_leftover` names.

    Raises:
        ValueError: If the folder holds something else, was made with other settings, or its marker is damaged.
    """
    folder = marker.parent
    if not marker.is_file():
        if folder.exists() and (not folder.is_dir() or not all(map(is_leftover, folder.iterdir()))):
            raise ValueError(f"{folder}: exists and is not {what}; choose another folder")
        return None
    found = read_json(marker, "delete its folder to start anew")
    for name, value in settings.items():
        if found.get(name) != value:
            other = f"with {name} {found.get(name)}, not {value}" if shown else f"of other {' or '.join(settings)}"
            raise ValueError(f"{folder}: holds {what} {other}; {hint}")
    return found
