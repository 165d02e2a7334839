"""The presets of `debm train`: the paper's settings beside ones for a CPU and for one GPU, a YAML file each.

A file states what differs from the defaults of `config.py`, or from the preset that it names as `base`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from denoising_ebm.config import Config, from_dict, merged, to_dict

PRESETS = (
    "fashion-mnist",
    "cifar10-small",
    "cifar10",
    "photo",
    "photo-gpu",
    "cifar10-paper",
    "svhn-paper",
    "celeba64-paper",
)


@cache
def preset(name: str) -> Config:
    """Return a preset.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}")
    import yaml

    file = resources.files(__name__) / f"{name}.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    base = preset(values.pop("base")) if "base" in values else Config()
    return from_dict(Config, merged(to_dict(base), values), where=f"{name}.yaml")
