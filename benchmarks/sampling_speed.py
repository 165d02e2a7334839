"""Time every sampler of a model side by side: seconds per 64 images and network evaluations, paired rounds.

    python benchmarks/sampling_speed.py fashion-mnist --n 64 --rounds 3

A forward pass counts as one evaluation, an exact gradient as three (forward, and a backward pass of twice its cost).
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable

import torch

from denoising_ebm import DenoisingEBM
from denoising_ebm.hardware import describe


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
    steps, latent = sampling.texture_steps, 3 * sampling.semantic_steps
    denoiser = 3 if model.config.energy.denoiser == "gradient" else 1

    def two_stage(direction: str) -> Callable[[], object]:
        config = dataclasses.replace(sampling, direction=direction)  # type: ignore[arg-type]
        return lambda: model.two_stage(args.n, sampling=config)

    cases: dict[str, tuple[Callable[[], object], int]] = {
        "two-stage, first term": (two_stage("first-term"), latent + steps + denoiser),
        "two-stage, exact gradient": (two_stage("exact"), latent + 3 * steps + denoiser),
        "heun, 20 levels": (lambda: model.sample(args.n, sampler="heun", steps=20), denoiser * 39),
        "mala, 50 steps": (lambda: model.sample(args.n, sampler="mala", steps=50), 6 * 50 + denoiser),
    }
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
    base = sorted(seconds["two-stage, first term"][1:])[args.rounds // 2]
    print("| sampler | evaluations | s per 64 images | ratio |\n|---|---|---|---|")
    for name, (_run, evaluations) in cases.items():
        median = sorted(seconds[name][1:])[args.rounds // 2]
        print(f"| {name} | {evaluations} | {median * 64 / args.n:.2f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
