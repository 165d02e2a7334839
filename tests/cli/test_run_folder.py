"""What `debm train` does with a folder in use, among the images, or of a run that died early."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command import TRAIN

OTHER = """
import sys
from collections.abc import Iterator
from pathlib import Path
from denoising_ebm.utils.lock import locked
with locked(Path(sys.argv[1]), "debm train"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def images(folder: Path, tmp_path: Path) -> Path:
    """A few of the images, since a run may be tried among them."""
    (tmp_path / "images").mkdir()
    for path in sorted(folder.glob("*.png"))[:24]:
        shutil.copy(path, tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the folder `run`."""
    command = [sys.executable, "-c", OTHER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.communicate("")


@pytest.mark.parametrize(
    "command",
    [
        "demo --fast",
        "reproduce table4",
        "fit-detector fashion-mnist fashion-mnist --images 40 --corrupted-images 1",
        "tune fashion-mnist fashion-mnist --images 2 --samples 2 --temperatures [1]",
        "restore fashion-mnist fashion-mnist --limit 2 --task denoise --sigma 0.2 --steps 2",
    ],
    ids=lambda command: command.split()[0],
)
def test_commands_that_write_into_a_folder_in_use_are_refused(
    command: str, debm: Any, other: subprocess.Popen[str], tmp_path: Path
) -> None:
    error = debm(*command.split(), "--out", tmp_path / "run").error
    assert error.startswith(f"{tmp_path / 'run'}: in use by debm train (process {other.pid})")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_maps_into_a_folder_in_use_are_refused(debm: Any, other: subprocess.Popen[str], tmp_path: Path) -> None:
    error = debm("score", "fashion-mnist", "fashion-mnist", "--limit", "2", "--maps", tmp_path / "run").error
    assert error.startswith(f"{tmp_path / 'run'}: in use by debm train (process {other.pid})")


def test_a_run_in_use_is_refused_before_anything_is_read(
    debm: Any, other: subprocess.Popen[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (out / "config.yaml").write_text("{")
    expected = f"{out}: in use by debm train (process {other.pid}); wait until it has ended, or choose another folder"
    for more in ([], ["--resume"]):
        assert debm("train", tmp_path / "images that are not there", *TRAIN, "--out", out, *more).error == expected
    assert (out / "config.yaml").read_text() == "{"


def test_a_refused_command_leaves_no_folder(debm: Any, tmp_path: Path) -> None:
    for more in ([], ["--resume"]):
        assert debm("train", tmp_path / "missing", *TRAIN, "--out", tmp_path / "runs" / "a", *more).error
    assert list(tmp_path.iterdir()) == []


def test_a_run_among_its_images_is_refused(debm: Any, images: Path) -> None:
    for out in (images, images / "run", images / "a" / ".." / "runs" / "a"):
        for more in ([], ["--resume"]):
            error = debm("train", images, *TRAIN, "--out", out, *more).error
            assert error == f"--out {out}: lies in the folder of the images, {images}; give another one"
    assert all(path.suffix == ".png" for path in images.iterdir())
    # Pictures would be written among the images.
    run = images.parent / "run"
    images.rename(images.parent / "samples")
    (images.parent / "samples").rename(run.with_name("samples"))
    error = debm("train", run.parent / "samples", *TRAIN, "--out", run.parent).error
    assert "lies in the folder of the images" in error


def test_a_run_that_died_before_its_settings_were_written_goes_on(
    debm: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, short = tmp_path / "run", ["--max-images", "64"]
    replace = os.replace

    class Died(BaseException):
        pass

    def die(source: Any, target: Any, **options: Any) -> None:
        if Path(target).name == "config.yaml":
            raise Died
        replace(source, target, **options)

    with monkeypatch.context() as dying:
        dying.setattr(os, "replace", die)
        with pytest.raises(Died):
            debm("train", images, *TRAIN, "--out", out, *short)
    assert [path.name for path in out.iterdir()] == ["state.pt"]
    assert debm("train", images, *TRAIN, "--out", out, *short).error.startswith(f"{out}: already holds a run")
    assert debm("train", images, "--out", out, "--resume").status == 0
    assert (out / "model" / "model.safetensors").is_file() and (out / "config.yaml").is_file()
    # Settings that were spoilt by hand: an error, and what to do about it.
    (out / "config.yaml").write_bytes(bytes(10))
    error = debm("train", images, "--out", out, "--resume").error
    assert error.startswith(f"{out / 'config.yaml'}: not valid YAML") and error.endswith("in state.pt are taken")
    (out / "config.yaml").unlink()
    assert debm("train", images, "--out", out, "--resume").status == 0


def test_a_run_that_died_before_its_first_state_starts_anew(debm: Any, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("")
    (out / ".state.pt.99999999.tmp").touch()
    (out / "state.pt").write_bytes(b"PK")
    assert debm("train", images, *TRAIN, "--out", out, "--max-images", "64").status == 0
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == set()


def test_folders_that_take_no_file(debm: Any, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert debm("train", images, *TRAIN, "--out", tmp_path / "file").error.endswith("file: is a file, not a folder")
    error = debm("train", images, *TRAIN, "--out", "/proc/nothing").error
    assert "/proc/nothing" in error
