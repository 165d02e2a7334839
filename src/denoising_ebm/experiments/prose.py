"""What pages say around their figures: the texts of `prose.yaml`, filled in."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml


@cache
def _texts() -> dict[str, str]:
    source = resources.files("denoising_ebm").joinpath("experiments/prose.yaml").read_text(encoding="utf-8")
    # Folded, an empty line within a text becomes a line break: a new paragraph.
    texts = {name: text.replace("\n", "\n\n") for name, text in yaml.safe_load(source).items()}
    return texts


def prose(name: str, **values: Any) -> str:
    """Return a text by its name, `values` filled in as by `str.format`."""
    return _texts()[name].format(**values)
