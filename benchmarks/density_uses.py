"""What a density of noisy images gives that a denoiser does not: Metropolis tests, noise levels, levels compared.

    pip install PyWavelets
    python benchmarks/density_uses.py MODEL mala --data CIFAR10 --num 64 --sigma 0.2 --out runs/mala
    python benchmarks/density_uses.py MODEL noise --data CIFAR10 --num 200
    python benchmarks/density_uses.py MODEL levels --data CIFAR10 --num 64

MODEL has a density network with normalised levels. All in float32: a Metropolis test compares sums over thousands of pixels
to within a nat, and energies of neighbouring levels differ by little. The three parts:

mala    Chains at one noise level from noisy test images: a density's chains stay where the data are. Energies are those of
        the density network whatever a chain follows. A step costs a gradient, some three evaluations.
noise   The noise level of images by the smallest energy, beside scikit-image's estimate; denoising by it.
levels  Which of eight noise levels an image has: by the energies with log Z, and without.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from skimage.restoration import estimate_sigma
from torch import Tensor

from denoising_ebm import DenoisingEBM, Energy, load_images, to_float, to_uint8
from denoising_ebm.noise import geometric_sigmas
from denoising_ebm.restoration.metrics import psnr
from denoising_ebm.samplers import ChainState, default_step_size, mala, ula
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.grids import save_grid
from denoising_ebm.viz.report import Cell, Table, print_table

#: Steps after which the energies of a chain are looked at.
LOOKS = (0, 20, 100, 200, 500)
#: Images in a row of the pictures.
SHOWN = 8


def noisy(clean: Tensor, sigma: float, seed: int) -> Tensor:
    """Return images with noise, the same unit noise for all levels of a seed."""
    return clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


# -- chains ---------------------------------------------------------------------------------------------------------


def run_chain(
    energy: Energy,
    x: Tensor,
    sigma: float,
    *,
    adjusted: bool,
    eta: float,
    steps: int,
    seed: int,
    look: Callable[..., None],
) -> tuple[Tensor, float | None]:
    """Return the last states and the share of accepted proposals, None without a test."""
    rates: list[float] = []

    def callback(state: ChainState) -> None:
        if state.acceptance is not None:
            rates.append(state.acceptance)
        look(state.step, state.x)

    generator = torch.Generator().manual_seed(seed)
    if adjusted:
        x = mala(energy, x, torch.full((steps,), sigma), step_size=eta, generator=generator, callback=callback)
    else:
        x = ula(energy, x, sigma, step_size=eta, num_steps=steps, generator=generator, callback=callback)
    return x, sum(rates) / len(rates) if rates else None


def tuned_step(energy: Energy, x: Tensor, sigma: float, seed: int) -> float:
    """Return the step that moves furthest of three: eta times acceptance is the largest."""
    default, moved = default_step_size("mala", x[0].numel()), {}
    for eta in (2 * default, default, default / 2):
        _, rate = run_chain(energy, x, sigma, adjusted=True, eta=eta, steps=8, seed=seed, look=lambda *_: None)
        moved[eta] = eta * (rate or 0.0)
        print(f"step {eta:.4f} sigma^2: acceptance {rate:.2f} on {len(x)} training images", flush=True)
    return max(moved, key=lambda eta: moved[eta])


def measure_chains(model: DenoisingEBM, args: argparse.Namespace) -> None:
    """Print energies along chains, one table a noise level, and draw their ends, denoised."""
    energies = {drift: model.pixel_energy(drift) for drift in ("density", "energy", "denoiser")}
    chains = {
        "MALA, density": ("density", True),
        "unadjusted, denoiser": ("denoiser", False),
        "MALA, eq. 7": ("energy", True),
        "unadjusted, density": ("density", False),
    }
    clean, sigma = args.images("test", args.num), args.sigma
    start = noisy(clean, sigma, args.seed)
    first = model.density_energy(start, sigma)
    print(f"\nsigma {sigma}: energies of {len(clean)} noisy test images {first.mean():.0f}, sd {first.std():.0f} nats")
    eta = tuned_step(energies["density"], noisy(args.images("train", 8), sigma, args.seed + 1), sigma, args.seed)
    looks = [step for step in LOOKS if step <= args.steps]
    pictures = [start[:SHOWN], model.denoise(start[:SHOWN], sigma)]
    rows: list[list[Cell]] = []
    for name, (drift, adjusted) in chains.items():
        if args.only and name not in args.only:
            continue
        means = {0: 0.0}

        def look(step: int, x: Tensor, means: dict[int, float] = means) -> None:
            if step in looks:
                means[step] = float((model.density_energy(x, sigma) - first).mean())
                print(f"  step {step}: mean energy {means[step]:+.0f} nats from the start", flush=True)

        began = time.perf_counter()
        how = {"adjusted": adjusted, "eta": eta, "steps": args.steps, "seed": args.seed}
        x, rate = run_chain(energies[drift], start, sigma, **how, look=look)
        last = model.density_energy(x, sigma)
        moved = float((x - start).square().mean().sqrt()) / sigma
        error = float((model.denoise(x, sigma) - clean).square().mean().sqrt())
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        rows.append([name, rate, *(means.get(step) for step in looks), float(last.std()), moved, error])
        pictures += [x[:SHOWN], model.denoise(x[:SHOWN], sigma)]
        save_grid(torch.cat(pictures), args.out / f"mala-{sigma}.png", columns=SHOWN)
    heads = ["chain", "acceptance", *(f"{step} steps" for step in looks), "sd at the end"]
    caption = f"sigma {sigma}, step {eta:.4f} sigma^2: mean energy less that of the start, nats"
    print_table(Table([*heads, "moved, sigma", "denoised to clean, RMS"], rows, caption))


# -- noise levels ---------------------------------------------------------------------------------------------------


def skimage_noise(images: Tensor) -> Tensor:
    """Return scikit-image's estimates by wavelets, in data units, shape (batch,)."""
    found = [estimate_sigma(image.numpy(), channel_axis=0, average_sigmas=True) for image in images]
    return torch.tensor(found, dtype=torch.float64)


