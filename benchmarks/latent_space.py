"""Section 4.4 of the paper: does the latent of a DAE carry more of the image than that of a VAE of the same size?

    python benchmarks/latent_space.py --data CIFAR10 --preset cifar10-small --minutes 10 --out runs/latent

All have our encoder f_alpha and decoder h_gamma and are trained the same minutes on the same images. The encoder of our
presets learns by the error of h(z) too (`decoder_loss_trains_encoder`), the paper's by g_beta alone: both are trained here.
The VAE (eq. 19) has a Gaussian decoder whose variance is the running reconstruction error, the best for its likelihood
(Rybkin et al., 2021).

Measured on test images: the error of h(z); the bound on the mutual information that it gives, E log q(x|z) + H(x) (theorem
2), whose H(x) is the same unknown for both, so that rows differ by nats of information; the VAE's rate KL(q(z|x) || p(z)),
an upper bound on it (eq. 20); the accuracy of a linear classifier of z, whose labels nothing else sees. PCA of the pixels
and our encoder before training stand beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "baselines"))
from loop import fit

from denoising_ebm import DenoisingEBM, load_images, preset, to_float
from denoising_ebm.config import Config, without_density
from denoising_ebm.experiments.cache import ResultCache, settings_of
from denoising_ebm.networks.decoder import SemanticDecoder
from denoising_ebm.networks.layers import NoiseEmbedding
from denoising_ebm.networks.unet import Encoder
from denoising_ebm.training.objectives import Batch
from denoising_ebm.training.once import train_once
from denoising_ebm.utils.device import autocast, choose_precision, describe
from denoising_ebm.viz.report import Table, print_table

CPU = torch.device("cpu")
Labels = tuple[str | None, ...]
SIGMAS = (0.01, 0.1, 0.3)
#: Of the computation of all rows.
VERSION = 1


class VAE(nn.Module):
    """A VAE of our encoder (with twice the code: mean and log variance) and our semantic decoder."""

    error: Tensor
    seen: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        network = config.network
        self.embedding = NoiseEmbedding(network.embedding_dim)
        self.encoder = Encoder(replace(network, latent_dim=2 * network.latent_dim))
        self.decoder = SemanticDecoder(network)
        self.register_buffer("error", torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))
        self.to(memory_format=torch.channels_last)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log variances of q(z|x), each of shape (batch, latent_dim)."""
        x = x.contiguous(memory_format=torch.channels_last)
        code = self.encoder(x, self.embedding(x.new_zeros(len(x))))[0].float()
        mean, log_variance = code.chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 5)

    def rate(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return KL(q(z|x) || N(0, I)) in nats, shape (batch,)."""
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)

    def loss(self, batch: Batch) -> Tensor:
        """Return the negative bound of eq. 19 per dimension, the decoder's variance at its best value."""
        mean, log_variance = self.encode(batch.x0)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = (self.decoder(z) - batch.x0).square().mean()
        with torch.no_grad():
            # A mean of all so far at first: from a fixed start the rate would weigh too much, and codes collapse.
            self.seen += 1
            self.error.lerp_(error.detach().float(), max(0.01, 1 / float(self.seen)))
        dim = batch.x0[0].numel()
        return 0.5 * error / self.error.clone() + self.rate(mean, log_variance).mean() / dim


@torch.no_grad()
def collect(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function batch by batch, in the precision of training."""
    with autocast(CPU, choose_precision("auto", CPU)):
        return torch.cat([function(chunk).float() for chunk in x.split(256)])


def probe(train: Tensor, test: Tensor, train_labels: Labels, test_labels: Labels) -> float | None:
    """Return the accuracy of a linear classifier of standardised codes; None without labels."""
    if None in train_labels or None in test_labels:
        return None
    scaler = StandardScaler().fit(train.numpy())
    classifier = LogisticRegression(max_iter=1000).fit(scaler.transform(train.numpy()), train_labels)
    return float(classifier.score(scaler.transform(test.numpy()), test_labels))


def information(error: float, dim: int) -> float:
    """Return E log q(x|z) in nats: the bound of theorem 2 without H(x), of a Gaussian with this mean square error."""
    return -0.5 * dim * math.log(2 * math.pi * math.e * error)


def main() -> None:
    """Train both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preset", default="cifar10-small")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--probe", type=int, default=10_000, help="training images of the linear classifier")
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/latent"))
    args = parser.parse_args()
    config = without_density(preset(args.preset))
    result_cache = ResultCache(args.out, settings_of(vars(args)), version=VERSION)
    training = replace(config.training, max_minutes=args.minutes, max_images=10**9, sample_minutes=0, seed=args.seed)
    config = replace(config, training=training)
    sizes: dict[str, Any] = {"image_size": config.network.image_size, "channels": config.network.channels}
    images = load_images(args.data, split="train", **sizes)
    held_out = load_images(args.data, split="test", limit=args.test, **sizes)
    result_cache.begin()
    pixels, test = images.pixels, to_float(held_out.pixels)
    some = to_float(pixels[: args.probe])
    known = images.labels[: len(some)], held_out.labels
    dim, rows = test[0].numel(), dict[str, dict[str, Any]]()

    def row(
        name: str, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor] | None, **more: Any
    ) -> None:
        z_train, z_test = collect(encode, some), collect(encode, test)
        error = None
        if decode is not None:
            error = float((collect(decode, z_test) - test).square().mean())
        metadata = {
            "error of h(z)": error,
            "E log q(x|z), nats": None if error is None else information(error, dim),
            "linear probe": probe(z_train, z_test, *known),
        }
        rows[name] = metadata | more
        print(name, json.dumps(rows[name]), flush=True)

    for name, taught in (("DAE", True), ("DAE as in the paper", False)):
        of_kind = replace(config, training=replace(config.training, decoder_loss_trains_encoder=taught))
        folder = args.out / name.replace(" ", "-")
        model = train_once(pixels, of_kind, folder, data_name=args.data, device="cpu")
        for sigma in SIGMAS:
            generator = torch.Generator().manual_seed(args.seed)

            def encode(
                x: Tensor,
                model: DenoisingEBM = model,
                sigma: float = sigma,
                generator: torch.Generator = generator,
            ) -> Tensor:
                return model.encode(x + sigma * torch.randn(x.shape, generator=generator), sigma)

            row(f"{name}, z at sigma {sigma:g}", encode, model.decode, images=model.metadata["images seen"])

    path = args.out / "vae.pt"
    torch.manual_seed(args.seed)
    vae = VAE(config)
    if path.exists():
        stored = torch.load(path, weights_only=True)
        vae.load_state_dict(stored["weights"])
        seen = stored["seen"]
    else:
        vae, seen = fit(vae, pixels, config, args.minutes)
        torch.save({"weights": vae.state_dict(), "seen": seen}, path)
    vae.eval()
    rate = float(collect(lambda x: vae.rate(*vae.encode(x)), test).mean())
    row("VAE, mean of q(z|x)", lambda x: vae.encode(x)[0], vae.decoder, images=seen, rate=rate)
    generator = torch.Generator().manual_seed(args.seed)

    def sampled(x: Tensor) -> Tensor:
        mean, log_variance = vae.encode(x)
        return mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator)

    row("VAE, z drawn from q(z|x)", sampled, vae.decoder, images=seen, rate=rate)

    torch.manual_seed(args.seed)
    untrained = DenoisingEBM(config).set_precision("auto")
    row("our encoder, untrained", lambda x: untrained.dae.unet.encode(x, x.new_full((len(x),), -0.5)), None)
    latent = config.network.latent_dim
    pca = PCA(latent, svd_solver="randomized", random_state=0).fit(some.flatten(1).numpy())
    row(
        f"PCA, {latent} components",
        lambda x: torch.from_numpy(pca.transform(x.flatten(1).numpy())).float(),
        lambda z: torch.from_numpy(pca.inverse_transform(z.numpy())).float().reshape(-1, *test.shape[1:]),
    )

    print(
        f"\n{describe(CPU)}; {args.minutes:g} minutes each; {len(test)} test images; probe on {len(some)}; seed {args.seed}"
    )
    columns = ["images", "error of h(z)", "E log q(x|z), nats", "rate", "linear probe"]
    print_table(Table.from_records(rows, columns, first="latent"))


if __name__ == "__main__":
    main()
