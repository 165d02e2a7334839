"""Figures as values: numbers in, a matplotlib figure out, no global state; sheets of images come from `grids`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image
from torch import Tensor

from denoising_ebm.viz.grids import INK

# Okabe & Ito: told apart by colour-blind readers. Line styles tell them apart in print without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))


def training_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Losses, energies and gradient norms of a run against images seen; panels without values are left out.

    Where values are many, a running mean is drawn over them. A dotted line marks the start of each later stage.

    Args:
        records: The lines of metrics.jsonl, in order.

    Returns:
        A figure with one panel above the other.

    Raises:
        ValueError: If no record has anything to draw.
    """
    panels = {
        "loss": {"loss": "total", "loss_denoising": "denoising", "loss_decoder": "decoder"},
        "energy": {"energy_data": "data", "energy_chain": "chain ends", "energy_gap": "gap"},
        "latent energy": {
            "latent_energy_data": "data",
            "latent_energy_chain": "chain ends",
            "latent_energy_gap": "gap",
        },
        "standard deviation": {
            "image_std": "images",
            "chain_std": "chain ends",
            "code_std": "codes",
            "latent_chain_std": "latent chain ends",
        },
        "gradient norm": {"grad_norm": "gradient norm"},
    }
    curves = {
        panel: {name: _series(records, key) for key, name in keys.items() if _series(records, key)[0].size}
        for panel, keys in panels.items()
    }
    curves = {panel: series for panel, series in curves.items() if series}
    if not curves:
        raise ValueError("no record has images_seen and a loss, an energy or a grad_norm")
    figure = Figure(figsize=(7.2, 0.5 + 1.9 * len(curves)), layout="constrained")
    axes: list[Axes] = list(figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0])
    for axis, (panel, series) in zip(axes, curves.items(), strict=True):
        for (name, (seen, values)), colour, style in zip(series.items(), COLOURS, LINE_STYLES, strict=False):
            _draw_curve(axis, seen, values, name, colour, style)
        if "energy" not in panel:
            smallest = min(float(values.min()) for _, values in series.values())
            # The contrastive loss may fall below zero, where a logarithm has nothing to show.
            axis.set_yscale("log" if smallest > 0 else "symlog")
            if smallest > 0:
                plain_numbers(axis.yaxis)
        axis.set_ylabel(panel)
        if len(series) > 1:
            axis.legend(frameon=False, fontsize=8, ncols=len(series), loc="lower left", bbox_to_anchor=(0, 1.0))
        _tidy(axis)
    for start, stage in _stage_starts(records):
        for axis in axes:
            axis.axvline(start, color=INK, linewidth=0.8, linestyle=":")
        axes[0].text(start, 0.97, f" {stage}", transform=axes[0].get_xaxis_transform(), va="top", fontsize=8, color=INK)
    axes[-1].set_xlabel("images seen")
    axes[-1].xaxis.set_major_formatter(EngFormatter())
    figure.align_ylabels(axes)
    return figure


