from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from denoising_ebm.datasets import entries, parquet
from denoising_ebm.datasets.entries import Rows, draw, read_bytes
from denoising_ebm.datasets.images import load_images
from denoising_ebm.datasets.parquet import ParquetRows
from denoising_ebm.datasets.sources import open_source
from pictures import encoded, noise

IMAGES = [encoded(noise(seed, 4, 4, 1), "PNG") for seed in range(12)]
PAIRS = pa.array([{"bytes": image, "path": None} for image in IMAGES])


def features(**kinds: dict[str, Any]) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": kinds}})}


def rows_of(path: Path) -> list[tuple[bytes, str | None]]:
    return [(read_bytes(entry.value), entry.label) for entry in open_source(path).entries]


@pytest.mark.parametrize(
    "column",
    [
        PAIRS,
        pa.array(IMAGES),
        pa.array(IMAGES, pa.large_binary()),
        pa.array(IMAGES).dictionary_encode(),
        pa.StructArray.from_arrays([pa.array(IMAGES)], ["bytes"]),
        pa.array([{"path": None, "bytes": image} for image in IMAGES]),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 5, "compression": "zstd"},
        {"use_dictionary": False, "compression": "none", "data_page_version": "2.0"},
        {"data_page_size": 64, "compression": "gzip", "write_batch_size": 1},
        {"store_schema": False},
    ],
)
def test_columns_of_every_kind(tmp_path: Path, column: pa.Array, options: dict[str, Any]) -> None:
    pq.write_table(pa.table({"other": [0.5] * 12, "image": column}), tmp_path / "x.parquet", **options)
    assert rows_of(tmp_path / "x.parquet") == [(image, None) for image in IMAGES]
    assert open_source(tmp_path / "x.parquet").count == 12


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    table = pa.table({"image": pa.array(IMAGES)})
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=False, column_encoding={"image": encoding})
    assert [image for image, _ in rows_of(tmp_path / "x.parquet")] == IMAGES


