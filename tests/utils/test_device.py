from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from denoising_ebm.utils.device import choose_device, choose_precision, free_threads, torch_threads


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt), torch_threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before


def test_no_more_threads_than_torch_has() -> None:
    with torch_threads(2):
        assert free_threads(0.02) in (1, 2)
        assert torch.get_num_threads() == 2
    with torch_threads(1), torch_threads() as count:
        assert count == 1


def test_devices_that_are_not_here_are_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "meta"):
        with pytest.raises(ValueError, match=f"unknown device '{name}': use auto, cpu or cuda"):
            choose_device(name)
    with pytest.raises(ValueError, match="'cuda:99' was asked for, but torch sees"):
        choose_device("cuda:99")


def test_a_precision_that_is_asked_for_is_taken() -> None:
    cpu = torch.device("cpu")
    assert (choose_precision("fp32", cpu), choose_precision("bf16", cpu)) == ("fp32", "bf16")
    assert choose_precision("auto", cpu) in ("fp32", "bf16")


SCRIPT = """
import resource, sys
import torch
from denoising_ebm.utils.device import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else True
model = torch.nn.Sequential(*(torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(8)))
x = torch.randn(64, 32, 32, 32)
for i in range(8):
    if i == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(x).square().mean().backward()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_freed_memory_serves_again() -> None:
    """Four training steps with a dozen tensors of 8 MiB, each 2,048 pages: new ones every time, or those of before."""
    # Another allocator, or one told otherwise, would do as it likes.
    others = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    found = {}
    for how in ("keep", "as usual"):
        command = [sys.executable, "-c", SCRIPT, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        kept, faults = done.stdout.split()
        if kept == "False":
            pytest.skip("the C library is not glibc")
        found[how] = int(faults)
    assert found["keep"] < 0.25 * found["as usual"], found