def chain_energies(energies: Mapping[str, Sequence[Tensor]]) -> Figure:
    """Energy of each chain against its step, and their mean, one panel a stage.

    Args:
        energies: For each stage (`semantic`, `texture`) and step the chains' energies, shape `(chains,)`, positive.

    Returns:
        A figure with the panels side by side.
    """
    names = {"semantic": "latent chain, $U^s$", "texture": "pixel chain, $U^c$"}
    stages = {stage: np.stack([np.asarray(step) for step in steps]) for stage, steps in energies.items()}
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for axis, (stage, values) in zip(axes, stages.items(), strict=True):
        steps = np.arange(1, len(values) + 1)
        axis.plot(steps, values, color=COLOURS[0], alpha=0.35, linewidth=0.8)
        axis.plot(steps, values.mean(1), color=COLOURS[1], linewidth=1.8, label="mean")
        axis.set(title=names.get(stage, stage), xlabel="step", yscale="log")
        axis.title.set_fontsize(10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_numbers(axis.yaxis)
        _tidy(axis)
    axes[0].set_ylabel("energy, dimensionless")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def plain_numbers(scale: Axis) -> None:
    """Label a logarithmic axis, whose curves are drawn, in plain numbers, some of them whatever it spans."""
    low, high = scale.get_view_interval()
    if high / low > 10:
        scale.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    else:
        values = MaxNLocator(5).tick_values(low, high)
        scale.set_major_locator(FixedLocator([value for value in values if low <= value <= high]))
    scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    scale.set_minor_formatter(NullFormatter())


def cost_curves(curves: Mapping[str, Sequence[tuple[float, float]]], *, xlabel: str, ylabel: str) -> Figure:
    """Quality against cost, a curve for each sampler, both axes logarithmic.

    Args:
        curves: Name of each curve to its points (cost, quality), both > 0.
        xlabel: Of the cost, with units.
        ylabel: Of the quality, with units.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis: Axes = figure.subplots()
    for (name, points), colour, style in zip(curves.items(), COLOURS, LINE_STYLES, strict=False):
        x, y = np.array(points, dtype=float).reshape(-1, 2).T
        axis.plot(x, y, color=colour, linestyle=style, marker="o", markersize=4, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
    plain_numbers(axis.xaxis)
    plain_numbers(axis.yaxis)
    axis.legend(frameon=False, fontsize=8)
    _tidy(axis)
    return figure


def energy_histograms(energies: Mapping[str, npt.NDArray[Any]], *, title: str, xlabel: str, bins: int = 60) -> Figure:
    """Histograms on shared bins: the in-distribution set filled, the OOD sets as outlines.

    The axis spans the central 99 % of every set, at most three widths of the in-distribution set beyond it, so that one
    far set does not squeeze the others. The legend says how much of a set lies beyond.

    Args:
        energies: Name of each set to its values, shape `(n,)`; the first is in-distribution.
        title: Above the figure.
        xlabel: What the values are, with units.
        bins: Number of bins, >= 1.

    Returns:
        A figure with the share of images in each bin.

    Raises:
        ValueError: If there is no set, or one is empty or not finite.
    """
    if not energies:
        raise ValueError("energies is empty: need at least the in-distribution set")
    values = {name: np.asarray(array, dtype=np.float64).ravel() for name, array in energies.items()}
    for name, array in values.items():
        if array.size == 0 or not np.isfinite(array).all():
            raise ValueError(f"energies of {name!r} must be finite and not empty")
    low, high = _robust_limits(list(values.values()))
    edges = np.linspace(low, high, bins + 1)
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axis: Axes = figure.subplots()
    for i, (name, array) in enumerate(values.items()):
        shares = np.histogram(array, bins=edges)[0] / array.size
        beyond = 1 - shares.sum()
        # About 1 % is beyond by construction.
        note = f"; {beyond:.0%} beyond the axis" if beyond > 0.015 else ""
        colour, label = COLOURS[i % len(COLOURS)], f"{name} (n = {array.size:,}{note})"
        if i == 0:
            axis.stairs(shares, edges, fill=True, color=colour, alpha=0.35, linewidth=0, label=label)
        else:
            style = LINE_STYLES[(i - 1) % len(LINE_STYLES)]
            axis.stairs(shares, edges, color=colour, linewidth=1.5, linestyle=style, label=label)
    axis.set(title=title, xlabel=xlabel, ylabel="share of images", xlim=(low, high))
    axis.set_ylim(bottom=0)
    axis.title.set_fontsize(10)
    axis.legend(frameon=False, fontsize=8)
    _tidy(axis)
    return figure


def roc_curves(curves: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]], *, title: str) -> Figure:
    """ROC curves of several OOD sets, with a logarithmic axis of false positives, since few of them are what matters.

    Args:
        curves: Name of each set to its false-positive and true-positive rates, as from `ood.metrics.roc_curve`.
        title: Above the figure.

    Returns:
        A figure; chance is dotted.
    """
    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    axis: Axes = figure.subplots()
    chance = np.geomspace(1e-3, 1, 100)
    axis.plot(chance, chance, color=INK, linewidth=0.8, linestyle=":", label="chance")
    for i, (name, (false_positives, true_positives)) in enumerate(curves.items()):
        # Colours run out before line styles do: their periods, 6 and 5, meet again after 30 sets.
        style = LINE_STYLES[i % 5]
        axis.plot(false_positives, true_positives, color=COLOURS[i % 6], linestyle=style, linewidth=1.4, label=name)
    axis.set(
        title=title, xlabel="false-positive rate (in-distribution images)", ylabel="true-positive rate (OOD images)"
    )
    axis.set(xscale="log", xlim=(1e-3, 1), ylim=(0, 1.01))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.title.set_fontsize(10)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _tidy(axis)
    return figure


def png_bytes(picture: Figure | Image.Image, *, dpi: int = 160) -> bytes:
    """Encode as PNG, without metadata, so that equal pictures give equal bytes.

    Args:
        picture: A matplotlib figure or a Pillow image.
        dpi: Pixels an inch, for a figure.

    Returns:
        The bytes of a PNG file.
    """
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        FigureCanvasAgg(picture)
        picture.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    else:
        picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Images seen and values of one key, of the records which have it, finite."""
    pairs = [
        (record["images_seen"], record[key])
        for record in records
        if record.get(key) is not None and "images_seen" in record and math.isfinite(record[key])
    ]
    table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _stage_starts(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    stages = [(record["images_seen"], record["stage"]) for record in records if {"images_seen", "stage"} <= set(record)]
    return [now for before, now in pairwise(stages) if now[1] != before[1]]


def _draw_curve(
    axis: Axes,
    seen: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    name: str,
    colour: str,
    style: Any,
) -> None:
    window = len(values) // 40
    if window < 3:
        axis.plot(seen, values, color=colour, linestyle=style, linewidth=1.4, label=name)
        return
    axis.plot(seen, values, color=colour, alpha=0.25, linewidth=0.6)
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    middle = (window - 1) // 2
    axis.plot(seen[middle : middle + len(means)], means, color=colour, linestyle=style, linewidth=1.4, label=name)


def _robust_limits(sets: list[npt.NDArray[np.float64]]) -> tuple[float, float]:
    quantiles = np.array([np.quantile(array, [0.005, 0.995]) for array in sets])
    first_low, first_high = quantiles[0]
    width = first_high - first_low
    if width == 0:
        width = float(np.ptp(quantiles)) or max(1.0, abs(float(first_low)))
    floor, ceiling = float(first_low - 3 * width), float(first_high + 3 * width)
    within = quantiles[(quantiles[:, 1] >= floor) & (quantiles[:, 0] <= ceiling)]
    low, high = max(float(within[:, 0].min()), floor), min(float(within[:, 1].max()), ceiling)
    margin = 0.02 * (high - low) or 0.5 * width
    return low - margin, high + margin


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
