from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from denoising_ebm.utils.io import check_marker, read_json, read_regular_file, write_atomically, write_npz


def test_markers_tell_whose_a_folder_is(tmp_path: Path) -> None:
    marker, words = tmp_path / "out" / "demo.json", {"what": "a demo", "hint": "choose another --out"}
    assert check_marker(marker, {"seed": 0}, **words) is None
    marker.parent.mkdir()
    assert check_marker(marker, {"seed": 0}, **words) is None
    marker.write_text(json.dumps({"seed": 0, "more": [1]}))
    assert check_marker(marker, {"seed": 0}, **words) == {"seed": 0, "more": [1]}
    with pytest.raises(ValueError, match=r"^.*/out: holds a demo with seed 0, not 1; choose another --out$"):
        check_marker(marker, {"seed": 1}, **words)
    with pytest.raises(ValueError, match=r"^.*/out: holds a demo of other seed or size; choose another --out$"):
        check_marker(marker, {"seed": 0, "size": {"n": 3}}, shown=False, **words)


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for folder in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ValueError, match=f"^{folder}: exists and is not a demo; choose another folder$"):
            check_marker(folder / "demo.json", {}, what="a demo", hint="")


def test_damaged_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    with pytest.raises(ValueError, match=f"^{path}: expected a JSON object, found list; delete it$"):
        read_json(path, "delete it")
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"^{path}: not valid JSON \(.*\)$"):
        read_json(path)


def test_archives_keep_their_name_and_array(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    # numpy would call this one `samples.data.npz`.
    path = tmp_path / "new" / "samples.data"
    write_npz(path, array)
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["arr_0"], array)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert caught.value.filename == str(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_regular_file_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a pipe would wait for ever, and a device need not end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket")
        for name, kind in [
            ("pipe", "a named pipe"),
            ("link", "a named pipe"),
            ("zeros", "a device"),
            ("socket", "a socket"),
            (".", "a folder"),
        ]:
            with pytest.raises(ValueError, match=f"^{name}: is {kind}, not a file$"):
                read_regular_file(name)
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "gone")
    # A pipe that took the place of a file after it was looked at.
    (tmp_path / "file").write_text("text")
    regular = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: regular)
    with pytest.raises(ValueError, match=r"^pipe: is a named pipe, not a file$"):
        read_regular_file("pipe")


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular_file(path) == read_regular_file(path, 5) == b"12345"
    with pytest.raises(ValueError, match=r"file: has 5 bytes, more than the 4 that are read$"):
        read_regular_file(path, 4)


def test_names_as_long_as_a_file_system_takes(tmp_path: Path) -> None:
    for name in ("a" * 255, "ä" * 125 + ".png", "\udcff" * 251 + ".csv"):
        write_atomically(tmp_path / name, lambda temporary: temporary.write_text("new"))
        assert (tmp_path / name).read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("links", [True, False])
def test_the_file_before_is_kept_if_asked_for(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, previous = tmp_path / "a.txt", tmp_path / "a-previous.txt"

    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", unsupported)
    for text in ("first", "second", "third"):
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text), previous=previous)  # type: ignore[misc]
    assert (path.read_text(), previous.read_text()) == ("third", "second")
    assert len(list(tmp_path.iterdir())) == 2


def test_locks_and_what_killed_writers_left_make_no_folder_one_of_something(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".demo.json.123.tmp").touch()
    assert check_marker(tmp_path / "demo.json", {}, what="a demo", hint="") is None
