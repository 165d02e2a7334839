"""What the energy's gradient costs beside a pass of the denoiser, and an energy training step beside a denoising one.

    OMP_NUM_THREADS=1 python benchmarks/energy_cost.py cifar10-small --rounds 15

The ways take turns, in the precision that is fast here; the figures are medians of the rounds, and medians of the ratios
within a round. On a CPU time is that of the processor, which other programs disturb less than that of the clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from denoising_ebm import DenoisingEBM
from denoising_ebm.training.objectives import Batch, make_objective
from denoising_ebm.utils.device import describe, keep_freed_memory
from denoising_ebm.viz.report import Table, print_table

Work = Callable[[], object]


def make_batch(model: DenoisingEBM, size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand((size, *model.image_shape), generator=generator).to(model.device) * 2 - 1
    noise = torch.randn(x0.shape, generator=generator).to(model.device)
    sigma = torch.rand(size, generator=generator).to(model.device) + 0.05
    return Batch(x0, sigma, noise, 0, generator)


def sampling(model: DenoisingEBM, size: int) -> dict[str, Work]:
    """Return what a step of a sampler asks for: a pass of r, and energy and gradient of the density network."""
    batch, energy = make_batch(model, size), model.pixel_energy("density")
    x, sigma = batch.noisy, batch.sigma
    return {"energy gradient": lambda: energy.gradient(x, sigma), "denoiser": lambda: model.denoise(x, sigma)}


def training(model: DenoisingEBM, size: int) -> dict[str, Work]:
    """Return losses and gradients of both objectives, without the optimiser's step."""
    batch, dtype = make_batch(model, size), torch.bfloat16 if model.precision == "bf16" else torch.float32

    def step(name: str) -> None:
        objective = make_objective(name, model.config)  # type: ignore[arg-type]
        with torch.enable_grad(), torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            loss = objective(model, batch)["loss"]
        loss.backward()
        model.zero_grad(set_to_none=True)

    return {"energy step": lambda: step("energy"), "denoising step": lambda: step("denoising")}


def seconds(work: Work, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.monotonic
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="of its sizes a density network is made if it has none")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sampling-batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--training-batch", type=int, default=16)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    trained = DenoisingEBM.from_pretrained(args.model, device=args.device)
    config = replace(trained.config, energy=replace(trained.config.energy, density=True))
    model = DenoisingEBM(config)
    model.load_state_dict(trained.state_dict(), strict=False)
    assert model.density is not None
    model.density.dae.load_state_dict(trained.dae.state_dict())
    model.to(trained.device).set_precision(args.precision)

    cases = [(size, sampling(model.eval(), size)) for size in args.sampling_batch]
    cases.append((args.training_batch, training(model, args.training_batch)))
    rows = []
    for size, ways in cases:
        model.train("energy step" in ways)
        rounds = [[seconds(work, model.device) for work in ways.values()] for _ in range(args.rounds + 2)][2:]
        first, second = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(a / b for a, b in rounds)
        rows.append([" / ".join(ways), str(size), f"{first:.1f}", f"{second:.1f}", f"{ratio:.2f}"])
    print(f"{describe(model.device)}, {torch.get_num_threads()} threads, {model.precision}, {args.rounds} rounds")
    print_table(Table(["what", "batch", "first, ms", "second, ms", "ratio"], rows))


if __name__ == "__main__":
    main()
