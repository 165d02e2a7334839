"""Pages and plots show what the CSV files say, and CSV files what the rows of a run say."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from denoising_ebm import cli

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import collect
import render
from render import Plot, Results, Table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
#: Files that say how the others are shown, or how they were made.
ABOUT = {"claims", "commands", "tables", "runs", "floors"}

# -- what is in the repository ----------------------------------------------------------------------------------------


def test_pages_and_plots_are_of_the_csv_files() -> None:
    """If this fails: `python benchmarks/render.py`."""
    assert [path.name for path in render.stale(Results())] == []


def test_csv_files_are_of_the_rows() -> None:
    """If this fails: `python benchmarks/collect.py`."""
    for name, text in collect.tables().items():
        assert (RESULTS / name).read_text(encoding="utf-8") == text, name


def test_every_file_says_how_it_was_made() -> None:
    described = {record["table"] for record in Results().read("tables")}
    assert described == {path.stem for path in RESULTS.glob("*.csv")} - ABOUT


def test_pages_show_every_table_that_is_defined() -> None:
    shown = {name for page in render.PAGES for _, name, _ in render.MARKED.findall((ROOT / page).read_text("utf-8"))}
    assert shown == {*render.TABLES, *render.BLOCKS}


def test_claims_have_commands() -> None:
    results = Results()
    for record in results.read("claims"):
        for name in record["tables"].split():
            assert results.select("commands", {"table": name}), record["claim"]


COMMANDS = [record["command"] for record in Results().read("commands")]


@pytest.mark.parametrize("command", [line for line in COMMANDS if "benchmarks/" in line])
def test_scripts_of_commands_exist_and_have_their_options(command: str) -> None:
    words = shlex.split(command)
    script = ROOT / next(word for word in words if word.startswith("benchmarks/"))
    source = script.read_text(encoding="utf-8")
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in source, f"{script.name} has no {option}"


@pytest.mark.parametrize("command", [line for line in COMMANDS if re.match(r"debm |.*-m denoising_ebm ", line)])
def test_debm_commands_are_understood(command: str, debm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    names = {function: name for name, function in cli.COMMANDS.items()}
    monkeypatch.setattr(cli, "call", lambda function, given: ran.append(names[function]) or 0)
    words = shlex.split(command)
    words = words[max(words.index(word) for word in ("debm", "denoising_ebm") if word in words) + 1 :]
    result = debm(*words)
    assert (result.status, ran) == (0, words[:1]), result.err


# -- rendering --------------------------------------------------------------------------------------------------------


def write_csv(root: Path, name: str, text: str) -> None:
    path = root / "benchmarks" / "results" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one page and one file: two seeds of `ours`, one of `theirs`."""
    write_csv(
        tmp_path,
        "quality",
        "run,seed,method,frechet_distance\na,0,ours,1000\na,1,ours,1300\na,0,theirs,2345.6\n",
    )
    write_csv(tmp_path, "tables", "table,model,images,training,seeds\nquality,,10 samples,,seeds as counted\n")
    write_csv(tmp_path, "commands", "table,command\nquality,debm sample x\n")
    (tmp_path / "page.md").write_text("before\n<!-- table: quality -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(render, "PAGES", ("page.md",))
    monkeypatch.setattr(render, "PLOTS", ())
    table = Table("quality", ("method",), ("frechet_distance", "n"), bold="ours")
    monkeypatch.setitem(render.TABLES, "quality", table)
    return tmp_path


def rewrite(root: Path) -> list[str]:
    found = render.stale(Results(root))
    for write in found.values():
        write()
    return [path.name for path in found]


def test_a_table_has_mean_and_deviation_over_seeds(small: Path) -> None:
    rewrite(small)
    # The sample standard deviation of 1000 and 1300 is 300 / sqrt(2).
    assert (small / "page.md").read_text(encoding="utf-8").splitlines() == [
        "before",
        "<!-- table: quality -->",
        "| method | FD | seeds |",
        "| --- | --- | --- |",
        "| **ours** | **1,150 ± 212** | **2** |",
        "| theirs | 2,346 | 1 |",
        "",
        "10 samples; seeds as counted. [quality.csv](benchmarks/results/quality.csv) `debm sample x`",
        "<!-- end -->",
        "after",
    ]


def test_a_page_is_stale_until_it_is_written(small: Path) -> None:
    assert rewrite(small) == ["page.md"]
    assert rewrite(small) == []
    path = small / "benchmarks" / "results" / "quality.csv"
    path.write_text(path.read_text().replace("2345.6", "2344.4"))
    assert rewrite(small) == ["page.md"]
    page = small / "page.md"
    page.write_text(page.read_text().replace("2,344", "2,000"))
    assert rewrite(small) == ["page.md"], "an edited number"


def test_check_fails_and_changes_nothing(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "ROOT", small)
    monkeypatch.setattr(render, "Results", lambda: Results(small))
    before = (small / "page.md").read_text()
    monkeypatch.setattr(sys, "argv", ["render.py", "--check"])
    with pytest.raises(SystemExit) as stop:
        render.main()
    assert stop.value.code == 1
    assert capsys.readouterr().out.startswith("page.md: differs from the CSV files")
    assert (small / "page.md").read_text() == before
    monkeypatch.setattr(sys, "argv", ["render.py"])
    render.main()
    monkeypatch.setattr(sys, "argv", ["render.py", "--check"])
    render.main()


def test_columns_across(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(small, "quality", "seed,data_set,method,nfe\n0,A,ours,1000\n1,A,ours,1000\n0,B,ours,2\n0,B,theirs,3\n")
    table = Table("quality", ("method",), ("nfe", "n"), across="data_set", caption=False)
    shown = render.render_table(Results(small), table, small / "page.md").splitlines()
    assert shown[0] == "| method | NFE, A | NFE, B | seeds |"
    assert shown[2:] == ["| ours | 1,000 | 2 | 2, 1 |", "| theirs | - | 3 | 1 |"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,0,ours,1\nb,1,ours,2\n", "their runs: a, b"),
        ("a,0,ours,1\na,0,ours,2\n", "their seeds: 0, 0"),
    ],
)
def test_other_rows_are_not_averaged(small: Path, rows: str, message: str) -> None:
    write_csv(small, "quality", "run,seed,method,frechet_distance\n" + rows)
    with pytest.raises(ValueError, match=message):
        rewrite(small)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- table: unknown -->\n<!-- end -->\n", "no table 'unknown'"),
        ("<!-- table: quality -->\n", "has no `<!-- end -->`"),
    ],
)
def test_wrong_markers_are_refused(small: Path, page: str, message: str) -> None:
    (small / "page.md").write_text(page)
    with pytest.raises(ValueError, match=message):
        rewrite(small)


