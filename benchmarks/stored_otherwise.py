"""Does the false-alarm rate hold for JPEG copies of normal images, and what does it cost to have it hold?

    python benchmarks/stored_otherwise.py MODEL --data DATA [--fit 1500] [--num 1000] [--seed 0]

DATA must have been stored without loss. One detector is fitted to its training images as they are, one with JPEG of
qualities 70 to 95 as harmless (`DetectorConfig.harmless`). Test images and copies of them of three qualities are scored
once; every split calibrates on one half and counts flags among the other, by PNG alone or, as detectors do, each image
among those that were stored alike. The cost is the AUROC on the synthetic sets of `ood.corruptions`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, Detector, load_images
from denoising_ebm.datasets.decode import Stored
from denoising_ebm.ood.calibration import Calibration, Scores
from denoising_ebm.ood.conformal import flagged
from denoising_ebm.ood.corruptions import CORRUPTIONS, SYNTHETIC_OOD, corrupt
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import compute_features
from denoising_ebm.ood.image_storage import KINDS, jpeg_copies, kind_of
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.report import Cell, Table, print_table

LOSSLESS = KINDS.index("lossless")
QUALITIES = (95, 85, 75)


def scores_of(detectors: Mapping[str, Detector], pixels: Tensor) -> dict[str, Tensor]:
    """Return the scores of images by detectors of one model, whose features are computed once."""
    first = next(iter(detectors.values()))
    features = compute_features(first.model, pixels, first.config.features)
    return {name: detector.score_features(features) for name, detector in detectors.items()}


def shares_flagged(
    scores: Mapping[str, Tensor], kinds: Mapping[str, int], copies: Scores | None, rate: float, splits: int
) -> list[float]:
    """Return the share of each set that is flagged, mean over splits into calibration images and others.

    Args:
        scores: Scores of the test images, first as they are, then of copies of them.
        kinds: How each of these sets was stored, a number of `KINDS`.
        copies: Of copies of the test images, one each, to calibrate on too; None to calibrate on PNG alone.
        rate: False-alarm rate.
        splits: Their number, by seeds from 0 on.
    """
    plain = next(iter(scores.values()))
    half, shares = len(plain) // 2, {name: list[float]() for name in scores}
    for seed in range(splits):
        order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(seed))
        held, new = order[:half], order[half:]
        calibration = Calibration(Scores.of(plain[held], held, torch.full_like(held, LOSSLESS)))
        if copies is not None:
            theirs = Scores(copies.values[held], held, copies.kinds[held])
            calibration = Calibration(calibration.images, theirs)
        for name, part in scores.items():
            p = calibration.p_values(part[new], torch.full_like(new, kinds[name]))
            shares[name].append(float(flagged(p, rate, half).double().mean()))
    return [math.fsum(part) / splits for part in shares.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--fit", type=int, default=1500, help="training images; a fifth takes no part in fitting")
    parser.add_argument("--num", type=int, default=1000, help="test images")
    parser.add_argument("--ood", type=int, default=200, help="images a synthetic set")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model).set_precision("auto")
    channels, size, _ = model.image_shape
    train, test = (
        load_images(args.data, split=split, limit=count, image_size=size, channels=channels)
        for split, count in (("train", args.fit), ("test", args.num))
    )
    if any(kind_of(stored) != LOSSLESS for stored in (*train.stored, *test.stored)):
        parser.error(f"{args.data}: not all images were stored without loss")
    plain, harmless = "PNG", "half JPEG 70 to 95"
    detectors = {
        plain: Detector(model).fit(train, groups="none", seed=args.seed),
        harmless: Detector(model, DetectorConfig(harmless=("jpeg",))).fit(train, groups="none", seed=args.seed),
    }
    generator = torch.Generator().manual_seed(args.seed)
    drawn, drawn_kinds = jpeg_copies(test.pixels, generator)
    copies = Scores.of(scores_of(detectors, drawn)[harmless], kinds=drawn_kinds)
    sets, kinds = {"PNG": test.pixels}, {"PNG": LOSSLESS}
    for quality in QUALITIES:
        sets[f"JPEG {quality}"] = corrupt(test.pixels, CORRUPTIONS["jpeg"].change, quality, generator)
        kinds[f"JPEG {quality}"] = kind_of(Stored("JPEG", size, size, quality=quality))
    scores = {name: scores_of(detectors, pixels) for name, pixels in sets.items()}

    print(f"{args.model}; {describe(model.device)}; fitted to {len(train) - len(train) // 5} images, seed {args.seed}")
    print(f"{len(test)} test images, {args.splits} random halves for calibration; share flagged at {args.rate:g}\n")
    rows: list[list[Cell]] = []
    for fitted, by, calibrated in (
        (plain, "PNG", None),
        (harmless, "PNG", None),
        (harmless, "each way of storing by itself", copies),
    ):
        own = {name: both[fitted] for name, both in scores.items()}
        rows.append([fitted, by, *shares_flagged(own, kinds, calibrated, args.rate, args.splits)])
    print_table(Table(["fitted to", "calibrated on", *sets], rows))

    print(f"\nAUROC on {min(args.ood, len(test))} images a set\n")
    aurocs: list[list[Cell]] = []
    normal = scores["PNG"]
    for name, make in SYNTHETIC_OOD.items():
        if name != "swapped-channels" or channels == 3:
            made = scores_of(detectors, make(test.pixels[: args.ood], torch.Generator().manual_seed(args.seed)))
            aurocs.append([name, *(float(auroc(normal[fitted], made[fitted])) for fitted in detectors)])
    means = [math.fsum(float(row[place]) for row in aurocs) / len(aurocs) for place in (1, 2)]  # type: ignore[arg-type]
    print_table(Table(["synthetic set", *(f"fitted to {name}" for name in detectors)], [*aurocs, ["mean", *means]]))


if __name__ == "__main__":
    main()
