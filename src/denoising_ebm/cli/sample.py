"""`debm sample`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoising_ebm.cli.common import check_at_least, check_output, note
from denoising_ebm.cli.options import HARDWARE, HardwareOptions
from denoising_ebm.config import Drift, SamplerName

if TYPE_CHECKING:
    from denoising_ebm.samplers import ChainState


def sample(
    model: str,
    *,
    n: int = 64,
    out: Path | None = Path("samples.png"),
    columns: int = 8,
    npz: Path | None = None,
    semantic: Path | None = None,
    trajectory: Path | None = None,
    sampler: SamplerName = "two-stage",
    steps: int | None = None,
    drift: Drift | None = None,
    seed: int = 0,
    start: int = 0,
    batch_size: int = 64,
    hardware: HardwareOptions = HARDWARE,
) -> None:
    """Draw images from a model.

    By default they are drawn in two stages: a Langevin chain in the latent space gives a semantic image, from which
    the sampler in pixels starts (eq. 15, 16). The other samplers start from noise.

    Each image depends on the seed and its number alone, whatever the batch size: the first 6 of 12 are the 6 of 6. Sets of
    different seeds are unrelated, and --start lets several machines draw parts of one set.

    Examples:
        debm sample runs/fashion --out grid.png
        debm sample runs/fashion --n 16 --semantic semantic.png --trajectory chains.png
        debm sample cifar10-small --drift density --out energy.png
        debm sample runs/fashion --sampler heun --steps 18 --seed 1 --out heun.png
        debm sample runs/fashion --n 10000 --batch-size 500 --npz samples.npz --out ''
        debm sample runs/fashion --n 10000 --start 10000 --npz more.npz --out ''

    Args:
        model: Run folder, model folder, name of a bundled model, or Hub id owner/name.
        n: Number of images.
        out: PNG with all images; '' for none.
        columns: Images in a row of the PNG.
        npz: NumPy file with `arr_0`, uint8 (n, height, width, channels), as tools for FID read it.
        semantic: PNG with each semantic image h(z) left of the image that it became (two-stage).
        trajectory: PNG with states of the first 8 chains, a row each (figure 5 of the paper).
        sampler: two-stage is the model's own. From noise: annealed Langevin dynamics, consistent annealed sampling,
            ancestral sampling, SDE-DPM-Solver++(2M), Heun's method on the probability-flow ODE, or the Metropolis-adjusted
            Langevin algorithm (mala), which says how many proposals it accepted; by itself that one runs in fp32.
        steps: Noise levels in pixels. By default those of the model, or of the sampler.
        drift: What pixels follow: density is the gradient of the energy that is the density (models with a density network),
            denoiser the denoiser's output, energy the gradient of the texture energy of eq. 7. By default the model's.
        seed: Seed of all images.
        start: Number of the first image, from 0 on.
        batch_size: Images that are drawn at once.
        hardware: Where to compute.
    """
    pictures = {"--out": out, "--semantic": semantic, "--trajectory": trajectory}
    for path in pictures.values():
        check_output(path, ".png")
    check_output(npz, ".npz")
    if npz is None and not any(pictures.values()):
        raise ValueError("nothing to write: give --out, --npz, --semantic or --trajectory")
    if semantic is not None and sampler != "two-stage":
        raise ValueError(f"--semantic needs --sampler two-stage, got {sampler}")
    check_at_least(1, columns=columns)
    check_at_least(0, start=start)

    import torch

    from denoising_ebm.config import SamplingConfig
    from denoising_ebm.datasets.images import to_uint8
    from denoising_ebm.samplers import METHODS, Trajectory, num_chain_steps, two_stage_steps
    from denoising_ebm.utils.io import write_npz
    from denoising_ebm.utils.progress import progress_bar
    from denoising_ebm.viz.grids import save_grid, save_picture, trajectory_grid

    net = hardware.load_model(model)
    chosen = net.configure_sampler(sampler, steps=steps, drift=drift)
    chain_steps = two_stage_steps(chosen) if isinstance(chosen, SamplingConfig) else num_chain_steps(chosen)
    pixel = chosen.pixel if isinstance(chosen, SamplingConfig) else chosen
    if METHODS[pixel.method].needs_energy and hardware.precision == "auto":
        # Its test compares sums over all pixels to within a nat, which bf16 does not resolve at small noise.
        net.set_precision("fp32")
    chains = None if trajectory is None else Trajectory(net.decode)
    rates: list[float] = []

    def callback(state: ChainState) -> None:
        if chains is not None:
            chains(state)
        if state.acceptance is not None:
            rates.append(state.acceptance)

    with progress_bar(f"{sampler} sampling", max(n, 0) * chain_steps) as progress:
        how: dict[str, Any] = {"seed": seed, "start": start, "batch_size": batch_size}
        drawn = net.sample(n, sampler=chosen, **how, callback=callback, progress=progress)
    if out is not None:
        save_grid(drawn.images, out, columns=columns)
    if npz is not None:
        write_npz(npz, to_uint8(drawn.images).permute(0, 2, 3, 1).contiguous().numpy())
    if semantic is not None and drawn.semantic is not None:
        pairs = torch.stack([drawn.semantic, drawn.images], dim=1).flatten(0, 1)
        save_grid(pairs, semantic, columns=2 * columns)
    if trajectory is not None and chains is not None:
        chains.add(drawn.images, "end")
        save_picture(trajectory_grid(chains.states, chains.labels), trajectory)
    if rates:
        third = max(1, len(rates) // 3)
        first, last = (statistics.fmean(part) for part in (rates[:third], rates[-third:]))
        whose = " of the first batch" if n > batch_size else ""
        note(
            f"{statistics.fmean(rates):.0%} of the proposals{whose} were accepted: {first:.0%} in the first third of the "
            f"steps, {last:.0%} in the last"
        )
    note(f"{n} images: {', '.join(str(path) for path in (*pictures.values(), npz) if path)}")
