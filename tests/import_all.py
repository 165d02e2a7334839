"""Run by test_imports in a process of its own: import every module without torchvision, and compare global state."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from typing import Any


def main() -> None:
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # as if it were not installed
    # What others set on import is theirs.
    for name in sys.argv[1].split(","):
        importlib.import_module(name)
    import matplotlib
    import torch

    def state() -> dict[str, Any]:
        return {
            "seed": torch.initial_seed(),
            "generator": torch.get_rng_state().tolist(),
            "default dtype": torch.get_default_dtype(),
            "matmul precision": torch.get_float32_matmul_precision(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "cudnn benchmark": torch.backends.cudnn.benchmark,
            "threads": torch.get_num_threads(),
            "grad": torch.is_grad_enabled(),
            "warnings": list(warnings.filters),
            "backend": matplotlib.rcParams._get("backend"),
            "recursion": sys.getrecursionlimit(),
        }

    before = state()
    package = importlib.import_module("denoising_ebm")
    names = [module.name for module in pkgutil.walk_packages(package.__path__, "denoising_ebm.")]
    for name in names:
        # One runs the command; the other adapts to a package that itself needs torchvision.
        if not name.endswith(("__main__", ".pytorch_ood")):
            importlib.import_module(name)
    changed = [key for key, value in state().items() if value != before[key]]
    assert not changed, f"changed by import: {changed}"
    print(len(names))


if __name__ == "__main__":
    main()
