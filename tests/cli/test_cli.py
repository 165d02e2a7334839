from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from PIL import Image

from command import TRAIN, rows_of
from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.cli import COMMANDS, main
from denoising_ebm.config import Config, from_dict
from denoising_ebm.presets import preset
from denoising_ebm.training.logging import read_metrics


def grid_cells(path: Path, columns: int, count: int) -> np.ndarray[Any, Any]:
    """Cut a grid of 32x32 images, drawn at twice their size with one white pixel between them."""
    sheet = np.asarray(Image.open(path))[::2, ::2]
    corners = [(1 + 33 * (i // columns), 1 + 33 * (i % columns)) for i in range(count)]
    return np.stack([sheet[top : top + 32, left : left + 32] for top, left in corners])


# -- help and usage -----------------------------------------------------------------------------------------------------


def test_help_shows_commands_examples_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--help"])
        text = capsys.readouterr().out
        assert stop.value.code == 0 and "Examples:\n  debm " in text and "null" not in text
    assert main([]) == 2
    with pytest.raises(SystemExit):
        main(["train", "--preset", "cifar10-small", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    # The comment of the field, its type, and the preset's own value.
    assert "--training.batch_size BATCH_SIZE Images per optimizer step over all ranks. (type: int, default: 16)" in text
    assert "--training.learning_rate LEARNING_RATE Adam's. (type: float, default: 0.001)" in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from denoising_ebm.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'datasets', 'matplotlib', 'numpy', 'lightning_fabric'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n"), done.stdout[-200:]


def test_lazy_names_of_the_package() -> None:
    import denoising_ebm

    assert all(hasattr(denoising_ebm, name) for name in denoising_ebm.__all__)
    assert set(denoising_ebm.__all__) <= set(dir(denoising_ebm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        denoising_ebm.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paint"], "invalid choice: 'paint'"),
        (["sample"], "required: MODEL"),
        (
            ["sample", "m", "--sampler", "euler"],
            "--sampler: expected one of 'two-stage', 'annealed-langevin', 'consistent-annealed', 'ancestral', "
            "'dpmpp-2m-sde', 'heun', 'mala', got euler",
        ),
        (["sample", "m", "--n", "many"], "--n: expected int, got many"),
        (["sample", "m", "--semantic", "s.png", "--sampler", "heun"], "--semantic needs --sampler two-stage"),
        (["sample", "m", "--out", "grid.jpg"], "grid.jpg: expected a file name that ends in .png"),
        (["sample", "m", "--out", ""], "nothing to write"),
        (["train", "d", "--out", "x"], "--preset is needed: one of fashion-mnist, cifar10-small"),
        (["train", "d", "--out", "x", "--preset", "imagenet"], "unknown preset 'imagenet'"),
        (["train", "d", "--preset", "cifar10"], "required: --out"),
        (["train", "d", "--out", "x", "--preset"], "argument --preset: expected one argument"),
        (["train", "d", "--out", "x", "--preset", "cifar10", "--network.depth", "3"], "--network.depth"),
        (["train", "d", "--out", "x", "--preset", "cifar10", "--network.latent_dim", "x"], "network.latent_dim"),
        (["train", "d", "--out", "x", "--preset", "cifar10", "--network.latent_dim", "0"], "network.latent_dim must"),
        (["train", "d", "--out", "x", "--preset", "cifar10", "--noise.sigma_min", "-1"], "noise.sigma_min must be > 0"),
        (["train", "d", "--out", "x", "--preset", "cifar10", "--stages", "[{objective: magic}]"], "got 'magic'"),
        (["score", "m", "d", "--sigma", "-0.1"], "--sigma must be > 0, got -0.1"),
        (["score", "m", "d", "--sigma", "0"], "--sigma must be > 0, got 0"),
        (["score", "m", "d", "--fpr", "1.5"], "--fpr must be in (0, 1), got 1.5"),
        (["score", "m", "d", "--fdr", "0"], "--fdr must be in (0, 1), got 0"),
        (["score", "m", "d", "--fpr", "0.1", "--fdr", "0.1"], "--fpr and --fdr exclude each other"),
        (["score", "m", "d", "--tiles"], "--tiles needs --maps"),
        (["score", "m", "d", "--report", "page.pdf"], "page.pdf: expected a file name that ends in .html"),
        (["fit-detector", "m", "d", "--images", "5"], "--images must be >= 20, got 5"),
        (
            ["fit-detector", "fashion-mnist", "d"],
            "fashion-mnist: is part of the package; choose a folder for the detector with --out",
        ),
        (["evaluate", "m", "--in", "d", "--ood", "x", "--sigma", "0"], "--sigma must be > 0, got 0"),
        (["score", "m", "d", "--out", "scores.xls"], "scores.xls: unknown suffix '.xls'; use one of .csv"),
        (["info", "nowhere"], "nowhere: no such model folder"),
        (["demo", "--minutes", "0"], "--minutes must be > 0"),
    ],
)
def test_usage_errors_are_one_line(debm: Any, arguments: list[str], message: str) -> None:
    assert message in debm(*arguments).error


# -- train --------------------------------------------------------------------------------------------------------------


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
    assert done.status == 0 and "2 unreadable image(s) left out, first cut.png" in done.err


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
    assert error == f"{source}/003.png: the image has 3 channel(s), the model takes 1; --convert brings it there"
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
    assert error == f"{tmp_path / 'none' / 'config.yaml'}: nothing to resume"


def test_ctrl_c_outside_training(debm: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DenoisingEBM, "from_pretrained", interrupt)
    stopped = debm("sample", run)
    assert stopped.status == 130 and stopped.err == "debm: interrupted\n"


# -- sample -------------------------------------------------------------------------------------------------------------


def test_sample_writes_the_models_images(debm: Any, run: Path, tmp_path: Path) -> None:
    png, npz = tmp_path / "new" / "grid.png", tmp_path / "samples.npz"
    arguments = ["sample", run, "--n", 6, "--columns", 3, "--out", png, "--npz", npz, "--seed", 5]
    assert debm(*arguments, "--precision", "fp32").status == 0
    images = np.load(npz)["arr_0"]
    assert images.dtype == np.uint8 and images.shape == (6, 32, 32, 1)
    np.testing.assert_array_equal(grid_cells(png, 3, 6), images[..., 0])
    expected = DenoisingEBM.from_pretrained(run).sample(6, seed=5).images
    assert np.abs(images[:, :, :, 0] - (expected[:, 0].clamp(-1, 1).numpy() + 1) * 127.5).max() <= 0.51


@pytest.mark.parametrize("sampler", ["two-stage", "annealed-langevin", "mala", "heun"])
def test_seed_decides_the_images(debm: Any, run: Path, tmp_path: Path, sampler: str) -> None:
    def draw(*options: object) -> np.ndarray[Any, Any]:
        path = tmp_path / "samples.npz"
        common = ["--n", 4, "--steps", 4, "--sampler", sampler, "--out", "", "--npz", path, "--precision", "fp32"]
        assert debm("sample", run, *common, *options).status == 0
        images: np.ndarray[Any, Any] = np.load(path)["arr_0"].astype(int)
        return images

    first = draw("--seed", 1)
    np.testing.assert_array_equal(first, draw("--seed", 1))
    assert np.abs(first - draw("--seed", 2)).mean() > 1
    # Batch i has seed + i.
    batches = draw("--seed", 1, "--batch-size", 2)
    np.testing.assert_array_equal(batches[2:], draw("--seed", 2, "--batch-size", 2)[:2])


def test_semantic_and_trajectory_show_the_same_chains(debm: Any, run: Path, tmp_path: Path) -> None:
    npz, semantic, chains = tmp_path / "samples.npz", tmp_path / "semantic.png", tmp_path / "chains.png"
    options = ["--n", 3, "--columns", 2, "--precision", "fp32"]
    assert (
        debm("sample", run, *options, "--out", "", "--npz", npz, "--semantic", semantic, "--trajectory", chains).status
        == 0
    )
    images = np.load(npz)["arr_0"][..., 0]
    model = DenoisingEBM.from_pretrained(run)
    drawn = model.sample(3, seed=0)
    pairs = grid_cells(semantic, 4, 6)
    np.testing.assert_array_equal(pairs[1::2], images)
    assert drawn.semantic is not None
    expected = (drawn.semantic[:, 0].clamp(-1, 1).numpy() + 1) * 127.5
    assert np.abs(pairs[::2] - expected).max() <= 0.51
    # z 1, 5, 6; x 1, ..., 6; end: ten columns under a band of labels.
    sheet = np.asarray(Image.open(chains))[20:][::2, ::2]
    assert sheet.shape == (1 + 3 * 33, 1 + 10 * 33)
    np.testing.assert_array_equal(sheet[1:33, -33:-1], images[0])
    np.testing.assert_array_equal(sheet[1:33, 1 + 2 * 33 : 33 + 2 * 33], pairs[0])


def test_trajectory_of_a_small_batch(debm: Any, run: Path, tmp_path: Path) -> None:
    """The chains of the first batch are shown, however many images are drawn."""
    chains, options = tmp_path / "chains.png", ["--n", 9, "--batch-size", 4, "--precision", "fp32", "--out", ""]
    assert debm("sample", run, *options, "--trajectory", chains).status == 0
    sheet = np.asarray(Image.open(chains))[20:][::2, ::2]
    assert sheet.shape[0] == 1 + 4 * 33
    images = DenoisingEBM.from_pretrained(run).sample(4, seed=0).images
    end = (images[0, 0].clamp(-1, 1).numpy() + 1) * 127.5
    assert np.abs(sheet[1:33, -33:-1] - end).max() <= 0.51


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "/dev/null/grid.png"], "/dev/null/grid.png: cannot be written: "),
        (["--npz", "/dev/null/x.npz"], "/dev/null/x.npz: cannot be written: "),
        (["--n", "0"], "the number of images must be >= 1, got 0"),
        (["--steps", "0"], "steps must be >= 1, got 0"),
        (["--batch-size", "0"], "batch_size must be >= 1, got 0"),
        (["--columns", "0"], "--columns must be >= 1, got 0"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--device", "meta"], "unknown device 'meta': use auto, cpu or cuda"),
    ],
)
def test_sample_refuses(debm: Any, run: Path, tmp_path: Path, options: list[str], message: str) -> None:
    assert message in debm("sample", run, "--out", tmp_path / "grid.png", *options).error
    assert not (tmp_path / "grid.png").exists()


# -- score --------------------------------------------------------------------------------------------------------------


def test_score_writes_energies_and_percentiles(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "scores.csv"
    done = debm("score", run, folder, "--out", out, "--precision", "fp32", "--batch-size", 64)
    assert done.status == 0 and f"{out}: 300 images scored, 2 unreadable" in done.err
    rows = rows_of(out.read_text())
    expected = [
        "name",
        "status",
        "score",
        "p_value",
        "flagged",
        "nearest_corruption",
        "energy",
        "percentile",
        "sigma",
        "resize",
    ]
    assert list(rows[0]) == [*expected, "reason"] and len(rows) == 302
    # In the order of the source: the damaged files come last here by their names.
    assert [(row["name"], row["energy"], row["status"]) for row in rows[300:]] == [
        ("cut.png", "", "unreadable"),
        ("text.png", "", "unreadable"),
    ]
    assert "debm: no p-values: the model has no detector; `debm fit-detector` makes one" in done.err
    assert {row["score"] + row["p_value"] + row["flagged"] for row in rows} == {""}
    model = DenoisingEBM.from_pretrained(run)
    images = load_images(folder)
    with torch.no_grad():
        energies = model.energy(to_float(images.pixels), 0.05)
    assert [row["name"] for row in rows[:300]] == list(images.names)
    np.testing.assert_allclose([float(row["energy"]) for row in rows[:300]], energies.numpy(), rtol=1e-4)
    reference = model.reference[1].numpy()
    for row in rows[:300]:
        below = 100 * np.mean(reference < np.float32(row["energy"]))
        assert float(row["percentile"]) == pytest.approx(below, abs=0.01)
        assert row["sigma"] == "0.05" and row["status"] == "ok"


def test_score_formats_agree(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    options = ["--limit", 5, "--sigma", 0.5, "--precision", "fp32"]
    for suffix in ("csv", "parquet", "jsonl"):
        assert debm("score", run, folder, *options, "--out", tmp_path / f"scores.{suffix}").status == 0
    printed = debm("score", run, folder, *options)
    assert printed.out == (tmp_path / "scores.csv").read_text()
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    table = parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    for text, line, row in zip(rows_of(printed.out), lines, table, strict=True):
        assert text["name"] == line["name"] == row["name"]
        assert np.float32(text["energy"]) == np.float32(line["energy"]) == np.float32(row["energy"])
        assert float(text["percentile"]) == line["percentile"] == pytest.approx(row["percentile"], abs=1e-4)


def test_score_without_reference_level_leaves_percentiles_empty(debm: Any, folder: Path, run: Path) -> None:
    done = debm("score", run, folder, "--limit", 3, "--sigma", 0.3)
    assert {row["percentile"] for row in rows_of(done.out)} == {""}
    notes = [line for line in done.err.splitlines() if "no percentiles" in line]
    assert notes == ["debm: no percentiles: the model keeps them for 0.02, 0.05, 0.1, 0.2, 0.5, 1, not for sigma 0.3"]


def test_score_with_inner_noise_averages_the_models_draws(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    noisy = tmp_path / "noisy"
    shutil.copytree(run / "model", noisy)
    values = json.loads((noisy / "config.json").read_text())
    values["config"]["energy"]["inner_noise"] = True
    (noisy / "config.json").write_text(json.dumps(values))
    done = debm(
        "score",
        noisy,
        folder,
        "--limit",
        4,
        "--noise-samples",
        3,
        "--seed",
        9,
        "--batch-size",
        3,
        "--precision",
        "fp32",
    )
    model = DenoisingEBM.from_pretrained(noisy)
    pixels = to_float(load_images(folder, limit=4).pixels)
    with torch.no_grad():
        expected = model.energy(pixels, 0.05, model.scoring_noise(3, 9))
        plain = model.energy(pixels, 0.05)
    energies = [float(row["energy"]) for row in rows_of(done.out)]
    np.testing.assert_allclose(energies, expected.numpy(), rtol=1e-4)
    assert not np.allclose(energies, plain.numpy(), rtol=1e-3)


def test_maps_share_one_scale(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    from matplotlib import colormaps

    done = debm("score", run, folder, "--limit", 3, "--maps", tmp_path / "maps", "--precision", "fp32")
    assert done.status == 0
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["000.png", "001.png", "002.png"]
    pixels = load_images(folder, limit=3).pixels
    with torch.no_grad():
        model = DenoisingEBM.from_pretrained(run)
        maps = model.energy_map(to_float(pixels), 0.05, model.scoring_noise(4, 0)).numpy()
    limit = np.quantile(maps, 0.995)
    for i in range(3):
        picture = np.asarray(Image.open(tmp_path / "maps" / f"{i:03d}.png"))[::2, ::2].astype(int)
        np.testing.assert_array_equal(picture[:32, :, 0], pixels[i, 0].numpy())
        colours = colormaps["inferno"]((maps[i] / limit).clip(0, 1), bytes=True)[..., :3].astype(int)
        assert np.abs(picture[33:] - colours).max() <= 4
    assert float(re.findall(r"energy of (\S+) per pixel", done.err)[0]) == pytest.approx(limit, rel=0.01)


def test_score_refuses_unreadable_and_unfitting_images(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    out.write_text("old")
    assert "cut.png: unreadable image" in debm("score", run, folder, "--strict", "--out", out).error
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(folder / "text.png", broken)
    assert debm("score", run, "digits", "--split", "all", "--out", out).error == "digits: no split 'all', only test"
    assert out.read_text() == "old"
    # A row for each file, whatever is wrong with it.
    error = debm("score", run, broken, "--out", out).error
    assert error.startswith(f"{broken}: none of 1 images can be read; text.png: cannot identify")
    (row,) = rows_of(out.read_text())
    assert (row["name"], row["status"]) == ("text.png", "unreadable") and row["reason"].startswith("cannot identify")


def test_images_that_do_not_fit_have_a_row_with_the_reason(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(folder / "000.png", mixed / "a.png")
    Image.new("RGB", (32, 32), (255, 0, 0)).save(mixed / "b.png")
    Image.new("L", (48, 32)).save(mixed / "c.png")
    shutil.copy(folder / "001.png", mixed / "d.png")
    done = debm("score", run, mixed)
    assert done.status == 0 and "2 unreadable or unfit image(s) left out, first b.png: the image has 3" in done.err
    rows = {row["name"]: row for row in rows_of(done.out)}
    assert [row["status"] for row in rows.values()] == ["ok", "unreadable", "unreadable", "ok"]
    assert rows["b.png"]["reason"] == "the image has 3 channel(s), the model takes 1; --convert brings it there"
    assert rows["c.png"]["reason"] == "is 48x32, expected 32x32; --resize brings it there"
    assert f"{mixed}/b.png: the image has 3 channel(s)" in debm("score", run, mixed, "--strict").error
    converted = {row["name"]: row for row in rows_of(debm("score", run, mixed, "--convert", "--resize", "box").out)}
    assert {row["status"] for row in converted.values()} == {"ok"}
    for name in ("a.png", "d.png"):
        assert float(converted[name]["energy"]) == pytest.approx(float(rows[name]["energy"]), rel=1e-5)


def test_score_and_sample_survive_a_full_disk(
    debm: Any, folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, grid = tmp_path / "scores.csv", tmp_path / "grid.png"
    table.write_text("old table")
    grid.write_text("old grid")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("denoising_ebm.utils.io.os.fsync", full)
    assert debm("score", run, folder, "--limit", 2, "--out", table).error == f"{table}: no space left on device"
    assert debm("sample", run, "--n", 1, "--out", grid).error == f"{grid}: no space left on device"
    assert table.read_text() == "old table" and grid.read_text() == "old grid"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "scores.csv"]


def test_train_on_a_full_disk_keeps_the_old_state(
    debm: Any, folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    before = {name: (out / name).read_bytes() for name in ("state.pt", "model/model.safetensors", "model/config.json")}
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "model.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr("denoising_ebm.utils.io.os.replace", full)
    error = debm("train", folder, "--out", out, "--resume", "--max-images", "672", "--precision", "fp32").error
    assert error == f"{out / 'model' / 'model.safetensors'}: no space left on device"
    assert {name: (out / name).read_bytes() for name in before} == before
    assert not list(out.rglob("*.tmp"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_score_to_a_full_standard_output(folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["score", str(run), str(folder), "--limit", "2"]) == 2
        monkeypatch.undo()
        assert capfd.readouterr().err.splitlines()[-1] == "debm: error: no space left on device"
        with pytest.raises(OSError, match="No space"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


# -- model folders ------------------------------------------------------------------------------------------------------


def test_model_folder_without_or_with_other_weights(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    weights = model / "model.safetensors"
    values = json.loads((model / "config.json").read_text())
    values["config"]["network"]["latent_dim"] = 12
    (model / "config.json").write_text(json.dumps(values))
    for arguments in (["info", model], ["sample", model], ["score", model, folder]):
        error = debm(*arguments).error
        assert error.startswith(f"{weights}: weights do not fit config.json") and "expected" in error
    weights.write_bytes(weights.read_bytes()[:1000])
    assert debm("info", model).error.startswith(f"{weights}: not a readable safetensors file")
    weights.unlink()
    assert debm("info", model).error.startswith(f"{weights}: missing")
    (model / "config.json").write_text("{")
    weights.touch()
    assert debm("info", model).error.startswith(f"{model / 'config.json'}: not valid JSON")


def test_info_shows_every_figure_of_a_bundled_model(debm: Any) -> None:
    """Also those whose names are long: in the 80 columns of a terminal they once left no room for values."""
    for name in ("cifar10-small", "fashion-mnist"):
        lines = debm("info", name).out.splitlines()
        for value in json.loads(debm("info", name, "--json").out)["metadata"].values():
            start = f"{value:,}" if isinstance(value, int) else str(value).split()[0]
            assert any(start in line for line in lines), value


def test_info_counts_parameters(debm: Any, run: Path) -> None:
    model = DenoisingEBM.from_pretrained(run)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    values = json.loads(debm("info", run, "--json").out)
    assert values["parameters"] == {"total": sum(counts.values()), "phi": counts["dae"], "gamma": counts["decoder"]}
    assert from_dict(Config, values["config"]) == model.config and values["metadata"] == model.metadata
    text = debm("info", run).out
    assert f"{counts['dae']:,}" in text and "0.01 to 10" in text and "images seen" in text
    assert "SDE-DPM-Solver++(2M), 6 steps, sigma 4 to 0.01, karras schedule, drift of the denoiser" in " ".join(
        text.split()
    )
