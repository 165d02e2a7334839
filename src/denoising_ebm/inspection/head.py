r"""The head: a small network that reads the evidence at every place and says how much it looks like a defect.

It learns from made defects (`defects.py`) on normal photos alone, as DRAEM (Zavrtanik et al., 2021) and NSA (Schlüter et
al., 2022) do; what is ours is what it reads, the residuals of one energy model over noise levels (`evidence.py`), by which
some hundred steps suffice. Its output is a logit for every pixel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denoising_ebm.inspection.bank import PhotoBank
from denoising_ebm.inspection.defects import Defect, alter, change_harmlessly
from denoising_ebm.inspection.evidence import evidence
from denoising_ebm.model import DenoisingEBM

#: Pixels whose mean logit stands for a crop: the smallest defects are about as large.
TOP_PIXELS = 8


@dataclass(frozen=True)
class HeadConfig:
    """What the head reads and how it learns.

    Attributes:
        sigmas: Noise levels of the residuals, each > 0; with none it reads the photo alone.
        widths: Channels per resolution, the first at half the size of the photo.
        crop: Side of the crops that it learns from, in pixels, a multiple of `Head.stride`.
        batch_size: Crops a step.
        learning_rate: Of AdamW, falling to zero.
        weight_decay: Of AdamW.
        defect_share: Share of crops with a made defect.
        harmless_chance: Chance of each harmless change.
        turns: Whether photos may be turned by quarters and mirrored.
        max_crops: Crops to learn from.
        max_minutes: Minutes to learn for, if fewer; 0 for no limit.
    """

    sigmas: tuple[float, ...] = (0.05, 0.3)
    widths: tuple[int, ...] = (24, 32, 48, 64, 96)
    crop: int = 128
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    defect_share: float = 0.5
    harmless_chance: float = 0.3
    turns: bool = True
    max_crops: int = 20_000
    max_minutes: float = 0.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(sigma) and sigma > 0 for sigma in self.sigmas):
            raise ValueError(f"head.sigmas must be noise levels > 0, got {list(self.sigmas)}")
        if not 2 <= len(self.widths) <= 7 or not all(1 <= width <= 1024 for width in self.widths):
            raise ValueError(f"head.widths must be 2 to 7 numbers within 1..1024, got {list(self.widths)}")
        if self.crop < self.stride or self.crop % self.stride:
            raise ValueError(f"head.crop must be a multiple of {self.stride}, got {self.crop}")
        for name in ("batch_size", "max_crops"):
            if getattr(self, name) < 1:
                raise ValueError(f"head.{name} must be >= 1, got {getattr(self, name)}")
        for name in ("defect_share", "harmless_chance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"head.{name} must be within 0..1, got {getattr(self, name)}")
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and self.max_minutes >= 0):
            raise ValueError("head.learning_rate must be > 0, head.weight_decay and head.max_minutes >= 0")

    @property
    def stride(self) -> int:
        """Pixels a side that the smallest resolution takes as one place."""
        return int(2 ** len(self.widths))


class _Block(nn.Sequential):
    """Convolution, batch normalisation (whose statistics do not depend on the size of a photo), SiLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.SiLU()
        )


class Head(nn.Module):
    """A U-Net from evidence to a logit for every pixel.

    Args:
        in_channels: Channels of the evidence.
        widths: Channels per resolution.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = 2 ** len(widths)
        self.stem = _Block(4 * in_channels, widths[0])
        above = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(nn.Sequential(_Block(a, b), _Block(b, b)) for a, b in zip(above, widths, strict=True))
        self.up = nn.ModuleList(
            nn.Sequential(_Block(below + width, width), _Block(width, width)) for width, below in pairwise(widths)
        )
        self.out = nn.Conv2d(widths[0], 4, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, float32, shape `(batch, height, width)`, of evidence `(batch, in_channels, height, width)`.

        Sides are brought to multiples of the stride by reflection, and the logits cut back.
        """
        height, width = x.shape[2:]
        below, right = -height % self.stride, -width % self.stride
        if below or right:
            mode = "reflect" if below < height and right < width else "replicate"
            x = F.pad(x, (0, right, 0, below), mode=mode)
        h = self.stem(F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last))
        features = []
        for i, level in enumerate(self.down):
            h = level(F.avg_pool2d(h, 2) if i else h)
            features.append(h)
        for i in reversed(range(len(self.up))):
            h = F.interpolate(h, scale_factor=2, mode="bilinear")
            h = self.up[i](torch.cat([h, features[i]], dim=1))
        logits: Tensor = F.pixel_shuffle(self.out(h), 2)[:, 0, :height, :width].float()
        return logits


def loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the loss of logits, shape `(batch, height, width)`, for masks of the same shape, 1 where there is a defect.

    Cross-entropy of every pixel, those of small defects weighted up by 1 / sqrt(area), so that a speck counts beside a
    stain; and that of the crop, whose logit is the mean of its `TOP_PIXELS` largest: the score of a photo is a maximum.
    """
    area = masks.sum((1, 2), keepdim=True)
    weights = 1 + masks * 20 / area.clamp_min(1).sqrt()
    pixels = (weights * F.binary_cross_entropy_with_logits(logits, masks, reduction="none")).mean()
    top = logits.flatten(1).topk(TOP_PIXELS, dim=1).values.mean(1)
    whole = F.binary_cross_entropy_with_logits(top, (area.flatten() > 0).float())
    return 4 * pixels + 0.3 * whole


def fit_head(
    model: DenoisingEBM,
    bank: PhotoBank,
    config: HeadConfig,
    *,
    defects: Mapping[str, Defect] | None = None,
    seed: int = 0,
    progress: Callable[[float, float], object] | None = None,
) -> Head:
    """Train a head on made defects; a function of the arguments alone, if `max_minutes` does not end it.

    Args:
        model: The model of normal photos, which stays as it is.
        bank: Normal photos.
        config: What it reads and how it learns.
        defects: Kinds of made defects; those of `defects.DEFECTS` if None.
        seed: Of first weights, crops and defects.
        progress: Called after each step with the share of the budget that is used up and the loss.

    Returns:
        The head, in eval mode.
    """
    channels = model.config.network.channels
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = Head(channels * (1 + len(config.sigmas)), config.widths).to(model.device)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    start, step = time.monotonic(), 0
    head.train()
    while True:
        share = step * config.batch_size / config.max_crops
        if config.max_minutes:
            share = max(share, (time.monotonic() - start) / 60 / config.max_minutes)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (step + 1) / 20) * (1 - share) ** 0.9
        x, masks = draw_crops(bank, config, np.random.default_rng([seed, step]), defects)
        x, masks = x.to(model.device), masks.to(model.device)
        found = evidence(model, x, config.sigmas)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.precision == "bf16"):
            logits = head(found)
        step_loss = loss(logits, masks)
        optimizer.zero_grad(set_to_none=True)
        step_loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        if progress is not None:
            progress(min(1.0, share), float(step_loss.detach()))
    return head.eval()


def draw_crops(
    bank: PhotoBank, config: HeadConfig, rng: np.random.Generator, defects: Mapping[str, Defect] | None = None
) -> tuple[Tensor, Tensor]:
    """Return a batch of crops, some of them with a made defect, float32 `(batch, channels, crop, crop)`, and their masks."""
    photos, masks = [], []
    for _ in range(config.batch_size):
        crop = bank.crop(config.crop, rng, turns=config.turns)
        mask = np.zeros(crop.shape[1:], bool)
        if rng.random() < config.defect_share:
            altered = alter(crop, bank.crop(config.crop, rng, turns=config.turns), rng, defects)
            crop, mask = altered.photo, altered.mask
        photos.append(change_harmlessly(crop, rng, chance=config.harmless_chance))
        masks.append(mask)
    return torch.from_numpy(np.stack(photos)), torch.from_numpy(np.stack(masks)).float()
