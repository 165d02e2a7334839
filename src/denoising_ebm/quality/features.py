"""Features of images, kept by content in files of a few hundred images: slow networks see an image once."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from denoising_ebm.datasets.images import content_hash
from denoising_ebm.quality.extractors import FeatureExtractor
from denoising_ebm.utils.io import write_atomically
from denoising_ebm.utils.progress import Bar, no_bar

#: Images whose features stand in one file. Sets that begin with the same images share files.
SHARD = 500


def cache_folder() -> Path:
    """Return where features are kept: `$DENOISING_EBM_CACHE`, or `denoising-ebm` in the user's cache folder."""
    named = os.environ.get("DENOISING_EBM_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "denoising-ebm"


def cached_features(
    images: Tensor,
    extractor: FeatureExtractor,
    *,
    folder: Path | None = None,
    batch_size: int = 250,
    bar: Bar = no_bar,
) -> Tensor:
    """Return the features of images, from the cache where they were computed before.

    Files are written as they are finished, so that work that was interrupted goes on. A damaged file is made anew. Where the
    cache cannot be written the features are returned all the same.

    Args:
        images: uint8, shape `(n, c, h, w)`.
        extractor: Maps images to features.
        folder: Of the cache; `cache_folder()` if None.
        batch_size: Images handed to the extractor at once, > 0.
        bar: Shows how far the work is.

    Returns:
        Shape `(n, num_features)`, on the CPU.

    Raises:
        ValueError: If `batch_size` is not positive or `images` is not uint8.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be > 0, got {batch_size}")
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    parts = []
    with bar(f"features, {extractor.name}", len(images)) as progress:
        for shard in torch.split(images, SHARD):
            path = (folder or cache_folder()) / "features" / f"{content_hash(shard, extractor.name)}.safetensors"
            features = _stored(path, (len(shard), extractor.num_features))
            if features is None:
                features = torch.cat([extractor(batch).cpu() for batch in torch.split(shard, batch_size)])
                _store(features, path)
            parts.append(features)
            progress(len(shard))
    return torch.cat(parts)


def _stored(path: Path, shape: tuple[int, int]) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        features = load_file(path)["features"]
    except (SafetensorError, KeyError):
        return None
    return features if features.shape == shape else None


def _store(features: Tensor, path: Path) -> None:
    try:
        write_atomically(path, lambda temporary: save_file({"features": features.contiguous()}, temporary))
    except OSError:
        pass  # a read-only home: slower next time
