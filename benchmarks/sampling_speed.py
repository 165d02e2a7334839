"""Time every sampler of a model side by side: seconds per 64 images and network evaluations, paired rounds.

    python benchmarks/sampling_speed.py fashion-mnist --n 64 --rounds 3

A forward pass counts as one evaluation, an exact gradient as three (forward, and a backward pass of twice its cost).
"""

from __future__ import annotations

import argparse
import time

import torch

from denoising_ebm import DenoisingEBM
from denoising_ebm.config import Drift
from denoising_ebm.experiments.settings import sampler_title, with_drift
from denoising_ebm.model import Sampler
from denoising_ebm.samplers import METHODS
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.report import Table, print_table


def main() -> None:
    """Time the samplers in turn, several rounds, and print the table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model, device=args.device).set_precision("auto")
    sampling = model.config.sampling
    cases: dict[str, Sampler] = {
        f"{METHODS['heun'].title}, T = 20": model.configure_sampler("heun", steps=20),
        f"{METHODS['mala'].title}, T = 50": model.configure_sampler("mala", steps=50),
    }
    # A model trained by `score` has one drift only.
    drifts: tuple[Drift, ...] = ("energy",) if model.config.energy.denoiser == "gradient" else ("energy", "denoiser")
    cases |= {
        f"{sampler_title('two-stage', sampling)}, drift: {drift}": with_drift(sampling, drift) for drift in drifts
    }
    nfe: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds + 1):
        for name, sampler in cases.items():
            started = time.perf_counter()
            nfe[name] = model.sample(args.n, sampler=sampler).nfe
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    print(
        f"{describe(model.device)}; {args.model}; {args.n} images; median of {args.rounds} rounds after one of warm-up"
    )
    base = sorted(seconds[list(cases)[-1]][1:])[args.rounds // 2]
    medians = {name: sorted(values[1:])[args.rounds // 2] for name, values in seconds.items()}
    records = {
        name: {"NFE": nfe[name], "s per 64 images": median * 64 / args.n, "ratio": median / base}
        for name, median in medians.items()
    }
    print_table(Table.from_records(records, first="sampler"))


if __name__ == "__main__":
    main()
