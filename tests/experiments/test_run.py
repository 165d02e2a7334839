from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from denoising_ebm.datasets.images import load_images
from denoising_ebm.experiments.experiment import Experiment, Images
from denoising_ebm.experiments.run import STUDIES, Study, reproduce
from denoising_ebm.experiments.tables import CASES, Case, case_title, table2
from denoising_ebm.viz.report import Section
from support import Projections, random_pixels, train_shortly


@pytest.mark.slow
def test_everything_at_tiny_scale(tmp_path: Path) -> None:
    out = tmp_path / "out"
    train, test = (load_images("fashion-mnist", split=split, limit=1000) for split in ("train", "test"))
    ood = {"digits": load_images("digits", split="test", limit=40).pixels, "interpolation": test.pixels.flip(2, 3)}
    images = Images("fashion-mnist", train.pixels, test.pixels, ood, (train.labels, test.labels))

    def experiment(seed: int) -> Experiment:
        options: dict[str, Any] = {"extractor": Projections(), "train": train_shortly, "device": "cpu"}
        return Experiment(out, "tiny", images, seed=seed, **options)

    assert reproduce(list(STUDIES), experiment(3)) == (out / "index.html", [])
    text = (out / "results.md").read_text()
    for title in ("Table 1", "Table 2", "Table 3", "Table 4", "Samples by class", "Figure 4", "Figure 5", "Speed"):
        assert f"## {title}" in text
    assert "No second set was given: add --second DATA." in text
    assert "paper: Denoising-EBM" in text and "21.24" in text and "WARNING" in text
    # Every row of table 1 has a distance.
    for case in CASES:
        row = next(line for line in text.splitlines() if line.startswith(f"| {case_title(experiment(3), case)} |"))
        assert float(row.split("|")[2].replace(",", "")) > 0
    assert "| digits | " in text and "| interpolation | " in text
    # Samples by class: a row for each, the shares of which add up.
    table = text.split("## Samples by class")[1].split("##")[0]
    shares = [float(line.split("|")[2].strip(" %")) for line in table.splitlines() if " % |" in line]
    assert len(shares) == 10 and sum(shares) == pytest.approx(100, abs=0.5)
    pictures = re.findall(r"pictures/(\d+)\.png", text)
    assert len(pictures) >= 10
    for number in pictures:
        with Image.open(out / "pictures" / f"{number}.png") as picture:
            picture.verify()
    html = (out / "index.html").read_text()
    assert html.count("<img") == len(pictures)

    # Nothing is made a second time, and the page comes out the same: a row that was made anew had other seconds.
    rows = {path.name: json.loads(path.read_text()) for path in (out / "rows").iterdir()}
    weights = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert len(weights) == 9
    assert reproduce(list(STUDIES), experiment(3)) == (out / "index.html", [])
    assert (out / "results.md").read_text() == text
    assert rows == {path.name: json.loads(path.read_text()) for path in (out / "rows").iterdir()}
    assert weights == {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    with pytest.raises(ValueError, match="holds a reproduction with seed 3, not 4"):
        experiment(4)


@pytest.mark.parametrize("target", ["table1", "table2", "table3", "figure5", "speed"])
def test_an_interrupt_in_the_first_training_can_be_gone_on_with(target: str, tmp_path: Path) -> None:
    calls: list[object] = []

    def interrupted(*arguments: object, **_: object) -> Any:
        calls.append(arguments)
        raise KeyboardInterrupt

    images = Images("x", random_pixels(30, size=32), random_pixels(30, seed=1, size=32))
    options: dict[str, Any] = {"extractor": Projections(), "train": interrupted, "device": "cpu"}

    def run(images: Images, **more: Any) -> None:
        experiment = Experiment(tmp_path / "out", "tiny", images, **options, **more)
        second = Experiment(tmp_path / "out" / "second", "tiny", images, **options, **more)
        reproduce([target], experiment, second=second)

    for name in ("x", "x/"):
        with pytest.raises(KeyboardInterrupt):
            run(replace(images, name=name))
    assert len(calls) == 2
    with pytest.raises(ValueError, match="holds a reproduction with seed 0, not 1"):
        run(images, seed=1)


def test_a_study_that_fails_says_why_and_the_others_go_on(experiment: Experiment, tmp_path: Path) -> None:
    pages: list[int] = []

    def fails(_: object) -> Section:
        pages.append((tmp_path / "out" / "results.md").read_text().count("\n## "))
        raise ValueError("no chains today")

    studies: dict[str, Study] = {
        "table1": lambda _: Section("Table 1: samples", "fine"),
        "figure5": fails,
        "speed": lambda _: Section("Speed", "fast"),
    }
    page, failed = reproduce(["table1", "figure5", "speed"], experiment, studies=studies)
    assert page == tmp_path / "out" / "index.html" and failed == ["figure5"]
    text = (tmp_path / "out" / "results.md").read_text()
    assert "Left out: no chains today" in text and "fine" in text and "fast" in text
    assert pages == [1]  # what was finished before stood on the page already


@pytest.mark.slow
def test_second_set_has_rows_of_its_own(debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES, "table2", partial(table2, cases=[Case("denoising", "heun")]))
    result = debm("reproduce", "table2", "--second", "fashion-mnist", "--second-size", 16, "--out", tmp_path / "out")
    assert result.status == 0, result.err
    text = (tmp_path / "out" / "results.md").read_text()
    assert "h(z), the semantic" not in text and "| denoising: Heun's method from noise |" in text
    assert "| paper: BiDVL |" in text and "14.10" in text
    trained = json.loads((tmp_path / "out" / "second" / "models" / "denoising" / "once.json").read_text())
    assert trained["finished"] and not (tmp_path / "out" / "models").exists()
