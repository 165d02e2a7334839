"""Detection by several models side by side: how it grows with training, and what a training stage does to it.

    python benchmarks/ood_models.py runs/a runs/b cifar10-small --data DATA [--num 500] [--fit 1500]

DATA as for `ood_grid.py`. First table: AUROC of the default detector (but for the number of corrupted images), fitted anew
for each model. Second table: AUROC of the energy alone at single noise levels, with and without the inner noise of eq. 7.
`untrained` stands for random weights.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from ood_grid import OOD, image_sets
from torch import Tensor

from denoising_ebm import DenoisingEBM, preset
from denoising_ebm.ood.corruptions import corruptions
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import Family, FeatureConfig, compute_features
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.utils.device import choose_device, describe
from denoising_ebm.viz.report import Cell, Table, print_table

#: The energy without inner noise, and the paper's.
ENERGIES: dict[Family, str] = {"energy": "clean", "noisy-energy": "eq. 7"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--fit", type=int, default=1500)
    parser.add_argument("--corrupted", type=int, default=50)
    parser.add_argument("--flip", action="store_true", help="average features over images and their mirror images")
    args = parser.parse_args()
    sets = image_sets(args.data, args.num, args.fit)
    del sets["more train"]
    config = replace(DetectorConfig(), num_corrupted=args.corrupted)
    first: list[list[Cell]] = []
    second: list[list[Cell]] = []
    for name in args.models:
        model = load(name)
        features = {key: features_of(model, pixels, config.features, args.flip) for key, pixels in sets.items()}
        corrupted = corrupted_features(model, sets["train"][-args.corrupted :], config.features, args.flip)
        detector = Detector(model, config).fit_features(features["train"], corrupted)
        scores = {key: detector.score_features(values) for key, values in features.items()}
        seen, loss = model.metadata.get("images seen", 0), model.metadata.get("held-out denoising loss", "-")
        first.append([name, seen, loss, *(auroc(scores["test"], scores[ood]) for ood in OOD)])
        for family, what in ENERGIES.items():
            for i, sigma in enumerate(config.features.sigmas):
                energies = {key: values[family][:, i] for key, values in features.items()}
                cells = [auroc(energies["test"], energies[ood]) for ood in OOD]
                second.append([name, f"U^c {what}, sigma {sigma:g}", *cells])
        print(first[-1], flush=True)
    counts = f"{args.num} images a set, {args.fit} to fit, {args.corrupted} corrupted"
    print(f"\n{describe(choose_device('auto'))}; {counts}; seed 0\n")
    for head, rows in ((["model", "images seen", "held-out loss"], first), (["model", "score"], second)):
        print_table(Table([*head, *OOD], rows))
        print()


def features_of(model: DenoisingEBM, pixels: Tensor, config: FeatureConfig, flip: bool) -> dict[Family, Tensor]:
    """Return the features of images, or with `flip` their means over images and mirror images."""
    found = compute_features(model, pixels, config)
    if flip:
        mirrored = compute_features(model, pixels.flip(3), config)
        found = {family: (values + mirrored[family]) / 2 for family, values in found.items()}
    return found


def corrupted_features(model: DenoisingEBM, pixels: Tensor, config: FeatureConfig, flip: bool) -> dict[Family, Tensor]:
    """Return what `Detector.corrupted_features` does, by `features_of`."""
    generator = torch.Generator().manual_seed(0)
    sets = (pixels, *(corruption(pixels, generator) for corruption in corruptions(pixels.shape[1]).values()))
    tables = [features_of(model, images, config, flip) for images in sets]
    return {family: torch.stack([table[family] for table in tables]) for family in config.families}


def load(name: str) -> DenoisingEBM:
    if name != "untrained":
        return DenoisingEBM.from_pretrained(name, device="auto").set_precision("auto")
    torch.manual_seed(0)
    return DenoisingEBM(preset("cifar10-small")).eval().to(choose_device("auto")).set_precision("auto")


if __name__ == "__main__":
    main()
