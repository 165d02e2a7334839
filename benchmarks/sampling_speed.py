"""Time every sampler of a model side by side: seconds per 64 images and network evaluations, paired rounds.

    python benchmarks/sampling_speed.py fashion-mnist --n 64 --rounds 3

A forward pass counts as one evaluation, an exact gradient as three (forward, and a backward pass of twice its cost).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from denoising_ebm import DenoisingEBM
from denoising_ebm.experiments.samplers import count_nfe
from denoising_ebm.utils.device import describe


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
    cases: dict[str, tuple[Callable[[], object], int]] = {
        "heun, 20 levels": (
            partial(model.sample, args.n, sampler="heun", steps=20),
            count_nfe(model, "heun", 20),
        ),
        "mala, 50 steps": (
            partial(model.sample, args.n, sampler="mala", steps=50),
            count_nfe(model, "mala", 50),
        ),
    }
    # A model trained by `score` has one direction only.
    by_gradient = model.config.energy.denoiser == "gradient"
    for drift in ("energy",) if by_gradient else ("energy", "denoiser"):
        chains = replace(sampling, drift=drift)  # type: ignore[arg-type]
        model.config = replace(model.config, sampling=chains)
        two_stage = partial(model.two_stage, args.n, sampling=chains)
        cases |= {f"two-stage, {drift}": (two_stage, count_nfe(model, "two-stage", None))}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds + 1):
        for name, (run, _evaluations) in cases.items():
            started = time.perf_counter()
            run()
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    print(
        f"{describe(model.device)}; {args.model}; {args.n} images; median of {args.rounds} rounds after one of warm-up"
    )
    base = sorted(seconds[list(cases)[-1]][1:])[args.rounds // 2]
    print("| sampler | evaluations | s per 64 images | ratio |\n|---|---|---|---|")
    for name, (_run, nfe) in cases.items():
        median = sorted(seconds[name][1:])[args.rounds // 2]
        print(f"| {name} | {nfe} | {median * 64 / args.n:.2f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
