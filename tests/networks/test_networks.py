from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from denoising_ebm.config import NetworkConfig
from denoising_ebm.networks.decoder import SemanticDecoder
from denoising_ebm.networks.derivatives import downsample, upsample
from denoising_ebm.networks.layers import NoiseEmbedding, ResidualBlock, SelfAttention, group_norm
from denoising_ebm.networks.precondition import DenoisingAutoencoder, coefficients
from denoising_ebm.networks.whitening import Whitening
from support import TINY_NETWORK, randomise


def draw(*shape: int, seed: int = 1) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values


def check_second_derivatives(module: nn.Module, *inputs: Tensor) -> None:
    """Check first and second derivatives in the inputs and in all parameters, as the `score` objective needs them.

    Along random directions: inputs and parameters move with two coordinates each, outputs are projected to two numbers.
    """
    generator = torch.Generator().manual_seed(7)

    def directions(values: list[Tensor]) -> list[Tensor]:
        return [torch.randn(2, *value.shape, generator=generator, dtype=torch.float64) for value in values]

    names = [name for name, _ in module.named_parameters()]
    weights = [parameter.detach() for parameter in module.parameters()]
    x_along, w_along = directions(list(inputs)), directions(list(weights))

    def function(u: Tensor, v: Tensor) -> Tensor:
        moved = [x + torch.tensordot(u, along, 1) for x, along in zip(inputs, x_along, strict=True)]
        nudged = [w + torch.tensordot(v, along, 1) for w, along in zip(weights, w_along, strict=True)]
        output = functional_call(module, dict(zip(names, nudged, strict=True)), tuple(moved))
        output = output + 0 * v.sum()  # Whitening has no parameters
        along = torch.randn(2, output.numel(), generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        return along @ output.flatten()

    start = (torch.zeros(2, dtype=torch.float64).requires_grad_(), torch.zeros(2, dtype=torch.float64).requires_grad_())
    assert gradcheck(function, start)
    assert gradgradcheck(function, start)


@pytest.mark.parametrize("embedding_dim", [0, 3])
@pytest.mark.parametrize("out_channels", [2, 3])
def test_residual_block(out_channels: int, embedding_dim: int) -> None:
    block = randomise(ResidualBlock(2, out_channels, embedding_dim)).double()
    inputs = [draw(1, 2, 2, 3)] + ([draw(1, embedding_dim, seed=2)] if embedding_dim else [])
    check_second_derivatives(block, *inputs)


def test_self_attention() -> None:
    check_second_derivatives(randomise(SelfAttention(4, 2)).double(), draw(1, 4, 2, 2))


def test_noise_embedding() -> None:
    check_second_derivatives(randomise(NoiseEmbedding(3, features=2)).double(), draw(2))


def test_whitening_has_second_derivatives() -> None:
    whitening = Whitening(3).double()
    whitening.calibrate(draw(20, 3, seed=3) * torch.tensor([1.0, 2.0, 0.5]))
    check_second_derivatives(whitening, draw(4, 3))


def test_whole_autoencoder(tiny_dae: DenoisingAutoencoder) -> None:
    sigma = torch.tensor([0.2, 0.9], dtype=torch.float64)
    check_second_derivatives(_AtLevel(tiny_dae, sigma), draw(2, 1, 16, 16))


class _AtLevel(nn.Module):
    def __init__(self, dae: DenoisingAutoencoder, sigma: Tensor) -> None:
        super().__init__()
        self.dae, self.sigma = dae, sigma

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.dae(x, self.sigma)[0]
        return output


# -- what the layers compute ----------------------------------------------------------------------------------------


def test_attention_against_torch() -> None:
    """Softmax attention written out equals torch's own."""
    layer = randomise(SelfAttention(8, 2)).double()
    assert isinstance(layer, SelfAttention)
    x = draw(2, 8, 3, 3)
    qkv = layer.qkv(layer.norm(x)).reshape(2, 3, 2, 4, 9).transpose(3, 4)
    expected = nn.functional.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
    expected = x + layer.out(expected.transpose(2, 3).reshape(2, 8, 3, 3))
    torch.testing.assert_close(layer(x), expected)


def test_blocks_start_as_the_identity() -> None:
    x = draw(2, 8, 4, 4)
    assert torch.equal(ResidualBlock(8, 8, 4).double()(x, draw(2, 4)), x)
    assert torch.equal(SelfAttention(8, 2).double()(x), x)


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 1), (24, 1), (48, 3), (56, 2), (64, 4), (88, 4), (120, 6), (128, 8)]
)
def test_every_allowed_width_has_groups(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_resampling_keeps_means() -> None:
    x = draw(1, 1, 4, 4)
    assert downsample(x)[0, 0, 0, 0].item() == pytest.approx(x[0, 0, :2, :2].mean().item())
    torch.testing.assert_close(downsample(upsample(x)), x)


def test_embedding_tells_levels_apart() -> None:
    """Neighbouring levels of the paper's grid (ratio 1.037) must not map to the same vector, nor far ones."""
    embedding = NoiseEmbedding(16)
    c_noise = torch.linspace(math.log(0.01), math.log(10), 128) / 4
    phases = c_noise[:, None] * embedding.frequencies
    features = torch.cat([phases.sin(), phases.cos()], 1)
    distances = torch.cdist(features, features) + 10 * torch.eye(128)
    assert float(distances.min()) > 0.01


@pytest.mark.parametrize("kind", ["edm", "energy"])
def test_preconditioning_is_of_unit_scale(kind: str) -> None:
    """Input of variance 1; and for data of standard deviation sigma_data, a target of variance 1."""
    sigma = torch.tensor([0.01, 0.3, 1.0, 10.0], dtype=torch.float64)
    s = 0.5
    c_skip, c_out, c_in = coefficients(kind, sigma, s)  # type: ignore[arg-type]
    torch.testing.assert_close(c_in**2 * (s**2 + sigma**2), torch.ones_like(sigma))
    if kind == "edm":  # Var[(x0 - c_skip x) / c_out] = 1 and x uncorrelated with the target
        torch.testing.assert_close(((1 - c_skip) ** 2 * s**2 + c_skip**2 * sigma**2) / c_out**2, torch.ones_like(sigma))
        torch.testing.assert_close(c_skip * (s**2 + sigma**2), torch.full_like(sigma, s**2))
    else:  # (x - c_skip x) / sigma = x / sqrt(s^2 + sigma^2)
        torch.testing.assert_close(((1 - c_skip) / sigma) ** 2 * (s**2 + sigma**2), torch.ones_like(sigma))
        torch.testing.assert_close(-c_out, sigma)


def test_no_preconditioning_is_the_plain_network() -> None:
    dae = DenoisingAutoencoder(
        NetworkConfig(**{**TINY_NETWORK.__dict__, "precondition": "none", "attention": (8,)})
    ).double()
    randomise(dae)
    x = draw(2, 1, 16, 16)
    sigma = torch.tensor([0.2, 0.9], dtype=torch.float64)
    torch.testing.assert_close(dae(x, sigma)[0], dae.unet(x, sigma.log() / 4)[0])


def test_images_of_a_batch_do_not_touch(tiny_dae: DenoisingAutoencoder) -> None:
    x = draw(3, 1, 16, 16)
    sigma = torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64)
    with torch.no_grad():
        output, code = tiny_dae(x, sigma)
        order = torch.tensor([2, 0, 1])
        torch.testing.assert_close(tiny_dae(x[order], sigma[order])[0], output[order])
        torch.testing.assert_close(tiny_dae(x[1:2], sigma[1:2])[0], output[1:2])
        torch.testing.assert_close(tiny_dae.encode(x, sigma), tiny_dae.unet.whitening(code))


