"""Tables: the same rows in every format, whatever names hold; rows on disk."""

from __future__ import annotations

import csv
import errno
import json
import os
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denoising_ebm.datasets.decode import Stored
from denoising_ebm.datasets.images import ImageSet, Unreadable
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood.table import COLUMNS, RowsOnDisk, Score, csv_lines, energy_rows, write_table
from support import random_pixels

ROWS = [
    Score("=1+1.png", score=-0.5, p_value=0.25, flagged=False, energy=-1.5, sigma=0.05, seen=0.5, map_max=3.25),
    Score('two\nlines, and "quotes".png', flagged=True, energy=2.0, notes="frame 1 of 5; @"),
    Score(os.fsdecode(b"\xff.png"), "unreadable", reason="-cut"),
]


def test_formats_agree(tmp_path: Path) -> None:
    for suffix in ("csv", "parquet", "jsonl"):
        write_table(iter(ROWS), tmp_path / f"t.{suffix}")
    expected = [asdict(row) for row in ROWS]
    expected[2]["name"] = "\\xff.png"
    assert [json.loads(line) for line in (tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()] == expected
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == expected
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as file:
        first, second, third = csv.DictReader(file)
    assert tuple(first) == COLUMNS
    assert (first["name"], first["score"], first["energy"], first["flagged"]) == ("'=1+1.png", "-0.5", "-1.5", "false")
    assert (second["name"], second["notes"], second["score"]) == (ROWS[1].name, "frame 1 of 5; @", "")
    assert (third["name"], third["reason"]) == ("\\xff.png", "'-cut")


@given(st.lists(st.text(st.characters(exclude_categories=()), min_size=1), min_size=1, max_size=4))
def test_rows_come_back_from_disk(names: list[str]) -> None:
    rows = [Score(name, energy=0.1 + len(name), flagged=None, reason=name[::-1]) for name in names]
    with RowsOnDisk() as kept:
        kept.extend(rows[:1])
        kept.extend(rows[1:])
        assert list(kept) == rows == list(kept)


def test_many_rows_in_groups_and_none_at_all(tmp_path: Path) -> None:
    write_table((Score(str(i), energy=float(i)) for i in range(9000)), tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["name"].to_pylist() == list(map(str, range(9000)))
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 3
    for suffix in ("csv", "parquet", "jsonl"):
        write_table([], tmp_path / f"none.{suffix}")
    assert pq.read_table(tmp_path / "none.parquet").column_names == list(COLUMNS)
    assert (tmp_path / "none.csv").read_text() == ",".join(COLUMNS) + "\n" == "".join(csv_lines([]))


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_what_fails_on_the_way_leaves_the_old_table(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    path.write_text("old")

    def rows() -> object:
        yield from [Score(str(i)) for i in range(5000)]
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as raised:
        write_table(rows(), path)  # type: ignore[arg-type]
    assert raised.value.filename == str(path)
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_names_the_folder_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = lambda *_, **__: open("/dev/full", "w", encoding="utf-8")  # noqa: E731
    monkeypatch.setattr("denoising_ebm.ood.table.tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match="No space") as raised, RowsOnDisk(tmp_path / "new") as kept:
        for _ in range(1000):
            kept.extend([Score("x" * 100)])
    assert raised.value.filename == str(tmp_path / "new")


def test_rows_say_how_images_were_read(tiny_model: DenoisingEBM) -> None:
    stored = Stored("GIF", 32, 16, seen=1 / 3, notes=("frame 1 of 5", "laid over white"))
    images = ImageSet(random_pixels(2), ("a", "b"), (Unreadable("c", "\x1b[31mred\x00", 1),), stored=(stored, None))
    a, c, b = energy_rows(tiny_model, images, 0.1)
    assert (a.name, a.seen, a.notes) == ("a", 0.3333, "frame 1 of 5; laid over white")
    assert (b.name, b.seen, b.notes) == ("b", None, None)
    assert (c.name, c.status, c.reason) == ("c", "unreadable", "\\x1b[31mred\\x00")


def test_energies_that_are_not_finite_are_no_rows(tiny_model: DenoisingEBM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite weights of a stranger's model can overflow in the network."""
    monkeypatch.setattr(tiny_model, "energy", lambda x, *_: torch.full((len(x),), float("nan")))
    with pytest.raises(ValueError, match="energies that are not finite"):
        energy_rows(tiny_model, ImageSet(random_pixels(2), ("a", "b")), 0.1)
