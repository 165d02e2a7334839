"""`debm evaluate`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from denoising_ebm.cli.common import (
    check_at_least,
    check_output_folder,
    check_positive,
    load_detector,
    note,
)
from denoising_ebm.cli.inspect import has_inspector, measure_photos
from denoising_ebm.cli.ood_sets import load_ood_sets
from denoising_ebm.cli.options import HARDWARE, TEST_IMAGES, HardwareOptions, ImageOptions

if TYPE_CHECKING:
    from torch import Tensor

    from denoising_ebm.ood.metrics import SetResult
    from denoising_ebm.viz.report import Table


def evaluate(
    model: str,
    *,
    in_: str,
    ood: list[str] | None = None,
    out: Path | None = None,
    detector: Path | None = None,
    sigma: float = 0.05,
    likelihood: Literal["auto", "immse", "none"] = "auto",
    rate: float = 0.05,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 256,
    options: ImageOptions = TEST_IMAGES,
    hardware: HardwareOptions = HARDWARE,
) -> None:
    """Measure how well OOD images are told from normal ones.

    Prints AUROC, AUPR and FPR at 95 % TPR with bootstrap intervals, for the model's detector (`debm fit-detector`) and
    for its energy at one noise level. The energy is the paper's score, but for the inner noise of eq. 7 where the
    model has none.

    A model with a normalised density network (`debm info` says so) also gives log-likelihoods, in bits per dimension: the
    mean of each set, and how well they tell OOD images. Smooth images have few bits, whatever they show, so as a score
    for OOD images they mislead. --likelihood immse finds them by the denoiser in other models, at 64 network evaluations
    an image: about 12 minutes for 1,000 images of 32 x 32 on a CPU core.

    OOD sets are images (NAME=DATA or NAME=DATA@SPLIT) or synthetic ones, made from the normal images: interpolation
    (means of two, as in the paper), constant, uniform-noise, gaussian-noise, impulse-noise, blur, contrast,
    brightness, pixelate, jpeg, zoom, upside-down, shuffled, spliced, inverted, swapped-channels. `all` stands for all
    of these. All but the first three resemble the corruptions that a detector is fitted with.

    Writes into the folder --out: index.html (tables, ROC curves, histograms), results.csv, and scores.parquet with the
    scores of every image.

    A model of photographs with an inspector (`debm inspect --train`) is measured on photos of any size in MVTec AD's or
    VisA's layout or good/ beside other folders, which --in names alone: image and pixel AUROC, AUPRO, AUPIMO, and F1 at
    the rate --rate, for each kind of defect. --out is then the folder of `debm inspect`.

    Examples:
        debm evaluate runs/cifar --in CIFAR10 --ood svhn=SVHN --ood interpolation --out runs/ood
        debm evaluate runs/cifar --in CIFAR10 --limit 2000 --ood celeba=CELEBA@train --resize bilinear
        debm evaluate fashion-mnist --in fashion-mnist --ood digits=digits --ood all
        debm evaluate runs/bottle/run --in bottle/ --rate 0.05

    Args:
        model: Run folder, model folder, name of a bundled model, or Hub id owner/name.
        in_: Normal images: folder of images or of Parquet files, one such file, bundled dataset (fashion-mnist, digits),
            or hf://owner/name on the Hugging Face Hub.
        ood: An OOD set, see above; may be repeated. Needed but for photographs.
        out: Folder for the page and the tables.
        detector: Folder of the detector. By default the model's, if it has one.
        sigma: Noise level of the energy.
        likelihood: Bits per dimension: by the density network where there is one (auto), by the denoiser and an integral
            over noise levels, slowly (immse), or not at all.
        rate: Of photographs: share of normal ones in which anything may be marked.
        resamples: Bootstrap samples for the intervals.
        seed: Seed of synthetic sets and of the bootstrap.
        batch_size: Images that are scored at once.
        options: How to read images.
        hardware: Where to compute.
    """
    check_positive(sigma=sigma)
    check_at_least(1, batch_size=batch_size)
    check_at_least(2, resamples=resamples)
    check_at_least(0, seed=seed)
    check_output_folder(out)
    if has_inspector(model):
        if ood:
            raise ValueError(
                f"{model}: has an inspector of photographs, whose folders say what is defective: leave --ood out"
            )
        measure_photos(model, in_, out, rate, seed, resamples, hardware)
        return
    if not ood:
        raise ValueError(f"--ood is required for {model}, which has no inspector of photographs")
    import torch

    from denoising_ebm.ood import metrics
    from denoising_ebm.ood.features import log_energies
    from denoising_ebm.ood.image_storage import StorageRecord, StorageTally, unlike_each_other
    from denoising_ebm.ood.report import bits_table, false_alarm_table, results_table
    from denoising_ebm.utils.progress import progress_bar
    from denoising_ebm.viz.report import markdown

    net = hardware.load_model(model)
    fitted = load_detector(model, detector, net)
    options = options.as_fitted(fitted, net)
    # A set that is not there stops before any work is done.
    normal = options.load(in_, net.image_shape, normal_only=True)
    sets = {"normal": normal, **load_ood_sets(ood, normal.pixels, options, seed)}
    if fitted is None:
        note(f"{model}: has no detector (`debm fit-detector` makes one), so only the energy is measured")
    elif known := int(fitted.was_fitted_on(normal.pixels).sum()):
        note(
            f"{in_}: the detector was fitted to or calibrated on {known:,} of these {len(normal):,} images, so its results "
            "are better than those of new images"
        )
    if fitted is not None and (unlike := fitted.unlike_fitting(StorageTally(normal.stored, normal.pixels))):
        note(f"{in_}: {unlike}")
    noise = net.scoring_noise(seed=seed) if net.config.energy.inner_noise else None
    energy = f"energy at sigma {sigma:g}"
    scores: dict[str, dict[str, Tensor]] = {energy: {}} if fitted is None else {"detector": {}, energy: {}}
    method: Literal["energy", "immse"] = "immse" if likelihood == "immse" else "energy"
    has_bits = likelihood == "immse" or (likelihood == "auto" and net.has_log_prob)
    bits: dict[str, Tensor] = {}
    with progress_bar("scoring", (len(scores) + has_bits) * sum(map(len, sets.values()))) as progress:
        for name, images in sets.items():
            how: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
            if fitted is not None:
                scores["detector"][name] = fitted.score(images.pixels, **how)
            with torch.no_grad():
                scores[energy][name] = log_energies(net, images.pixels, [sigma], noise=noise, **how)[:, 0]
            if has_bits:
                bits[name] = net.bits_per_dim(images.pixels, method=method, seed=seed, **how).value
    if has_bits:
        scores["bits per dimension"] = bits
    results = {}
    for name, values in scores.items():
        others = {key: value for key, value in values.items() if key != "normal"}
        results[name] = metrics.evaluate(values["normal"], others, resamples=resamples, seed=seed)
    print(markdown(results_table(results, len(normal))), end="")
    likelihoods = bits_table(bits, method) if has_bits else None
    if likelihoods is not None:
        print("\n" + markdown(likelihoods), end="")
    records = {name: StorageRecord.of(images) for name, images in sets.items()}
    storage = unlike_each_other(records.pop("normal"), records)
    if storage is not None:
        note(storage)
    alarms = None if fitted is None else false_alarm_table(fitted, scores["detector"]["normal"], normal.stored)
    if alarms is not None:
        print("\n" + markdown(alarms), end="")
    if out is not None:
        metadata = {"model": model, "normal images": in_, "seed": str(seed)}
        if options.resize:
            metadata["resized with"] = options.resize
        _write(out, scores, results, alarms, likelihoods, storage, metadata)


def _write(
    folder: Path,
    scores: Mapping[str, Mapping[str, Tensor]],
    results: Mapping[str, Sequence[SetResult]],
    alarms: Table | None,
    likelihoods: Table | None,
    storage: str | None,
    metadata: Mapping[str, str],
) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    from denoising_ebm import __version__
    from denoising_ebm.ood.report import evaluation_sections, write_results
    from denoising_ebm.utils.io import write_atomically
    from denoising_ebm.viz.report import write_report

    write_results(results, folder / "results.csv")
    columns: dict[str, list[Any]] = {"score": [], "set": [], "image": [], "value": []}
    for score, sets in scores.items():
        for name, values in sets.items():
            columns["score"] += [score] * len(values)
            columns["set"] += [name] * len(values)
            columns["image"] += range(len(values))
            columns["value"] += values.tolist()
    table = pa.table(columns)
    write_atomically(folder / "scores.parquet", lambda path: pyarrow.parquet.write_table(table, str(path)))
    write_report(
        folder / "index.html",
        title="How well OOD images are told from normal ones",
        sections=evaluation_sections(results, scores, alarms, likelihoods, storage),
        metadata={
            "command": shlex.join(["debm", *sys.argv[1:]]),
            **metadata,
            "version": f"denoising-ebm {__version__}",
        },
    )
    note(f"page: {folder / 'index.html'}")
