"""Any denoiser as a texture energy: scores, energy maps and samples of a network that is not ours.

python examples/own_denoiser.py      # here a denoiser of one line, the Wiener filter of natural images
"""

from __future__ import annotations

import torch
from torch import Tensor

from denoising_ebm import TextureEnergy, load_images, to_float
from denoising_ebm.config import PixelSampler
from denoising_ebm.energies import texture_energy_map
from denoising_ebm.noise import append_dims, expand_sigma
from denoising_ebm.samplers import sample_pixels

images = to_float(load_images("fashion-mnist", limit=2000, progress=False).pixels)
mean = images.mean(0)
power = torch.fft.fft2(images - mean, norm="ortho").abs().square().mean(0)


def denoise(x: Tensor, sigma: Tensor | float) -> Tensor:
    """D(x, sigma), the best linear denoiser for images of this power spectrum; put your network here."""
    variance = append_dims(expand_sigma(sigma, x), x) ** 2
    spectrum = torch.fft.fft2(x - mean, norm="ortho") * power / (power + variance)
    return mean + torch.fft.ifft2(spectrum, norm="ortho").real


energy = TextureEnergy(denoise, inner_noise=False, drift="denoiser")
test = to_float(load_images("fashion-mnist", split="test", limit=100, progress=False).pixels)
digits = to_float(load_images("digits", split="test", limit=100, progress=False).pixels)
print(f"mean energy at sigma .2: clothes {energy(test, 0.2).mean():.0f}, digits {energy(digits, 0.2).mean():.0f}")

half = test.clone()
half[..., 16:] = digits[..., 16:]
maps = texture_energy_map(denoise, half, 0.2)
print(f"energy per pixel, clothes | digits: {maps[..., :16].mean():.3f} | {maps[..., 16:].mean():.3f}")

sampler = PixelSampler("dpmpp-2m-sde", steps=16, sigma_max=4.0, schedule="karras", drift="denoiser")
noise = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))
samples = denoise(sample_pixels(energy, 4 * noise, sampler), sampler.sigma_min)
print(f"std of a pixel: data {images.std():.2f}, samples {samples.std():.2f}")
