"""`debm reproduce`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from denoising_ebm.cli.common import note
from denoising_ebm.cli.ood_sets import load_ood_sets
from denoising_ebm.cli.options import ImageOptions, load_and_note
from denoising_ebm.literals import Resize, Scale

if TYPE_CHECKING:
    from torch import Tensor

    from denoising_ebm.datasets.images import ImageSet
    from denoising_ebm.datasets.preprocessing import Preprocessing

Target = Literal["table1", "table2", "table3", "table4", "classes", "figure4", "figure5", "speed", "all"]


def reproduce(
    target: list[Target],
    *,
    scale: Scale = "tiny",
    out: Path = Path("runs/reproduce"),
    data: str = "fashion-mnist",
    size: int | None = None,
    center_crop: int | None = None,
    convert: bool = False,
    second: str | None = None,
    second_size: int | None = None,
    second_center_crop: int | None = None,
    ood: list[str] | None = None,
    resize: Resize | None = None,
    model: str | None = None,
    minutes: float = 0.0,
    inception: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Run the paper's tables and figures.

    Trains, samples and measures what they show, and writes index.html and results.md into the folder --out, with the
    paper's results beside ours.

    Targets: table1 (samples by objective and sampler), table2 (the same on --second), table3 (noise levels), table4
    (OOD detection), classes (samples by class, where images have labels), figure4 (samples, and whether they are
    copies of training images), figure5 (chains with and without the semantic start), speed (beside NCSN's protocol),
    all.

    Each row is stored when it is finished, and the page is written after each target: after Ctrl-C the same command
    continues at the row where it was. Commands with other targets and the same folder add to the page.

    Scales: tiny shows in minutes that all of it runs, small is for two cores (hours), full is the paper's, for a GPU.

    FID and KID are given with --inception auto; its network sees about eight images a second on one CPU core. The Fréchet
    distance of EfficientNet-lite0 features, which is not FID, is always given. Both are extras: denoising-ebm[eval,fid].

    Examples:
        debm reproduce all --scale tiny --second fashion-mnist --out runs/tiny
        debm reproduce table1 --scale small --data cifar10/ --out runs/cifar10
        debm reproduce figure5 speed --scale small --data cifar10/ --model cifar10-small --out runs/chains
        debm reproduce table4 --scale small --data cifar10/ --model cifar10-small --ood svhn=svhn/@train --out runs/ood
        debm reproduce all --scale full --data cifar10/ --second celeba/ --second-size 64 --inception auto --out runs/full

    Args:
        target: One or more of the targets above.
        scale: How large.
        out: Folder for rows, models and the page.
        data: Folder of images or of Parquet files, one such file, bundled dataset (fashion-mnist, digits), or hf://owner/name
            on the Hugging Face Hub. Without splits a fifth is left out of training for testing.
        size: Resize its images to N pixels (lanczos).
        center_crop: First cut out their central square of N pixels.
        convert: Turn gray test and OOD images into RGB, or RGB ones into gray, where the training images are the other.
        second: Dataset of table 2.
        second_size: Resize its images to N pixels (lanczos).
        second_center_crop: First cut out their central square of N pixels (CelebA 140).
        ood: OOD set of table 4, as for `debm evaluate`; may be repeated. By default interpolation.
        resize: Filter that brings OOD images to the size of the others.
        model: Use this model instead of training by denoising.
        minutes: Minutes of each training; 0 for those of the scale.
        inception: Also FID and KID: auto for the Inception of the extra denoising-ebm[fid], or its file default_1.pt.
        seed: Seed of weights, batches and samples.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
    """
    if minutes < 0:
        raise ValueError(f"--minutes must be >= 0, got {minutes:g}")
    from denoising_ebm.experiments import run
    from denoising_ebm.experiments.experiment import Experiment, Images
    from denoising_ebm.experiments.settings import sizes_of, with_drift
    from denoising_ebm.model import DenoisingEBM
    from denoising_ebm.quality.extractors import EfficientNetLite0Features
    from denoising_ebm.quality.inception import find_weights
    from denoising_ebm.utils.lock import locked

    targets = [name for name in run.STUDIES if name in target or "all" in target]
    weights: bool | str = False
    # Before hours of work that would end without them.
    if targets != ["table4"]:
        EfficientNetLite0Features.packages()
    if inception:
        weights = str(find_weights(None if inception == "auto" else inception))
    with locked(out, "debm reproduce"):
        limit = sizes_of(scale).train_images
        trained = DenoisingEBM.from_pretrained(model, device=device).set_precision("auto") if model else None
        if trained is not None and trained.config.sampling.pixel.drift == "density":
            # The paper's tables compare samplers, and its own energies.
            trained.config = replace(trained.config, sampling=with_drift(trained.config.sampling, "denoiser"))
        prepared = None if trained is None else trained.preprocessing
        train, test = _read(data, limit, size, center_crop, convert=convert, known_to=model, prepared=prepared)
        ood_sets: dict[str, Tensor] = {}
        if "table4" in targets:
            read = load_ood_sets(
                ood or ["interpolation"], test.pixels, ImageOptions(resize=resize, convert=convert), seed
            )
            ood_sets = {name: images.pixels[_order(len(images))] for name, images in read.items()}
        images = Images(data, train.pixels, test.pixels, ood_sets, (train.labels, test.labels))
        options: dict[str, Any] = {"minutes": minutes, "seed": seed, "inception": weights, "device": device}
        experiment = Experiment(out, scale, images, trained=trained, trained_name=model or "", log=note, **options)
        second_experiment = None
        if second and "table2" in targets:
            train, test = _read(second, limit, second_size, second_center_crop, convert=convert)
            images = Images(second, train.pixels, test.pixels)
            second_experiment = Experiment(
                out / "second", scale, images, log=lambda row: note(f"second set: {row}"), **options
            )
        command = shlex.join(["debm", *sys.argv[1:]])
        try:
            page, failed = run.reproduce(targets, experiment, second=second_experiment, command=command, log=note)
        except KeyboardInterrupt:
            note(f"stopped; the same command continues in {out}")
            return 130
    print(f"page: {page}\ntext: {page.with_name('results.md')}")
    if failed:
        note(f"{', '.join(failed)}: could not be made, see the page")
    return 1 if failed else 0


