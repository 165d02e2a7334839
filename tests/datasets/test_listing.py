from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from denoising_ebm.datasets.images import load_images
from denoising_ebm.datasets.listing import list_folder
from denoising_ebm.datasets.sources import open_source
from pictures import encoded, noise

PNG = encoded(noise(0, 4, 4), "PNG")


def names(folder: Path) -> list[str]:
    return [file.name for file in list_folder(folder).images]


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PNG)
    return path


@pytest.fixture
def unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a socket at a path; paths of sockets are short."""
    servers = []

    def make(path: Path) -> None:
        monkeypatch.chdir(path.parent)
        servers.append(socket.socket(socket.AF_UNIX))
        servers[-1].bind(path.name)

    yield make
    for server in servers:
        server.close()


def test_special_files_are_named_and_never_opened(
    tmp_path: Path, unix_socket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a pipe would wait for ever."""
    folder = image(tmp_path / "data" / "a.png").parent
    os.mkfifo(folder / "b.png")
    unix_socket(folder / "c.jpg")
    (folder / "d.tif").symlink_to("/dev/zero")
    os.mkfifo(folder / "e")
    os.mkfifo(folder / "f.txt")
    (folder / "g.png").mkdir()
    images = load_images(folder)
    assert images.names == ("a.png",)
    assert [(lost.name, lost.reason) for lost in images.unreadable] == [
        ("b.png", "is a named pipe, not a file"),
        ("c.jpg", "is a socket, not a file"),
        ("d.tif", "is a device, not a file"),
    ]
    assert open_source(folder).passed_over == {"special files": 2}
    # One that is given itself, and one that takes the place of an image after the folder was listed.
    for name, kind in (("b.png", "a named pipe"), ("c.jpg", "a socket"), ("d.tif", "a device")):
        with pytest.raises(ValueError, match=f"{name}: is {kind}, not a file"):
            load_images(folder / name)
    source = open_source(folder)
    (folder / "a.png").unlink()
    os.mkfifo(folder / "a.png")
    monkeypatch.setattr("denoising_ebm.datasets.images.open_source", lambda *_, **__: source)
    with pytest.raises(ValueError, match=r"none of 4 images can be read; a\.png: is a named pipe, not a file$"):
        load_images(folder)


def test_a_special_parquet_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.parquet")
    for source in (tmp_path / "train.parquet", tmp_path):
        with pytest.raises(ValueError, match=r"train\.parquet: .*is a named pipe, not a file$"):
            load_images(source)


def test_links_are_followed_but_for_circles(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere" / "x.png")
    data = image(tmp_path / "data" / "a" / "1.png").parents[1]
    for name in ("b", "c"):
        (data / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(data)
    (data / "a" / "up").symlink_to(data)
    (data / "a" / "self").symlink_to("self")
    (data / "a" / "self.png").symlink_to("self.png")
    (data / "a" / "gone.png").symlink_to("nothing.png")
    (data / "d.png").symlink_to(data / "a" / "1.png")
    assert names(data) == ["a/1.png", "a/gone.png", "a/self.png", "b/x.png", "c/x.png", "d.png"]
    images = load_images(data)
    assert images.names == ("a/1.png", "b/x.png", "c/x.png", "d.png")
    assert [lost.name for lost in images.unreadable] == ["a/gone.png", "a/self.png"]


def test_links_that_multiply_end(tmp_path: Path) -> None:
    """Twelve folders that each link to all others have 12! paths without a circle."""
    for i in range(12):
        image(tmp_path / f"{i}" / "x.png")
        for j in range(12):
            if i != j:
                (tmp_path / f"{i}" / f"{j}").symlink_to(tmp_path / f"{j}")
    with pytest.raises(ValueError, match=r"links lead to .* and more than 200 other names of it$") as caught:
        list_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other rules for names")
def test_long_names_and_names_that_are_no_text(tmp_path: Path) -> None:
    long = "x" * 246 + ".png"
    odd = os.fsdecode(b"\xff\xfe caf\xe9.png")
    folder = os.fsdecode(b"kl\xe4sse")
    for name in (long, odd, f"{folder}/a.png", "line\nbreak.png", "tab\there"):
        image(tmp_path / "data" / name)
    images = load_images(tmp_path / "data")
    assert set(images.names) == {long, odd, f"{folder}/a.png", "line\nbreak.png", "tab\there"}
    assert dict(zip(images.names, images.labels, strict=True))[f"{folder}/a.png"] == folder
    assert load_images(tmp_path / "data" / folder).names == ("a.png",)
    assert load_images(str(tmp_path / "data" / odd)).names == (odd,)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a/" * 3000, "~nobody/x", "*.png", "http://host/a.png", "a:b"])
def test_impossible_names_are_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((OSError, ValueError)) as caught:
        load_images(name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    image(tmp_path / "data" / "a" / "x.png")
    (tmp_path / "data" / "a").chmod(0)
    try:
        with pytest.raises(PermissionError, match="data/a"):
            load_images(tmp_path / "data")
    finally:
        (tmp_path / "data" / "a").chmod(0o700)