@pytest.mark.parametrize("decoder_widths", [(8, 8), (8,)])
def test_decoder_reaches_every_pixel(decoder_widths: tuple[int, ...]) -> None:
    network = NetworkConfig(image_size=16, widths=(8, 8), decoder_widths=decoder_widths, attention=(), latent_dim=4)
    decoder = randomise(SemanticDecoder(network)).double()
    difference = (decoder(draw(1, 4)) - decoder(draw(1, 4, seed=2))).detach()
    assert difference.shape == (1, 3, 16, 16) and float(difference.abs().min()) > 0


@pytest.mark.slow
def test_compiled_training_step(tiny_dae: DenoisingAutoencoder) -> None:
    """The code statistics move between forward and backward pass; compiled, the backward pass reads them again."""
    x, sigma = draw(4, 1, 16, 16), torch.full((4,), 0.3, dtype=torch.float64)
    gradients = []
    for backend in (None, "aot_eager_decomp_partition"):
        dae = copy.deepcopy(tiny_dae)
        if backend:
            dae.unet.compile(backend=backend)
        output, code = dae(x, sigma)
        dae.unet.whitening.update(code)
        output.square().mean().backward()
        gradients.append([parameter.grad for parameter in dae.parameters()])
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain)


def test_code_reaches_the_output_and_decoder(tiny_dae: DenoisingAutoencoder) -> None:
    """g_beta sees z (not skips alone), and h_gamma sees nothing else."""
    x = draw(1, 1, 16, 16)
    unet, c_noise = tiny_dae.unet, torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        embedding = unet.embedding(c_noise)
        code, features = unet.encoder(x, embedding)
        moved = unet.decoder(code + 1, features, embedding) - unet.decoder(code, features, embedding)
        assert float(moved.abs().max()) > 1e-3
        decoder = randomise(SemanticDecoder(TINY_NETWORK)).double()
        assert decoder(code).shape == x.shape
        assert float((decoder(code + 1) - decoder(code)).abs().max()) > 1e-3


# -- whitening ------------------------------------------------------------------------------------------------------


def correlated(num: int, generator: torch.Generator) -> Tensor:
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [-0.5, 0.3, 0.7]], dtype=torch.float64)
    mean = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
    return torch.randn(num, 3, generator=generator, dtype=torch.float64) @ mixing.mT + mean


