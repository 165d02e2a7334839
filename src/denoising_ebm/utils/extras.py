"""Packages that are optional extras: imported by name when they are needed, so that modules load without them."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load_extra(module: str, extra: str, need: str) -> Any:
    """Return a module of an optional package.

    Args:
        module: Its name.
        extra: The extra of this package that it comes with.
        need: What needs what, for the message: `SSIM needs scikit-image`.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"{need}: pip install 'denoising-ebm[{extra}]'") from error
