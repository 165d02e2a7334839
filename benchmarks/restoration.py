"""Restoration beside classical methods: noise, missing pixels, blur; PSNR and SSIM on test images.

    pip install PyWavelets
    python benchmarks/restoration.py cifar10-small --data CIFAR10 --num 100 --out runs/restoration

Degraded images are clipped and rounded to 8 bits, as files hold them. Classical methods are scikit-image's, told the true
noise level, and of each the strength that is best on the first ten images, which favours them. BM3D is not among them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from skimage import restoration
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images, to_float, to_uint8
from denoising_ebm.restoration.metrics import psnr, ssim
from denoising_ebm.restoration.operators import Degradation, blurred, masked, noisy
from denoising_ebm.restoration.posterior import restore
from denoising_ebm.utils.device import describe
from denoising_ebm.utils.seeds import ImageNoise
from denoising_ebm.viz.grids import save_grid
from denoising_ebm.viz.report import Cell, Table, print_table

Array = npt.NDArray[np.float64]
Method = Callable[[Array], Array]
STRENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)


def one_by_one(method: Method, y: Tensor) -> Tensor:
    """Apply a method of images (height, width, channels) in [0, 1] to a batch in [-1, 1]."""
    images = (y.permute(0, 2, 3, 1).double().numpy() + 1) / 2
    results = np.stack([np.asarray(method(image)).reshape(image.shape) for image in images])
    return torch.from_numpy(results * 2 - 1).permute(0, 3, 1, 2).float()


def best(methods: list[Method], y: Tensor, clean: Tensor) -> Method:
    """Return the method with the highest PSNR on the first ten images."""
    return max(methods, key=lambda m: float(psnr(to_uint8(one_by_one(m, y[:10])), clean[:10]).mean()))


def classical(task: str, degradation: Degradation, y: Tensor, clean: Tensor) -> dict[str, Method]:
    """Return scikit-image's methods for a task."""
    sigma = degradation.noise / 2  # for images in [0, 1]

    def variation(weight: float) -> Method:
        return lambda image: restoration.denoise_tv_chambolle(image, weight=weight, channel_axis=-1)

    def non_local(strength: float) -> Method:
        return lambda image: restoration.denoise_nl_means(
            image, h=strength * sigma, sigma=sigma, patch_size=5, patch_distance=6, channel_axis=-1
        )

    def wavelets(in_ycbcr: bool) -> Method:
        return lambda image: restoration.denoise_wavelet(
            image,
            sigma=sigma,
            channel_axis=-1,
            convert2ycbcr=in_ycbcr,
            method="BayesShrink",
            mode="soft",
            rescale_sigma=True,
        )

    if task.startswith("noise"):
        spaces = (False, True) if y.shape[1] == 3 else (False,)
        return {
            "non-local means, best strength": best([non_local(s) for s in (0.4, 0.6, 0.8, 1.0, 1.2)], y, clean),
            "wavelets (BayesShrink), best colour space": best([wavelets(space) for space in spaces], y, clean),
            "total variation, best weight": best([variation(w) for w in STRENGTHS], y, clean),
        }
    if task.startswith("missing"):
        hole = degradation.gains[0].numpy() == 0
        return {"biharmonic inpainting": lambda image: restoration.inpaint_biharmonic(image, hole, channel_axis=-1)}
    size = y.shape[-1]
    impulse = torch.zeros(1, 1, size, size)
    impulse[..., size // 2, size // 2] = 1
    kernel = degradation.apply(impulse)[0, 0].double().numpy()
    kernel = kernel[size // 2 - 7 : size // 2 + 8, size // 2 - 7 : size // 2 + 8]

    def per_channel(method: Callable[[Array], Array]) -> Method:
        # Both methods assume other borders than the mirrored ones of the blur, so they get a mirrored margin.
        def padded(channel: Array) -> Array:
            return method(np.pad(channel, 16, mode="symmetric"))[16:-16, 16:-16]

        return lambda image: np.stack([padded(image[..., c]) for c in range(image.shape[2])], axis=-1)

    def wiener(balance: float) -> Method:
        return per_channel(lambda channel: restoration.wiener(channel, kernel, balance, clip=False))

    return {
        "Wiener, best balance": best([wiener(b) for b in (0.001, 0.003, 0.01, 0.03, 0.1)], y, clean),
        "Richardson-Lucy, 10 steps": per_channel(
            lambda channel: restoration.richardson_lucy(channel.clip(0, 1), kernel, num_iter=10)
        ),
    }


def main() -> None:
    """Print the table and write a picture a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unclipped", action="store_true", help="noise that is not clipped and rounded: of no file")
    parser.add_argument("--only", help="part of the names of tasks")
    parser.add_argument("--out", type=Path, default=Path("runs/restoration"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = DenoisingEBM.from_pretrained(args.model).set_precision("auto")
    channels, size, _ = model.image_shape
    clean = load_images(args.data, split="test", limit=args.num, image_size=size, channels=channels).pixels
    generator = torch.Generator().manual_seed(args.seed)
    square = torch.ones(size, size, dtype=torch.bool)
    square[size // 2 - 5 : size // 2 + 5, size // 2 - 5 : size // 2 + 5] = False
    tasks = {
        "noise 0.1": noisy(0.1),
        "noise 0.3": noisy(0.3),
        "noise 0.6": noisy(0.6),
        "missing square of 10 x 10": masked(square),
        "missing half of the pixels": masked(torch.rand(size, size, generator=generator) < 0.5),
        "blur of 1 pixel, noise 0.02": blurred(1.0, size, 0.02),
        "blur of 2 pixels, noise 0.02": blurred(2.0, size, 0.02),
    }
    seen = model.metadata.get("images seen")
    print(f"{args.model}: {seen:,} images seen; {describe(model.device)}; {len(clean)} test images")
    print(f"chains of {args.steps} steps, mean of {args.samples}; seed {args.seed}\n")
    rows: list[list[Cell]] = []
    for task, degradation in tasks.items():
        if args.only and args.only not in task:
            continue
        y = degradation.apply(to_float(clean), ImageNoise.of(args.seed, range(len(clean)), "degrade"))
        if not args.unclipped:
            y = to_float(to_uint8(y))
        results = {"degraded": y}
        for estimate in ("mean", "sample"):
            chains = {"steps": args.steps, "num_samples": args.samples, "seed": args.seed}
            results[f"ours, {estimate}"] = restore(model, y, degradation, estimate=estimate, **chains)  # type: ignore[arg-type]
        for name, method in classical(task, degradation, y, clean).items():
            results[name] = one_by_one(method, y)
        for name, restored in results.items():
            pixels = to_uint8(restored)
            figures = float(psnr(pixels, clean).mean()), float(ssim(pixels, clean).mean())
            rows.append([task, name, *figures])
            print(f"{task}, {name}: {figures[0]:.2f} dB", flush=True)
        shown = [to_float(clean[:16]), *(restored[:16] for restored in results.values())]
        path = args.out / f"{task.replace(' ', '-').replace(',', '')}.png"
        save_grid(torch.cat(shown), path, columns=16)
        path.with_suffix(".json").write_text(json.dumps(["clean", *results]))
    print()
    print_table(Table(["task", "method", "PSNR, dB", "SSIM"], rows))


if __name__ == "__main__":
    main()
