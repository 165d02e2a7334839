"""`debm restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from denoising_ebm.cli.common import check_apart, check_at_least, check_output, check_output_folder, note
from denoising_ebm.cli.options import HARDWARE, TEST_IMAGES, HardwareOptions, ImageOptions
from denoising_ebm.literals import Estimate

if TYPE_CHECKING:
    from torch import Tensor

    from denoising_ebm.restoration.operators import Degradation


def restore(
    model: str,
    images: str,
    *,
    task: Literal["denoise", "inpaint", "deblur"],
    out: Path | None = Path("restored"),
    grid: Path | None = None,
    sigma: float | None = None,
    mask: Path | None = None,
    blur: float | None = None,
    degrade: bool = False,
    estimate: Estimate = "mean",
    samples: int = 8,
    steps: int = 50,
    seed: int = 0,
    batch_size: int = 64,
    options: ImageOptions = TEST_IMAGES,
    hardware: HardwareOptions = HARDWARE,
) -> None:
    """Restore images: remove noise or blur, fill in missing pixels.

    Langevin chains sample from the posterior: the model's energy plus a data term. Noise alone takes one pass of the
    denoiser instead. The model needs no training for a task. Noise is given as its standard deviation for images in
    [-1, 1]: 0.2 is 25.5 grey levels.

    Writes a PNG for each image. With --degrade the images are taken as clean: they are degraded first, and PSNR and
    SSIM against the originals are printed.

    Examples:
        debm restore cifar10-small noisy/ --task denoise --sigma 0.2 --out restored/
        debm restore cifar10-small scratched/ --task inpaint --mask mask.png
        debm restore cifar10-small soft/ --task deblur --blur 1.5 --sigma 0.02
        debm restore fashion-mnist fashion-mnist --limit 16 --degrade --task denoise --sigma 0.5 --grid grid.png

    Args:
        model: Run folder, model folder, name of a bundled model, or Hub id owner/name.
        images: Folder of images or of Parquet files, one such file, bundled dataset (fashion-mnist, digits), or hf://owner/name
            on the Hugging Face Hub.
        task: What to undo: noise (needs --sigma), missing pixels (--mask) or blur (--blur).
        out: Folder for a PNG of each image; '' for none.
        grid: PNG with the first 16 images: degraded, restored and, with --degrade, clean.
        sigma: Standard deviation of the noise, for images in [-1, 1].
        mask: Picture of the images' size. Its white pixels are missing and are filled in.
        blur: Standard deviation of the Gaussian blur, in pixels.
        degrade: The images are clean: degrade them first, and measure.
        estimate: The mean of several samples of the posterior (smallest error), or one sample (sharp).
        samples: Samples to average; each is a Langevin chain.
        steps: Langevin steps of a chain.
        seed: Seed of noise and chains; what an image becomes depends on it and the place of the image alone.
        batch_size: Images that are restored at once.
        options: How to read IMAGES.
        hardware: Where to compute.
    """
    check_output(grid, ".png")
    if out is None and grid is None and not degrade:
        raise ValueError("nothing to write: give --out, --grid or --degrade")
    check_at_least(1, batch_size=batch_size, samples=samples)
    check_at_least(2, steps=steps)
    check_at_least(0, seed=seed)
    needed = {"denoise": ("sigma", sigma), "inpaint": ("mask", mask), "deblur": ("blur", blur)}
    if needed[task][1] is None:
        raise ValueError(f"--task {task} needs --{needed[task][0]}")
    for other, (name, value) in needed.items():
        if value is not None and other not in (task, "denoise"):
            raise ValueError(f"--{name} is for --task {other}, got --task {task}")
    check_apart("--out", out, images)
    check_output_folder(out)
    import torch

    from denoising_ebm.datasets.images import check_png_names, png_name, to_float
    from denoising_ebm.restoration.metrics import psnr, ssim, ssim_package
    from denoising_ebm.restoration.posterior import restore_batches
    from denoising_ebm.utils.progress import progress_bar
    from denoising_ebm.viz.grids import save_grid, save_picture, to_picture

    if degrade:
        # Before work that would end without it.
        ssim_package()
    net = hardware.load_model(model)
    degradation = _degradation(sigma or 0.0, mask, blur, net.image_shape[-1])
    clean = options.load(images, net.image_shape)
    if out is not None:
        check_png_names(clean.names)
    passes = len(clean) * steps * (1 if estimate == "sample" else samples)
    parts: list[tuple[Tensor, Tensor]] = []
    done = 0
    with progress_bar(f"restoring ({task})", passes) as progress:
        how: dict[str, Any] = {"estimate": estimate, "num_samples": samples, "steps": steps, "progress": progress}
        for degraded, restored in restore_batches(
            net, clean.pixels, degradation, degrade=degrade, batch_size=batch_size, seed=seed, **how
        ):
            if out is not None:
                for name, image in zip(clean.names[done:], restored, strict=False):
                    save_picture(to_picture(image), out / png_name(name))
            # Of large sets no more is kept than is shown.
            if degrade or done < 16:
                parts.append((degraded, restored))
            done += len(restored)
    if out is not None:
        note(f"{done} images: {out}")
    degraded, restored = (torch.cat(batches) for batches in zip(*parts, strict=True))
    if degrade:
        print(f"{done} images, means over them")
        for name, result in (("degraded", degraded), ("restored", restored)):
            quality, similarity = psnr(result, clean.pixels).mean(), ssim(result, clean.pixels).mean()
            print(f"{name:10} PSNR {float(quality):6.2f} dB   SSIM {float(similarity):.4f}")
    if grid is not None:
        rows = [degraded[:16], restored[:16]] + [clean.pixels[:16]] * degrade
        save_grid(to_float(torch.cat(rows)), grid, columns=min(16, done))
        note(f"picture: {grid}")


def _degradation(sigma: float, mask: Path | None, blur: float | None, size: int) -> Degradation:
    from denoising_ebm.datasets.images import load_images
    from denoising_ebm.restoration.operators import blurred, masked, noisy

    if blur is not None:
        # Files round to 256 levels: without noise of that size, undoing a blur would enlarge the rounding beyond measure.
        return blurred(blur, size, max(sigma, 2 / 255 / 12**0.5))
    if mask is None:
        return noisy(sigma)
    if mask.is_dir():
        raise ValueError(f"{mask}: is a folder; --mask takes one picture, for all images")
    white = load_images(mask).pixels[0].float().mean(0) >= 128
    if tuple(white.shape) != (size, size):
        raise ValueError(f"{mask}: the mask is {white.shape[1]}x{white.shape[0]}, the images are {size}x{size}")
    try:
        return masked(~white, sigma)
    except ValueError as error:
        raise ValueError(f"{mask}: {error}") from None
