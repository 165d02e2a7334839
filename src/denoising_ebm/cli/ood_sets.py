"""The sets that `--ood` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from denoising_ebm.cli.options import ImageOptions

if TYPE_CHECKING:
    from torch import Tensor

    from denoising_ebm.datasets.images import ImageSet


def load_ood_sets(wanted: Sequence[str], normal: Tensor, images: ImageOptions, seed: int) -> dict[str, ImageSet]:
    """Load or make the OOD sets that `--ood` names, of the size of the normal images.

    Args:
        wanted: NAME=DATA, NAME=DATA@SPLIT, the name of a synthetic set, or `all` for every synthetic set.
        normal: The normal images, uint8, from which synthetic sets are made.
        images: How to load the others.
        seed: Of the synthetic sets.

    Raises:
        ValueError: If a name is unknown or given twice.
    """
    import torch

    from denoising_ebm.datasets.images import ImageSet
    from denoising_ebm.ood.corruptions import SYNTHETIC_OOD

    sets: dict[str, ImageSet] = {}
    for item in [name for each in wanted for name in (SYNTHETIC_OOD if each == "all" else [each])]:
        name, has_source, source = item.partition("=")
        if name in sets or name == "normal":
            raise ValueError(f"--ood: {name} is given twice")
        if not has_source:
            if name not in SYNTHETIC_OOD:
                raise ValueError(f"--ood: {name} is neither NAME=DATA nor one of all, {', '.join(SYNTHETIC_OOD)}")
            made = SYNTHETIC_OOD[name](normal, torch.Generator().manual_seed(seed))
            sets[name] = ImageSet(made, tuple(map(str, range(len(made)))))
            continue
        options = images
        if not Path(source).exists() and "@" in source:
            source, _, split = source.rpartition("@")
            options = replace(images, split=split)
        channels, height, width = normal.shape[1:]
        sets[name] = options.load(source, (channels, height, width))
    return sets
