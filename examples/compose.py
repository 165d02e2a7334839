"""Sums of energies: a trained model and a term of your own, here half an image that is given.

python examples/compose.py --out completed.png      # from the top: given, sampled four times, true

The sum at noise level sigma is the smoothed model times the term, not the smoothed product. The two agree as sigma goes to
0, so the steps at small levels decide; the large ones only lead there (Du et al., 2023).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, Energy, load_images, to_float
from denoising_ebm.noise import geometric_sigmas
from denoising_ebm.samplers import annealed_langevin
from denoising_ebm.viz.grids import save_grid

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="fashion-mnist")
parser.add_argument("--num", type=int, default=8)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--out", type=Path)
args = parser.parse_args()

model = DenoisingEBM.from_pretrained(args.model)
clean = to_float(load_images("fashion-mnist", split="test", limit=args.num, progress=False).pixels)
given = clean.repeat(4, 1, 1, 1)[..., :16]


def left_half(x: Tensor, sigma: Tensor) -> Tensor:
    """-log N(x; given, sigma^2 I) of the left half: what its noise of sigma allows."""
    return 0.5 * (x[..., :16] - given).square().flatten(1).sum(1) / sigma**2


own = model.pixel_energy("denoiser" if model.density is None else "density")
energy: Energy = own + left_half

generator = torch.Generator().manual_seed(0)
sigmas = geometric_sigmas(2.0, 0.02, args.steps)
start = 2 * torch.randn(4 * args.num, *model.image_shape, generator=generator)
x = annealed_langevin(energy, start, sigmas, step_size=0.2, generator=generator)
samples = model.denoise(x, 0.02).detach().reshape(4, *clean.shape)

left, right = samples[..., :16] - clean[..., :16], samples[..., 16:] - clean[..., 16:]
others = (samples[..., 16:] - clean.roll(1, 0)[..., 16:]).square().mean().sqrt()
print(f"left half: RMS {left.square().mean().sqrt():.3f} from what was given")
print(f"right half: RMS {right.square().mean().sqrt():.3f} from the true one, {others:.3f} from another image's")
if args.out is not None:
    half = clean.clone()
    half[..., 16:] = 0
    save_grid(torch.cat([half, *samples, clean]), args.out, columns=args.num)
