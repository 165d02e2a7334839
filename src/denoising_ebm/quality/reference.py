"""Statistics of reference sets, kept by content: the same pixels and extractor are never measured twice."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from denoising_ebm.datasets.images import content_hash
from denoising_ebm.quality.extractors import FeatureExtractor
from denoising_ebm.quality.frechet import FeatureStatistics, feature_statistics
from denoising_ebm.utils.io import write_atomically


def cache_folder() -> Path:
    """Return where statistics are kept: `$DENOISING_EBM_CACHE`, or `denoising-ebm` in the user's cache folder."""
    named = os.environ.get("DENOISING_EBM_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "denoising-ebm"


def reference_statistics(
    images: Tensor, extractor: FeatureExtractor, *, folder: Path | None = None, batch_size: int = 256
) -> FeatureStatistics:
    """Return the statistics of a reference set, from the cache if it was measured before.

    A damaged file is measured anew. Where the cache cannot be written the statistics are returned all the same.

    Args:
        images: uint8, shape `(n, c, h, w)`.
        extractor: Maps images to features.
        folder: Of the cache; `cache_folder()` if None.
        batch_size: As for `feature_statistics`.
    """
    path = (folder or cache_folder()) / "statistics" / f"{content_hash(images, extractor.name)}.safetensors"
    if path.is_file():
        try:
            stored = load_file(path)
            return FeatureStatistics(stored["mean"], stored["scatter"], int(stored["count"]))
        except (SafetensorError, KeyError):
            pass
    statistics = feature_statistics(images, extractor, batch_size=batch_size)
    tensors = {
        "mean": statistics.mean,
        "scatter": statistics.scatter.contiguous(),
        "count": torch.tensor(statistics.count),
    }
    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary))
    except OSError:
        pass  # a read-only home: slower next time
    return statistics
