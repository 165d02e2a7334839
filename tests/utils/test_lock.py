from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from denoising_ebm.utils import lock
from denoising_ebm.utils.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from denoising_ebm.utils.lock import locked
with locked(Path(sys.argv[1]), "debm train"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_folder_in_use_is_refused_by_name_and_process_until_that_dies(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    message = (
        rf"^{re.escape(str(tmp_path / 'run'))}: in use by debm train \(process {process.pid}\); wait until it has ended"
    )
    with pytest.raises(ValueError, match=message), locked(tmp_path / "run", "debm demo"):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    with locked(tmp_path / "run", "debm demo"):
        assert (tmp_path / "run" / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()} debm demo\n"
    # Empty again, but not made by us.
    assert list((tmp_path / "run").iterdir()) == []


def test_nothing_is_left_where_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "a" / "b", "debm train"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b", "debm train"):
        (tmp_path / "a" / "b" / "model").touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["a", "a/b", "a/b/model"]


def test_a_thread_may_take_it_twice_and_two_threads_may_not(tmp_path: Path) -> None:
    caught: list[Exception] = []

    def other() -> None:
        try:
            with locked(tmp_path, "debm tune"):
                pass
        except ValueError as error:
            caught.append(error)

    with locked(tmp_path, "debm train"):
        with locked(tmp_path / ".", "debm train"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert f"in use by debm train (process {os.getpid()})" in str(caught[0])
    other()
    assert len(caught) == 1


def test_forked_processes_have_no_share_in_it(tmp_path: Path) -> None:
    """One that outlives its parent would keep the folder, and one that ends before it would give it away."""
    reading, writing = os.pipe()
    with locked(tmp_path, "debm train"):
        child = os.fork()
        if child == 0:
            try:
                with locked(tmp_path, "debm train"):
                    os.write(writing, b"taken")
            except ValueError:
                os.write(writing, b"refused")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reading, 100) == b"refused"
        assert (tmp_path / ".lock").is_file()
    os.close(reading)
    os.close(writing)


def test_only_the_first_process_of_many_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path, "debm train"):
        monkeypatch.setenv("RANK", "1")
        with locked(tmp_path, "debm train"):
            assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} ")
        monkeypatch.setenv("RANK", "0")


@pytest.mark.parametrize("missing", ["in the file system", "in Python"])
def test_without_locks_the_process_that_is_named_decides(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    if missing == "in Python":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", unsupported)
    here = socket.gethostname()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for text in ("", "nonsense\n", f"{ended.pid} {here} debm train\n", f"{os.getpid()} {here} debm train\n"):
        (tmp_path / ".lock").write_text(text)
        with locked(tmp_path, "debm tune"):
            assert (tmp_path / ".lock").read_text() == f"{os.getpid()} {here} debm tune\n"
        assert not (tmp_path / ".lock").exists()
    (tmp_path / ".lock").write_text(f"{os.getppid()} {here} debm train\n")
    with (
        pytest.raises(ValueError, match=f"in use by debm train .process {os.getppid()}."),
        locked(tmp_path, "debm tune"),
    ):
        pass
    (tmp_path / ".lock").write_text(f"{ended.pid} elsewhere debm train\n")
    message = rf"\(process {ended.pid} on elsewhere\); .*; if it no longer runs, delete .lock there$"
    with pytest.raises(ValueError, match=message), locked(tmp_path, "debm tune"):
        pass


def test_places_that_take_no_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file: is a file, not a folder$"), locked(tmp_path / "file", "debm train"):
        pass
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"run/\.lock'$"), locked(tmp_path / "run", "debm train"):
        pass
    with pytest.raises(OSError, match=r"'/proc/self/fdinfo'$"), locked(Path("/proc/self/fdinfo"), "debm train"):
        pass


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = {f".a.{os.getppid()}.tmp", ".mine.tmp", f"b.{ended.pid}.tmp", ".3.txt", f".folder.{ended.pid}.tmp"}
    for name in (*kept, f".state.pt.{ended.pid}.tmp", f".a.{os.getpid()}.tmp", f".yesterday.{os.getppid()}.tmp"):
        (tmp_path / name).mkdir() if "folder" in name else (tmp_path / name).touch()
    os.utime(tmp_path / f".yesterday.{os.getppid()}.tmp", (0, 0))
    with locked(tmp_path, "debm train"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == kept
