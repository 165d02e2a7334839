"""`debm score` of many images: damaged ones named, one chunk held at a time, nothing half-written."""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from command import rows_of
from denoising_ebm.datasets.images import ImageSet, ImageStream
from denoising_ebm.ood.scoring import Scorer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "reliability"))

from many_images import make_images

CHUNK = 32


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "chunk", CHUNK)


def test_three_hundred_images_of_which_fifteen_are_damaged(
    debm: Any, run: Path, small_chunks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = make_images(tmp_path / "images", 300, 0.05, seed=4)
    assert len(damaged) == 15
    chunks: list[weakref.ref[ImageSet]] = []
    take = ImageStream.__next__

    def watched(stream: ImageStream) -> ImageSet:
        # That of the turn before may still have its name.
        assert sum(chunk() is not None for chunk in chunks) <= 1
        images = take(stream)
        chunks.append(weakref.ref(images))
        return images

    monkeypatch.setattr(ImageStream, "__next__", watched)
    sizes: list[int] = []
    rows = Scorer.rows
    monkeypatch.setattr(Scorer, "rows", lambda scorer, chunk, progress: sizes.append(len(chunk)) or rows(scorer, chunk))
    options = ["--maps", tmp_path / "maps", "--report", tmp_path / "page.html", "--precision", "fp32"]
    done = debm("score", run, tmp_path / "images", "--out", tmp_path / "scores.jsonl", *options)
    assert done.status == 0 and len(chunks) == 9, done.err
    # Whole ones, whatever is damaged: the memory of networks grows with each other size of a batch.
    assert sizes == [CHUNK] * 8 + [285 - 8 * CHUNK]
    table = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["name"] for row in table] == [f"{i:06d}.png" for i in range(300)]
    assert {row["name"] for row in table if row["status"] == "unreadable" and row["reason"]} == damaged
    assert "285 images scored, 15 unreadable" in done.err and "15 unreadable or unfit images left out" in done.err
    assert len(list((tmp_path / "maps").iterdir())) == 285
    assert "285 scored, 15 unreadable" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError])
def test_what_ends_it_on_the_way_leaves_old_results(
    debm: Any,
    run: Path,
    folder: Path,
    small_chunks: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: type[BaseException],
) -> None:
    out, rows, calls = tmp_path / "scores.csv", Scorer.rows, []
    out.write_text("old")

    def ends(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise end("it ends")
        return rows(*arguments)

    monkeypatch.setattr(Scorer, "rows", ends)
    done = debm("score", run, folder, "--out", out, "--precision", "fp32")
    assert done.status == (130 if end is KeyboardInterrupt else 2) and len(calls) == 3
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]
    calls.clear()
    assert debm("score", run, folder, "--precision", "fp32").out == ""


def test_maps_of_wide_images_show_more_than_their_rows_judge(debm: Any, tmp_path: Path) -> None:
    """The bundled model of small photos, whose detector was fitted to squares: noise at the left is outside of them."""
    wide = tmp_path / "wide"
    wide.mkdir()
    plain = Image.new("RGB", (64, 32), (90, 120, 150))
    plain.save(wide / "a.png")
    plain.paste(Image.effect_noise((12, 32), 200).convert("RGB"), (0, 0))
    plain.save(wide / "b.png")
    options = ["--resize", "lanczos", "--aspect", "crop", "--maps", tmp_path / "maps"]
    tiled = debm("score", "cifar10-small", wide, *options, "--tiles")
    assert tiled.status == 0, tiled.err
    rows = rows_of(tiled.out)
    assert [row["seen"] for row in rows] == ["0.5", "0.5"]
    assert rows[0]["score"] == rows[1]["score"] and float(rows[1]["map_max"]) > float(rows[0]["map_max"])
    alone = sum(float(row["map_max"]) > 3 and float(row["p_value"]) > 0.1 for row in rows)
    assert (
        "maps show all of an image, scores judge its central square alone (column seen): so for 2 of 2 images; "
        f"{alone} of all have a z-score above 3 in their map (column map_max) and a p-value above 0.1"
    ) in tiled.err
    assert "central square alone" not in debm("score", "cifar10-small", wide, *options).err
