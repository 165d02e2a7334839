from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.training import trainer
from denoising_ebm.training.once import MARKER, is_finished, train_once
from support import random_pixels, tiny_config


def test_an_interrupt_in_the_last_moments_stops_after_a_finished_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a reproduction would go on with its next row, whatever the user asked for."""
    config, pixels, save = tiny_config(max_images=16), random_pixels(20), trainer._Run.save

    def interrupted(self: Any, monitor: Any, *, final: bool) -> None:
        if final:
            signal.raise_signal(signal.SIGINT)
        save(self, monitor, final=final)

    monkeypatch.setattr(trainer._Run, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_once(pixels, config, tmp_path / "run", device="cpu", quiet=True)
    assert train_once(pixels, config, tmp_path / "run", device="cpu", quiet=True).metadata["images seen"] == 16


def test_models_of_other_images_or_settings_are_not_taken(tmp_path: Path) -> None:
    config, pixels = tiny_config(max_images=16), random_pixels(20)
    train_once(pixels, config, tmp_path / "run", device="cpu", quiet=True)
    seen = train_once(pixels, config, tmp_path / "run", device="cpu", quiet=True).metadata["images seen"]
    assert seen == 16
    others = replace(config, training=replace(config.training, seed=5))
    for arguments in ((pixels[1:], config), (pixels, others)):
        with pytest.raises(ValueError, match="holds a model of other images or settings; delete it to train anew"):
            train_once(*arguments, tmp_path / "run", device="cpu", quiet=True)


def test_a_run_that_ended_before_its_first_save_starts_anew(tmp_path: Path) -> None:
    config, pixels, folder = tiny_config(max_images=16), random_pixels(20), tmp_path / "run"
    assert not is_finished(folder)
    train_once(pixels, config, folder, device="cpu", quiet=True)
    assert is_finished(folder)
    (folder / "state.pt").unlink()
    (folder / MARKER).write_text(json.dumps(json.loads((folder / MARKER).read_text()) | {"finished": False}))
    assert not is_finished(folder)
    assert train_once(pixels, config, folder, device="cpu", quiet=True).metadata["images seen"] == 16
    assert is_finished(folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="exists and is not a model"):
        train_once(random_pixels(20), tiny_config(max_images=16), tmp_path, device="cpu", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_damaged_marker_loses_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The state has its settings and a hash of its images, too: for the same ones it goes on, for others it does not."""
    config, pixels, folder = tiny_config(max_images=16), random_pixels(20), tmp_path / "run"
    train_once(pixels, config, folder, device="cpu", quiet=True)
    weights = (folder / "model" / "model.safetensors").read_bytes()
    for content in (b"", bytes(50), b"[1]", None):
        (folder / MARKER).unlink() if content is None else (folder / MARKER).write_bytes(content)
        assert not is_finished(folder)
        capsys.readouterr()
        train_once(pixels, config, folder, device="cpu", quiet=True)
        assert is_finished(folder) and (folder / "model" / "model.safetensors").read_bytes() == weights
        assert ("once.json: " in capsys.readouterr().err) == (content is not None)
    (folder / MARKER).write_bytes(b"{")
    with pytest.raises(ValueError, match="the run was on other images"):
        train_once(pixels[1:], config, folder, device="cpu", quiet=True)
    (folder / "state.pt").unlink()
    (folder / "state-previous.pt").unlink()
    with pytest.raises(ValueError, match=r"once\.json: not valid JSON .*; delete its folder to start anew"):
        train_once(pixels, config, folder, device="cpu", quiet=True)


def test_what_cannot_go_on_is_removed_with_its_marker_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the marker the rest would be something else's folder."""
    config, pixels, folder = tiny_config(max_images=16), random_pixels(20), tmp_path / "run"
    train_once(pixels, config, folder, device="cpu", quiet=True)
    for name in ("state.pt", "state-previous.pt"):
        (folder / name).unlink()
    (folder / MARKER).write_text(json.dumps(json.loads((folder / MARKER).read_text()) | {"finished": False}))

    class Died(BaseException):
        pass

    removed: list[str] = []

    def unlink(self: Path, missing_ok: bool = False) -> None:
        removed.append(self.name)
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(Path, "unlink", unlink)
        train_once(pixels, config, folder, device="cpu", quiet=True)
    assert removed and MARKER not in removed
    assert train_once(pixels, config, folder, device="cpu", quiet=True).metadata["images seen"] == 16


def test_the_model_keeps_how_its_images_were_prepared(tmp_path: Path) -> None:
    prepared = Preprocessing(16, 1, resize="box")
    config = tiny_config(max_images=16)
    for _ in range(2):
        model = train_once(random_pixels(20), config, tmp_path / "run", preprocessing=prepared, quiet=True)
        assert model.preprocessing == prepared
