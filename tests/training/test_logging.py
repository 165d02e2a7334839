"""A run says what it does as far as it is heard: no closed terminal and no TensorBoard stops it."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command import TRAIN
from denoising_ebm.training import trainer
from denoising_ebm.training.checkpoint import Clock
from denoising_ebm.training.logging import Monitor
from runs import read_state
from support import random_pixels, tiny_config


class HungUp(io.TextIOBase):
    """A terminal that was closed."""

    def __init__(self, terminal: bool) -> None:
        self.terminal, self.tried = terminal, 0

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.tried += 1
        raise OSError(errno.EIO, "Input/output error")

    def flush(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_closed_terminal_stops_no_run(terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = HungUp(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    result = trainer.train(random_pixels(20), tiny_config(max_images=32), tmp_path, device="cpu")
    assert result.finished and stream.tried > 0
    assert read_state(tmp_path)["clock"]["step"] == 4


@pytest.mark.slow
def test_closing_the_terminal_saves_and_stops(folder: Path, tmp_path: Path) -> None:
    """A real one: the kernel sends SIGHUP, and nothing can be written to it any more."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "denoising_ebm", "train", str(folder), *TRAIN, "--out", str(out)]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*command, "--max-minutes", "0", "--max-images", "100000000"],
        **{name: slave for name in ("stdin", "stdout", "stderr")},
        preexec_fn=lambda: os.login_tty(os.dup(slave)),
    )
    os.close(slave)
    while not (out / "metrics.jsonl").is_file():
        assert process.poll() is None
        os.read(master, 4096)
    os.close(master)
    assert process.wait(timeout=120) == 130
    step = read_state(out)["clock"]["step"]
    logged = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert step >= logged[-1] > 0
    assert (out / "model" / "model.safetensors").is_file() and not (out / ".lock").exists()


class Failing:
    """TensorBoard's writer on a full disk: its thread's error comes with the next call."""

    def add_scalar(self, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_tensorboard_stops_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor: Any = Monitor(tmp_path, active=True, quiet=True)
    monitor._writer = Failing()
    for step in (1, 2):
        monitor.write(Clock(step=step), "denoising", {"loss": 1.0}, 0.5, 1e-3)
    monitor.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 1, 2]
    assert records[1]["event"] == "TensorBoard events end here: [Errno 28] No space left on device"
    monitor._writer = Failing()
    monitor.close()
    assert "TensorBoard events are incomplete" in capsys.readouterr().err
