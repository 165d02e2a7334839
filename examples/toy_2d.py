"""Train an energy of points in the plane by denoising score matching, and draw from it by every sampler that there is.

python examples/toy_2d.py            # half a minute on one core; prints how near the points of each sampler are
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from denoising_ebm.config import PixelSampler
from denoising_ebm.energies import Energy
from denoising_ebm.noise import expand_sigma
from denoising_ebm.samplers import METHODS, pixel_nfe, sample_pixels

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=2000, help="of training")
args = parser.parse_args()
torch.manual_seed(0)

network = nn.Sequential(nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))


def energy(x: Tensor, sigma: Tensor | float) -> Tensor:
    """U(x, sigma) = |x - r(x, sigma)|^2 / 2 sigma^2, which starts as the energy of N(0, 1 + sigma^2)."""
    sigma = expand_sigma(sigma, x)[:, None]
    residual = x / (1 + sigma**2).sqrt() + network(torch.cat([x / (1 + sigma**2).sqrt(), sigma.log()], 1))
    return 0.5 * residual.square().sum(1)


def ring(num: int) -> Tensor:
    """Eight Gaussians on a circle."""
    angle = 2 * math.pi * torch.randint(8, (num,)) / 8
    return 1.4 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(num, 2)


optimizer = torch.optim.Adam(network.parameters(), 2e-3)
for step in range(args.steps):
    x0, sigma = ring(512), torch.exp(torch.empty(512).uniform_(math.log(0.02), math.log(4.0)))
    x = (x0 + sigma[:, None] * torch.randn_like(x0)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy(x, sigma).sum(), x, create_graph=True)
    loss = ((x - sigma[:, None] ** 2 * gradient - x0).square().sum(1) * (1 + 1 / sigma**2)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = 2e-3 * (1 - step / args.steps)

data = ring(4000)
print("mean distance to the nearest of 4,000 data points")
print(f"{'other data':30s} {torch.cdist(ring(1000), data).min(1).values.mean():.3f}")
for name in METHODS:
    sampler = PixelSampler(name, steps=200, sigma_max=4.0, sigma_min=0.02, final_denoise=False)
    if "anneal" in name:
        sampler = replace(sampler, step_size=0.3)
    x = sample_pixels(Energy(energy), 4.2 * torch.randn(1000, 2), sampler)
    print(f"{name:20s} {pixel_nfe(sampler):4d} NFE  {torch.cdist(x, data).min(1).values.mean():.3f}")