def _read(
    source: str,
    limit: int | None,
    size: int | None = None,
    crop: int | None = None,
    *,
    convert: bool = False,
    known_to: str | None = None,
    prepared: Preprocessing | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Return both splits, of one size and one number of channels, each shuffled.

    With neither `size` nor `crop` they are prepared as `prepared` says, which the model `known_to` keeps.

    Raises:
        ValueError: If there are no splits, and the model `known_to` may have been trained on what would be test images.
    """
    options: dict[str, Any] = {"resize": "lanczos" if size else None, "center_crop": crop}
    if prepared is not None and size is None and crop is None:
        options = asdict(prepared)
        size, convert = options.pop("image_size"), options.pop("convert") or convert
        del options["channels"]
    train = load_and_note(source, default_split="train", image_size=size, **options)
    channels, size = train.pixels.shape[1:3]
    options |= {"normal_only": True, "channels": channels, "convert": convert}
    test = load_and_note(source, default_split="test", image_size=size, **options)
    if train.names == test.names:
        # Without splits both are all images.
        if known_to:
            raise ValueError(
                f"{source}: has no splits, so {known_to} may have been trained on the images that would serve as test "
                "images; with --model give a source with the splits train and test"
            )
        order, num = _order(len(train)), len(train) // 5
        note(f"{source}: has no splits, so {num:,} of its {len(train):,} images, drawn at random, serve as test images")
        return train.take(order[num:][:limit]), train.take(order[:num][:limit])
    return train.take(_order(len(train))[:limit]), test.take(_order(len(test))[:limit])


def _order(num: int) -> Tensor:
    """Return the same shuffled indices every time: folders come class by class."""
    import torch

    return torch.randperm(num, generator=torch.Generator().manual_seed(0))
