from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from denoising_ebm.experiments.cache import ResultCache, figures_of, settings_hash, settings_of


def test_rows_are_made_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> dict[str, Any]:
        calls.append(1)
        return {"frechet_distance": 3.5}

    settings = {"scale": "tiny", "seed": 0}
    first = ResultCache(tmp_path / "out", settings).row("table 3, sigma from 0.5", make)
    again = ResultCache(tmp_path / "out", settings).row("table 3, sigma from 0.5", make)
    assert first == again and first["frechet_distance"] == 3.5 and first["seconds"] >= 0 and len(calls) == 1
    assert first["name"] == "table 3, sigma from 0.5" and figures_of(first) == {"frechet_distance": 3.5}
    assert [path.name for path in (tmp_path / "out" / "rows").iterdir()] == ["table-3-sigma-from-0.5.json"]
    with pytest.raises(ValueError, match="holds a reproduction with seed 0, not 1"):
        ResultCache(tmp_path / "out", settings | {"seed": 1})


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "out", {})
    cache.row("a", lambda: {"x": 1})
    path = tmp_path / "out" / "rows" / "a.json"
    path.write_text(path.read_text()[:5])
    with pytest.raises(ValueError, match=rf"^{path}: not valid JSON \(.*\); delete it to make the row anew$"):
        cache.row("a", lambda: {"x": 2})
    path.unlink()
    assert cache.row("a", lambda: {"x": 2})["x"] == 2
    # One digit of a figure.
    path.write_text(path.read_text().replace('"x": 2', '"x": 3'))
    with pytest.raises(
        ValueError, match=rf"^{path}: damaged: .* hash that it was written with; delete it to make the row"
    ):
        cache.row("a", lambda: {"x": 2})


def test_rows_of_before_have_no_hash_and_figures_any_keys(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "out", {})
    rows = {2: [0.1], 10: (1, float("nan")), "a": None}
    made = cache.row("a", lambda: rows)
    assert str(cache.row("a", lambda: {})) == str(json.loads(json.dumps(made)))
    path = tmp_path / "out" / "rows" / "a.json"
    path.write_text(json.dumps({"x": 7, "version": 1, "depends": {}}))
    assert cache.row("a", lambda: {"x": 8})["x"] == 7


def test_rows_of_other_images_are_made_anew(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "out", {})
    assert cache.row("a", lambda: {"x": 1}, {"test": "abc"})["x"] == 1
    assert cache.row("a", lambda: {"x": 2}, {"test": "abc"})["x"] == 1
    assert cache.row("a", lambda: {"x": 3}, {"test": "def"})["x"] == 3
    assert cache.row("a", lambda: {"x": 4}, {"test": "def"})["x"] == 3


def test_a_row_made_with_more_serves_where_less_is_asked(tmp_path: Path) -> None:
    """FIDs that took days are not lost to a command without them; the other way the row is made anew."""
    cache = ResultCache(tmp_path / "out", {})
    assert cache.row("a", lambda: {"fid": None}, {"test": "abc", "inception": ""})["fid"] is None
    assert cache.row("a", lambda: {"fid": 2.0}, {"test": "abc", "inception": "yes"})["fid"] == 2.0
    assert cache.row("a", lambda: {"fid": None}, {"test": "abc", "inception": ""})["fid"] == 2.0


def test_rows_of_another_version_are_made_anew_and_folders_refused(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "out", {}, version=3)
    assert cache.row("a", lambda: {"x": 1})["x"] == 1
    assert cache.row("a", lambda: {"x": 2}, version=2)["x"] == 2
    assert cache.row("a", lambda: {"x": 3}, version=2)["x"] == 2
    with pytest.raises(ValueError, match="holds a reproduction with version 3, not 4; give the same, or another --out"):
        ResultCache(tmp_path / "out", {}, version=4)


def test_a_missing_row_is_marked_and_tried_again(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "out", {})

    def fails() -> dict[str, Any]:
        raise ValueError("weights.pth: no such file")

    assert cache.row("fid", fails) == {"missing": "weights.pth: no such file"}
    assert cache.row("fid", lambda: {"fid": 1.0})["fid"] == 1.0


def test_an_interrupt_keeps_the_rows_before(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "out", {})
    cache.row("a", lambda: {"x": 1})

    def stop() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.row("b", stop)
    assert [path.stem for path in (tmp_path / "out" / "rows").iterdir()] == ["a"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="exists and is not a reproduction"):
        ResultCache(tmp_path, {})


def test_settings_of_commands() -> None:
    options = {"out": "here", "only": ["a"], "minutes": 3.0, "data": None}
    assert settings_of(options, weights="abc") == {"minutes": "3.0", "data": "None", "weights": "abc"}
    assert settings_hash({"a": 1, "b": [2]}) == settings_hash({"b": [2], "a": 1}) != settings_hash({"a": 1})
