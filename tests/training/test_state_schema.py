"""A state is read only if it is one: no larger than its file, nothing but tensors and plain values, all of them fitting."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from denoising_ebm.config import TrainingStage
from denoising_ebm.datasets.images import content_hash
from denoising_ebm.training.checkpoint import PREVIOUS_STATE_FILE, STATE_FILE, _seal, read_state
from denoising_ebm.training.state_schema import find_archive_problem
from runs import train
from support import random_pixels, tiny_config

PIXELS = random_pixels(20)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(PIXELS, tiny_config(max_images=16), folder)
    return (folder / STATE_FILE).read_bytes()


def refuse(content: bytes, folder: Path, message: str) -> None:
    (folder / STATE_FILE).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_state(tiny_config(max_images=16), folder, content_hash(PIXELS))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(folder / STATE_FILE) in str(caught.value)


def saved_with(sound: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a state with something changed, and a hash that fits again."""
    saved = torch.load(io.BytesIO(sound), weights_only=True)
    change(saved)
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    _seal(buffer)
    return buffer.getvalue()


CHANGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda s: s.pop("model"), "a part is missing"),
    (lambda s: s.update(model=[1]), "a part is missing, or of another kind"),
    (lambda s: s.pop("clock"), "a part is missing"),
    (lambda s: s.update(optimizer=None), "optimizer: expected a mapping, got NoneType"),
    (lambda s: s.update(config={"network": 3}), "config: network: expected a mapping, got int"),
    (lambda s: s["config"]["network"].update(latent_dim=10**9), "network.latent_dim must be <= 4,096"),
    (lambda s: s["model"].pop("decoder.head.bias"), "model does not fit its settings: decoder.head.bias is missing"),
    (lambda s: s["model"].update({7: torch.zeros(1)}), "a part is missing"),
    (lambda s: s["model"].update({"x": 7}), "model: expected tensors by name, got int 'x'"),
    (
        lambda s: s["model"]["decoder.head.bias"].fill_(float("nan")),
        "decoder.head.bias holds values that are not finite",
    ),
    (
        lambda s: s["model"].update({"decoder.head.bias": torch.zeros(2)}),
        "decoder.head.bias has shape (2,), expected (1,)",
    ),
    (
        lambda s: s["model"].update({"decoder.head.bias": torch.zeros(1).expand(10**12)}),
        "decoder.head.bias has shape (1000000000000,)",
    ),
    (lambda s: s["average"]["module.decoder.head.bias"].fill_(float("inf")), "module.decoder.head.bias holds values"),
    (lambda s: s["average"].update(n_averaged=torch.zeros(())), "n_averaged is of type float32, expected int64"),
    (lambda s: s["optimizer"]["param_groups"][0].update(maximize=True), "optimizer: maximize is True, not False"),
    (lambda s: s["optimizer"]["param_groups"][0].update(betas=(0.0, 0.0)), "optimizer: betas is (0.0, 0.0), not"),
    (lambda s: s["optimizer"]["param_groups"][0].update(lr=float("nan")), "optimizer: lr: expected a number >= 0"),
    (lambda s: s["optimizer"]["param_groups"][0]["params"].pop(), "params are not those of its settings"),
    (lambda s: s["optimizer"].update(param_groups=[]), "param_groups: expected a list of one, got []"),
    (lambda s: s["optimizer"]["state"].update({10**6: {}}), "state: there is no parameter 1000000"),
    (lambda s: s["optimizer"]["state"][0]["exp_avg"].fill_(float("nan")), "exp_avg holds values that are not finite"),
    (lambda s: s["optimizer"]["state"][0].pop("exp_avg_sq"), "exp_avg_sq is missing"),
    (lambda s: s.update(objective={"x": torch.zeros(3)}), "objective does not fit its settings: z is missing"),
    (lambda s: s["clock"].update(step=-1), "clock: step must be >= 0, got -1"),
    (lambda s: s["clock"].update(step=1.5), "clock: step: expected int, got 1.5"),
    (lambda s: s["clock"].update(seconds=float("inf")), "clock: seconds: expected a finite number"),
    (lambda s: s["clock"].update(stage=9), "clock: stage is 9, of 1"),
    (lambda s: s["clock"].update(hour=1), "clock: unknown field 'hour'"),
    (lambda s: s.update(past={"images seen": "many"}), "past: images seen: expected a number, got 'many'"),
    (lambda s: s.update(images=5), "images: expected a text, got 5"),
    (lambda s: s.update(hardware={"device": 1}), "hardware: device: expected a text, got 1"),
    (lambda s: s.update(preprocessing={"resize": 1}), "preprocessing: resize: expected one of"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message for _, message in CHANGES])