def test_codes_come_out_standard(generator: torch.Generator) -> None:
    whitening = Whitening(3, shrinkage=0.0).double()
    codes = correlated(500, generator)
    whitening.calibrate(codes)
    z = whitening(codes)
    torch.testing.assert_close(z.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.cov(z.mT), torch.eye(3, dtype=torch.float64), atol=1e-10, rtol=0)


def test_shrinkage_is_as_stated(generator: torch.Generator) -> None:
    whitening = Whitening(3, shrinkage=1e-3).double()
    codes = correlated(500, generator)
    whitening.calibrate(codes)
    values = torch.linalg.eigvalsh(torch.cov(codes.mT))
    expected = values / (values + 1e-3 * values.mean())
    torch.testing.assert_close(torch.linalg.eigvalsh(torch.cov(whitening(codes).mT)), expected.sort().values)


def test_unused_directions_stay_finite(generator: torch.Generator) -> None:
    whitening = Whitening(3)
    codes = correlated(500, generator).float()
    codes[:, 2] = codes[:, 0]
    whitening.calibrate(codes)
    z = whitening(codes)
    assert bool(z.isfinite().all()) and float(z.std(0).max()) < 1.1


def test_whitening_does_not_rotate(generator: torch.Generator) -> None:
    whitening = Whitening(3).double()
    whitening.calibrate(correlated(500, generator))
    torch.testing.assert_close(whitening.whitener, whitening.whitener.mT)
    assert bool((torch.linalg.eigvalsh(whitening.whitener) > 0).all())


def test_updates_reach_the_calibration(generator: torch.Generator) -> None:
    """While n / memory < 1 / updates the running statistics are those of all codes so far."""
    running, whole = Whitening(3).double(), Whitening(3).double()
    codes = correlated(96 * 50, generator)
    for chunk in codes.split(50):
        running.update(chunk)
    whole.calibrate(codes)
    unbiased = len(codes) / (len(codes) - 1)
    torch.testing.assert_close(running.mean, whole.mean)
    torch.testing.assert_close(running.covariance * unbiased, whole.covariance)
    torch.testing.assert_close(running.whitener, whole.whitener, rtol=1e-3, atol=1e-4)


def test_statistics_are_of_full_precision_in_training(generator: torch.Generator) -> None:
    """Codes far from 0: bf16 second moments, in which training runs, would leave nothing of a covariance of 1."""
    codes = 30 + torch.randn(500, 4, generator=generator)
    whitening = Whitening(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for chunk in codes.split(50):
            whitening.update(chunk)
    torch.testing.assert_close(whitening.covariance, torch.cov(codes.mT, correction=0), rtol=0, atol=2e-3)


def test_updates_forget_old_codes(generator: torch.Generator) -> None:
    whitening = Whitening(3, memory=2000).double()
    for _ in range(20):
        whitening.update(correlated(50, generator) + 100)
    codes = correlated(200, generator)
    for _ in range(208):  # 0.9^208 = 3e-10 of the old statistics are left
        whitening.update(codes)
    torch.testing.assert_close(whitening.mean, codes.mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(whitening.covariance, torch.cov(codes.mT, correction=0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [10, 50])
def test_memory_counts_codes_whatever_the_batch(batch_size: int) -> None:
    """A thousand codes in a memory of two thousand leave a share of exp(-1/2) of what was there."""
    whitening = Whitening(3, memory=2000).double()
    whitening.updates.fill_(10**6)  # the plain average at first is long over
    for _ in range(1000 // batch_size):
        whitening.update(torch.ones(batch_size, 3, dtype=torch.float64))
    torch.testing.assert_close(whitening.mean, torch.full_like(whitening.mean, 1 - math.exp(-0.5)), atol=5e-3, rtol=0)


def test_too_few_codes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"more codes than dimensions \(3\), got 3"):
        Whitening(3).calibrate(torch.randn(3, 3))


@pytest.mark.parametrize("codes", [torch.zeros(0, 3), torch.full((5, 3), math.nan), torch.full((5, 3), 1e30)])
def test_useless_codes_change_nothing(codes: Tensor) -> None:
    """No image below decoder_sigma_max, or a network that has diverged: the trainer handles that by its loss."""
    whitening = Whitening(3)
    whitening.update(codes)
    assert torch.equal(whitening.mean, torch.zeros(3)) and torch.equal(whitening.covariance, torch.eye(3))


def test_codes_that_do_not_count_do_not_move_the_statistics(generator: torch.Generator) -> None:
    codes, keep = torch.randn(40, 3, generator=generator), torch.arange(40) < 25
    masked, selected = Whitening(3), Whitening(3)
    masked.update(torch.where(keep[:, None], codes, 1e3), keep)
    selected.update(codes[:25])
    torch.testing.assert_close(masked.covariance, selected.covariance)
    torch.testing.assert_close(masked.mean, selected.mean)
