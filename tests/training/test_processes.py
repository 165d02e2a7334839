from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import two_processes
from denoising_ebm.hub import UNMEASURED
from denoising_ebm.training.logging import read_metrics
from runs import assert_equal, read_state


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two_processes.py under torchrun, two gloo processes on this machine."""
    folder = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).parents[1] / "two_processes.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(script), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoising", "score", "energy"])
def test_two_processes_have_the_gradients_of_one(name: str, two: Path, tmp_path: Path) -> None:
    two_processes.run(name, tmp_path, 0)
    one = torch.load(tmp_path / f"{name}-0.pt")
    both = [torch.load(two / f"{name}-{rank}.pt") for rank in (0, 1)]
    assert [run["steps"] for run in (one, *both)] == [2, 2, 2]
    assert_equal(both[0], both[1])
    # The second step's gradients are those of the weights and code statistics that the first one left.
    for step, limit in ((0, 1e-6), (1, 1e-3)):
        expected = one["gradients"][step]
        norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        assert float(norm) > 0.1
        gaps = [(both[0]["gradients"][step][key] - gradient).norm() for key, gradient in expected.items()]
        assert float(torch.stack(gaps).norm() / norm) < limit
    # Adam divides by the size of a gradient, so single weights whose gradient is all rounding may move by whole steps: the
    # bound is on all of them together. Without a common gradient they would be about a step of 1e-3 apart.
    floats = {key: v for key, v in one["weights"].items() if v.is_floating_point() and key not in UNMEASURED}
    gap = torch.cat([(both[0]["weights"][key] - value).flatten() for key, value in floats.items()])
    assert float(gap.square().mean().sqrt()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contrastive", "persistent"])
def test_processes_stay_together_under_algorithm_1(name: str, two: Path) -> None:
    first, second = (torch.load(two / f"{name}-{rank}.pt") for rank in (0, 1))
    assert first["steps"] == 4
    assert_equal(first, second)
    assert all(value.isfinite().all() for key, value in first["weights"].items() if key != "reference")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(two: Path) -> None:
    for rank in (0, 1):
        found = torch.load(two / f"interrupted-{rank}.pt")
        assert found == {"finished": [False, True], "steps": [3, 7]}
    assert read_state(two / "interrupted")["clock"]["step"] == 10


@pytest.mark.slow
def test_one_log_and_one_state_for_all_processes(two: Path, tmp_path: Path) -> None:
    steps = [record["step"] for record in read_metrics(two / "denoising")]
    assert steps == [2]
    assert read_state(two / "denoising")["clock"]["images_seen"] == 16
    # Of both halves of the batches: the loss is that of one process that sees them whole.
    two_processes.run("denoising", tmp_path, 0)
    expected, found = (read_metrics(folder / "denoising")[0]["loss"] for folder in (tmp_path, two))
    assert found == pytest.approx(expected, rel=1e-4)