def quality(model: DenoisingEBM, y: Tensor, sigma: Tensor, clean: Tensor) -> float:
    """Return the mean PSNR of images denoised at these levels."""
    low, high = model.config.noise.sigma_min, model.config.noise.sigma_max
    parts = zip(y.split(64), sigma.float().clamp(low, high).split(64), strict=True)
    restored = torch.cat([model.denoise(part, level) for part, level in parts])
    return float(psnr(to_uint8(restored), to_uint8(clean)).mean())


def measure_noise(model: DenoisingEBM, args: argparse.Namespace) -> None:
    """Print estimates of the noise level, and what denoising by them gives."""
    clean = args.images("test", args.num)
    rows: list[list[Cell]] = []
    for kind in ("as drawn", "8-bit files"):
        for sigma in args.sigmas:
            y = noisy(clean, sigma, args.seed)
            if kind == "8-bit files":
                y = to_float(to_uint8(y))
            began = time.perf_counter()
            found = model.noise_level(y)
            seconds = time.perf_counter() - began
            ways = {"smallest energy": found.sigma, "scikit-image": skimage_noise(y)}
            true = quality(model, y, torch.full((len(y),), sigma), clean)
            for name, level in ways.items():
                low, middle, high = level.quantile(level.new_tensor([0.1, 0.5, 0.9])).tolist()
                error = float(found.standard_error.nanmedian()) if level is found.sigma else None
                reached = quality(model, y, level, clean)
                rows.append([kind, sigma, name, middle, low, high, error, reached, true])
                found_text = f"{middle:.4f}, {low:.4f} to {high:.4f}"
                print(f"{kind}, {sigma}, {name}: {found_text}; {reached:.2f} dB, true {true:.2f}", flush=True)
            print(f"  {seconds:.0f} s", flush=True)
    heads = [
        "noise",
        "true sigma",
        "by",
        "median",
        "10 %",
        "90 %",
        "standard error",
        "PSNR by it, dB",
        "by the true one",
    ]
    print_table(Table(heads, rows))


