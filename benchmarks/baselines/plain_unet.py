"""A plain U-Net denoiser from diffusers, as many parameters and minutes as ours: does our network pay for its code z?

    pip install diffusers
    python benchmarks/baselines/plain_unet.py --data CIFAR10 --preset cifar10-small --minutes 10 --out runs/plain-unet

Both networks get the same preconditioning, noise levels, weights, batches (drawn by the same seed), Adam, learning rate
with warm-up and cooldown, averaged weights, bf16 and channels-last layout. Ours trains its semantic decoder h beside the
denoiser in its minutes; the plain U-Net has neither code nor decoder. The table gives the mean square error of D on test
images, noise by seed.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from loop import fit
from torch import Tensor, nn

from denoising_ebm import load_images, preset, to_float
from denoising_ebm.config import Config, without_density
from denoising_ebm.experiments.cache import ResultCache, figures_of, settings_of
from denoising_ebm.networks.precondition import coefficients
from denoising_ebm.noise import append_dims, expand_sigma, loss_weights
from denoising_ebm.training.objectives import Batch
from denoising_ebm.training.once import train_once
from denoising_ebm.utils.device import autocast, choose_precision, describe
from denoising_ebm.viz.report import Table, print_table

CPU = torch.device("cpu")
SIGMAS = (0.05, 0.1, 0.3, 1.0, 3.0)
#: Of the computation of both rows; raised when the preset or a network changes.
VERSION = 1


class PlainDenoiser(nn.Module):
    """D(x, sigma) = c_skip x + c_out F(c_in x, sigma) around a `UNet2DModel`."""

    def __init__(self, config: Config, widths: tuple[int, ...]) -> None:
        super().__init__()
        network = config.network
        self.config = config
        self.sigma_data = network.sigma_data
        attend = [network.image_size // 2**i in network.attention for i in range(len(widths))]
        self.unet: Any = UNet2DModel(
            sample_size=network.image_size,
            in_channels=network.channels,
            out_channels=network.channels,
            layers_per_block=1,
            block_out_channels=widths,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attend),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attend)),
            norm_num_groups=8,
            attention_head_dim=32,
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the denoised images, float32, shape of `x`."""
        sigma = expand_sigma(sigma, x)
        c_skip, c_out, c_in = (append_dims(c, x) for c in coefficients("edm", sigma, self.sigma_data))
        # The embedding of diffusers is made for steps 0..1000; 250 ln sigma spans about that.
        output = self.unet((c_in * x).contiguous(memory_format=torch.channels_last), 250 * sigma.log()).sample
        return c_skip * x + c_out * output.to(x.dtype)

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted denoising loss, as `debm train` has it."""
        noise = self.config.noise
        weights = loss_weights(noise.weighting, batch.sigma, self.sigma_data)
        error = self(batch.noisy, batch.sigma) - batch.x0
        return (weights * error.square().flatten(1).mean(1)).mean()


def fitted(config: Config, parameters: int) -> PlainDenoiser:
    """Return the plain U-Net with the widths w, 2w, 2w, 2w whose parameter count is nearest to `parameters`."""
    models = [PlainDenoiser(config, (w, 2 * w, 2 * w, 2 * w)) for w in range(16, 65, 8)]
    return min(models, key=lambda model: abs(count(model) - parameters))


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def errors(denoise: Any, pixels: Tensor, seed: int = 0) -> dict[str, float]:
    """Return the mean square error at each noise level."""
    x0, row = to_float(pixels), {}
    for sigma in SIGMAS:
        generator, total = torch.Generator().manual_seed(seed), 0.0
        for chunk in x0.split(256):
            noisy = chunk + sigma * torch.randn(chunk.shape, generator=generator)
            with autocast(CPU, choose_precision("auto", CPU)):
                total += float((denoise(noisy, sigma) - chunk).square().sum())
        row[f"mse {sigma:g}"] = total / x0.numel()
    return row


def main() -> None:
    """Train both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preset", default="cifar10-small")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--test", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/plain-unet"))
    args = parser.parse_args()
    config = without_density(preset(args.preset))
    options = {"max_minutes": args.minutes, "max_images": 10**9, "seed": args.seed, "sample_minutes": 0}
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, **options))
    sizes: dict[str, Any] = {"image_size": config.network.image_size, "channels": config.network.channels}
    pixels = load_images(args.data, split="train", **sizes).pixels
    test = load_images(args.data, split="test", limit=args.test, **sizes).pixels
    result_cache = ResultCache(args.out, settings_of(vars(args)), version=VERSION)

    def ours() -> dict[str, Any]:
        model = train_once(pixels, config, args.out / "ours", data_name=args.data, device="cpu")
        seen = model.metadata["images seen"]
        return {
            "parameters": count(model),
            "images_seen": seen,
            **errors(model.denoise, test),
            "hardware": describe(CPU),
        }

    def plain() -> dict[str, Any]:
        torch.manual_seed(args.seed)
        model, seen = fit(fitted(config, rows["ours"]["parameters"]), pixels, config, args.minutes)
        return {"parameters": count(model), "images_seen": seen, **errors(model, test), "hardware": describe(CPU)}

    rows: dict[str, dict[str, Any]] = {}
    for name, make in (("ours", ours), ("plain U-Net", plain)):
        rows[name] = figures_of(result_cache.row(name, make))
    caption = (
        f"Mean square error by noise level; {args.minutes:g} minutes each; {len(test)} test images; seed {args.seed}."
    )
    print_table(Table.from_records(rows, first="network", caption=caption))


if __name__ == "__main__":
    main()
