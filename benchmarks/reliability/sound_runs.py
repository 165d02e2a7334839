"""How far do sound runs stray from their best? The factors beyond which a run counts as diverged must lie well above.

    python benchmarks/reliability/sound_runs.py --out runs/sound --steps 600

Small runs of every objective, of several seeds, rates, warm-ups, batches, changes of stage and counts of images (few are
learned by heart). Each row: divergences that the trainer saw (there must be none); the largest loss of the fixed images over
the lowest before, of weights and averages, as it is judged (the smaller of held-out and training images); and the largest
growth of the weights' norm. The exit status is 1 if a run was rolled back.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from denoising_ebm import load_images
from denoising_ebm.config import Config, from_dict, merged, to_dict
from denoising_ebm.presets import preset
from denoising_ebm.training import health, trainer
from denoising_ebm.viz.report import Table, print_table

TINY: dict[str, Any] = {
    "network": {
        **{"image_size": 16, "channels": 1, "widths": [8, 16], "attention": []},
        **{"decoder_widths": [8, 16], "latent_dim": 8, "embedding_dim": 16},
    },
    "contrastive": {"texture_steps": 4, "semantic_steps": 2, "chain_batch": 8, "buffer_size": 64},
    "training": {"max_minutes": 0.0, "sample_minutes": 0.0, "holdout": 30, "log_every": 10},
}
BY_GRADIENT = {"energy": {"denoiser": "gradient", "inner_noise": False}}
PAPER = {"contrastive": {"weight": 1.0, "regularisation": 0.0, "positive_samples": "clean"}}


def _stages(*names: str) -> dict[str, Any]:
    return {"stages": [{"objective": name} for name in names]}


def _training(**values: Any) -> dict[str, Any]:
    return {"training": values}


#: Name: changes of TINY, number of images.
CASES: dict[str, tuple[list[dict[str, Any]], int]] = {
    "denoising": ([], 300),
    "denoising, seed 1": ([_training(seed=1)], 300),
    "denoising, rate x 3": ([_training(learning_rate=3e-3)], 300),
    "denoising, no warm-up": ([_training(warmup_images=0)], 300),
    "denoising, no warm-up or cool-down, batch 4": ([_training(warmup_images=0, cooldown=0.0, batch_size=4)], 300),
    "denoising, line every step": ([_training(log_every=1)], 300),
    "denoising, line every 100 steps": ([_training(log_every=100)], 300),
    "denoising, 20 images": ([_training(holdout=2)], 20),
    "denoising, 20 images, rate x 3": ([_training(holdout=2, learning_rate=3e-3, cooldown=0.0)], 20),
    "denoising, none held out": ([_training(holdout=0)], 300),
    "denoising, grid of levels, weight 1": ([{"noise": {"draw": "grid", "weighting": "uniform"}}], 300),
    "denoising, grid of levels, weights of the energy": ([{"noise": {"draw": "grid", "weighting": "energy"}}], 300),
    "denoising, short average": ([_training(ema_decay=0.9)], 300),
    "score": ([BY_GRADIENT, _stages("score")], 300),
    "score, seed 1, rate x 3": ([BY_GRADIENT, _stages("score"), _training(seed=1, learning_rate=3e-3)], 300),
    "denoising, score": ([BY_GRADIENT, _stages("denoising", "score")], 300),
    "denoising, contrastive": ([_stages("denoising", "contrastive")], 300),
    "denoising, contrastive, seed 1": ([_stages("denoising", "contrastive"), _training(seed=1)], 300),
    "denoising, contrastive, rate x 3": ([_stages("denoising", "contrastive"), _training(learning_rate=3e-3)], 300),
    "contrastive": ([_stages("contrastive")], 300),
    "contrastive, as in the paper": ([_stages("contrastive"), PAPER], 300),
    "denoising, contrastive as in the paper": ([_stages("denoising", "contrastive"), PAPER], 300),
    "contrastive, persistent": ([_stages("contrastive"), {"contrastive": {"chains": "persistent"}}], 300),
    "contrastive, 20 images": ([_stages("contrastive"), _training(holdout=2)], 20),
    "score, contrastive, score": ([BY_GRADIENT, _stages("score", "contrastive", "score")], 300),
    "contrastive, denoising": ([_stages("contrastive", "denoising")], 300),
}
#: With the preset's own network, at full size.
LARGE = {
    "fashion-mnist": (_stages("denoising"), 600),
    "fashion-mnist, contrastive": (_stages("denoising", "contrastive"), 600),
}


def run(config: Config, num_images: int, folder: Path) -> dict[str, Any]:
    """Train, and return divergences and the largest ratios that were judged."""
    largest = {"denoising": 1.0, "decoder": 1.0, "growth": 1.0}
    compare, norm = trainer.compare_losses, trainer.weight_norm  # type: ignore[attr-defined]
    norms: list[float] = []

    def compare_losses(losses: Mapping[str, float], best: Mapping[str, float], *rest: float, **more: float) -> str:
        for which in ("weights", "average"):
            for kind in ("denoising", "decoder"):
                ratios = [
                    losses[name] / best[name] for name in losses if name.startswith(which) and name.endswith(kind)
                ]
                # At the end of a run the averages alone are compared.
                largest[kind] = max(largest[kind], min(ratios, default=1.0))
        return compare(losses, best, *rest, **more)

    def weight_norm(model: Any) -> float:
        norms.append(norm(model))
        return norms[-1]

    trainer.compare_losses, trainer.weight_norm = compare_losses, weight_norm  # type: ignore[attr-defined]
    shutil.rmtree(folder, ignore_errors=True)
    pixels = load_images("fashion-mnist", limit=num_images).pixels
    if config.network.image_size == 16:
        pixels = torch.nn.functional.avg_pool2d(pixels.float(), 2).round().to(torch.uint8)
    try:
        result = trainer.train(pixels, config, folder, device="cpu", precision="fp32", quiet=True)
    finally:
        trainer.compare_losses, trainer.weight_norm = compare, norm  # type: ignore[attr-defined]
    # Over as many lines as the trainer looks back, at least.
    back = max(1, -(-2 * health.REFERENCE_STEPS // config.training.log_every))
    largest["growth"] = max(norms[i] / min(norms[max(0, i - back) : i + 1]) for i in range(len(norms)))
    return {"divergences": result.rollbacks} | {name: round(value, 3) for name, value in largest.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", nargs="+", default=[*CASES, *LARGE], choices=[*CASES, *LARGE], metavar="CASE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "sound.json"
    rows: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in options.only:
        if name in rows:
            continue
        changes, num_images = CASES[name] if name in CASES else ([LARGE[name][0]], LARGE[name][1])
        values = to_dict(preset("fashion-mnist"))
        steps = options.steps
        training = {"max_minutes": 0.0, "sample_minutes": 0.0, "log_every": 10}
        for change in ([TINY] if name in CASES else [{"training": training}]) + changes:
            values = merged(values, change)
        values["training"]["max_images"] = values["training"]["batch_size"] * steps
        config = from_dict(Config, values)
        rows[name] = run(config, num_images, options.out / "run")
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
        kept.write_text(json.dumps(rows, indent=1))
    columns = ("run", "divergences", "denoising loss / best", "decoder loss / best", "growth of weights")
    print_table(Table(columns, [[name, *rows[name].values()] for name in options.only]))
    return 1 if any(rows[name]["divergences"] for name in options.only) else 0


if __name__ == "__main__":
    sys.exit(main())
