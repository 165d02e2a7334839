"""A run folder is resumable after death at any file operation, and after a disk that is full at any of them."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from denoising_ebm import DenoisingEBM
from denoising_ebm.config import Config, TrainingStage
from denoising_ebm.training import trainer
from denoising_ebm.training.sample_images import save_sample_images
from denoising_ebm.utils.io import is_leftover
from dying_disk import Disk, Moment, Tree, write_tree
from runs import assert_equal, read_state, train
from support import random_pixels, tiny_config

PIXELS = random_pixels(20)


def crash_config(*stages: TrainingStage) -> Config:
    """Four steps that save after the second and the fourth, and at the end."""
    config = tiny_config(*stages, max_images=32, log_every=2, sample_minutes=1e-9)
    return replace(config, contrastive=replace(config.contrastive, chains="persistent", buffer_size=8))


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "save_sample_images", partial(save_sample_images, num=2))


def run_to_the_end(config: Config, run: Path) -> str:
    """Go on as a user does: with `--resume`, or anew where there is nothing to resume."""
    try:
        train(PIXELS, config, run, resume=True)
    except FileNotFoundError as error:
        assert "nothing to resume" in str(error)
        train(PIXELS, config, run)
        return "started anew"
    return "resumed"


def results(run: Path) -> dict[str, Any]:
    """All that a run is in the end, but for what depends on the clock."""
    state = read_state(run)
    del state["clock"]["seconds"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [{name: r[name] for name in r if name not in ("minutes", "images_per_second")} for r in records]
    # The held-out loss is noted with every save, which may be one of the same step again.
    figures = [figure for i, figure in enumerate(figures) if figure not in figures[:i]]
    # Pictures that were due when it died are not drawn later, but for the last ones.
    passing = {"samples-000000016.png", "reconstructions-000000016.png"}
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.name not in passing}
    weights = DenoisingEBM.from_pretrained(run).state_dict()
    return {"state": state, "metrics": figures, "files": files, "weights": weights}


def assert_same(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    for name, value in expected.items():
        assert_equal(found[name], value, f"{what}: {name}")


def distinct(trees: list[Tree]) -> Iterator[Tree]:
    """Leave out trees that differ in the content of temporary files alone, which nobody reads."""
    seen = set()
    for tree in trees:
        key = hash(frozenset((name, b"" if name.endswith(".tmp") else content) for name, content in tree.items()))
        if key not in seen:
            seen.add(key)
            yield tree


def record(config: Config, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Moment]:
    """Run to the end; return what a death at each operation would have left."""
    with monkeypatch.context() as patch:
        disk = Disk(root, patch)
        run_to_the_end(config, root / "run")
    disk.close()
    return disk.moments


@pytest.mark.slow
def test_a_run_goes_on_after_death_at_any_file_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a stage of denoising, in one of persistent chains, between the two and at the end."""
    config, root = crash_config(TrainingStage("denoising"), TrainingStage("contrastive")), tmp_path / "disk"
    root.mkdir()
    moments = record(config, root, monkeypatch)
    expected = results(root / "run")
    starts = {moment.operation for moment in moments}
    assert {"open .state.pt", "write .state.pt", "fsync .state.pt", "replace .state.pt", "link state.pt"} <= starts
    outcomes = []
    for tree in distinct([tree for moment in moments for tree in (moment.killed, moment.without_power)]):
        write_tree(root, tree)
        if "run/model/config.json" in tree:
            DenoisingEBM.from_pretrained(root / "run")
        outcomes.append(run_to_the_end(config, root / "run"))
        assert_same(results(root / "run"), expected, str(sorted(tree)))
    # Anew only before there was a state: once it is written, no death loses it.
    anew = outcomes.count("started anew")
    assert 0 < anew < 15 and outcomes[:3] == ["started anew"] * 3 and len(outcomes) > 60


@pytest.mark.slow
def test_a_resumed_run_may_die_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With lines of the log to drop, temporary files to remove and a damaged state, at any operation."""
    config, root = crash_config(), tmp_path / "disk"
    root.mkdir()
    moments = record(config, root, monkeypatch)
    expected = results(root / "run")
    last_state = max(
        i for i, moment in enumerate(moments) if moment.operation == "fsync .state.pt" and i < len(moments) // 2 + 20
    )
    start = moments[last_state].killed
    assert start["run/metrics.jsonl"].count(b"\n") >= 2
    start["run/state.pt"] = start["run/state.pt"][:-1]
    write_tree(root, start)
    again = record(config, root, monkeypatch)
    said = len(results(root / "run")["metrics"]) - len(expected["metrics"])
    assert said == 1
    for tree in distinct([tree for moment in again[:40] for tree in (moment.killed, moment.without_power)]):
        write_tree(root, tree)
        run_to_the_end(config, root / "run")
        found = results(root / "run")
        found["metrics"] = [figure for figure in found["metrics"] if "event" not in figure]
        assert_same(found, expected, str(sorted(tree)))


@pytest.mark.slow
def test_a_full_disk_at_any_moment_is_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root = crash_config(), tmp_path / "disk"
    root.mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(root, patch)
        train(PIXELS, config, root / "run")
    disk.close()
    expected = results(root / "run")
    # Pictures are written in many pieces.
    operations = [disk.moments[number].operation for number in disk.taking]
    numbers = [n for n, what, before in zip(disk.taking, operations, ["", *operations], strict=False) if what != before]
    assert len(numbers) > 30
    for number in numbers:
        write_tree(root, {})
        with monkeypatch.context() as patch:
            full = Disk(root, patch, full_at=number)
            with pytest.raises(OSError, match="No space left on device") as caught:
                train(PIXELS, config, root / "run")
        full.close()
        assert caught.value.errno == errno.ENOSPC and Path(str(caught.value.filename)).is_relative_to(root)
        assert not [path for path in root.rglob("*") if is_leftover(path)]
        run_to_the_end(config, root / "run")
        assert_same(results(root / "run"), expected, disk.moments[number].operation)
