"""What stage one makes, and what stage two adds: codes against N(0, I), and images from every start of the chains.

    python benchmarks/semantic_stage.py cifar10-small --data CIFAR10 --samples 2000 --out runs/semantic

First table: how far codes z of training images, noised to several levels, are from N(0, I): the mean, the standard
deviation, the kurtosis, and the sliced Wasserstein distance over random directions, beside that of as many draws of N(0, I)
itself. Second table: FD (the Fréchet distance of EfficientNet-lite0 features) to test images of h(z) and of the images that
stage two makes of it, for starts from N(0, I) with K latent steps, from densities fitted to codes afterwards (Ghosh et al.,
2020), and from codes of training images, which bound what a better stage one could give. A finished row is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images, to_float, to_uint8
from denoising_ebm.config import to_dict
from denoising_ebm.experiments.cache import ResultCache, settings_hash, settings_of
from denoising_ebm.experiments.drawing import finite
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.samplers import two_stage
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.grids import save_grid
from denoising_ebm.viz.report import Table, print_table

Start = Callable[[int, torch.Generator], Tensor]
#: Of the computation of all rows.
VERSION = 1


@torch.no_grad()
def codes(model: DenoisingEBM, pixels: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """Return the codes of images noised to `sigma`."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for chunk in to_float(pixels).split(256):
        parts.append(model.encode(chunk + sigma * torch.randn(chunk.shape, generator=generator), sigma))
    return torch.cat(parts)


def sliced_wasserstein(a: Tensor, b: Tensor, num: int = 512, seed: int = 0) -> float:
    """Return the mean 1-Wasserstein distance of projections onto `num` random directions; a and b have equal counts."""
    directions = torch.randn(a.shape[1], num, generator=torch.Generator().manual_seed(seed))
    directions = directions / directions.norm(dim=0)
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean())


def describe_codes(z: Tensor, normal: Tensor) -> dict[str, float]:
    """Return how `z` differs from N(0, I)."""
    centred = (z - z.mean(0)) / z.std(0)
    spread = torch.linalg.eigvalsh(torch.cov(z.mT)).clamp_min(0).sqrt()
    return {
        "|mean|": float(z.mean(0).norm()),
        "std, least direction": float(spread[0]),
        "std, rms": float(z.var(0).mean().sqrt()),
        "std, largest direction": float(spread[-1]),
        "excess kurtosis": float(centred.pow(4).mean() - 3),
        "spread of |z|": float(z.norm(dim=1).std()),
        "sliced W1": sliced_wasserstein(z, normal[: len(z)]),
    }


def starts(model: DenoisingEBM, train: Tensor, sigma: float) -> dict[str, Start]:
    """Return the densities that chains start from."""
    z = codes(model, train, sigma)
    dim = z.shape[1]

    def mixture(components: int) -> Start:
        fitted = GaussianMixture(components, covariance_type="full", random_state=0, reg_covar=1e-3).fit(z.numpy())
        means = torch.as_tensor(fitted.means_).float()
        roots = torch.linalg.cholesky(torch.as_tensor(fitted.covariances_)).float()
        weights = torch.as_tensor(fitted.weights_).float()

        def draw(num: int, generator: torch.Generator) -> Tensor:
            which = torch.multinomial(weights, num, replacement=True, generator=generator)
            return means[which] + (roots[which] @ torch.randn(num, dim, 1, generator=generator)).squeeze(2)

        return draw

    return {
        "N(0, I)": lambda num, generator: torch.randn(num, dim, generator=generator),
        f"Gaussian fitted to codes at {sigma:g}": mixture(1),
        f"mixture of 10 at {sigma:g}": mixture(10),
        f"mixture of 50 at {sigma:g}": mixture(50),
        f"codes of training images at {sigma:g}": lambda num, generator: z[
            torch.randperm(len(z), generator=generator)[:num]
        ],
    }


