from __future__ import annotations

import io
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
from denoising_ebm.training.checkpoint import find_damage
from denoising_ebm.training.logging import read_metrics, trim_metrics
from denoising_ebm.training.objectives import Batch
from denoising_ebm.training.setup import choose_hardware
from runs import assert_equal, read_state, train
from support import random_pixels, tiny_config

STAGES = {
    "denoising": (TrainingStage("denoising"),),
    "contrastive": (TrainingStage("denoising"), TrainingStage("contrastive")),
    "energy": (TrainingStage("denoising"), TrainingStage("energy", 1.0, 2e-3)),
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_other_signals_interrupt_too(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, [1], number)
    assert not train(random_pixels(20), tiny_config(), tmp_path / "run").finished
    assert read_state(tmp_path / "run")["clock"]["step"] == 2
    assert DenoisingEBM.from_pretrained(tmp_path / "run").metadata["images seen"] == 16


def test_what_the_caller_ignores_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup` is there so that a closed terminal does not end the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt_at(monkeypatch, [1], signal.SIGHUP)
        assert train(random_pixels(20), tiny_config(), tmp_path / "run").finished
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


def damaged(content: bytes) -> list[bytes]:
    """A state cut off, empty, replaced, and with one bit flipped at its start, in its middle, in its hash."""
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    flips = [flipped(content, i) for i in (0, 40, len(content) // 3, len(content) - 72, len(content) - 71, -1)]
    return [content[:1000], content[:-1], b"", bytes(100), pointer, *flips]


def test_states_are_torchs_own_files_with_a_hash(tmp_path: Path) -> None:
    train(random_pixels(20), tiny_config(max_images=16), tmp_path)
    content = (tmp_path / "state.pt").read_bytes()
    assert find_damage(content) == "" and content[-71:-64] == b"sha256:"
    assert {"model", "average", "optimizer", "objective", "clock", "config"} <= set(read_state(tmp_path))
    assert all(find_damage(each) for each in damaged(content))
    # Of before there were hashes: torch's checksums tell.
    buffer = io.BytesIO()
    torch.save(read_state(tmp_path), buffer)
    old = buffer.getvalue()
    assert find_damage(old) == "" and all(find_damage(old[:i] + b"?" + old[i + 1 :]) for i in (-100, len(old) // 3))
    (tmp_path / "state.pt").write_bytes(old)
    assert train(random_pixels(20), tiny_config(max_images=32), tmp_path, resume=True).finished


def test_where_a_state_is_damaged_the_one_before_is_used_and_it_is_said(tmp_path: Path) -> None:
    pixels, config, longer = random_pixels(20), tiny_config(max_images=16), tiny_config(max_images=32)
    straight, folder = tmp_path / "straight", tmp_path / "run"
    train(pixels, longer, straight)
    train(pixels, config, folder)
    train(pixels, tiny_config(max_images=24), folder, resume=True)
    content, previous = ((folder / name).read_bytes() for name in ("state.pt", "state-previous.pt"))
    assert torch.load(io.BytesIO(previous), weights_only=True)["clock"]["step"] == 2
    for spoilt in (content[:1000], flipped(content, 40), b""):
        (folder / "state.pt").write_bytes(spoilt)
        train(pixels, longer, folder, resume=True)
        assert "state.pt: not a readable state (" in events(folder)[-1]
        assert events(folder)[-1].endswith("; going on from state-previous.pt, saved at step 2")
        assert same_states(straight, folder)
        # What was damaged is not kept as the one before.
        assert (folder / "state-previous.pt").read_bytes() == previous
    (folder / "state.pt").unlink()
    train(pixels, longer, folder, resume=True)
    assert same_states(straight, folder)
    for name in ("state.pt", "state-previous.pt"):
        (folder / name).write_bytes(flipped(content, 100))
    with pytest.raises(ValueError, match=r"state\.pt: not a readable .*state-previous\.pt: not a readable") as caught:
        train(pixels, longer, folder, resume=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="already holds a run, without a state to resume; choose another --out"):
        train(pixels, longer, folder)


def test_the_same_state_again_replaces_none(tmp_path: Path) -> None:
    """A finished run that is resumed would lose the state before for a second copy of the last."""
    pixels, config = random_pixels(20), tiny_config(max_images=16)
    train(pixels, config, tmp_path)
    previous = (tmp_path / "state-previous.pt").read_bytes()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    train(pixels, config, tmp_path, resume=True)
    assert (tmp_path / "state-previous.pt").read_bytes() == previous
    assert DenoisingEBM.from_pretrained(tmp_path).metadata["images seen"] == 16


def events(folder: Path) -> list[str]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["event"] for record in records if "event" in record]


def same_states(first: Path, second: Path) -> bool:
    states = [read_state(folder) for folder in (first, second)]
    for state in states:
        del state["clock"]["seconds"]
    assert_equal(*states)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (first, second)]
    return weights[0] == weights[1]


def test_resume_drops_lines_that_it_will_write_again(tmp_path: Path) -> None:
    """A run that was killed has logged steps after its last save, the last line perhaps in part."""
    lines = [json.dumps({"images_seen": 8 * step, "step": step, "stage": "denoising"}) + "\n" for step in range(1, 6)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(lines) + '{"images_seen": 48, "st')
    assert trim_metrics(tmp_path, 3) == 0
    assert path.read_text() == "".join(lines[:3])
    assert trim_metrics(tmp_path / "elsewhere", 3) == 0


DAMAGED_LINES = [
    *(
        b'{"step": 1, "stage": "den\n',
        bytes(40) + b"\n",
        b"\xff\xfe\n",
        b"[1]\n",
        b"7\n",
        b"\n",
        b'{"stage": "score"}\n',
    ),
    *(
        b'{"step": "1", "stage": ""}\n',
        b'{"step": 1.5, "stage": ""}\n',
        b"[" * 10**5 + b"\n",
        b'{"step": 1}{"step": 2}\n',
    ),
]


def test_damaged_lines_of_the_log_stop_nothing(tmp_path: Path) -> None:
    pixels, config, longer = random_pixels(20), tiny_config(max_images=48), tiny_config(max_images=64)
    train(pixels, config, tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"".join(DAMAGED_LINES) + b"".join(lines[1:]) + bytes(4096))
    said: list[str] = []
    assert [record["step"] for record in read_metrics(tmp_path, said.append)] == [2, 4, 6]
    assert said == [f"{path}: {len(DAMAGED_LINES)} damaged lines left out"]
    train(pixels, longer, tmp_path, resume=True)
    assert [record["step"] for record in read_metrics(tmp_path, said.append)] == [2, 4, 6, 8]
    assert len(said) == 1 and events(tmp_path) == [f"{path}: {len(DAMAGED_LINES)} damaged lines dropped"]