def test_what_does_not_fit_is_named(
    change: Callable[[dict[str, Any]], object], message: str, sound: bytes, tmp_path: Path
) -> None:
    refuse(saved_with(sound, change), tmp_path, message)


def test_a_sound_state_is_read(sound: bytes, tmp_path: Path) -> None:
    assert find_archive_problem(sound) == ""
    (tmp_path / STATE_FILE).write_bytes(saved_with(sound, lambda saved: None))
    saved = read_state(tiny_config(max_images=16), tmp_path, content_hash(PIXELS))
    assert saved["clock"]["images_seen"] == 16


def test_persistent_chains_are_checked(tmp_path: Path) -> None:
    stages = (TrainingStage("denoising"), TrainingStage("contrastive"))
    config = tiny_config(*stages, max_images=320)
    config = replace(config, contrastive=replace(config.contrastive, chains="persistent"))
    train(PIXELS, config, tmp_path / "run")
    sound = (tmp_path / "run" / STATE_FILE).read_bytes()
    # In its place that of the step before would be read.
    (tmp_path / "run" / PREVIOUS_STATE_FILE).unlink(missing_ok=True)
    assert read_state(config, tmp_path / "run", content_hash(PIXELS))["objective"]["z"].shape[1] == 4

    def spoil(saved: dict[str, Any]) -> None:
        saved["objective"]["x"][0, 0, 0, 0] = float("nan")

    (tmp_path / "run" / STATE_FILE).write_bytes(saved_with(sound, spoil))
    with pytest.raises(ValueError, match="x holds values that are not finite"):
        read_state(config, tmp_path / "run", content_hash(PIXELS))
    many = saved_with(
        sound, lambda s: s.update(objective={n: t.repeat(9, *[1] * (t.ndim - 1)) for n, t in s["objective"].items()})
    )
    (tmp_path / "run" / STATE_FILE).write_bytes(many)
    with pytest.raises(ValueError, match=r"chains, contrastive\.buffer_size is 12"):
        read_state(config, tmp_path / "run", content_hash(PIXELS))


# -- archives -----------------------------------------------------------------------------------------------------------


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


def test_an_archive_that_unfolds_is_not_read(tmp_path: Path) -> None:
    """A few kilobytes that would take a gigabyte: seen in the table of contents."""
    packed = archive({"state/data.pkl": pickle.dumps({}, 2), "state/data/0": bytes(2**24)}, zipfile.ZIP_DEFLATED)
    assert len(packed) < 2**15
    refuse(packed, tmp_path, "state/data.pkl unfolds to more than is stored")


class Calls:
    """A pickle that calls something when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = (function, arguments)

    def __reduce__(self) -> Any:
        return self.called


@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [(bytearray, 10**12, "bytearray"), (print, "let in", "print"), (set, range(3), "builtins set")],
)
def test_a_pickle_names_nothing_but_tensors(
    function: Any, argument: Any, name: str, tmp_path: Path, capsys: Any
) -> None:
    """Torch allows a few harmless classes; `bytearray(10**12)` takes a terabyte."""
    content = archive({"state/data.pkl": pickle.dumps({"config": Calls(function, argument)}, 2)})
    refuse(content, tmp_path, "its pickle names")
    assert "let in" not in capsys.readouterr().out


def test_other_protocols_and_many_entries(tmp_path: Path) -> None:
    refuse(archive({"state/data.pkl": pickle.dumps({"config": Calls(print, 1)}, 4)}), tmp_path, "uses STACK_GLOBAL")
    refuse(archive({"a": b"", "b": b""}), tmp_path, "an archive of 0 pickles")
    refuse(archive({f"{i}": b"" for i in range(100_001)}), tmp_path, "an archive of 100,001 entries")
