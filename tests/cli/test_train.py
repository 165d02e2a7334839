"""`debm train`."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from command import TRAIN
from denoising_ebm import DenoisingEBM
from denoising_ebm.config import Config, from_dict
from denoising_ebm.presets import preset
from denoising_ebm.training.logging import read_metrics


def test_print_config_round_trip(debm: Any, tmp_path: Path) -> None:
    arguments = ["train", "--preset", "celeba64-paper", "--training.betas", "[0.5,0.9]", "--seed", "4"]
    arguments += ["--stages", "[{objective: denoising, fraction: 3}, {objective: contrastive}]"]
    printed = debm(*arguments, "--print_config")
    assert printed.status == 0
    config = from_dict(Config, yaml.safe_load(printed.out))
    assert config.network == preset("celeba64-paper").network
    assert config.training.betas == (0.5, 0.9) and config.training.seed == 4
    assert [(stage.objective, stage.fraction) for stage in config.stages] == [("denoising", 3.0), ("contrastive", 1.0)]
    path = tmp_path / "all.yaml"
    path.write_text(printed.out)
    assert debm("train", "--config", path, "--print_config").out == printed.out
    # An option wins over the file wherever it stands, and the file over the preset.
    again = debm("train", "--training.flip", "false", "--preset", "cifar10", "--config", path, "--print_config")
    assert yaml.safe_load(again.out) == {
        **yaml.safe_load(printed.out),
        "training": {**yaml.safe_load(printed.out)["training"], "flip": False},
    }


def test_config_file_replaces_only_what_it_names(debm: Any, tmp_path: Path) -> None:
    path = tmp_path / "part.yaml"
    path.write_text("training: {batch_size: 7}\n")
    values = yaml.safe_load(debm("train", "--preset", "cifar10-small", "--config", path, "--print_config").out)
    assert values["training"]["batch_size"] == 7 and values["training"]["learning_rate"] == 1e-3


def test_config_file_of_an_older_version(debm: Any, tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "noise: {levels: 64}\n"
        "sampling: {semantic_steps: 7, texture_steps: 9, texture_step_size: 0.02, consistent: true, renoise: false}\n"
        "recipe: [{objective: denoising, share: 3}, {objective: contrastive, share: 1}]\n"
    )
    values = yaml.safe_load(debm("train", "--preset", "cifar10-small", "--config", path, "--print_config").out)
    assert values["noise"]["num_sigmas"] == 64 and values["noise"]["sigma_max"] == 10
    assert values["sampling"]["semantic"]["steps"] == 7 and values["sampling"]["noise_init"] is False
    pixel = values["sampling"]["pixel"]
    assert (pixel["method"], pixel["steps"], pixel["step_size"]) == ("consistent-annealed", 9, 0.02)
    assert [stage["fraction"] for stage in values["stages"]] == [3, 1]


def test_help_of_train_shows_what_was_named_before(debm: Any, run: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "part.yaml"
    path.write_text("training: {batch_size: 77}\n")

    def shown(*arguments: object) -> str:
        with pytest.raises(SystemExit):
            debm("train", *arguments, "--help")
        return " ".join(capsys.readouterr().out.split())

    assert "Images per optimizer step over all ranks. (type: int, default: 128)" in shown()
    assert "Images per optimizer step over all ranks. (type: int, default: 16)" in shown("fashion-mnist")
    text = shown("--preset", "cifar10", "--config", path)
    assert "over all ranks. (type: int, default: 77)" in text and "[80, 160, 160, 160]" in text
    assert "over all ranks. (type: int, default: 32)" in shown("--out", run, "--resume")
    assert "unknown preset 'x'" in debm("train", "--preset", "x", "--help").error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {speed: 3}", "training: unknown field 'speed'"),
        ("trainings: {}", "unknown field 'trainings'"),
        ("noise: {sigma_min: -1}", "noise.sigma_min must be > 0, got -1"),
        ("training: {batch_size: big}", "batch_size: expected int, got 'big'"),
        ("- 1", "expected a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_bad_config_file(debm: Any, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    error = debm("train", "d", "--config", path, "--out", tmp_path / "run").error
    assert error.startswith(f"{path}: ") and message in error


def test_train_writes_a_run_of_the_settings_asked_for(run: Path) -> None:
    config = from_dict(Config, yaml.safe_load((run / "config.yaml").read_text()))
    assert config.network.latent_dim == 8 and config.training.max_images == 640 and config.training.seed == 3
    assert config.noise == preset("fashion-mnist").noise
    records = read_metrics(run)
    assert records[-1]["images_seen"] == 640
    assert records[-1]["loss_denoising"] < 0.7 * records[0]["loss_denoising"]
    model = DenoisingEBM.from_pretrained(run)
    heldout = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["validation_loss"]
    assert model.metadata["held-out denoising loss"] == pytest.approx(heldout, abs=1e-5)
    assert heldout == pytest.approx(records[-1]["loss_denoising"], rel=0.5)
    assert model.metadata["training images"] == 270 and model.metadata["images seen"] == 640


def test_train_refuses_a_folder_with_a_run_and_leaves_it_alone(debm: Any, folder: Path, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    error = debm("train", folder, *TRAIN, "--out", run, "--max-images", "64").error
    assert error == f"{run}: already holds a run; continue it with --resume or choose another --out"
    error = debm("train", folder, "--out", run, "--resume", "--training.learning_rate", "0.1").error
    assert "training.learning_rate = 0.001, not 0.1; resume keeps settings" in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_train_says_how_many_images_are_unreadable(debm: Any, folder: Path, tmp_path: Path) -> None:
    arguments = ["train", folder, *TRAIN, "--max-images", "32", "--out", tmp_path / "run"]
    error = debm(*arguments, "--strict").error
    assert error.startswith(f"{folder}/cut.png: unreadable image") and not (tmp_path / "run").exists()
    done = debm(*arguments)
    assert done.status == 0 and "2 unreadable images left out, first cut.png" in done.err


def test_train_refuses_images_that_do_not_fit(debm: Any, folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "mixed", tmp_path / "run"
    source.mkdir()
    for name in ("000.png", "001.png", "002.png"):
        shutil.copy(folder / name, source)
    Image.open(folder / "003.png").resize((40, 40)).save(source / "003.png")
    error = debm("train", source, *TRAIN, "--out", out).error
    assert error == f"{source}/003.png: is 40x40, expected 32x32; --resize brings it there"
    Image.new("RGB", (32, 32), (255, 0, 0)).save(source / "003.png")
    error = debm("train", source, *TRAIN, "--out", out).error
    assert error == f"{source}/003.png: the image has 3 channels, the model takes 1; --convert brings it there"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert debm("train", empty, *TRAIN, "--out", out).error.startswith(f"{empty}: holds no images")
    assert debm("train", tmp_path / "none", *TRAIN, "--out", out).error.startswith(f"{tmp_path / 'none'}: no such file")
    assert not out.exists()
    Image.open(folder / "003.png").resize((40, 40)).save(source / "003.png")
    assert debm("train", source, *TRAIN, "--out", out, "--resize", "box", "--max-images", "32").status == 0


def test_interrupt_and_resume_give_the_same_model_as_one_run(
    debm: Any, folder: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"

    def interrupt() -> None:
        metrics, deadline = out / "metrics.jsonl", time.monotonic() + 30
        while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    stopped = debm("train", folder, *TRAIN, "--out", out, "--max-images", "640", "--seed", "3", "--limit", 300)
    thread.join()
    assert stopped.status == 130
    assert f"continue with: debm train {folder} --out {out} --resume --limit 300\n" in stopped.err
    seen = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["images_seen"]
    assert seen < 640
    assert "the run was on other images" in debm("train", folder, "--out", out, "--resume", "--limit", 200).error
    # In its own precision, which was asked for, not in the machine's.
    assert debm("train", folder, "--out", out, "--resume", "--limit", 300).status == 0
    straight = DenoisingEBM.from_pretrained(run).state_dict()
    for name, value in DenoisingEBM.from_pretrained(out).state_dict().items():
        torch.testing.assert_close(value, straight[name], rtol=0, atol=0, msg=name)


def test_initial_model_is_where_training_starts(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    slow = ["--max-images", "32", "--training.learning_rate", "1e-12"]
    assert debm("train", folder, *TRAIN, *slow, "--initial", run, "--out", out).status == 0
    start = dict(DenoisingEBM.from_pretrained(run).named_parameters())
    for name, value in DenoisingEBM.from_pretrained(out).named_parameters():
        torch.testing.assert_close(value, start[name], rtol=0, atol=1e-9, msg=name)
    other = debm("train", folder, *TRAIN, "--network.latent_dim", 9, "--initial", run, "--out", tmp_path / "other")
    assert "expected" in other.error and not (tmp_path / "other").exists()


def test_resume_needs_a_run(debm: Any, folder: Path, tmp_path: Path) -> None:
    error = debm("train", folder, "--out", tmp_path / "none", "--resume").error
    assert error == f"{tmp_path / 'none' / 'state.pt'}: nothing to resume"


def test_train_on_a_full_disk_keeps_the_old_state(
    debm: Any, folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    before = {name: (out / name).read_bytes() for name in ("state.pt", "model/model.safetensors")}
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "model.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr("denoising_ebm.utils.io.os.replace", full)
    error = debm("train", folder, "--out", out, "--resume", "--max-images", "672", "--precision", "fp32").error
    assert error == f"{out / 'model' / 'model.safetensors'}: no space left on device"
    assert {name: (out / name).read_bytes() for name in before} == before
    # Its new config.json knows the old weights, too.
    assert debm("info", out).status == 0
    assert not list(out.rglob("*.tmp"))
