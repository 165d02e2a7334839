"""Images of data sets on the Hugging Face Hub, read by `datasets`; only sources that begin with `hf://` get here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from denoising_ebm.datasets.entries import Entry
from denoising_ebm.datasets.parquet import LABELS, class_name
from denoising_ebm.utils.text import reason_of

PREFIX = "hf://"
"""What the name of a source on the Hub begins with."""
_TIMEOUT = 5.0  # seconds


def open_hub(source: str, split: str, streaming: bool) -> tuple[Iterable[Entry], int | None]:
    """Open a data set of the Hub.

    Args:
        source: `hf://owner/name`, or `hf://datasets/owner/name`.
        split: Its part.
        streaming: Read it image by image, for the first few of many; otherwise all of it is downloaded first.

    Returns:
        The images, and their number where it is known.

    Raises:
        FileNotFoundError: If the Hub cannot be reached, or has no such data set.
        ValueError: If it has, but no such part, or no images.
    """
    name = source.removeprefix(PREFIX).removeprefix("datasets/")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise ValueError(f"{source}: expected {PREFIX}owner/name")
    from datasets import load_dataset

    try:
        _ask(name)
        with _uncounted():
            rows = load_dataset(name, split=split, streaming=streaming)
        values = _values(rows)
    except (OSError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"{source}: not loaded from the Hugging Face Hub: {reason_of(error)}") from error
    entries = (Entry(f"{split}#{row}", _downloaded(value), label) for row, (value, label) in enumerate(values))
    return entries, None if streaming else len(rows)


def _downloaded(value: Any) -> Any:
    """Return the image of a row, whose path, if it has one in place of bytes, must be of the Hub or what came from there.

    Other paths are refused when the image is read: a stranger's rows must not open files of this machine.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    from datasets import config

    if not isinstance(value, dict) or value.get("bytes") is not None or value.get("path") is None:
        return value
    path = str(value["path"])
    caches = (config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    if "://" in path:
        is_ours = path.rpartition("::")[2].startswith(PREFIX)
    else:
        place = Path(path).resolve()
        is_ours = any(place.is_relative_to(Path(cache).expanduser().resolve()) for cache in caches)
    return path if is_ours else ValueError(f"the row names {path}, which is not of the Hub")


def _ask(name: str) -> None:
    """Ask for a data set once: `datasets` would try for half a minute.

    Raises:
        OSError: If there is no answer, or the Hub has no such data set.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return  # the user's word that it is all in the cache
    try:
        HfApi().dataset_info(name, timeout=_TIMEOUT)
    except RepositoryNotFoundError:
        raise FileNotFoundError("no such data set, or it is not public") from None
    except (OSError, ValueError):
        raise
    except Exception as error:  # of the HTTP library, which has changed between versions
        raise ConnectionError(reason_of(error)) from error


@contextmanager
def _uncounted() -> Iterator[None]:
    """Keep `datasets` from reporting each load to a counter, which no argument switches off."""
    from datasets import config

    before = config.HF_UPDATE_DOWNLOAD_COUNTS
    config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = before


def _values(rows: Any) -> Iterator[tuple[Any, str | None]]:
    """Iterate over the undecoded images and the labels of a data set of `datasets`, read in Arrow batches."""
    from datasets import Image as ImageFeature

    features = rows.features or {}
    named = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    if "image" not in features and len(named) != 1:
        raise ValueError(f"no column 'image' among {', '.join(features) or 'no columns'}")
    column = "image" if "image" in features else named[0]
    label = next((name for name in LABELS if name != column and _names_classes(features.get(name))), None)
    classes = getattr(features[label], "names", None) if label else None
    rows = rows.select_columns([column, label] if label else [column])
    rows = rows.cast_column(column, ImageFeature(decode=False)).with_format("arrow")

    def pairs() -> Iterator[tuple[Any, str | None]]:
        for batch in rows.iter(batch_size=16):
            images = batch[column].to_pylist()
            labels = batch[label].to_pylist() if label else [None] * len(images)
            yield from ((image, class_name(value, classes)) for image, value in zip(images, labels, strict=True))

    return pairs()


def _names_classes(feature: Any) -> bool:
    """Whether a column can hold classes: not a picture, nor a number that is measured."""
    from datasets import ClassLabel, Value

    is_value = isinstance(feature, Value) and bool(re.match(r"u?int|string|large_string|bool", feature.dtype))
    return is_value or isinstance(feature, ClassLabel)
