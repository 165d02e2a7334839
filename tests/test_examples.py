"""The examples run as they stand, and what they print is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from denoising_ebm.samplers import METHODS

EXAMPLES = Path(__file__).parents[1] / "examples"


def output(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_all_examples_are_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"toy_2d.py", "own_denoiser.py", "compose.py"}


@pytest.mark.slow
def test_toy_2d() -> None:
    """Points of all samplers lie near the data: those of N(0, I) are .37 from it in the mean."""
    lines = output("toy_2d.py", "--steps", "1000").splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert all(float(line.split()[-1]) < 0.2 for line in lines), lines


@pytest.mark.slow
def test_own_denoiser() -> None:
    """Digits have less to see than clothes: the energy alone takes them for more normal, pixel by pixel."""
    clothes, digits, left, right, data, samples = map(
        float, re.findall(r"(?<=\s)\d*\.?\d+(?=[,\s])", output("own_denoiser.py"))[-6:]
    )
    assert clothes > 2 * digits and left > 2 * right and abs(samples / data - 1) < 0.3


@pytest.mark.slow
def test_compose(tmp_path: Path) -> None:
    """The given half stays what it was, and the other becomes one that belongs to it rather than to another image."""
    said = output("compose.py", "--num", "2", "--steps", "100", "--out", str(tmp_path / "completed.png"))
    given, right, other = map(float, re.findall(r"\d\.\d+", said))
    assert given < 0.05 and right < 0.85 * other
    assert (tmp_path / "completed.png").is_file()
