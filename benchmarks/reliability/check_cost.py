"""What share of training is spent on judging it? Processor time, so that other work beside it does not count.

    python benchmarks/reliability/check_cost.py --preset fashion-mnist --out runs/cost

Each row: milliseconds of a step, and of what comes once a line of metrics.jsonl: losses of the fixed images, norms of all
that is saved, and the copy to roll back to; and the share of losses and norms in `log_every` steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from denoising_ebm import load_images
from denoising_ebm.config import Config, from_dict, merged, to_dict
from denoising_ebm.presets import preset
from denoising_ebm.training import health, trainer
from denoising_ebm.training.health import find_not_finite, weight_norm
from denoising_ebm.viz.report import Table, print_table

PROBES, STEPS = 5, 20


def timed(call: Callable[[], Any], times: int) -> float:
    """Return milliseconds of processor time of a call, without the first."""
    call()
    began = time.process_time()
    for _ in range(times):
        call()
    return 1e3 * (time.process_time() - began) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", nargs="+", default=["fashion-mnist"])
    parser.add_argument("--objective", nargs="+", default=["denoising", "score"])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pixels = load_images("fashion-mnist", limit=600).pixels
    rows = []

    def measure(run: Any, monitor: Any) -> None:
        # In place of the first look at a run's health: model, optimizer state and averages are there.
        training = run.config.training
        step = timed(lambda: run._step(run.measured, 0.5), STEPS)
        losses = timed(run._losses, PROBES)
        norms = timed(lambda: (find_not_finite(run.state.capture()), weight_norm(run.state.model)), PROBES)
        share = 100 * (losses + norms) / (training.log_every * step)
        rows.append([step, losses, norms, timed(run.state.snapshot, PROBES), training.log_every, share])

    loop = trainer._Run.loop

    def measured(run: Any, images: torch.Tensor, monitor: Any, interrupted: Any) -> bool:
        run.measured = images
        finished = loop(run, images, monitor, interrupted)
        measure(run, monitor)
        return finished

    setattr(trainer._Run, "loop", measured)  # noqa: B010
    names = []
    for name in options.preset:
        for objective in options.objective:
            values = to_dict(preset(name))
            steps = {"max_images": 2 * values["training"]["batch_size"], "max_minutes": 0.0, "sample_minutes": 0.0}
            change: dict[str, Any] = {
                "training": steps,
                "stages": [{"objective": objective}],
                "network": {"channels": 1},
            }
            if objective == "score":
                change |= {"energy": {"denoiser": "gradient", "inner_noise": False}}
            config = from_dict(Config, merged(values, change))
            folder = options.out / f"{name}-{objective}-{time.time_ns()}"
            trainer.train(pixels, config, folder, device="cpu", precision="fp32", quiet=True)
            names.append(f"{name}, {objective}")
    columns = ("run", "step ms", "losses ms", "norms ms", "copy ms", "log_every", "share %")
    rounded = [[name, *(round(value, 2) for value in row)] for name, row in zip(names, rows, strict=True)]
    print_table(
        Table(columns, rounded, f"{health.NUM_IMAGES} held-out and {health.NUM_IMAGES} training images are watched.")
    )


if __name__ == "__main__":
    main()
