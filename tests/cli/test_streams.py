"""Standard output and error that are full, closed or gone, in processes of their own, as in services and containers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIGHT = ["train", "d", "--out", "x", "--preset", "cifar10", "--print_config"]
WRONG = ["sample", "m", "--n", "many"]
FULL = "debm: error: no space left on device\n"


def debm(streams: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `debm` with standard streams as a shell makes them: `>/dev/full`, `2>&-`."""
    command = ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-m", "denoising_ebm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [LIGHT, ["--help"], ["score", "--help"]], ids=["print", "help", "long-help"])
def test_a_full_standard_output_is_an_error_of_one_line(arguments: list[str], unbuffered: str) -> None:
    done = debm(">/dev/full", *arguments, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (2, FULL)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_error_stops_nothing() -> None:
    done = debm("2>/dev/full", *LIGHT)
    assert done.returncode == 0 and done.stdout.startswith("network:\n")
    assert debm("2>/dev/full", *WRONG).returncode == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("streams", ["2>&-", "<&- 2>&-"])
def test_closed_standard_error(streams: str, unbuffered: str) -> None:
    done = debm(streams, *LIGHT, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 0 and done.stdout == debm("", *LIGHT).stdout
    # The error has nowhere to go, least of all into the output.
    failed = debm(streams, *WRONG)
    assert (failed.returncode, failed.stdout, failed.stderr) == (2, "", "")


@pytest.mark.parametrize("streams", [">&-", "<&- >&- 2>&-"])
def test_closed_standard_output(streams: str) -> None:
    done = debm(streams, *LIGHT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    failed = debm(streams, *WRONG)
    assert failed.returncode == 2 and ("expected int, got many" in failed.stderr) == (streams == ">&-")


def test_files_do_not_get_the_number_of_a_closed_stream() -> None:
    """What a library prints, below Python, would be written into the first file that is opened."""
    code = (
        "import os; from denoising_ebm.cli.streams import open_streams; open_streams(); "
        "os._exit(os.open(os.devnull, os.O_RDONLY))"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(command).returncode > 2


def test_a_reader_that_has_enough() -> None:
    command = f"{sys.executable} -m denoising_ebm score --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_what_the_encoding_of_the_terminal_lacks_is_escaped() -> None:
    code = "from denoising_ebm.cli.streams import open_streams; open_streams(); print('a – b')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a \\u2013 b\n", "")


def test_names_reach_the_terminal_as_text() -> None:
    done = debm("", "info", "no\x1b[31mred\u202egnp")
    assert done.returncode == 2 and done.stderr.startswith(
        "debm: error: no\\x1b[31mred\\u202egnp: no such model folder"
    )


@pytest.mark.slow
def test_score_has_the_same_table_wherever_it_goes(tmp_path: Path) -> None:
    score = ["score", "fashion-mnist", "digits", "--limit", "3", "--device", "cpu", "--precision", "fp32"]
    table = debm("", *score).stdout
    assert table.count("\n") == 4 and "\n0" not in table
    without = debm("2>&-", *score, PYTHONUNBUFFERED="1")
    assert (without.returncode, without.stdout, without.stderr) == (0, table, "")
    closed = debm("<&- >&- 2>&-", *score, "--out", tmp_path / "scores.csv")
    assert closed.returncode == 0 and (tmp_path / "scores.csv").read_text() == table
    # Nothing of hours of work may go nowhere: told before it.
    lost = debm(">&-", *score)
    assert lost.returncode == 2
    assert lost.stderr == "debm: error: standard output is closed; give a file for the table with --out\n"
    if Path("/dev/full").exists():
        full = debm(">/dev/full", *score, PYTHONUNBUFFERED="1")
        assert full.returncode == 2 and full.stderr.splitlines()[-1] == FULL.strip()
        silent = debm("2>/dev/full", *score)
        assert (silent.returncode, silent.stdout) == (0, table)