def measure_levels(model: DenoisingEBM, args: argparse.Namespace) -> None:
    """Print how often the smallest of eight energies is that of the image's own level, with log Z and without."""
    network = model.density
    assert network is not None
    levels = geometric_sigmas(1.0, 0.02, 8)
    clean = args.images("test", args.num)
    right = {"with log Z": torch.zeros(8), "without": torch.zeros(8)}
    raw = []
    for place, sigma in enumerate(levels):
        y = noisy(clean, float(sigma), args.seed + place)
        energies = torch.stack([torch.cat([network(part, float(at)) for part in y.split(64)]) for at in levels], dim=1)
        raw.append(energies)
        for name, shift in (("with log Z", network.log_normaliser(levels)), ("without", 0.0)):
            right[name][place] = ((energies + shift).argmin(1) == place).float().mean()
        shares = ", ".join(f"{name} {values[place]:.2f}" for name, values in right.items())
        print(f"sigma {sigma:.3f}: {shares}", flush=True)
    rows: list[list[Cell]] = [[f"{s:.3f}", *(float(v[i]) for v in right.values())] for i, s in enumerate(levels)]
    print_table(Table(["true sigma", *right], [*rows, ["all", *(float(v.mean()) for v in right.values())]]))
    draw_levels(torch.stack(raw).mean(1), network.log_normaliser(levels), levels, args.out / "density-levels.png")


def draw_levels(raw: Tensor, log_z: Tensor, levels: Tensor, path: Path) -> None:
    """Draw mean energies over the level at which they are asked for, a line for each true level, without log Z and with.

    Args:
        raw: Without log Z, of images of each level (rows) at each level (columns).
        log_z: Of each level.
        levels: The levels.
        path: PNG file.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, values, title in zip(
        figure.subplots(1, 2), (raw, raw + log_z), ("without log Z", "with log Z: -log q"), strict=True
    ):
        for place, (sigma, line) in enumerate(zip(levels.tolist(), values, strict=True)):
            color = colormaps["viridis"](place / len(levels))
            # Above the smallest, on a scale that shows nats and thousands of them.
            axes.plot(levels, line - line.min() + 10, color=color, label=f"{sigma:.2g}")
            axes.plot(sigma, line[place] - line.min() + 10, "o", color=color)
        axes.set(
            xscale="log",
            yscale="log",
            title=title,
            xlabel="sigma of the energy",
            ylabel="above the smallest, + 10 nats",
        )
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right center", title="sigma of\nthe images", fontsize=8, title_fontsize=8)
    figure.savefig(path, dpi=90)


# -- command line ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Print one part's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("part", choices=["mala", "noise", "levels"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--num", type=int, default=64, help="test images")
    parser.add_argument("--sigma", type=float, default=0.2, help="of mala")
    parser.add_argument("--sigmas", type=float, nargs="*", default=[0.02, 0.05, 0.1, 0.2, 0.5], help="of noise")
    parser.add_argument("--steps", type=int, default=500, help="of mala")
    parser.add_argument("--only", nargs="*", help="of mala: names of chains")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/density-uses"), help="folder for pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = DenoisingEBM.from_pretrained(args.model)
    if model.density is None or not model.density.is_normalised:
        raise SystemExit(f"{args.model}: has no density network with normalised levels")
    channels, size, _ = model.image_shape

    def images(split: str, num: int) -> Tensor:
        found = load_images(args.data, split=split, limit=num, image_size=size, channels=channels, progress=False)
        return to_float(found.pixels)

    args.images = images
    print(f"{args.model}; {describe(model.device)}; {args.num} test images; seed {args.seed}")
    with torch.no_grad():
        {"mala": measure_chains, "noise": measure_noise, "levels": measure_levels}[args.part](model, args)


if __name__ == "__main__":
    main()
