"""What the commands share: help, options that several of them have, notes to the user, progress."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from denoising_ebm.utils.progress import progress_bar as progress_bar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from denoising_ebm.datasets.images import ImageSet
    from denoising_ebm.model import DenoisingEBM
    from denoising_ebm.ood.detector import Detector

Precision = Literal["auto", "fp32", "bf16"]
Resize = Literal["bilinear", "bicubic", "lanczos", "box"]

MODEL_HELP = "run folder, model folder, name of a bundled model, or Hub id owner/name"
DATA_HELP = (
    "folder of images or of Parquet files, one such file, bundled set (fashion-mnist, digits) or Hub id owner/name"
)


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, keeps the lines of examples, and does not speak of `null`."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        text = re.sub(r"type: Literal\[[^()]*\], ", "", text)  # the choices stand beside the option's name
        return re.sub(r"\s*\((?:type: [^()]*, )?(?:default: (?:null|False)|required)\)", "", text)


def add_source_options(parser: ArgumentParser, split: str) -> None:
    """Add what `read_images` reads."""
    group = parser.add_argument_group("images")
    group.add_argument("--split", default=split, metavar="NAME", help="part of the source, if any; `all` of a folder")
    group.add_argument("--limit", type=int | None, metavar="N", help="use the first N images only")
    group.add_argument(
        "--resize",
        type=Resize | None,
        metavar="FILTER",
        help="bring other sizes to the model's: central square, then bilinear, bicubic, lanczos or box",
    )
    group.add_argument(
        "--center-crop", type=int | None, metavar="N", help="first cut out the central square of N pixels"
    )
    group.add_argument(
        "--convert",
        action="store_true",
        help="bring gray images to RGB, or RGB to gray, where the model takes the other",
    )
    group.add_argument(
        "--strict", action="store_true", help="stop at an unreadable image (by default it is left out and counted)"
    )


def add_device_options(parser: ArgumentParser) -> None:
    """Add `--device` and `--precision`."""
    group = parser.add_argument_group("hardware")
    group.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N; auto takes a GPU if any"
    )
    group.add_argument(
        "--precision", type=Precision, default="auto", help="of the networks; auto is bf16 where that is fast"
    )


def read_images(
    source: str,
    args: Namespace,
    image_size: int,
    channels: int,
    *,
    sample: int | None = None,
    generator: torch.Generator | None = None,
    skip_unfit: bool = False,
) -> ImageSet:
    """Load images as the options of `add_source_options` say; see `load_and_note`.

    Args:
        source: Where they are.
        args: The options.
        image_size: Of the model.
        channels: Of the model.
        sample: As for `load_images`.
        generator: As for `load_images`.
        skip_unfit: As for `load_images`.
    """
    return load_and_note(
        source,
        split=args.split,
        image_size=image_size,
        channels=channels,
        resize=args.resize,
        center_crop=args.center_crop,
        limit=args.limit,
        sample=sample,
        generator=generator,
        convert=args.convert,
        strict=args.strict,
        skip_unfit=skip_unfit and not args.strict,
    )


def load_and_note(source: str, **options: Any) -> ImageSet:
    """Load images, and tell the user what was left out.

    Args:
        source: Where they are.
        options: Those of `load_images`.

    Raises:
        ValueError: As `load_images`, and if `source` is both a bundled set and something here.
    """
    from denoising_ebm.datasets.images import load_images
    from denoising_ebm.datasets.sources import BUNDLED

    if source in BUNDLED and Path(source).exists():
        raise ValueError(f"{source}: is the name of a bundled set, and stands here too; ./{source} means the latter")
    images = load_images(source, **options)
    if images.unreadable:
        first, kind = images.unreadable[0], "unreadable or unfit" if options.get("skip_unfit") else "unreadable"
        note(f"{source}: {len(images.unreadable)} {kind} image(s) left out, first {first.name}: {first.reason}")
    return images


def preprocess_as_fitted(args: Namespace, detector: Detector | None) -> None:
    """Prepare images as those were that the detector was fitted to, or if options say how say whether it is the same."""
    if detector is None or not detector.preprocessing:
        return
    fitted = detector.preprocessing
    args.convert = args.convert or bool(fitted.get("convert"))
    given = [name for name in ("resize", "center_crop") if args[name] is not None]
    for name in ("resize", "center_crop"):
        if not given:
            args[name] = fitted.get(name)
        elif args[name] != fitted.get(name):
            option = f"--{name.replace('_', '-')}"
            now, before = (f"{option} {value}" if value else f"no {option}" for value in (args[name], fitted.get(name)))
            note(
                f"{now}: the detector was fitted to images with {before}; images made otherwise look odd, and its "
                "false-alarm rate need not hold"
            )


def read_ood_sets(wanted: Sequence[str], normal: Tensor, args: Namespace) -> dict[str, Tensor]:
    """Load or make the odd sets that `--ood` names, of the size of the normal images.

    Args:
        wanted: NAME=DATA, NAME=DATA@SPLIT, the name of a made set, or `all` for every made set.
        normal: The normal images, uint8, of which sets are made.
        args: The options of `add_source_options`, and `seed`.

    Raises:
        ValueError: If a name is unknown or given twice.
    """
    import torch

    from denoising_ebm.ood.outliers import SYNTHETIC_OOD

    sets: dict[str, Tensor] = {}
    for item in [name for each in wanted for name in (SYNTHETIC_OOD if each == "all" else [each])]:
        name, named, source = item.partition("=")
        if name in sets or name == "normal":
            raise ValueError(f"--ood: {name} is given twice")
        if not named:
            if name not in SYNTHETIC_OOD:
                raise ValueError(f"--ood: {name} is neither NAME=DATA nor one of all, {', '.join(SYNTHETIC_OOD)}")
            sets[name] = SYNTHETIC_OOD[name](normal, torch.Generator().manual_seed(args.seed))
            continue
        options = args.clone()
        if not Path(source).exists() and "@" in source:
            source, _, options.split = source.rpartition("@")
        sets[name] = read_images(source, options, normal.shape[-1], normal.shape[1]).pixels
    return sets


def read_model(args: Namespace) -> DenoisingEBM:
    """Load `args.model` onto the device and into the precision asked for."""
    from denoising_ebm.model import DenoisingEBM

    return DenoisingEBM.from_pretrained(args.model, device=args.device).set_precision(args.precision)


def folder_to_write(args: Namespace, what: str) -> Path:
    """Return where to write something that belongs to `args.model`: `args.out`, or the model's own folder.

    Args:
        args: With `model` and `out`.
        what: Is written, for the error.

    Raises:
        ValueError: If it cannot be written there, or if the model's folder is not the user's and `out` is not given.
    """
    from denoising_ebm.hub import bundled_models, find_model_folder

    folder = Path(args.out) if args.out else find_model_folder(args.model)
    if not args.out and not Path(args.model).is_dir():
        where = "part of the package" if args.model in bundled_models() else "in a cache that other programs read"
        raise ValueError(f"{args.model}: is {where}; say with --out where {what} goes")
    check_writable(folder, folder=True)
    return folder


def read_detector(args: Namespace, model: DenoisingEBM) -> Detector | None:
    """Load the detector in `args.detector`, or that in the model's folder; None if only the latter may be and is not."""
    from denoising_ebm.hub import DETECTOR_FILES, find_model_folder
    from denoising_ebm.ood.detector import Detector
    from denoising_ebm.utils.device import choose_precision

    folder = Path(args.detector) if args.detector else find_model_folder(args.model)
    if args.detector is None and not (folder / DETECTOR_FILES[0]).is_file():
        return None
    detector = Detector.load(folder, model)
    if model.precision == "bf16" and choose_precision("auto", model.device) != "bf16":
        note(
            f"{folder}: the detector was fitted in bf16, which this device is slow at: fitted anew here it would be faster"
        )
    return detector


