"""What several commands do: notes to the user, checks before work, where models and detectors are."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from denoising_ebm.utils.text import print_line, reason_of

if TYPE_CHECKING:
    from denoising_ebm.model import DenoisingEBM
    from denoising_ebm.ood.detector import Detector


def note(message: str) -> None:
    """Print a line on stderr, beside the result; once however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        print_line(f"debm: {message}")


# -- checks before any work -----------------------------------------------------------------------------------------


def check_at_least(least: float, **options: float) -> None:
    """Refuse options, given by their parameters' names, that are below `least`.

    Raises:
        ValueError: If one is.
    """
    for name, value in options.items():
        if not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} must be >= {least:g}, got {value:g}")


def check_positive(**options: float) -> None:
    """Refuse options, given by their parameters' names, that are not above 0.

    Raises:
        ValueError: If one is not.
    """
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be > 0, got {value:g}")


def check_output(path: Path | None, suffix: str = "") -> None:
    """Refuse a file that cannot be written, before work that would be lost. Nothing is made yet.

    Raises:
        ValueError: If the name has another suffix, or no file can be made there.
    """
    if path is None:
        return
    if suffix and path.suffix.lower() != suffix:
        raise ValueError(f"{path}: expected a file name that ends in {suffix}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, not a file")
    _check_place(path, path.parent)


def check_output_folder(path: Path | None) -> None:
    """Refuse a folder into which nothing can be written, before work that would be lost. Nothing is made yet.

    Raises:
        ValueError: If no file can be made there.
    """
    if path is not None:
        _check_place(path, path)


def _check_place(path: Path, place: Path) -> None:
    while not (place.exists() or place.is_symlink()) and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {reason_of(error)}") from None


def check_apart(option: str, folder: Path | None, source: str) -> None:
    """Refuse to write pictures among the images, which they could replace or be taken for.

    Raises:
        ValueError: If `folder`, given by `option`, is the folder `source` or lies in it, or is that of the file `source`.
    """
    if folder is None or not Path(source).exists():
        return
    images, out = Path(source).resolve(), folder.resolve()
    if out.is_relative_to(images) if images.is_dir() else out == images.parent:
        raise ValueError(f"{option} {folder}: lies in the folder of the images, {source}; give another one")


# -- models and detectors -------------------------------------------------------------------------------------------


def output_folder(model: str, out: Path | None, what: str) -> Path:
    """Return the folder for something that belongs to a model: `out`, or the model's own.

    Args:
        model: Name of the model.
        out: The folder that was asked for.
        what: Is written, for the error.

    Raises:
        ValueError: If it cannot be written there, or if `out` is None and the model is not in a folder of the user's.
    """
    from denoising_ebm.hub import bundled_models, find_model_folder

    folder = out or find_model_folder(model)
    if out is None and not Path(model).is_dir():
        where = "part of the package" if model in bundled_models() else "in a cache that other programs read"
        raise ValueError(f"{model}: is {where}; choose a folder for {what} with --out")
    check_output_folder(folder)
    return folder


def load_detector(name: str, folder: Path | None, model: DenoisingEBM) -> Detector | None:
    """Load a model's detector.

    Args:
        name: Of the model.
        folder: Of the detector; the model's own if None.
        model: The model.

    Returns:
        The detector; None if no folder was given and the model has none.
    """
    from denoising_ebm.hub import DETECTOR_FILES, find_model_folder
    from denoising_ebm.ood.detector import Detector
    from denoising_ebm.utils.device import choose_precision

    place = folder or find_model_folder(name)
    # A pipe or a dangling link in its place is no missing detector: reading it says what it is.
    if folder is None and not os.path.lexists(place / DETECTOR_FILES[0]):
        return None
    detector = Detector.load(place, model)
    if model.precision == "bf16" and choose_precision("auto", model.device) != "bf16":
        note(f"{place}: the detector was fitted in bf16, which is slow on this device; one fitted here would be faster")
    return detector
