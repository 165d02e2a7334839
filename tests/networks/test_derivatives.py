"""Second derivatives that are written out are those of PyTorch, and of finite differences."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from denoising_ebm.config import NoiseConfig
from denoising_ebm.networks import derivatives
from denoising_ebm.networks.density import DensityNetwork
from denoising_ebm.networks.derivatives import second_derivatives
from support import TINY_NETWORK, randomise


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(True)


def test_layers_without_weights() -> None:
    x, other = 3 * draw(2, 3, 4, 2), draw(2, 1, 4, 2, seed=2)
    with second_derivatives():
        for layer in (derivatives.silu, derivatives.downsample, derivatives.upsample):
            assert gradcheck(layer, x)
            assert gradgradcheck(layer, x)
        assert gradcheck(derivatives.concatenate, (x, other))
        assert gradgradcheck(derivatives.concatenate, (x, other))


def test_group_norm() -> None:
    x, weight, bias = draw(2, 6, 3, 2), draw(6, seed=2), draw(6, seed=3)

    def gradient(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
        output = derivatives.group_norm(x, 2, weight, bias.detach(), 1e-2)
        return torch.autograd.grad(output, x, grad, create_graph=True)[0]

    with second_derivatives():
        assert gradcheck(lambda x, w, b: derivatives.group_norm(x, 2, w, b, 1e-2), (x, weight, bias))
        assert gradcheck(gradient, (x, weight, draw(2, 6, 3, 2, seed=4)))


@pytest.mark.parametrize("size", [1, 3])
def test_convolution(size: int) -> None:
    x, weight, bias = draw(2, 3, 4, 3), draw(2, 3, size, size, seed=2), draw(2, seed=3)
    padding = (size // 2, size // 2)

    def gradient(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
        output = derivatives.conv2d(x, weight, None, padding)
        return torch.autograd.grad(output, x, grad, create_graph=True)[0]

    with second_derivatives():
        assert gradcheck(lambda x, w, b: derivatives.conv2d(x, w, b, padding), (x, weight, bias))
        assert gradcheck(gradient, (x, weight, draw(2, 2, 4, 3, seed=4)))


def loss_gradients(
    network: DensityNetwork, x: Tensor, context: AbstractContextManager[None], precision: AbstractContextManager[object]
) -> dict[str, Tensor]:
    """Return the gradient in the weights of a loss of the energy's gradient."""
    x = x.detach().requires_grad_(True)
    with precision, context:
        (gradient,) = torch.autograd.grad(network(x, 0.5).sum(), x, create_graph=True)
    network.zero_grad()
    gradient.square().sum().backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


def test_whole_network() -> None:
    network = randomise(DensityNetwork(TINY_NETWORK, NoiseConfig())).double()
    x = draw(2, TINY_NETWORK.channels, TINY_NETWORK.image_size, TINY_NETWORK.image_size)
    expected = loss_gradients(network, x, nullcontext(), nullcontext())
    found = loss_gradients(network, x, second_derivatives(), nullcontext())
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_whole_network_in_bf16() -> None:
    network = randomise(DensityNetwork(TINY_NETWORK, NoiseConfig()))
    x = draw(8, TINY_NETWORK.channels, TINY_NETWORK.image_size, TINY_NETWORK.image_size).float()

    def flat(context: AbstractContextManager[None], low: bool) -> Tensor:
        gradients = loss_gradients(network, x, context, torch.autocast("cpu", torch.bfloat16, enabled=low))
        return torch.cat([gradient.flatten() for gradient in gradients.values()])

    exact = flat(nullcontext(), low=False)
    composed, written_out = (
        (flat(context, low=True) - exact).norm() for context in (nullcontext(), second_derivatives())
    )
    assert 0 < composed < 0.1 * exact.norm()
    assert written_out < 1.3 * composed


def test_layers_are_plain_outside() -> None:
    x, weight = draw(1, 2, 2, 2), draw(2, seed=2)
    with pytest.raises(KeyboardInterrupt), second_derivatives():
        raise KeyboardInterrupt
    for function, reference in (
        (lambda x, w: derivatives.group_norm(x, 1, w, w, 1e-5), lambda x, w: F.group_norm(x, 1, w, w)),
        (lambda x, w: derivatives.silu(x) * w.sum(), lambda x, w: F.silu(x) * w.sum()),
    ):
        found, expected = (
            torch.autograd.grad(each(x, weight).pow(3).sum(), weight, create_graph=True)[0]
            for each in (function, reference)
        )
        assert torch.equal(*(torch.autograd.grad(each.sum(), x)[0] for each in (found, expected)))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:Warning")  # of torch.func itself
def test_sizes_change_in_forward_mode_and_in_vmap() -> None:
    x, v = draw(2, 3, 4, 2).detach(), draw(2, 3, 4, 2, seed=2).detach()
    for layer, plain in (
        (derivatives.downsample, lambda x: F.avg_pool2d(x, 2)),
        (derivatives.upsample, lambda x: F.interpolate(x, scale_factor=2)),
    ):
        torch.testing.assert_close(torch.func.jvp(layer, (x,), (v,))[1], plain(v))
        each = torch.func.vmap(torch.func.grad(lambda x, layer=layer: layer(x[None]).pow(2).sum()))(x)
        (expected,) = torch.autograd.grad(plain(leaf := x.clone().requires_grad_()).pow(2).sum(), leaf)
        torch.testing.assert_close(each, expected)
