"""What this machine can do: device, arithmetic precision, free threads, memory, and a line that describes it."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from denoising_ebm.literals import Precision

# torch is imported where it is used: `keep_freed_memory` is called before any work, and takes no seconds.
if TYPE_CHECKING:
    import torch


def choose_device(name: str = "auto") -> torch.device:
    """Return the device `cpu`, `cuda` or `cuda:N`; `auto` is CUDA if there is any, else the CPU.

    Raises:
        ValueError: If the device does not exist here or is of another kind.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}: use auto, cpu or cuda")
    count = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
    if device.type == "cuda" and not count:
        raise ValueError(f"device {name!r} was asked for, but torch sees no CUDA GPU")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device {name!r} was asked for, but torch sees {count} CUDA GPU(s), numbered from 0")
    return device


def choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Resolve `auto`: bf16 where the device has fast bf16 arithmetic, else fp32."""
    if precision != "auto":
        return precision
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Private in torch, and absent on other architectures and versions: then fp32, which is always right.
    probes = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return "bf16" if any(probe is not None and probe() for probe in probes) else "fp32"


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Return the context in which networks run at `precision` on `device`."""
    import torch

    if choose_precision(precision, device) == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def torch_threads(count: int | None = None) -> Iterator[int]:
    """Let torch compute with `count` threads on the CPU, or with as many as `free_threads` finds, and restore its number."""
    import torch

    before = torch.get_num_threads()
    chosen = free_threads() if count is None else count
    torch.set_num_threads(chosen)
    try:
        yield chosen
    finally:
        torch.set_num_threads(before)


def free_threads(seconds: float = 0.6) -> int:
    """Return with how many threads small convolutions run fastest now, beside whatever else runs; at most torch's number.

    Threads of one operation wait for the slowest: where a core is busy, two of them may be slower than one, many times for
    small images.

    Args:
        seconds: That measuring takes, about.
    """
    import torch

    most: int = torch.get_num_threads()
    counts = sorted({1, *(1 << i for i in range(most.bit_length()) if 1 << i < most), most})
    if len(counts) == 1:
        return 1
    x, weight = torch.randn(16, 32, 32, 32), torch.randn(32, 32, 3, 3)
    done: dict[int, int] = dict.fromkeys(counts, 0)
    # In turns, so that what else runs disturbs all of them alike.
    for count in 3 * counts:
        with torch_threads(count):
            torch.conv2d(x, weight, padding=1)
            started = time.monotonic()
            while time.monotonic() - started < seconds / (3 * len(counts)):
                torch.conv2d(x, weight, padding=1)
                done[count] += 1
    return max(counts, key=done.__getitem__)


def describe(device: torch.device) -> str:
    """Return a line such as `AMD EPYC (2 threads), torch 2.14.1`."""
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{_cpu_name()} ({threads} thread{'s' * (threads != 1)})"
    return f"{name}, torch {torch.__version__}"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def keep_freed_memory() -> bool:
    """Tell the C library to keep the memory of freed tensors for the next ones, in this process, from now on.

    By default glibc gives large blocks back to the system and gets them anew, zeroed, at every step: a tenth of the time of
    training and scoring on a CPU. The commands call this; programs that use the package may.

    Returns:
        Whether it is so: False where the C library is not glibc.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(name, value) for name, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)))
