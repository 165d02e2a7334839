"""`debm sample`: draw images from a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from denoising_ebm.cli.common import (
    MODEL_HELP,
    add_device_options,
    check_suffix,
    check_writable,
    note,
    progress_bar,
    read_model,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

HELP = "draw images from a model"
USAGE = "debm sample MODEL [--out grid.png] [options]"
DESCRIPTION = """\
Draw images: first a layout in the latent space, then the image in pixels (two-stage), or by another sampler.

The images depend on the seed, the batch size (batch i is drawn with seed + i) and nothing else: sets that are to be
independent need seeds further apart than they have batches."""
EPILOG = """\
Examples:
  debm sample runs/fashion --out grid.png
  debm sample runs/fashion --n 16 --stages stages.png --trajectory chains.png
  debm sample runs/fashion --sampler heun --steps 18 --seed 1 --out heun.png
  debm sample runs/fashion --n 10000 --batch-size 500 --npz samples.npz --out ''"""

Sampler = Literal["two-stage", "dpmpp-2m-sde", "ancestral", "consistent-annealed", "annealed-langevin", "heun", "mala"]


def add(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--n", type=int, default=64, metavar="N", help="number of images")
    parser.add_argument("--out", default="samples.png", metavar="FILE", help="PNG with all images; '' for none")
    parser.add_argument("--columns", type=int, default=8, metavar="N", help="images in a row of the PNG")
    parser.add_argument(
        "--npz",
        metavar="FILE",
        help="NumPy file with `arr_0`, uint8 (n, h, w, channels), as FID tools read it",
    )
    parser.add_argument(
        "--stages", metavar="FILE", help="PNG with each semantic image h(z) left of the image it became (two-stage)"
    )
    parser.add_argument(
        "--trajectory", metavar="FILE", help="PNG with the first 8 chains on their way, a row each (paper, figure 5)"
    )
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--sampler",
        type=Sampler,
        default="two-stage",
        help="two-stage: the model's own (eq. 15, 16); the others from noise: SDE-DPM-Solver++(2M), ancestral sampling, consistent annealed sampling, annealed Langevin, Heun's method on the probability-flow ODE, Metropolis-adjusted Langevin",
    )
    group.add_argument(
        "--steps",
        type=int | None,
        metavar="N",
        help="noise levels in pixels; by default the model's own, or those of the method",
    )
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of the first batch; batch i has seed + i")
    group.add_argument("--batch-size", type=int, default=64, metavar="N", help="images drawn at once")
    add_device_options(parser)


def run(args: Namespace) -> int:
    """Draw and write."""
    paths = {name: check_suffix(args[name] or None, ".png") for name in ("out", "stages", "trajectory")}
    npz = check_suffix(args.npz, ".npz")
    if not any((npz, *paths.values())):
        raise ValueError("nothing to write: give --out, --npz, --stages or --trajectory")
    if args.stages and args.sampler != "two-stage":
        raise ValueError(f"--stages needs --sampler two-stage, got {args.sampler}")
    if args.columns < 1:
        raise ValueError(f"--columns must be >= 1, got {args.columns}")
    for path in (npz, *paths.values()):
        check_writable(path)

    import torch

    from denoising_ebm.config import SamplingConfig
    from denoising_ebm.samplers import Trajectory, num_chain_steps, two_stage_steps
    from denoising_ebm.viz.grids import image_grid, trajectory_grid

    model = read_model(args)
    sampler = model.configure_sampler(args.sampler, steps=args.steps)
    count = two_stage_steps(sampler) if isinstance(sampler, SamplingConfig) else num_chain_steps(sampler)
    trajectory = Trajectory(model.decode) if paths["trajectory"] else None
    with progress_bar(f"{args.sampler} sampling", max(args.n, 0) * count) as advance:
        drawn = model.sample(
            args.n,
            sampler=sampler,
            seed=args.seed,
            batch_size=args.batch_size,
            callback=trajectory,
            progress=advance,
        )
    if paths["out"]:
        _write_png(image_grid(drawn.images, columns=args.columns), paths["out"])
    if npz:
        _write_npz(drawn.images, npz)
    if paths["stages"] and drawn.semantic is not None:
        pairs = torch.stack([drawn.semantic, drawn.images], dim=1).flatten(0, 1)
        _write_png(image_grid(pairs, columns=2 * args.columns), paths["stages"])
    if trajectory is not None and paths["trajectory"]:
        trajectory.add(drawn.images, "end")
        _write_png(trajectory_grid(trajectory.states, trajectory.labels), paths["trajectory"])
    note(f"{args.n} images: {', '.join(str(path) for path in (*paths.values(), npz) if path)}")
    return 0


def _write_png(picture: Image.Image, path: Path) -> None:
    from denoising_ebm.utils.io import write_atomically

    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def _write_npz(images: Tensor, path: Path) -> None:
    import numpy as np

    from denoising_ebm.datasets.images import to_uint8
    from denoising_ebm.utils.io import write_atomically

    array = to_uint8(images).permute(0, 2, 3, 1).contiguous().numpy()

    def write(temporary: Path) -> None:
        # Through an open file, since numpy adds a suffix to names.
        with open(temporary, "wb") as file:
            np.savez(file, array)

    write_atomically(path, write)