def test_columns_by_what_the_file_says(tmp_path: Path) -> None:
    """A column of another name is taken where the file, or its type, says that it holds pictures, and only one does."""
    path = tmp_path / "x.parquet"
    table = pa.table({"img": pa.array(IMAGES), "fine_label": [1, -1, 0] * 4, "noise": pa.array(IMAGES)})
    kinds = {"img": {"_type": "Image"}, "fine_label": {"_type": "ClassLabel", "names": ["ant", "bee"]}}
    pq.write_table(table.replace_schema_metadata(features(**kinds)), path)
    assert rows_of(path) == [(image, label) for image, label in zip(IMAGES, ["bee", None, "ant"] * 4, strict=True)]
    pq.write_table(pa.table({"picture": PAIRS, "label": ["a"] * 12}), path)
    assert rows_of(path) == [(image, "a") for image in IMAGES]
    pq.write_table(pa.table({"a": PAIRS, "b": PAIRS}), path)
    with pytest.raises(ValueError, match=r"x\.parquet: .* no column 'image' among a, b$"):
        open_source(path)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([[b"a"], [b"b"]]), r"column 'image' holds list<"),
        (pa.array([1, 2]), r"column 'image' holds int64, not encoded images$"),
        (pa.array([{"x": 1}, {"x": 2}]), r"column 'image' holds struct<x: int64>"),
        (pa.array([[[0.5] * 3] * 3] * 2), r"column 'image' holds list<"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, column: pa.Array, words: str) -> None:
    pq.write_table(pa.table({"image": column}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/x\.parquet: cannot be read as .* images: {words}") as caught:
        load_images(tmp_path / "x.parquet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [[0.5] * 12, PAIRS, pa.array([[1]] * 12)])
def test_columns_that_hold_no_classes_are_not_labels(tmp_path: Path, labels: Any) -> None:
    pq.write_table(pa.table({"image": PAIRS, "label": labels}), tmp_path / "x.parquet")
    assert {label for _, label in rows_of(tmp_path / "x.parquet")} == {None}


def test_a_damaged_file_costs_no_other_file(tmp_path: Path) -> None:
    """Nor the rows before the damage."""
    for i in range(3):
        pq.write_table(pa.table({"image": PAIRS[4 * i : 4 * i + 4]}), tmp_path / f"{i}.parquet", compression="none")
    (tmp_path / "0.parquet").write_bytes(b"PAR1 no Parquet at all PAR1")
    raw = bytearray((tmp_path / "1.parquet").read_bytes())
    place = raw.find(IMAGES[6])
    # A length that leads out of the page.
    raw[place - 4 : place] = b"\xff\xff\xff\x7f"
    (tmp_path / "1.parquet").write_bytes(raw)
    images = load_images(tmp_path)
    assert images.names[-4:] == tuple(f"2.parquet#{row}" for row in range(4))
    assert images.unreadable[0].name == "0.parquet"
    assert re.match("cannot be read as Parquet with images: ", images.unreadable[0].reason)
    lost = {name.name: name.reason for name in images.unreadable[1:]}
    assert sorted([*images.names[:-4], *lost]) == [f"1.parquet#{row}" for row in range(4)]
    assert lost and all(
        reason.startswith("the row cannot be read: ") and "\n" not in reason for reason in lost.values()
    )


def test_rows_of_other_groups_outlive_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": PAIRS}), path, row_group_size=4, compression="zstd")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    raw = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    raw[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(raw)
    images = load_images(path)
    assert images.names == tuple(f"x.parquet#{row}" for row in (0, 1, 2, 3, 8, 9, 10, 11))
    assert [lost.name for lost in images.unreadable] == [f"x.parquet#{row}" for row in (4, 5, 6, 7)]


def test_a_text_that_is_none_costs_its_row(tmp_path: Path) -> None:
    odd = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff")]
    )
    pq.write_table(pa.table({"image": PAIRS[:2], "label": odd}), tmp_path / "x.parquet")
    assert [label for _, label in rows_of(tmp_path / "x.parquet")] == ["a", None]


# -- memory -----------------------------------------------------------------------------------------------------------

_MEASURE = """
import resource, sys
import pyarrow.parquet
from denoising_ebm.datasets.sources import open_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
entries = list()
count = lost = 0
for entry in open_source(sys.argv[1]).entries:
    count += 1
    lost += isinstance(entry.value, Exception)
print(count, lost, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def measured(path: Path) -> tuple[int, int, int]:
    """Return rows, lost rows, and by how many kB memory grew."""
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    result = subprocess.run([sys.executable, "-c", _MEASURE, path], capture_output=True, text=True, env=environment)
    count, lost, grown = map(int, result.stdout.split())
    return count, lost, grown if sys.platform == "linux" else grown // 1024


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dictionary", "delta", "label", "plain"])
def test_a_small_file_does_not_take_much_memory(tmp_path: Path, kind: str) -> None:
    """Each holds 60 or 400 times the same 4 megabytes in a few kilobytes: up to 1.6 GB."""
    path, large = tmp_path / "x.parquet", IMAGES[0] + bytes(2**22)
    once = pa.DictionaryArray.from_arrays(pa.array(np.zeros(400, np.int32)), pa.array([large]))
    options: dict[str, Any] = {"compression": "zstd", "dictionary_pagesize_limit": 2**30}
    if kind == "label":
        text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(400, np.int32)), pa.array(["x" * 2**22]))
        table = pa.table({"image": pa.array(IMAGES[:1] * 400), "label": text})
    else:
        table = pa.table({"image": once})
    if kind in ("delta", "plain"):
        encoding = {"delta": "DELTA_BYTE_ARRAY", "plain": "PLAIN"}[kind]
        table = pa.table({"image": pa.array([large] * 60)})
        options |= {"use_dictionary": False, "column_encoding": {"image": encoding}}
    pq.write_table(table, path, **options)
    assert path.stat().st_size < 10**6
    count, lost, grown = measured(path)
    assert count == table.num_rows and lost == (table.num_rows if kind == "plain" else 0)
    assert grown < 400_000
    if kind == "plain":
        reason = str(next(iter(open_source(path).entries)).value)
        assert re.search(r"a page of [\d,]+ bytes would be unpacked to 25\d,\d{3},\d{3}; write the file with", reason)


def test_pages_of_all_columns_count_together(tmp_path: Path) -> None:
    """Several copies of each are in memory at once: the path of an image takes as much as its bytes."""
    path, long = tmp_path / "x.parquet", 40 * 2**20
    for place, size in (("bytes", 0), ("path", long)):
        row = {"bytes": IMAGES[0] + bytes(long), "path": "x" * size}
        pq.write_table(pa.table({"image": [row]}), path, compression="zstd")
        (entry,) = open_source(path).entries
        if place == "bytes":
            assert entry.value == row
        else:
            assert re.search(r"cannot be read: a page of [\d,]+ bytes would be unpacked to 41,943", str(entry.value))


def test_rows_beyond_what_a_file_can_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    once = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(IMAGES[:1]))
    pq.write_table(pa.table({"image": once}), path)
    assert path.stat().st_size < 12_000
    with pytest.raises(ValueError, match=r"claims 100,000 rows in [\d,]+ bytes$"):
        open_source(path)


# -- draws ------------------------------------------------------------------------------------------------------------


def drawn(rows: Any, count: int, sample: int, seed: int = 0, limit: int | None = None) -> list[str]:
    chosen, wanted = draw(rows, count, sample, limit, torch.Generator().manual_seed(seed))
    assert wanted == min(sample, count if limit is None else min(limit, count))
    for entry in chosen:
        assert read_bytes(entry.value) == IMAGES[int(entry.name.partition("#")[2]) % 12]
    return [entry.name for entry in chosen]


def test_a_draw_is_that_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are read in order, alone, or wait in a file."""
    pq.write_table(pa.table({"image": pa.array(IMAGES * 5)}), tmp_path / "x.parquet", row_group_size=7)
    rows = ParquetRows(tmp_path, [tmp_path / "x.parquet"])
    assert isinstance(rows, Rows)
    listed = [entry.name for entry in rows]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    expected = [listed[i] for i in order[:11]]
    assert drawn(rows, 60, 1) == drawn(list(rows), 60, 1) == drawn(iter(rows), 60, 1) == expected
    assert drawn(rows, 60, 1, seed=1) != expected
    monkeypatch.setattr(entries, "_MAX_HELD", 3 * len(IMAGES[0]))
    assert drawn(rows, 60, 1) == expected
    limited = drawn(rows, 60, 5, limit=20)
    assert sorted(limited) == sorted(set(limited)) and set(limited) <= set(listed[:20]) and len(limited) == 15
    monkeypatch.setattr(entries, "_MAX_ORDER", 10)
    many = drawn(rows, 60, 30)
    assert len(set(many)) == 40 and many != sorted(many)


def test_groups_without_a_drawn_row_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": pa.array(IMAGES)}), tmp_path / "x.parquet", row_group_size=4)
    rows, read = ParquetRows(tmp_path, [tmp_path / "x.parquet"]), []
    at_once = parquet.rows_at_once
    monkeypatch.setattr(parquet, "rows_at_once", lambda group, *rest: read.append(group) or at_once(group, *rest))
    assert [(place, entry.name) for place, entry in rows.at({1, 9, 3})] == [
        (1, "x.parquet#1"),
        (3, "x.parquet#3"),
        (9, "x.parquet#9"),
    ]
    assert len(read) == 2


# -- damaged files ----------------------------------------------------------------------------------------------------


def _written(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


_LABELLED = pa.table({"image": PAIRS, "label": [0, 1, 2] * 4})
_WHOLE = [
    _written(_LABELLED.replace_schema_metadata(features(label={"_type": "ClassLabel", "names": ["a", "b", "c"]}))),
    _written(pa.table({"image": PAIRS, "label": ["a", "b", None] * 4}), row_group_size=4, compression="zstd"),
    _written(
        pa.table({"image": pa.array(IMAGES)}),
        use_dictionary=False,
        compression="gzip",
        column_encoding={"image": "DELTA_BYTE_ARRAY"},
    ),
    _written(pa.table({"image": pa.array(IMAGES)}), use_dictionary=False, data_page_version="2.0", compression="none"),
]
_NUMBERS = [b"\xff\xff\xff\xff\x07", b"\xff" * 9 + b"\x01", b"\x80\x80\x80\x80\x08", b"\xfe\xff\xff\xff\x0f", b"\x00"]
_CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.booleans(),
        st.one_of(st.binary(max_size=8), st.sampled_from(_NUMBERS)),
        st.integers(0, 8),
    ),
    min_size=1,
    max_size=6,
)


def check_damaged(raw: bytes, path: Path) -> None:
    """Read a damaged file: rows, each whole or with a reason, or one line."""
    path.write_bytes(raw)
    try:
        for entry in open_source(path).entries:
            try:
                assert isinstance(read_bytes(entry.value), bytes)
            except (OSError, ValueError) as error:
                assert "\n" not in str(error)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, len(_WHOLE) - 1), changes=_CHANGES)
def test_damaged_files_end_in_one_line(
    tmp_path: Path, which: int, changes: list[tuple[float, bool, bytes, int]]
) -> None:
    raw = bytearray(_WHOLE[which])
    for place, is_in_the_end, new, old in changes:
        # The end of a file says where everything is.
        span = min(len(raw), 1000) if is_in_the_end else len(raw)
        start = len(raw) - span + int(place * span)
        raw[start : start + old] = new
    check_damaged(bytes(raw), tmp_path / "x.parquet")


def test_what_ended_the_process_once(tmp_path: Path) -> None:
    """A histogram of another length than the column allows, which pyarrow's own object for a column does not outlive."""
    whole = _WHOLE[1]
    size = int.from_bytes(whole[-8:-4], "little")
    end = whole[-8 - size : -8]
    # A list of two numbers for one of one number: field 3 of the statistics of sizes.
    for place in (match.start() for match in re.finditer(rb"\x19\x16", end)):
        changed = end[:place] + b"\x19\x26\x00" + end[place + 2 :]
        raw = whole[: -8 - size] + changed + len(changed).to_bytes(4, "little") + b"PAR1"
        check_damaged(raw, tmp_path / "x.parquet")
