from __future__ import annotations

import base64
import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from denoising_ebm import Config, DenoisingEBM, load_images, preset, to_float
from denoising_ebm.cli import main
from denoising_ebm.experiments import demo
from denoising_ebm.experiments.demo import DemoResult, DemoSizes, paste_squares, run_demo
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.training.logging import Monitor, read_metrics

SIZES = DemoSizes(train=300, fit=60, scored=40, samples=16)


def tiny() -> Config:
    """The preset with a small network and short chains."""
    config = preset("fashion-mnist")
    network = replace(
        config.network, widths=(16, 16, 16), decoder_widths=(8, 8, 8), attention=(), latent_dim=8, embedding_dim=16
    )
    training = replace(config.training, batch_size=32, log_every=5, max_images=640, warmup_images=64)
    sampling = config.sampling
    sampling = replace(sampling, semantic=replace(sampling.semantic, steps=5), pixel=replace(sampling.pixel, steps=6))
    return replace(config, network=network, training=training, sampling=sampling)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoResult]:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    return folder, run_demo(folder, minutes=1.0, sizes=SIZES, device="cpu", config=tiny())


def new_images() -> tuple[torch.Tensor, torch.Tensor]:
    """The images that the demo of seed 0 scores, and those that calibrate its detector."""
    pixels = load_images("fashion-mnist", split="test", limit=80).pixels
    pixels = pixels[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    return pixels[:40], pixels[40:]


@pytest.mark.slow
def test_report_holds_every_figure_and_the_table(done: tuple[Path, DemoResult]) -> None:
    folder, result = done
    html = result.report.read_text(encoding="utf-8")
    assert result.report == folder / "report.html"
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    # Two stages and real images; chains and their energies; three levels and all together; maps; training.
    assert len(pictures) == 3 + 2 + 4 + 1 + 1 + 1
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert "http" not in re.sub(r"base64,[^\"]+", "", html).replace("http-equiv", "")
    for fact in (
        f"debm demo --out {folder} --minutes 1 --seed 0",
        "40 test images, 40 interpolations",
        "(1 thread)",
        "SDE-DPM-Solver++(2M) from h(z), 22 network",
    ):
        assert fact in html
    for row in result.table.rows:
        assert str(row[0]) in html and f"{row[-1]:.4f}" in html


@pytest.mark.slow
def test_auroc_table_is_that_of_the_models_energies(done: tuple[Path, DemoResult]) -> None:
    folder, result = done
    assert list(result.table.columns) == [
        *("OOD set", "σ 0.02", "σ 0.05", "σ 0.1", "σ 0.2", "σ 0.5", "σ 1"),
        "detector",
    ]
    assert [row[0] for row in result.table.rows] == ["interpolations", "upside down", "digits"]
    model = DenoisingEBM.from_pretrained(folder / "run")
    normal, _ = new_images()
    digits = load_images("digits", split="test", limit=40).pixels
    with torch.no_grad():
        for sigma, column in ((0.05, 2), (1.0, 6)):
            ordinary = model.energy(to_float(normal), sigma)
            # Differences of bf16 may change the order of a few pairs.
            expected = auroc(ordinary, model.energy(to_float(normal.flip(2, 3)), sigma))
            assert result.table.rows[1][column] == pytest.approx(expected, abs=0.02)
            expected = auroc(ordinary, model.energy(to_float(digits), sigma))
            assert result.table.rows[2][column] == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
def test_last_column_is_the_saved_detectors(done: tuple[Path, DemoResult]) -> None:
    folder, result = done
    detector = Detector.from_pretrained(folder / "run")
    assert detector.metadata == {"fitted on": 54, "calibrated on": 40}
    normal, others = new_images()
    digits = load_images("digits", split="test", limit=40).pixels
    expected = auroc(detector.score(normal), detector.score(digits))
    assert result.table.rows[2][-1] == pytest.approx(expected, abs=0.01)
    torch.testing.assert_close(detector.calibration, detector.score(others), rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_finished_demo_only_rebuilds_the_report(done: tuple[Path, DemoResult]) -> None:
    folder, result = done
    weights = (folder / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    messages: list[str] = []
    again = run_demo(folder, minutes=1.0, sizes=SIZES, device="cpu", config=tiny(), log=messages.append)
    assert "training is finished" in messages[0] and [text[:6] for text in messages[1:]] == [
        f"{i} of 4" for i in range(1, 5)
    ]
    assert (folder / "run" / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert again.table.rows == result.table.rows
    assert torch.equal(again.evidence.samples.images, result.evidence.samples.images)


def test_pasted_squares_come_from_the_other_image() -> None:
    images, others = torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.full((2, 1, 32, 32), 9, dtype=torch.uint8)
    pasted = paste_squares(images, others)
    assert int(pasted.sum()) == 2 * 64 * 9 and bool((pasted[..., 12:20, 12:20] == 9).all())
    assert int(images.sum()) == 0


@pytest.mark.slow
def test_other_settings_need_overwrite(done: tuple[Path, DemoResult], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = done
    assert main(["demo", "--out", str(folder), "--minutes", "1", "--seed", "5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"debm: error: {folder}: holds a demo with seed 0, not 5;") and error.count("\n") == 1


def test_refuses_and_keeps_a_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for option in ([], ["--overwrite"]):
        assert main(["demo", "--out", str(tmp_path), *option]) == 2
        assert "exists and is not a demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_unfinished_demo_is_continued_and_overwrite_keeps_foreign_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    config = tiny()
    monkeypatch.setattr(demo, "preset", lambda name: config)
    monkeypatch.setattr(demo, "FAST", SIZES)
    write = Monitor.write

    def interrupted(self: Monitor, *arguments: object) -> None:
        write(self, *arguments)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)

    arguments = ["demo", "--out", str(folder), "--fast", "--device", "cpu", "--threads", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "write", interrupted)
        assert main(arguments) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert not (folder / "report.html").exists()

    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "continuing on 300 images" in printed.err and "4 of 4: " in printed.err
    assert "interpolations" in printed.out and f"report: {folder / 'report.html'}" in printed.out
    seen = [record["images_seen"] for record in read_metrics(folder / "run")]
    assert seen == sorted(set(seen)) and seen[-1] == 640

    (folder / "notes.txt").write_text("mine")
    assert main([*arguments, "--overwrite"]) == 0
    assert (folder / "notes.txt").read_text() == "mine"
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["images_seen"] == 160 and records[-1]["images_seen"] == 640
