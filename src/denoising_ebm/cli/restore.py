"""`debm restore`: remove noise or blur, or fill in missing pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from denoising_ebm.cli.common import (
    DATA_HELP,
    MODEL_HELP,
    add_device_options,
    add_source_options,
    check_apart,
    check_at_least,
    check_suffix,
    check_writable,
    note,
    progress_bar,
    read_images,
    read_model,
)

if TYPE_CHECKING:
    from torch import Tensor

    from denoising_ebm.restoration.operators import Degradation

HELP = "restore images: remove noise or blur, fill in missing pixels"
USAGE = "debm restore MODEL IMAGES --task denoise|inpaint|deblur [--sigma S] [--mask FILE] [--blur W] [options]"
DESCRIPTION = """\
Restore degraded images: annealed Langevin chains on the model's energy plus a data term (for noise alone, one pass of the
denoiser). The model needs no training for a task. Noise is given as its standard deviation for images in [-1, 1]: 0.2 is
25.5 grey levels.

Writes a PNG an image. With --degrade the images are taken as clean: they are degraded first, and PSNR and SSIM against the
originals are printed."""
EPILOG = """\
Examples:
  debm restore cifar10-small noisy/ --task denoise --sigma 0.2 --out restored/
  debm restore cifar10-small scratched/ --task inpaint --mask mask.png     white pixels of the mask are filled in
  debm restore cifar10-small soft/ --task deblur --blur 1.5 --sigma 0.02
  debm restore fashion-mnist fashion-mnist --split test --limit 16 --degrade --task denoise --sigma 0.5 --grid grid.png"""

Task = Literal["denoise", "inpaint", "deblur"]
Estimate = Literal["mean", "sample"]


def add(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("images", metavar="IMAGES", help=DATA_HELP)
    parser.add_argument("--task", type=Task, required=True, help="what to undo: noise, missing pixels or blur")
    parser.add_argument("--out", default="restored", metavar="DIR", help="folder for a PNG an image; '' for none")
    parser.add_argument(
        "--grid", metavar="FILE", help="PNG with the first 16 images: degraded, restored, and clean with --degrade"
    )
    group = parser.add_argument_group("degradation")
    group.add_argument(
        "--sigma", type=float | None, metavar="S", help="standard deviation of the noise, for images in [-1, 1]"
    )
    group.add_argument(
        "--mask", metavar="FILE", help="picture of the images' size whose white pixels are missing (inpaint)"
    )
    group.add_argument(
        "--blur", type=float | None, metavar="W", help="standard deviation of the Gaussian blur, in pixels (deblur)"
    )
    group.add_argument("--degrade", action="store_true", help="the images are clean: degrade them first, and measure")
    group = parser.add_argument_group("restoration")
    group.add_argument(
        "--estimate",
        type=Estimate,
        default="mean",
        help="mean: the average of several chains, smallest error; sample: one chain, sharp",
    )
    group.add_argument("--draws", type=int, default=8, metavar="N", help="chains to average")
    group.add_argument("--steps", type=int, default=50, metavar="N", help="Langevin steps of a chain")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of noise and chains; batch i has seed + i")
    group.add_argument("--batch-size", type=int, default=64, metavar="N", help="images restored at once")
    add_source_options(parser, split="test")
    add_device_options(parser)


def run(args: Namespace) -> int:
    """Restore and write."""
    grid = check_suffix(args.grid, ".png")
    if not args.out and grid is None and not args.degrade:
        raise ValueError("nothing to write: give --out, --grid or --degrade")
    check_at_least(args, 1, "batch_size", "draws")
    check_at_least(args, 2, "steps")
    check_at_least(args, 0, "seed")
    needed = {"denoise": "sigma", "inpaint": "mask", "deblur": "blur"}[args.task]
    if args[needed] is None:
        raise ValueError(f"--task {args.task} needs --{needed}")
    for name, task in (("mask", "inpaint"), ("blur", "deblur")):
        if args[name] is not None and args.task != task:
            raise ValueError(f"--{name} is for --task {task}, got --task {args.task}")

    check_apart("--out", args.out or None, args.images)
    check_writable(args.out or None, folder=True)
    check_writable(grid)
    import torch

    from denoising_ebm.datasets.images import check_png_names, to_float, to_uint8
    from denoising_ebm.restoration.metrics import ssim_package
    from denoising_ebm.restoration.posterior import restore

    if args.degrade:
        # Before work that would end without it.
        ssim_package()
    model = read_model(args)
    channels, size, _ = model.image_shape
    degradation = _degradation(args, size)
    images = read_images(args.images, args, size, channels)
    if args.out:
        check_png_names(images.names)
    # Written batch by batch; kept is what the picture and the measures need.
    restored, degraded = [], []
    kept = len(images) if args.degrade else 16
    passes = 1 if args.estimate == "sample" else args.draws
    with progress_bar(f"restoring ({args.task})", len(images) * args.steps * passes) as advance:
        for i, pixels in enumerate(torch.split(images.pixels, args.batch_size)):
            y = to_float(pixels)
            if args.degrade:
                y = degradation.apply(y, torch.Generator().manual_seed(args.seed + i))
            result = restore(
                model,
                y,
                degradation,
                estimate=args.estimate,
                num_samples=args.draws,
                steps=args.steps,
                seed=args.seed + i,
                progress=advance,
            )
            finished, first = to_uint8(result.cpu()), i * args.batch_size
            if args.out:
                _write(images.names[first : first + len(finished)], finished, Path(args.out))
            if first < kept:
                restored.append(finished)
                degraded.append(to_uint8(y))
    if args.out:
        note(f"{len(images)} images: {args.out}")
    if args.degrade:
        _report(images.pixels, {"degraded": torch.cat(degraded), "restored": torch.cat(restored)})
    if grid is not None:
        rows = [torch.cat(degraded)[:16], torch.cat(restored)[:16]] + [images.pixels[:16]] * args.degrade
        from denoising_ebm.viz.grids import save_grid

        save_grid(to_float(torch.cat(rows)), grid, columns=min(16, len(images)))
        note(f"picture: {grid}")
    return 0


def _degradation(args: Namespace, size: int) -> Degradation:
    from denoising_ebm.restoration.operators import blurred, masked, noisy

    noise = args.sigma or 0.0
    if args.task == "denoise":
        return noisy(args.sigma)
    if args.task == "deblur":
        # Files round to 256 levels: without that noise, undoing a blur would enlarge the rounding beyond measure.
        return blurred(args.blur, size, max(noise, 2 / 255 / 12**0.5))
    from denoising_ebm.datasets.images import load_images

    if Path(args.mask).is_dir():
        raise ValueError(f"{args.mask}: is a folder; --mask takes one picture, for all images")
    mask = load_images(args.mask).pixels[0].float().mean(0)
    if tuple(mask.shape) != (size, size):
        raise ValueError(f"{args.mask}: the mask is {mask.shape[1]}x{mask.shape[0]}, the images are {size}x{size}")
    try:
        return masked(mask < 128, noise)
    except ValueError as error:
        raise ValueError(f"{args.mask}: {error}") from None


def _write(names: Sequence[str], restored: Tensor, folder: Path) -> None:
    from functools import partial

    from PIL import Image

    from denoising_ebm.datasets.images import png_name
    from denoising_ebm.utils.io import write_atomically

    for name, pixels in zip(names, restored, strict=True):
        picture = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
        write_atomically(folder / png_name(name), partial(picture.save, format="PNG"))


def _report(clean: Tensor, results: dict[str, Tensor]) -> None:
    """Print PSNR and SSIM of each set against the clean images."""
    from denoising_ebm.restoration.metrics import psnr, ssim

    print(f"{len(clean)} images, means over them")
    for name, pixels in results.items():
        print(
            f"{name:10} PSNR {float(psnr(pixels, clean).mean()):6.2f} dB   SSIM {float(ssim(pixels, clean).mean()):.4f}"
        )
