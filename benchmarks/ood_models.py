"""Detection by several models side by side: how it grows with training, and what a training phase does to it.

    python benchmarks/ood_models.py runs/a runs/b cifar10-small --data DATA [--num 500] [--fit 1500]

DATA as for `ood_grid.py`. First table: AUROC of the default detector (but for the
number of altered images), fitted anew for each model. Second table: AUROC of
the energy alone at single noise levels, with and without the inner noise of eq. 7. `untrained` stands for random weights.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from ood_grid import ODD, image_sets

from denoising_ebm import DenoisingEBM, preset
from denoising_ebm.ood.detector import Detector, DetectorConfig
from denoising_ebm.ood.features import Family, compute_features
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.utils.device import choose_device, describe

#: The energy without inner noise, and the paper's.
ENERGIES: dict[Family, str] = {"energy": "clean", "noised-energy": "eq. 7"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--fit", type=int, default=1500)
    parser.add_argument("--altered", type=int, default=50)
    parser.add_argument("--flip", action="store_true", help="average features over images and their mirror images")
    args = parser.parse_args()
    sets = image_sets(args.data, args.num, args.fit)
    del sets["more train"]
    default = DetectorConfig()
    config = replace(default, altered=args.altered, features=replace(default.features, flip=args.flip))
    first, second = [], []
    for name in args.models:
        model = load(name)
        detector = Detector(model, config)
        columns = {key: compute_features(model, pixels, config.features) for key, pixels in sets.items()}
        detector.fit_columns(columns["train"], detector.altered_columns(sets["train"]))
        scores = {key: detector.combine(values) for key, values in columns.items()}
        seen, loss = model.metadata.get("images seen", 0), model.metadata.get("held-out denoising loss", "-")
        first.append([name, seen, loss, *(f"{auroc(scores['test'], scores[odd]):.3f}" for odd in ODD)])
        for family, what in ENERGIES.items():
            for i, sigma in enumerate(config.features.sigmas):
                energies = {key: values[family][:, i] for key, values in columns.items()}
                cells = [f"{auroc(energies['test'], energies[odd]):.3f}" for odd in ODD]
                second.append([name, f"U^c {what}, sigma {sigma:g}", *cells])
        print(first[-1], flush=True)
    print(
        f"\n{describe(choose_device('auto'))}; {args.num} images a set, {args.fit} to fit, {args.altered} altered; seed 0\n"
    )
    for head, rows in ((["model", "images seen", "held-out loss"], first), (["model", "score"], second)):
        print("| " + " | ".join([*head, *ODD]) + " |\n|" + "---|" * (len(head) + len(ODD)))
        for row in rows:
            print("| " + " | ".join(map(str, row)) + " |")
        print()


def load(name: str) -> DenoisingEBM:
    if name != "untrained":
        return DenoisingEBM.from_pretrained(name, device="auto").set_precision("auto")
    torch.manual_seed(0)
    return DenoisingEBM(preset("cifar10-small")).eval().to(choose_device("auto")).set_precision("auto")


if __name__ == "__main__":
    main()