def test_claims_take_figures_from_files(small: Path) -> None:
    text = "FD {quality | method=ours; run=a | frechet_distance}, {quality | method=ours | n}"
    assert render.filled(Results(small), text) == "FD 1,150 ± 212, 2 (seeds 0, 1)"
    for wrong, message in (("method=none", "no row with"), ("what=ours", "no column 'what'")):
        with pytest.raises(ValueError, match=message):
            render.filled(Results(small), f"{{quality | {wrong} | frechet_distance}}")
    with pytest.raises(ValueError, match=r"nothing\.csv: no such file"):
        render.filled(Results(small), "{nothing | a=b | c}")


@pytest.mark.parametrize(
    ("text", "column", "shown"),
    [
        ("1234.5", "frechet_distance", "1,234"),
        ("0.99", "auroc", "0.99"),
        ("0.99871", "auroc", "0.999"),
        ("0.0123", "share_of_samples", "1.2 %"),
        ("", "nfe", "-"),
        ("q(z|x)", "latent", r"q(z\|x)"),
    ],
)
def test_numbers(text: str, column: str, shown: str) -> None:
    assert render.number(text, column) == shown


def test_a_plot_is_stale_when_its_file_changes(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(small)

    def draw(results: Results) -> Any:
        drawn, (ax,) = render.new_figure(1, 1)
        ax.plot([float(record["frechet_distance"]) for record in results.read("quality")])
        return drawn

    monkeypatch.setattr(render, "PLOTS", (Plot("plot.png", ("quality",), draw),))
    assert rewrite(small) == ["plot.png"]
    assert rewrite(small) == []
    path = small / "benchmarks" / "results" / "quality.csv"
    path.write_text(path.read_text().replace("1300", "1301"))
    assert "plot.png" in rewrite(small)


# -- collecting -------------------------------------------------------------------------------------------------------

ROW = {
    "parameters": 10,
    "images seen": 160,
    "steps": 10,
    "weights": "abc",
    "precision": 0.5,
    "recall": 0.25,
    "coverage": 0.125,
}


QUALITY = ROW | {"frechet_distance": 1.0, "nfe": 17, "s_per_64": 2.0}


@pytest.mark.parametrize(
    ("old", "new", "file"),
    [
        ("chain-of-5-semantic-start", "chain-of-5-from-h-z", "semantic-start"),
        ("chain-of-5-noise-of-10", "chain-of-5-from-noise-of-10", "semantic-start"),
        ("speed-two-stage-K-=-0-T-=-5", "speed-SDE-DPM-Solver-2M-from-h-z-K-=-0-T-=-5", "samplers"),
        ("speed-heun-5-levels", "speed-Heun-s-method-from-noise-T-=-5", "samplers"),
        ("denoising-annealed", "denoising-SDE-DPM-Solver-2M-from-noise", "objectives"),
        ("contrastive-two-stage-first-term", "contrastive-SDE-DPM-Solver-2M-from-h-z-denoiser-drift", "objectives"),
    ],
)
def test_rows_of_a_reproduction_are_known_by_old_and_new_names(
    tmp_path: Path, results: Path, old: str, new: str, file: str
) -> None:
    for run, name in (("x", old), ("y", new)):
        collect.add(folder_of(tmp_path / run, 0, **{name: QUALITY}), run, "a machine", results)
    _, first, second = collect.tables(results)[f"{file}.csv"].splitlines()
    assert second == first.replace(",x,", ",y,")


def folder_of(path: Path, seed: int, **rows: dict[str, Any]) -> Path:
    """A folder as `compare.py` leaves it."""
    settings = {"data": "CIFAR10", "preset": "cifar10-small", "minutes": "8.0", "samples": "1000", "seed": str(seed)}
    (path / "rows").mkdir(parents=True)
    (path / "reproduce.json").write_text(json.dumps(settings))
    for name, row in rows.items():
        (path / "rows" / f"{name}.json").write_text(json.dumps(row))
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results"
    path.mkdir()
    (path / "runs.csv").write_text("folder,run,hardware\n")
    return path


def test_rows_with_old_and_new_names_make_the_same_table(tmp_path: Path, results: Path) -> None:
    old = ROW | {"distance": 1234.567, "s per 64": 2.5, "cold temperature": 0.5, "seconds of tuning": 99.7}
    new = ROW | {"frechet_distance": 1234.567, "s_per_64": 2.5, "low_temperature": 0.5, "seconds_of_tuning": 99.7}
    collect.add(folder_of(tmp_path / "a", 0, **{"ours-two-stage-tuned": old}), "x", "a machine", results)
    collect.add(folder_of(tmp_path / "b", 1, **{"ours-two-stage-tuned": new}), "x", "", results)
    head, first, second = collect.tables(results)["rivals.csv"].splitlines()
    assert head.startswith("data_set,run,seed,method,sampler,")
    assert first == (
        'CIFAR-10,x,0,ours,"DPM-Solver++ from h(z), tuned",8,1000,32,1234.57,0.5,0.25,0.125,2.5,10,160,10,0.5,100,abc'
    )
    assert second == first.replace(",x,0,", ",x,1,")
    assert (results / "runs.csv").read_text().splitlines()[1:] == [
        "rivals-cifar10-8-minutes-run-x-seed-0,x,a machine",
        "rivals-cifar10-8-minutes-run-x-seed-1,x,a machine",
    ]


def test_a_folder_that_has_gained_rows_is_added_again(tmp_path: Path, results: Path) -> None:
    row = ROW | {"distance": 1.0, "s per 64": 2.0}
    folder = folder_of(tmp_path / "a", 0, **{"ours-two-stage": row})
    collect.add(folder, "x", "a machine", results)
    shutil.copy(folder / "rows" / "ours-two-stage.json", folder / "rows" / "ours-Heun-20.json")
    collect.add(folder, "x", "", results)
    assert len((results / "runs.csv").read_text().splitlines()) == 2
    assert len(collect.tables(results)["rivals.csv"].splitlines()) == 3


def test_what_cannot_be_collected_is_refused(tmp_path: Path, results: Path) -> None:
    with pytest.raises(ValueError, match="no folder of result rows"):
        collect.add(tmp_path, "x", "a machine", results)
    folder = folder_of(tmp_path / "a", 0, **{"a-new-method": ROW})
    with pytest.raises(ValueError, match="run x is new"):
        collect.add(folder, "x", "", results)
    collect.add(folder, "x", "a machine", results)
    with pytest.raises(ValueError, match=r"a-new-method\.json: no rule for a row of this name"):
        collect.tables(results)