@torch.no_grad()
def draw(model: DenoisingEBM, start: Start, steps: int, sigma_max: float, num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return uint8 semantic images and the images stage two made of them with noise of `sigma_max`."""
    own = model.config.sampling
    sampling = dataclasses.replace(
        own,
        semantic=dataclasses.replace(own.semantic, steps=steps),
        pixel=dataclasses.replace(own.pixel, sigma_max=sigma_max),
    )
    semantic, images = [], []
    for i, begin in enumerate(range(0, num, 128)):
        generator = torch.Generator().manual_seed(seed + i)
        sample = two_stage(
            model.semantic(sampling.semantic.prior),
            model.decode,
            model.pixel_energy(sampling.pixel),
            model.denoise,
            start(min(128, num - begin), generator),
            sampling,
            generator=generator,
        )
        semantic.append(to_uint8(sample.semantic))
        images.append(to_uint8(finite(sample.images)))
    return torch.cat(semantic), torch.cat(images)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sigma", type=float, default=0.1, help="noise level of the codes that densities are fitted to"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 5, 10, 35], help="K, from N(0, I)")
    parser.add_argument(
        "--levels", type=float, nargs="+", help="first noise levels of stage two; the model's own if none"
    )
    parser.add_argument("--fit", type=int, default=20_000, help="training images whose codes are fitted")
    parser.add_argument("--only", nargs="*", help="parts of names of starts")
    parser.add_argument("--out", type=Path, default=Path("runs/semantic"))
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model).set_precision("auto")
    # These only choose rows.
    settings = {name: value for name, value in vars(args).items() if name not in ("steps", "levels")}
    result_cache = ResultCache(
        args.out,
        settings_of(settings, weights=model.fingerprint(), sampling=settings_hash(to_dict(model.config.sampling))),
        version=VERSION,
    )
    network = model.config.network
    sizes: dict[str, Any] = {"image_size": network.image_size, "channels": network.channels}
    train = load_images(args.data, split="train", limit=args.fit, **sizes).pixels
    test = load_images(args.data, split="test", limit=args.samples, **sizes).pixels
    print(f"{args.model}: {model.metadata}\n{describe(model.device)}; seed {args.seed}\n")

    normal = torch.randn(5000, network.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    other = torch.randn(normal.shape, generator=torch.Generator().manual_seed(args.seed + 1))
    rows = {f"train, sigma {s:g}": codes(model, train[:5000], s) for s in (0.01, 0.1, 0.3, 1.0)}
    rows["train, training noise <= 1"] = mixed(model, train[:5000])
    rows["N(0, I)"] = other
    table = {name: describe_codes(z, normal) for name, z in rows.items()}
    print_table(Table.from_records(table, first="codes", caption=f"Codes of {len(normal)} images"))

    evaluator = FidelityEvaluator(test)
    floor = evaluator.frechet_distance(train[: args.samples])
    print(f"\n{evaluator.protocol(args.samples, 'test')}; floor {floor:.1f}")
    levels = args.levels or [model.config.sampling.pixel.sigma_max]
    found: list[list[Any]] = []
    pictures = []
    for name, start in starts(model, train, args.sigma).items():
        if args.only and not any(part in name for part in args.only):
            continue
        lengths = args.steps if name == "N(0, I)" else [0, model.config.sampling.semantic.steps]
        for steps, level in itertools.product(lengths, levels):
            path = args.out / f"{name}-{steps}-{level:g}.png".replace(" ", "_").replace("(", "").replace(")", "")

            def make(
                start: Start = start, steps: int = steps, level: float = level, path: Path = path
            ) -> dict[str, float]:
                semantic, images = draw(model, start, steps, level, args.samples, args.seed)
                save_grid(torch.cat([to_float(semantic[:32]), to_float(images[:32])]), path, columns=16)
                kinds = {"before": semantic, "after": images}
                return {key: evaluator.frechet_distance(kind) for key, kind in kinds.items()}

            row = result_cache.row(f"{name}, K = {steps}, level {level:g}", make)
            pictures.append(path)
            found.append([name, steps, f"{level:g}", row.get("before"), row.get("after")])
            print(*found[-1], row.get("missing", ""), flush=True)
    print()
    print_table(Table(["start", "K", "first noise level", "FD of h(z)", "FD after stage two"], found))
    print("\npictures:", ", ".join(map(str, pictures)))


@torch.no_grad()
def mixed(model: DenoisingEBM, pixels: Tensor, seed: int = 0) -> Tensor:
    """Return codes at noise levels drawn as in training, which the whitening was fitted to."""
    from denoising_ebm.noise import append_dims, draw_sigmas

    generator, x0 = torch.Generator().manual_seed(seed), to_float(pixels)
    sigma = draw_sigmas(model.config.noise, 2 * len(x0), generator)
    sigma = sigma[sigma <= model.config.training.decoder_sigma_max][: len(x0)]
    noisy = x0 + append_dims(sigma, x0) * torch.randn(x0.shape, generator=generator)
    return torch.cat([model.encode(x, s) for x, s in zip(noisy.split(256), sigma.split(256), strict=True)])


if __name__ == "__main__":
    main()
