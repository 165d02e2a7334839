"""The studies: each takes the workshop and returns the section of the page that shows it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from denoising_ebm.evaluation.figures import COLOURS, LINE_STYLES, image_grid, png_bytes, trajectory_grid
from denoising_ebm.generation import Trajectory, generate
from denoising_ebm.images import to_float
from denoising_ebm.model import Sampler
from denoising_ebm.ood.detectors import DetectorConfig, OODDetector
from denoising_ebm.ood.evaluation import evaluate
from denoising_ebm.ood.features import log_energies
from denoising_ebm.report import Cell, Picture, Section, Table
from denoising_ebm.reproduce import paper
from denoising_ebm.reproduce.samplers import Drawn, draw, draw_ncsn
from denoising_ebm.reproduce.settings import ABLATIONS, Variant, ablation_config
from denoising_ebm.reproduce.workshop import Workshop

#: Rows of tables 1 and 2: what was trained, and how it is drawn from.
ROWS: tuple[tuple[Variant, Sampler], ...] = (
    ("denoising", "two-stage"),
    ("denoising", "annealed"),
    ("denoising", "heun"),
    ("denoising", "mala"),
    ("contrastive", "two-stage"),
    ("score", "two-stage"),
    ("score", "annealed"),
)
_QUALITY = ("distance", "precision", "recall", "density", "coverage", "fid", "inception_score")
_HEADINGS = ("distance", "precision", "recall", "density", "coverage", "FID", "IS")
#: Share of a training's budget that a row of table 3 gets, and the paper's sigma for table 4.
ABLATION_BUDGET, PAPER_SIGMA = 0.7, 0.05


def table1(shop: Workshop) -> Section:
    """Table 1: quality of samples by objective and sampler."""
    return _generation(shop, "Table 1: samples", paper.TABLE1)


def table2(shop: Workshop) -> Section:
    """Table 2: the same on the second set."""
    return _generation(shop, "Table 2: samples of the second set", paper.TABLE2)


def _generation(shop: Workshop, title: str, printed: Mapping[str, tuple[float, float | None]]) -> Section:
    samples = shop.sizes.samples
    rows: list[list[Cell]] = []

    def add(name: str, row: Mapping[str, Any]) -> None:
        if "missing" in row:
            rows.append([f"{name}: {row['missing']}", *[None] * (len(_QUALITY) + 2)])
        else:
            rows.append([name, *(row[key] for key in _QUALITY), row.get("evaluations"), row.get("s_per_64")])

    add("training images (floor)", shop.row("floor", lambda: asdict(shop.judge(shop.train[:samples]))))
    for variant, sampler in ROWS:

        def make(variant: Variant = variant, sampler: Sampler = sampler) -> dict[str, Any]:
            steps = shop.sizes.mala_steps if sampler == "mala" else None
            model = shop.model(variant)  # trained now if need be, which is not sampling time
            return _measured(shop, partial(draw, model, samples, sampler, steps=steps, seed=shop.seed))

        row = shop.row(f"{variant}, {sampler}", make)
        add(f"{variant}, {sampler}", row)
        if sampler == "two-stage" and "semantic_distance" in row:
            rows.append([f"{variant}, h(z^K)", row["semantic_distance"], *[None] * (len(_QUALITY) + 1)])
    for name, (fid, score) in printed.items():
        rows.append([f"paper: {name}", None, None, None, None, None, fid, score, None, None])
    caption = (
        f"{shop.judge.protocol(samples, 'test')}; seed {shop.seed}. Evaluations of the network and seconds on this machine "
        "for 64 images. Rows `paper` are printed figures for CIFAR-10 or CelebA 64 and 50,000 samples."
    )
    table = Table(["samples", *_HEADINGS, "evaluations", "s per 64"], rows, caption)
    return Section(title, paper.REASONS["generation"], table)


def _measured(shop: Workshop, make: Callable[[], Drawn]) -> dict[str, Any]:
    """Return quality, evaluations and time of a draw."""
    started = time.monotonic()
    drawn = make()
    seconds = time.monotonic() - started
    result = asdict(shop.judge(drawn.images))
    result |= {"evaluations": drawn.evaluations, "s_per_64": 64 * seconds / len(drawn.images)}
    if drawn.semantic is not None:
        result["semantic_distance"] = shop.judge.distance(drawn.semantic)
    return result


def table3(shop: Workshop) -> Section:
    """Table 3: noise range and number of levels, several seeds each."""
    rows: list[list[Cell]] = []
    for name, (sigma_max, levels) in ABLATIONS.items():
        distances: list[float] = []
        for seed in range(shop.seed, shop.seed + shop.sizes.seeds):

            def make(sigma_max: float = sigma_max, levels: int = levels, seed: int = seed) -> dict[str, Any]:
                config = ablation_config(shop.base, sigma_max, levels, seed, ABLATION_BUDGET)
                model = shop.train_model(f"ablation-{sigma_max:g}-{levels}-{seed}", config)
                drawn = draw(model, shop.sizes.ablation_samples, "two-stage", seed=seed)
                return {"distance": shop.judge.distance(drawn.images), "images seen": model.facts["images seen"]}

            row = shop.row(f"table3, {name}, seed {seed}", make)
            if "distance" in row:
                distances.append(row["distance"])
        spread = statistics.stdev(distances) if len(distances) > 1 else None
        mean = statistics.mean(distances) if distances else None
        rows.append([name, mean, spread, len(distances), paper.TABLE3[name]])
    caption = (
        f"Distance of {shop.sizes.ablation_samples:,} two-stage samples to {shop.judge.count:,} test images, mean and "
        "standard deviation over seeds (weights, batches and samples all drawn anew). The paper's column is FID."
    )
    table = Table(["noise levels", "distance", "sd over seeds", "seeds", "paper (FID)"], rows, caption)
    return Section("Table 3: noise levels", paper.REASONS["ablation"], table)


def table4(shop: Workshop) -> Section:
    """Table 4: odd images told from normal ones."""
    if not shop.odd:
        return Section("Table 4: odd images", "No odd sets were given: add --ood NAME=DATA.")
    scored = shop.sizes.scored

    def make() -> dict[str, Any]:
        model = shop.model("denoising")
        normal, calibration = shop.test[:scored], shop.test[scored : 2 * scored]
        detector = OODDetector(model, DetectorConfig(altered=max(4, shop.sizes.fit // 50)))
        detector.fit(shop.train[: shop.sizes.fit], calibration=calibration, seed=shop.seed)
        noise = model.scoring_noise(seed=shop.seed)

        def energies(pixels: Tensor) -> Tensor:
            with torch.no_grad():
                return log_energies(model, pixels, [PAPER_SIGMA], noise=noise)[:, 0]

        odd = {name: pixels[:scored] for name, pixels in shop.odd.items()}
        result: dict[str, Any] = {"normal": len(normal)}
        for score, measure in (("detector", detector.score), ("energy", energies)):
            values = evaluate(measure(normal), {name: measure(pixels) for name, pixels in odd.items()}, seed=shop.seed)
            result[score] = {item.name: [item.auroc.value, item.auroc.low, item.auroc.high] for item in values}
        return result

    row = shop.row("table4", make)
    if "missing" in row:
        return Section("Table 4: odd images", row["missing"])

    def cell(score: str, name: str) -> str:
        value, low, high = row[score][name]
        return f"{value:.3f} ({low:.3f}-{high:.3f})"

    rows: list[list[Cell]] = [
        [name, cell("detector", name), cell("energy", name), paper.TABLE4.get(name)] for name in row["detector"]
    ]
    caption = (
        f"AUROC against {row['normal']:,} test images, with 95 % bootstrap intervals; seed {shop.seed}. The detector is "
        f"fitted on {min(shop.sizes.fit, len(shop.train)):,} training images; the energy is the paper's score, eq. 7 at "
        f"sigma {PAPER_SIGMA}."
    )
    table = Table(["odd set", "detector", "energy (the paper's score)", "paper (CIFAR-10)"], rows, caption)
    return Section("Table 4: odd images", paper.REASONS["detection"], table)


def figure4(shop: Workshop) -> Section:
    """Figure 4: samples, uncurated."""
    num = min(100, shop.sizes.samples)
    model = shop.model("denoising")
    pictures = []
    samplers: tuple[Sampler, ...] = ("two-stage", "annealed", "heun")
    for sampler in samplers:
        drawn = generate(model, num, sampler=sampler, seed=shop.seed)
        sheets = {"samples": drawn.images} | (
            {} if drawn.semantic is None else {"semantic images h(z)": drawn.semantic}
        )
        for what, images in sheets.items():
            picture = png_bytes(image_grid(images, columns=10))
            caption = f"{num} {what}, sampler {sampler}, seed {shop.seed}, nothing selected."
            pictures.append(Picture(picture, caption, f"a sheet of {what}"))
    real = png_bytes(image_grid(to_float(shop.test[:num]), columns=10))
    pictures.append(Picture(real, f"{num} test images.", "a sheet of real images"))
    return Section("Figure 4: samples", pictures=pictures)


def figure5(shop: Workshop) -> Section:
    """Figure 5: chains on their way, and whether the semantic start shortens them."""
    model = shop.model("denoising")
    stages, alone = Trajectory(model, chains=6), Trajectory(model, chains=6)
    both = generate(model, 6, seed=shop.seed, watch=stages)
    stages.add(both.images, "end")
    longest = shop.sizes.chain_lengths[-1]
    single = generate(model, 6, sampler="annealed", steps=longest, seed=shop.seed, watch=alone)
    alone.add(single.images, "end")
    pictures = []
    for trajectory, what in ((stages, "with a semantic start"), (alone, f"from noise alone, {longest} steps")):
        sheet = png_bytes(trajectory_grid(trajectory.states, trajectory.labels))
        pictures.append(Picture(sheet, f"Six chains {what}.", "images that become clear from left to right"))
        pictures.append(Picture(png_bytes(_energies(trajectory)), f"Their energies, {what}.", "falling curves"))

    curves: dict[str, list[tuple[int, float]]] = {"two-stage": [], "from noise": []}
    rows: list[list[Cell]] = []
    for steps in shop.sizes.chain_lengths:
        row: list[Cell] = [steps]
        for name, sampler in (("two-stage", "two-stage"), ("from noise", "annealed")):

            def make(sampler: Any = sampler, steps: int = steps) -> dict[str, Any]:
                return _measured(shop, partial(draw, model, shop.sizes.samples, sampler, steps=steps, seed=shop.seed))

            figures = shop.row(f"chain of {steps}, {name}", make)
            row.append(figures.get("distance"))
            if "distance" in figures:
                curves[name].append((steps, figures["distance"]))
        rows.append(row)
    pictures.append(
        Picture(
            png_bytes(_curves(curves, "Langevin steps T in pixels", "distance")),
            "Distance by the length of the pixel chain, with and without the semantic start.",
            "two falling curves",
        )
    )
    caption = (
        f"{shop.judge.protocol(shop.sizes.samples, 'test')}; seed {shop.seed}. Two-stage chains start at h(z^K) with noise "
        f"of {model.config.sampling.texture_sigma_max:g}, the others at noise of {model.config.noise.sigma_max:g}."
    )
    text = (
        "The paper's central claim is that a semantic start shortens the chain in pixels. Both kinds of chain run here on "
        "one network, each annealed over its whole range in T steps."
    )
    table = Table(["T", "distance, semantic start", "distance, from noise"], rows, caption)
    return Section("Figure 5: chains, and what the semantic start is worth", text, table, pictures)


def speed(shop: Workshop) -> Section:
    """Speed: quality against network evaluations, beside NCSN's protocol on the same network."""
    model, samples = shop.model("denoising"), shop.sizes.samples
    by = partial(draw, model, samples, seed=shop.seed)
    plans: dict[str, Callable[[], Drawn]] = {}
    for steps in shop.sizes.chain_lengths:
        plans[f"two-stage, K = 0, T = {steps}"] = partial(by, "two-stage", steps=steps, semantic_steps=0)
    default = model.config.sampling
    plans[f"two-stage, K = {default.semantic_steps}, T = {default.texture_steps}"] = partial(by, "two-stage")
    for levels in shop.sizes.heun_levels:
        plans[f"heun, {levels} levels"] = partial(by, "heun", steps=levels)
    ncsn_name = f"NCSN's protocol, 10 x {shop.sizes.ncsn_steps} steps"
    plans[ncsn_name] = partial(draw_ncsn, model, samples, steps=shop.sizes.ncsn_steps, seed=shop.seed)
    figures = {name: shop.row(f"speed, {name}", partial(_measured, shop, make)) for name, make in plans.items()}
    figures = {name: row for name, row in figures.items() if "missing" not in row}
    rows: list[list[Cell]] = [
        [name, row["evaluations"], row["s_per_64"], row["distance"], row["precision"], row["recall"]]
        for name, row in figures.items()
    ]
    text = paper.REASONS["speed"]
    if ncsn_name in figures:
        ncsn = figures[ncsn_name]
        as_good = {n: r for n, r in figures.items() if n.startswith("two-stage") and r["distance"] <= ncsn["distance"]}
        if as_good:
            best = min(as_good, key=lambda name: as_good[name]["s_per_64"])
            ratio = ncsn["s_per_64"] / as_good[best]["s_per_64"]
            text += (
                f"\n\nThe fastest two-stage sampler that is at least as good as NCSN's protocol ({best}) takes {ratio:.1f} "
                f"times less time; the paper reports {paper.SPEEDUP:.1f}."
            )
        else:
            text += "\n\nNo two-stage sampler of this table reaches the distance of NCSN's protocol."
    kinds = {
        "two-stage, K = 0": "two-stage, no latent steps",
        f"two-stage, K = {default.semantic_steps}": f"two-stage, {default.semantic_steps} latent steps",
        "heun": "heun",
        "NCSN": "NCSN's protocol",
    }
    curves = {
        label: sorted((row["evaluations"], row["distance"]) for name, row in figures.items() if name.startswith(start))
        for start, label in kinds.items()
    }
    picture = Picture(
        png_bytes(_curves(curves, "network evaluations an image", "distance")),
        "Distance against network evaluations.",
        "falling curves of several samplers",
    )
    caption = f"{shop.judge.protocol(samples, 'test')}; seed {shop.seed}; batches of 128."
    table = Table(["sampler", "evaluations", "s per 64", "distance", "precision", "recall"], rows, caption)
    return Section("Speed", text, table, [picture])


STUDIES: dict[str, Callable[[Workshop], Section]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "figure4": figure4,
    "figure5": figure5,
    "speed": speed,
}


def _curves(curves: Mapping[str, list[tuple[int, float]]], xlabel: str, ylabel: str) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for (name, points), colour, style in zip(curves.items(), COLOURS, LINE_STYLES, strict=False):
        x, y = np.array(points, dtype=float).reshape(-1, 2).T
        axis.plot(x, y, color=colour, linestyle=style, marker="o", markersize=4, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scale.set_minor_formatter(NullFormatter())
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    return figure


def _energies(trajectory: Trajectory) -> Figure:
    """Energy of each chain against its step, one panel a stage."""
    stages = {"semantic": "U^s", "texture": "U^c"}
    shown = [(stage, trajectory.energies[stage]) for stage in stages if stage in trajectory.energies]
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (stage, energies) in zip(panels, shown, strict=True):
        axis.plot(torch.stack(energies).numpy(), linewidth=1)
        axis.set(xlabel=f"{stage} step", ylabel=f"energy {stages[stage]}", yscale="log")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    return figure
