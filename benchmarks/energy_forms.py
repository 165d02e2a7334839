"""Forms of the density's energy at equal minutes: which one a denoiser is turned into fastest.

    python benchmarks/energy_forms.py fashion-mnist --data fashion-mnist --minutes 3
    python benchmarks/energy_forms.py cifar10-small --data CIFAR10 --minutes 3

Each row trains a network of the denoiser's own size by the `energy` objective, with minutes of processor time of one thread,
so that rows are comparable on a machine that does other work too. The loss is that of D = x - sigma^2 grad U on held-out
images (EDM's weights), with the denoiser's beside it.

- inner product: U = <x, x - f> / 2 sigma^2, from the denoiser's weights, fitted to its output (the package's).
- squared error: U = |x - f|^2 / 2 sigma^2, eq. 7 without inner noise, from the same weights, fitted to the same.
- mixed: U = <x - c f, x - f> / 2 sigma^2 with a learned number c, from c = 0.5: both of these are cases of it.
- inner product, data: the first one fitted to the clean images (denoising score matching), from the denoiser's weights.
- inner product, scratch: the same from random weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.config import Config, DensityTarget
from denoising_ebm.energies import Energy
from denoising_ebm.networks.density import DensityNetwork
from denoising_ebm.noise import append_dims, expand_sigma
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.objectives import DensityFit, validation_loss
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.report import Table, print_table


class SquaredError(DensityNetwork):
    """U = |x - f|^2 / 2 sigma^2."""

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return U, shape (batch,)."""
        sigma = expand_sigma(sigma, x)
        return 0.5 * ((x - self.dae(x, sigma)[0]) / append_dims(sigma, x)).square().flatten(1).sum(1)


class Mixed(DensityNetwork):
    """U = <x - c f, x - f> / 2 sigma^2."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.mixture = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return U, shape (batch,)."""
        sigma = expand_sigma(sigma, x)
        output, scale = self.dae(x, sigma)[0], append_dims(sigma, x)
        return 0.5 * (((x - self.mixture * output) / scale) * ((x - output) / scale)).flatten(1).sum(1)


#: Class of the network, target of the fit, and whether it starts from the denoiser's weights.
FORMS: dict[str, tuple[type[DensityNetwork], DensityTarget, bool]] = {
    "inner product": (DensityNetwork, "denoiser", True),
    "squared error": (SquaredError, "denoiser", True),
    "mixed": (Mixed, "denoiser", True),
    "inner product, data": (DensityNetwork, "data", True),
    "inner product, scratch": (DensityNetwork, "data", False),
}


def fit(
    model: DenoisingEBM, config: Config, form: str, pixels: Tensor, held_out: Tensor, args: argparse.Namespace
) -> dict[str, float]:
    """Train one form for so many minutes of processor time; return its figures."""
    kind, target, warm = FORMS[form]
    config = replace(config, energy=replace(config.energy, density=True, density_target=target))
    torch.manual_seed(args.seed)
    network = kind(config.network, config.noise)
    if warm:
        network.dae.load_state_dict(model.dae.state_dict())
    model.density = network
    average, objective = copy.deepcopy(network), DensityFit(config)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate, fused=True)

    def loss_of(density: DensityNetwork) -> float:
        def function(x: Tensor, sigma: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return density(x, sigma)

        return validation_loss(lambda x, sigma: Energy(function).denoise(x, sigma)[1], held_out, config, batch_size=64)

    start, begun, step = loss_of(network), time.process_time(), 0
    while (share := (time.process_time() - begun) / (60 * args.minutes)) < 1:
        optimizer.param_groups[0]["lr"] = args.learning_rate * min(1.0, (step + 1) / 50, 2 * (1 - share))
        (batch,) = draw_batch(pixels, config, step, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = objective(model, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        weight = 1 - min(0.998, step / (9 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), weight)
    model.density = None
    return {"loss at the start": start, "loss": loss_of(average), "images": step * config.training.batch_size}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--held-out", type=int, default=512, help="images of the test split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=FORMS, default=list(FORMS))
    parser.add_argument("--json", type=Path, help="rows are added to this file as they come")
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model).set_precision("bf16").requires_grad_(False)
    training = replace(model.config.training, batch_size=16, micro_batch_size=0, seed=args.seed)
    config = replace(model.config, training=training)
    sizes: dict[str, Any] = {"image_size": config.network.image_size, "channels": config.network.channels}
    pixels = load_images(args.data, split="train", **sizes).pixels
    held_out = to_float(load_images(args.data, split="test", limit=args.held_out, **sizes).pixels)
    rows = {"the denoiser": {"loss": validation_loss(model.denoise, held_out, config)}}
    for form in args.only:
        rows[form] = fit(model, config, form, pixels, held_out, args)
        print(form, rows[form], flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2))
    print(
        f"\n{args.model}, {args.minutes:g} minutes of processor time each, seed {args.seed}; {describe(model.device)}"
    )
    print_table(Table.from_records(rows, first="energy"))


if __name__ == "__main__":
    main()
