"""`debm restore`."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from denoising_ebm.cli.common import check_apart, check_at_least, check_output, check_output_folder, note
from denoising_ebm.cli.options import HARDWARE, TEST_IMAGES, HardwareOptions, ImageOptions, note_images
from denoising_ebm.literals import Estimate, MaskMarks
from denoising_ebm.utils.text import counted

if TYPE_CHECKING:
    from torch import Tensor

    from denoising_ebm.datasets.images import ImageSet
    from denoising_ebm.model import DenoisingEBM
    from denoising_ebm.restoration.mask_files import MaskFiles

#: Images of the grid.
_SHOWN = 16


def restore(
    model: str,
    images: str,
    *,
    task: Literal["denoise", "inpaint", "deblur"],
    out: Path | None = Path("restored"),
    grid: Path | None = None,
    sigma: str | None = None,
    mask: Path | None = None,
    mask_marks: MaskMarks | None = None,
    blur: float | None = None,
    degrade: bool = False,
    unclipped: bool = False,
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
    denoiser instead. The model needs no training for a task. What an image becomes depends on the seed and its place among
    the images alone, whatever the batch size.

    Writes a PNG for each image. With --degrade the images are taken as clean: they are degraded first, clipped and rounded
    to 8 bits as a file would be, and PSNR and SSIM of both against the originals are printed. Papers often add noise
    that is neither (--unclipped): as no file can hold it, figures of such noise are higher than any file reaches.

    Examples:
        debm restore cifar10-small noisy/ --task denoise --sigma 25/255 --out restored/
        debm restore cifar10-small noisy/ --task denoise --sigma auto --out restored/
        debm restore cifar10-small scratched/ --task inpaint --mask mask.png
        debm restore cifar10-small scratched/ --task inpaint --mask masks/
        debm restore cifar10-small soft/ --task deblur --blur 1.5 --sigma 0.02
        debm restore fashion-mnist fashion-mnist --limit 16 --degrade --task denoise --sigma 0.5 --grid grid.png

    Args:
        model: Run folder, model folder, name of a bundled model, or Hub id owner/name.
        images: Folder of images or of Parquet files, one such file, bundled dataset (fashion-mnist, digits), or hf://owner/name
            on the Hugging Face Hub.
        task: What to undo: noise (needs --sigma), missing pixels (--mask) or blur (--blur).
        out: Folder for a PNG of each image; '' for none.
        grid: PNG with the first 16 images: degraded, restored and, with --degrade, clean.
        sigma: Standard deviation of the noise: for images in [-1, 1], as 0.2, or in gray levels of 255, as 25/255. Or auto,
            for --task denoise by a model with a density network: found in each image, as the level of the smallest energy.
        mask: Picture whose white pixels are missing and are filled in, or what is drawn on transparent ground; or folder of
            one for each image, by its name. Of the size of the images as stored, and then cropped and resized with them, or
            of the model's.
        mask_marks: What is white or drawn in the mask: missing pixels, or the known ones. If neither is said, a mask
            that marks more than half of the pixels is refused.
        blur: Standard deviation of the Gaussian blur, in pixels.
        degrade: The images are clean: degrade them first, and measure.
        unclipped: With --degrade: do not clip and round what is restored.
        estimate: The mean of several samples of the posterior (smallest error), or one sample (sharp).
        samples: Samples to average; each is a Langevin chain.
        steps: Langevin steps of a chain.
        seed: Seed of noise and chains.
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
    if mask_marks is not None and mask is None:
        raise ValueError("--mask-marks needs --mask")
    if unclipped and not degrade:
        raise ValueError("--unclipped needs --degrade: images that are read are clipped already")
    auto = sigma == "auto"
    if auto and task != "denoise":
        raise ValueError(f"--sigma auto is for --task denoise, got --task {task}")
    if auto and degrade:
        raise ValueError("--sigma auto finds the noise that images have: with --degrade give the noise to add")
    noise_level = 0.0 if auto else _noise_level(sigma)
    check_apart("--out", out, images)
    check_output_folder(out)
    if sigma is not None and not auto:
        note(f"noise of {noise_level:.3g} for images in [-1, 1]: {127.5 * noise_level:.3g} gray levels of 255")
    import torch

    from denoising_ebm.datasets.images import to_float
    from denoising_ebm.restoration.mask_files import MaskFiles
    from denoising_ebm.restoration.metrics import psnr, ssim, ssim_package
    from denoising_ebm.restoration.operators import blurred, masked, noisy
    from denoising_ebm.restoration.posterior import restore_batches
    from denoising_ebm.utils.lock import locked
    from denoising_ebm.utils.progress import progress_bar
    from denoising_ebm.viz.grids import save_grid, save_picture, to_picture
    from denoising_ebm.viz.picture_names import PictureNames

    if degrade:
        # Before work that would end without it.
        ssim_package()
    net = hardware.load_model(model)
    options = options.as_fitted(None, net)
    preparation = options.preprocessing(net)
    masks = None if mask is None else MaskFiles(mask, preparation, mask_marks)
    if blur is not None:
        # Files round to 256 levels: without noise of that size, undoing a blur would enlarge the rounding beyond measure.
        for_all = blurred(blur, net.image_shape[-1], max(noise_level, 2 / 255 / 12**0.5))
    elif auto:
        # Refuses a model without a normalised density network before anything is written.
        net.noise_level(torch.empty(0, *net.image_shape))
    elif masks is None:
        for_all = noisy(noise_level)
    stream = options.stream(images, net.image_shape, chunk=batch_size)
    how: dict[str, Any] = {"estimate": estimate, "num_samples": samples, "steps": steps, "seed": seed}
    how |= {"degrade": degrade, "as_file": not unclipped, "batch_size": batch_size}
    figures: dict[str, list[Tensor]] = {name: [] for name in ("degraded", "restored")}
    picture_of = PictureNames()
    shown: dict[int, tuple[Tensor, ...]] = {}
    levels: list[Tensor] = []
    seen = done = 0
    passes = (stream.count or 0) * steps * (1 if estimate == "sample" else samples)
    alone = nullcontext() if out is None else locked(out, "debm restore")
    with alone, progress_bar(f"restoring ({task})", passes) as progress:
        for chunk in stream:
            files = [picture_of(name) for name in chunk.names]
            first = not seen and len(chunk) > 0
            if first and task == "denoise" and not degrade and not auto:
                _compare_noise(noise_level, chunk)
            if auto:
                found = net.noise_level(to_float(chunk.pixels), batch_size=batch_size).sigma.cpu()
                levels.append(found)
                groups = [(places, noisy(level)) for level, places in _by_level(found, net).items()]
            elif masks is None:
                groups = [(list(range(len(chunk))), for_all)] * (len(chunk) > 0)
            else:
                groups = [(places, masked(~hole, noise_level)) for places, hole in masks.groups(chunk)]
                if masks.without and options.strict:
                    raise ValueError(f"{mask}: holds no mask for {masks.without[0]}")
                if first and masks.for_all:
                    _note_masks(mask, masks)
            for places, degradation in groups:
                clean, indices = chunk.pixels[places], [seen + place for place in places]
                batches = restore_batches(net, clean, degradation, images=indices, progress=progress, **how)
                degraded, restored = (torch.cat(both) for both in zip(*batches, strict=True))
                if out is not None:
                    for place, image in zip(places, restored, strict=True):
                        save_picture(to_picture(image), out / files[place])
                if degrade:
                    for name, result in (("degraded", degraded), ("restored", restored)):
                        figures[name].append(torch.stack([psnr(result, clean), ssim(result, clean)]))
                # Of large sets no more is kept than is shown.
                if len(shown) < _SHOWN:
                    shown |= zip(indices, zip(degraded, restored, clean, strict=True), strict=True)
                done += len(places)
            seen += len(chunk)
    note_images(images, stream)
    if masks is not None and not masks.for_all:
        _note_masks(mask, masks)
    if not done:
        raise ValueError(f"{images}: no image was restored")
    if levels:
        _note_levels(torch.cat(levels))
    if out is not None:
        note(f"{done} images: {out}")
    if degrade:
        print(f"{done} images, means over them, of {'unclipped noise' if unclipped else '8-bit files'}")
        for name, parts in figures.items():
            quality, similarity = torch.cat(parts, dim=1).mean(1).tolist()
            print(f"{name:10} PSNR {quality:6.2f} dB   SSIM {similarity:.4f}")
    if grid is not None:
        rows = list(zip(*(shown[index] for index in sorted(shown)[:_SHOWN]), strict=True))[: 3 if degrade else 2]
        save_grid(to_float(torch.stack([image for row in rows for image in row])), grid, columns=len(rows[0]))
        note(f"picture: {grid}")


def _noise_level(text: str | None) -> float:
    """Return a standard deviation for images in [-1, 1]; 0 if none was given."""
    if text is None:
        return 0.0
    number, slash, whole = text.partition("/")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (slash and whole.strip() != "255"):
        raise ValueError(
            f"--sigma {text}: expected a number >= 0 such as 0.2, gray levels of 255 such as 25/255, or auto"
        )
    if slash:
        return value / 127.5
    if value > 2:
        raise ValueError(
            f"--sigma {text}: is for images in [-1, 1], whose whole range is 2; {value:g} gray levels are --sigma "
            f"{value:g}/255, which is {value / 127.5:.3g} here ({value:g}/127.5)"
        )
    return value


def _by_level(sigma: Tensor, model: DenoisingEBM) -> dict[float, list[int]]:
    """Return the places of images by their noise, rounded to 5 % so that images of one level go through together."""
    low, high = model.config.noise.sigma_min, model.config.noise.sigma_max
    groups: dict[float, list[int]] = {}
    for place, steps in enumerate((sigma.log() / 0.05).round().tolist()):
        groups.setdefault(min(max(math.exp(0.05 * steps), low), high), []).append(place)
    return groups


def _note_levels(sigma: Tensor) -> None:
    """Tell the user which noise was found."""
    low, middle, high = sigma.quantile(sigma.new_tensor([0.1, 0.5, 0.9])).tolist()
    note(
        f"noise found: {middle:.3g} in the median image ({127.5 * middle:.3g} gray levels of 255), {low:.3g} to {high:.3g} "
        "in eight of ten"
    )


def _compare_noise(noise_level: float, images: ImageSet) -> None:
    """Tell the user if images seem to have far less noise than is assumed: detail would be taken for it."""
    from denoising_ebm.restoration.metrics import estimated_noise

    found = float(estimated_noise(images.pixels).median())
    if noise_level > 3 * found:
        note(
            f"--sigma: the images seem to have noise of {found:.2g} ({127.5 * found:.2g} gray levels) or less, not of "
            f"{noise_level:.3g}; detail will be smoothed away as noise"
        )


def _note_masks(path: Path | None, masks: MaskFiles) -> None:
    """Tell the user how much is filled in, and what was decided on the way."""
    if masks.shares:
        mean = 100 * sum(masks.shares) / len(masks.shares)
        least, most = 100 * min(masks.shares), 100 * max(masks.shares)
        between = "" if masks.for_all else f" on average, {least:.1f} to {most:.1f} % of an image"
        note(f"{path}: {mean:.1f} % of the pixels are filled in{between}")
    if masks.soft:
        note(
            f"{path}: {masks.soft:.1%} of the pixels are neither black nor white; the lighter half of them is filled in"
        )
    if masks.without:
        shown = ", ".join(masks.without[:3]) + (", ..." if len(masks.without) > 3 else "")
        note(f"{path}: {counted(len(masks.without), 'image')} without a mask left out: {shown}")