def note(message: str) -> None:
    """Say something beside the result: on stderr, once however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        print(f"debm: {message}", file=sys.stderr)


def check_at_least(args: Namespace, least: int, *names: str) -> None:
    """Refuse options below `least`, before any work is done.

    Raises:
        ValueError: If so.
    """
    for name in names:
        if args[name] < least:
            raise ValueError(f"--{name.replace('_', '-')} must be >= {least}, got {args[name]}")


def check_suffix(path: str | None, suffix: str) -> Path | None:
    """Return the path, whose suffix must be `suffix`.

    Raises:
        ValueError: If it has another one.
    """
    if path is None:
        return None
    if Path(path).suffix.lower() != suffix:
        raise ValueError(f"{path}: expected a file name that ends in {suffix}")
    return Path(path)


def check_writable(path: str | Path | None, *, folder: bool = False) -> None:
    """Refuse what cannot be written, before work that would be lost; nothing is made yet.

    Args:
        path: A file, or with `folder` a folder; None for none.
        folder: Whether files are to be written into `path`.

    Raises:
        ValueError: If a file cannot be made there.
    """
    if path is None:
        return
    path = Path(path)
    if not folder and path.is_dir():
        raise ValueError(f"{path}: is a folder, not a file")
    place = path if folder else path.parent
    while not (place.exists() or place.is_symlink()) and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"{path}: cannot be written: {reason}") from None


def check_apart(option: str, folder: str | None, source: str) -> None:
    """Refuse to write pictures where the images are, which would take the place of images or be taken for some later.

    Raises:
        ValueError: If `folder`, given by `option`, is the folder `source` or lies in it, or is that of the file `source`.
    """
    if folder is None or not Path(source).exists():
        return
    images, out = Path(source).resolve(), Path(folder).resolve()
    if out.is_relative_to(images) if images.is_dir() else out == images.parent:
        raise ValueError(f"{option} {folder}: lies in the folder of the images, {source}; give another one")
