"""Averages of the weights: by a power function of time (Karras et al., 2024) beside the exponential one, in the same runs.

    python benchmarks/averages.py --data fashion-mnist --preset fashion-mnist --minutes 4 --seeds 0 1 2

One training a seed, with minutes of processor time of one thread, keeps all averages at once, so that they differ by the
average alone. A power function gives step t of n the weight t^gamma; its relative width is the standard deviation of the
steps by these weights, over n: it grows with the run, where an exponential one has a fixed length.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import brentq

from denoising_ebm import DenoisingEBM, load_images, preset, to_float, to_uint8
from denoising_ebm.config import without_density
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.calibration import calibrate
from denoising_ebm.training.lr import learning_rate
from denoising_ebm.training.objectives import Reconstruction, validation_loss
from denoising_ebm.training.setup import new_model
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.report import Table, print_table


def gamma_of(width: float) -> float:
    """Return gamma of a power function of this relative width: sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))."""
    return float(brentq(lambda gamma: (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) - width**2, 0.0, 1e4))


def exponential(decay: float) -> Callable[[int], float]:
    """Return the weight of step n, from 1 on, in an exponential average with the package's warm-up."""
    return lambda n: 1 - min(decay, n / (9 + n)) if n > 1 else 1.0


def power_function(width: float) -> Callable[[int], float]:
    """Return the same of an average by a power function of this relative width."""
    gamma = gamma_of(width)
    return lambda n: 1 - (1 - 1 / n) ** (gamma + 1)


#: For each average the weight of step n in its update.
AVERAGES: dict[str, Callable[[int], float]] = {
    "none (last weights)": lambda n: 1.0,
    "exponential, 0.999": exponential(0.999),
    "exponential, 0.9995": exponential(0.9995),
    "power function, 0.05": power_function(0.05),
    "power function, 0.1": power_function(0.1),
    "power function, 0.15": power_function(0.15),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path, help="rows are added to this file as they come")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        config = without_density(preset(args.preset))
        config = replace(config, training=replace(config.training, seed=seed))
        sizes: dict[str, Any] = {"image_size": config.network.image_size, "channels": config.network.channels}
        pixels = load_images(args.data, split="train", **sizes).pixels
        test = load_images(args.data, split="test", limit=args.samples, **sizes).pixels
        evaluator = FidelityEvaluator(test)
        model, objective = new_model(config).train(), Reconstruction("denoising", config)
        kept: dict[str, DenoisingEBM] = {name: copy.deepcopy(model) for name in AVERAGES}
        optimizer = torch.optim.Adam(model.parameters(), lr=config.training.learning_rate, fused=True)
        begun, step, seen = time.process_time(), 0, 0
        while (share := (time.process_time() - begun) / (60 * args.minutes)) < 1:
            optimizer.param_groups[0]["lr"] = learning_rate(config.training, seen, share)
            (batch,) = draw_batch(pixels, config, step, step)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = objective(model, batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
            optimizer.step()
            step, seen = step + 1, seen + config.training.batch_size
            with torch.no_grad():
                for name, weight in AVERAGES.items():
                    torch._foreach_lerp_(list(kept[name].parameters()), list(model.parameters()), weight(step))
        for name, averaged in kept.items():
            for buffer, now in zip(averaged.buffers(), model.buffers(), strict=True):
                buffer.copy_(now)
            averaged.eval().set_precision("bf16")
            calibrate(averaged, to_float(test[:256]))
            drawn = averaged.sample(args.samples, seed=seed, batch_size=250).images
            row = {
                "average": name,
                "seed": seed,
                "images seen": seen,
                "denoising loss": round(validation_loss(averaged.denoise, to_float(test[:512]), config), 4),
                "FD": round(evaluator.frechet_distance(to_uint8(drawn)), 1),
            }
            rows.append(row)
            print(row, flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=2))
    print(f"\n{args.minutes:g} minutes of processor time each; {describe(torch.device('cpu'))}")
    print(f"{evaluator.protocol(args.samples, 'test')}")
    print_table(Table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
