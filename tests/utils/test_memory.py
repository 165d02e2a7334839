from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from denoising_ebm.utils.memory import keep_freed_memory

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
