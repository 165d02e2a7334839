from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM
from denoising_ebm.config import Config, TrainingStage
from denoising_ebm.training import trainer
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.logging import trim_metrics
from denoising_ebm.training.objectives import Batch
from denoising_ebm.training.setup import choose_hardware
from runs import assert_equal, read_state, train
from support import random_pixels, tiny_config

STAGES = {
    "denoising": (TrainingStage("denoising"),),
    "contrastive": (TrainingStage("denoising"), TrainingStage("contrastive")),
    "score": (TrainingStage("score"), TrainingStage("contrastive", 0.5), TrainingStage("score", 0.5)),
}


def interrupt_at(monkeypatch: pytest.MonkeyPatch, steps: list[int], number: signal.Signals = signal.SIGINT) -> None:
    """Send the process a signal while it draws the batches of these steps."""

    def draw(pixels: Tensor, config: Config, step: int, *rest: Any, **options: Any) -> list[Batch]:
        if step in steps:
            os.kill(os.getpid(), number)
        return draw_batch(pixels, config, step, *rest, **options)

    monkeypatch.setattr(trainer, "draw_batch", draw)


@pytest.mark.parametrize("name", STAGES)
def test_resumed_run_equals_a_straight_one_to_the_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the first stage, and again in the middle of a later one with persistent chains under way."""
    config = tiny_config(*STAGES[name], max_images=96, warmup_images=40, cooldown=0.3, micro_batch_size=4)
    config = replace(config, contrastive=replace(config.contrastive, chains="persistent", restart_rate=0.3))
    pixels = random_pixels(40)
    straight = train(pixels, config, tmp_path / "straight")
    assert straight.finished

    interrupt_at(monkeypatch, [2, 8])
    before = signal.getsignal(signal.SIGINT)
    legs = [train(pixels, config, tmp_path / "legs", resume=resume) for resume in (False, True)]
    assert signal.getsignal(signal.SIGINT) is before
    assert [leg.finished for leg in legs] == [False, False]
    state = read_state(tmp_path / "legs")
    assert state["clock"]["step"] == 9
    assert (name == "denoising") == (state["clock"]["stage"] == 0)
    last = train(pixels, config, tmp_path / "legs", resume=True)
    assert last.finished

    first, second = read_state(tmp_path / "straight"), read_state(tmp_path / "legs")
    assert first["clock"].pop("seconds") > 0 and second["clock"].pop("seconds") > 0
    assert_equal(first, second)
    assert name != "contrastive" or len(first["objective"]["x"]) > 0
    weights = [(tmp_path / leg / "model" / "model.safetensors").read_bytes() for leg in ("straight", "legs")]
    assert weights[0] == weights[1]
    assert_equal(straight.model.state_dict(), last.model.state_dict())


def test_sigterm_interrupts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, [1], signal.SIGTERM)
    assert not train(random_pixels(20), tiny_config(), tmp_path / "run").finished
    assert read_state(tmp_path / "run")["clock"]["step"] == 2
    assert DenoisingEBM.from_pretrained(tmp_path / "run").metadata["images seen"] == 16


def test_a_resumed_run_keeps_its_precision_and_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = {"hardware": {"device": "cpu", "precision": "fp32"}}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_hardware("auto", "auto", saved) == (torch.device("cpu"), "fp32")
    assert choose_hardware("cpu", "bf16", saved) == (torch.device("cpu"), "bf16")
    # One that began on a GPU goes on where there is none.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gone = {"hardware": {"device": "cuda", "precision": "bf16"}}
    assert choose_hardware("auto", "auto", gone) == (torch.device("cpu"), "bf16")
    assert choose_hardware("auto", "fp32", {}) == choose_hardware("auto", "fp32", None) == (torch.device("cpu"), "fp32")


def test_resume_refuses_other_settings(tmp_path: Path) -> None:
    pixels, config, folder = random_pixels(20), tiny_config(max_images=16), tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=r"state\.pt: nothing to resume"):
        train(pixels, config, folder, resume=True)
    train(pixels, config, folder)
    with pytest.raises(ValueError, match="already holds a run"):
        train(pixels, config, folder)
    other = replace(config, training=replace(config.training, learning_rate=0.5))
    with pytest.raises(ValueError, match=r"state\.pt: the run has training\.learning_rate = 0\.001, not 0\.5"):
        train(pixels, other, folder, resume=True)
    longer = replace(config, training=replace(config.training, max_images=32))
    for images in (pixels[:-1], pixels.flip(0)):
        with pytest.raises(ValueError, match=r"state\.pt: the run was on other images; resume with the same data"):
            train(images, longer, folder, resume=True)
    assert train(pixels, longer, folder, resume=True).finished
    assert read_state(folder)["clock"]["images_seen"] == 32
    (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.pt: not a readable state") as caught:
        train(pixels, longer, folder, resume=True)
    assert "\n" not in str(caught.value)
    for content in (bytes(100), b"version https://git-lfs.github.com/spec/v1\n"):
        (folder / "state.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.pt: not a readable state"):
            train(pixels, longer, folder, resume=True)


def test_resume_drops_lines_that_it_will_write_again(tmp_path: Path) -> None:
    """A run that was killed has logged steps after its last save, the last line perhaps in part."""
    lines = [json.dumps({"images_seen": 8 * step, "step": step, "loss": 1.0}) + "\n" for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"images_seen": 48, "st')
    trim_metrics(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:3])
    trim_metrics(tmp_path / "elsewhere", 3)
