"""A folder whose operations are numbered: what a death at any of them leaves, and how a disk that is full there is met."""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

#: Files by their paths below the folder; None for a folder.
Tree = dict[str, bytes | None]


@dataclass
class Moment:
    """A process dies at one operation."""

    operation: str
    killed: Tree  #: What it left: a write is done by half, another operation not at all.
    without_power: Tree  #: What the disk holds: contents flushed by `fsync` of a file, names by `fsync` of its folder.


class Disk:
    """Numbers what is done to files below a folder: opened for writing, written, flushed, linked, replaced, removed, made.

    Args:
        root: The folder.
        patch: Puts `open` and the operations of `os` back.
        full_at: Number of the operation, from 0, from which on no byte can be written and no file made.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, *, full_at: int | None = None) -> None:
        self.root, self.full_at = root.resolve(), full_at
        self.moments: list[Moment] = []
        self.taking: list[int] = []  #: Numbers of the operations that take room.
        self._files: list[Any] = []
        self._flushed: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int | None]] = {}
        self._open, self._os_open, self._write = io.open, os.open, os.write
        for path in (self.root, *self.root.rglob("*")):
            if path.is_dir():
                self._remember_names(path)
            else:
                self._hold(path)
                self._flushed[path.stat().st_ino] = path.read_bytes()
        patch.setattr(io, "open", self._opened)
        patch.setattr(builtins, "open", self._opened)
        patch.setattr(os, "open", self._os_opened)
        patch.setattr(os, "write", self._written)
        patch.setattr(os, "fsync", self._synced)
        for name in ("replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir"):
            patch.setattr(os, name, self._numbered(name, getattr(os, name)))

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            file.close()

    # -- operations ---------------------------------------------------------------------------------------------------

    def _is_ours(self, path: Any) -> bool:
        return not isinstance(path, int) and Path(os.fsdecode(path)).absolute().is_relative_to(self.root)

    def _note(self, what: str, path: Any, *, takes: bool = False, half: Callable[[], object] | None = None) -> None:
        """Note what a death here would leave; fail if the disk is full."""
        number = len(self.moments)
        if takes:
            self.taking.append(number)
        full = self.full_at is not None and number >= self.full_at and takes
        if half is not None and (self.full_at is None or full):
            half()
        # Only where it is looked at: it takes time.
        without_power = {} if self.full_at is not None else self._survivors(self.root)
        killed = {} if self.full_at is not None else read_tree(self.root, self._open)
        # Without the number of the process, which is another each time.
        name = re.sub(r"\.\d+\.tmp$", "", Path(os.fsdecode(path)).name)
        self.moments.append(Moment(f"{what} {name}", killed, without_power))
        if full:
            names = [] if what == "write" else [os.fsdecode(path)]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *names)

    def _opened(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not self._is_ours(file) or mode in ("r", "rb"):
            return self._open(file, mode, *arguments, **options)
        self._note("open", file, takes=not Path(file).exists())
        opened = self._open(file, mode, *arguments, **options)
        self._hold(Path(file))
        return _File(opened, self)

    def _os_opened(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if self._is_ours(path) and flags & os.O_CREAT:
            self._note("open", path, takes=not Path(path).exists())
        return self._os_open(path, flags, *arguments, **options)

    def _written(self, descriptor: int, content: bytes) -> int:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        middle = 0
        if self._is_ours(path):
            middle = len(content) // 2
            self._note("write", path, takes=True, half=lambda: self._write(descriptor, content[:middle]))
            middle = 0 if self.full_at is not None else middle
        return middle + self._write(descriptor, content[middle:])

    def _synced(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        if not self._is_ours(path):
            return
        self._note("fsync", path)
        if path.is_dir():
            self._remember_names(path)
        else:
            self._flushed[path.stat().st_ino] = path.read_bytes()

    def _numbered(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def numbered(path: Any, *arguments: Any, **options: Any) -> Any:
            if self._is_ours(path):
                self._note(name, path, takes=name in ("link", "mkdir") and not Path(path).is_dir())
            return operation(path, *arguments, **options)

        return numbered

    # -- what is on the disk ------------------------------------------------------------------------------------------

    def _hold(self, path: Path) -> None:
        """Keep a file from giving its number to another."""
        self._files.append(self._open(path, "rb"))

    def _remember_names(self, folder: Path) -> None:
        self._names[folder] = {path.name: None if path.is_dir() else path.stat().st_ino for path in folder.iterdir()}

    def _survivors(self, folder: Path) -> Tree:
        tree: Tree = {}
        for name, number in self._names.get(folder, {}).items():
            path = folder / name
            tree[str(path.relative_to(self.root))] = None if number is None else self._flushed.get(number, b"")
            if number is None:
                tree |= self._survivors(path)
        return tree


class _File:
    """An open file whose writes reach the disk at once, and are numbered."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, content: Any) -> int:
        middle = len(content) // 2
        self._disk._note("write", self._file.name, takes=True, half=lambda: self._put(content[:middle]))
        self._put(content[0 if self._disk.full_at is not None else middle :])
        return len(content)

    def _put(self, content: Any) -> None:
        self._file.write(content)
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_tree(root: Path, opened: Callable[..., Any] = open) -> Tree:
    """Return all files and folders below a folder."""
    tree: Tree = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir():
            tree[name] = None
        else:
            with opened(path, "rb") as file:
                tree[name] = file.read()
    return tree


def write_tree(root: Path, tree: Tree) -> None:
    """Make a folder hold these files and folders, and nothing else."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name, content in tree.items():
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
