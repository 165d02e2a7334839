"""Figures 4 and 5 and the comparison of speed: each takes the workshop and returns the section of the page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.config import PixelSampler, SamplingConfig
from denoising_ebm.datasets.images import to_float
from denoising_ebm.experiments import paper
from denoising_ebm.experiments.experiment import Experiment, png_text
from denoising_ebm.experiments.samplers import Drawn, draw, draw_ncsn
from denoising_ebm.experiments.settings import with_steps
from denoising_ebm.model import DenoisingEBM, Sampler
from denoising_ebm.quality.memorization import memorization_test, nearest
from denoising_ebm.samplers import Trajectory
from denoising_ebm.viz.grids import image_grid, trajectory_grid
from denoising_ebm.viz.plots import chain_energies, cost_curves, png_bytes
from denoising_ebm.viz.report import Cell, Picture, Section, Table


def figure4(experiment: Experiment) -> Section:
    """Figure 4: samples, uncurated."""
    num = min(100, experiment.sizes.samples)
    samplers: tuple[Sampler, ...] = ("two-stage", "dpmpp-2m-sde", "heun")

    def sheets() -> dict[str, bytes]:
        images: dict[str, Tensor] = {}
        for sampler in samplers:
            drawn = experiment.model("denoising").sample(num, sampler=sampler, seed=experiment.seed)
            images[f"samples, sampler {sampler}"] = drawn.images.cpu()
            if drawn.semantic is not None:
                images["semantic images h(z) that they start from"] = drawn.semantic.cpu()
        return {what: png_bytes(image_grid(sheet, columns=10)) for what, sheet in images.items()}

    pictures = [
        Picture(png, f"{num} {what}, seed {experiment.seed}, nothing selected.", f"a sheet of {what}")
        for what, png in experiment.pictures("figure4", sheets).items()
    ]
    real = png_bytes(image_grid(to_float(experiment.test[:num]), columns=10))
    pictures.append(Picture(real, f"{num} test images.", "a sheet of real images"))
    copies_row = experiment.row("copies", partial(_copies, experiment))
    title = "Figure 4: samples, and whether they are copies"
    if "missing" in copies_row:
        return Section(title, copies_row["missing"], pictures=pictures)
    pairs = base64.b64decode(copies_row["pairs"])
    caption = "The twenty samples nearest to a training image, each left of it."
    pictures.append(Picture(pairs, caption, "pairs of similar images"))
    rows: list[list[Cell]] = [
        [name, row["images"], row["near"], row["nearer"], f"{row['interval'][0]:.3f}-{row['interval'][1]:.3f}"]
        for name, row in copies_row["sets"].items()
    ]
    text = (
        "Are samples copies? A copy would be nearer to a training image than new images are: of images that were not "
        "trained on, 1 % are nearer than the 1 % quantile of test images' distances. And among as many training as test "
        "images, either kind is the nearest half of the time. Test images in place of samples show what to expect."
    )
    caption = (
        f"Nearest of {len(experiment.train):,} training images, by {experiment.evaluator.extractor.name}; two-stage samples, seed "
        f"{experiment.seed}."
    )
    columns = [
        "images",
        "number",
        "nearer than the 1 % quantile",
        "training image nearer than test image",
        "95 % interval",
    ]
    return Section(title, text, Table(columns, rows, caption), pictures)


def _copies(experiment: Experiment) -> dict[str, Any]:
    """Compare samples, and held-out images in their place, with training and held-out images."""
    pool = min(experiment.sizes.reference, len(experiment.test) // 2, len(experiment.train))
    num = min(experiment.sizes.ablation_samples, pool)
    train, held_out = (
        experiment.evaluator.features(experiment.train),
        experiment.evaluator.features(experiment.test[:pool]),
    )
    usual = nearest(held_out, train)[0].quantile(0.01)
    sets = {"samples": experiment.samples.images[:num], "other test images": experiment.test[pool : pool + num]}
    result: dict[str, Any] = {"sets": {}}
    for name, images in sets.items():
        features = experiment.evaluator.features(images)
        distance, index = nearest(features, train)
        pools = memorization_test(features, train[:pool], held_out)
        result["sets"][name] = {
            "images": len(images),
            "near": float((distance < usual).double().mean()),
            "nearer": pools.nearer,
            "interval": pools.interval,
        }
        if name == "samples":
            first = distance.argsort()[:20]
            pairs = torch.stack([images[first], experiment.train[index[first]]], 1).flatten(0, 1)
            result["pairs"] = png_text(png_bytes(image_grid(to_float(pairs), columns=10)))
    return result


def figure5(experiment: Experiment) -> Section:
    """Figure 5: chains on their way, and whether the semantic start shortens them."""
    model, longest = experiment.model("denoising"), experiment.sizes.chain_lengths[-1]

    def chains() -> dict[str, bytes]:
        result = {}
        kinds: dict[str, tuple[Sampler, int | None]] = {
            "with a semantic start": ("two-stage", None),
            f"from noise alone, {longest} steps": ("dpmpp-2m-sde", longest),
        }
        for what, (sampler, steps) in kinds.items():
            trajectory = Trajectory(model.decode, chains=6)
            end = model.sample(6, sampler=sampler, steps=steps, seed=experiment.seed, callback=trajectory)
            trajectory.add(end.images, "end")
            result[f"Six chains {what}."] = png_bytes(trajectory_grid(trajectory.states, trajectory.labels))
            result[f"Their energies, {what}."] = png_bytes(chain_energies(trajectory.energies))
        return result

    pictures = [
        Picture(png, caption, "falling curves" if "energies" in caption else "images that become clear, left to right")
        for caption, png in experiment.pictures("figure5", chains).items()
    ]
    # The control tells what h(z) is worth from what a lower first noise level is.
    high, low, samples = (
        model.config.noise.sigma_max,
        model.config.sampling.pixel.sigma_max,
        experiment.sizes.chain_samples,
    )
    kinds: dict[str, tuple[Sampler, float | None]] = {
        "semantic start": ("two-stage", None),
        f"noise of {high:g}": ("dpmpp-2m-sde", None),
        f"noise of {low:g}": ("dpmpp-2m-sde", low),
    }
    curves: dict[str, list[tuple[int, float]]] = {name: [] for name in kinds}
    rows: list[list[Cell]] = []
    for steps in experiment.sizes.chain_lengths:
        row: list[Cell] = [steps]
        for name, (sampler, start) in kinds.items():
            by = partial(draw, model, samples, _from_level(model, sampler, start), steps=steps, seed=experiment.seed)
            figures = experiment.quality_row(f"chain of {steps}, {name}", partial(experiment.measured, by))
            row += [figures.get("nfe"), figures.get("frechet_distance")]
            if "frechet_distance" in figures:
                curves[name].append((figures["nfe"], figures["frechet_distance"]))
        rows.append(row)
    pictures.append(
        Picture(
            png_bytes(cost_curves(curves, xlabel="NFE (network evaluations an image)", ylabel="FD")),
            "Distance by the cost of a sample, of both stages, with and without the semantic start.",
            "three falling curves",
        )
    )
    caption = (
        f"{experiment.evaluator.protocol(samples, 'test')}; seed {experiment.seed}. Chains with a semantic start begin at h(z^K) with noise "
        f"of {low:g}, the others at a gray image with noise of {high:g} and, as a control, of {low:g}."
    )
    text = (
        "The paper's central claim is that a semantic start shortens the chain in pixels. All chains run here on one "
        "network, each annealed over its whole range in T steps; evaluations count those of the latent chain too."
    ) + experiment.left_out("chain of")
    columns = ["T", *(column for name in kinds for column in ("nfe", f"distance, {name}"))]
    return Section(
        "Figure 5: chains, and what the semantic start is worth", text, Table(columns, rows, caption), pictures
    )


def _from_level(model: DenoisingEBM, sampler: Sampler, sigma_max: float | None) -> SamplingConfig | PixelSampler:
    """Return a sampler that starts at another noise level, if one is given."""
    chosen = model.configure_sampler(sampler)
    return (
        replace(chosen, sigma_max=sigma_max) if sigma_max is not None and isinstance(chosen, PixelSampler) else chosen
    )


def speed(experiment: Experiment) -> Section:
    """Speed: quality against network evaluations, beside NCSN's protocol on the same network."""
    model, samples = experiment.model("denoising"), experiment.sizes.speed_samples
    by = partial(draw, model, samples, seed=experiment.seed)
    default = model.config.sampling
    plans: dict[str, Callable[[], Drawn]] = {}
    for steps in experiment.sizes.chain_lengths:
        plans[f"two-stage, K = 0, T = {steps}"] = partial(by, with_steps(default, semantic=0), steps=steps)
    plans[f"two-stage, K = {default.semantic.steps}, T = {default.pixel.steps}"] = partial(by, "two-stage")
    for levels in experiment.sizes.heun_levels:
        plans[f"heun, {levels} levels"] = partial(by, "heun", steps=levels)
    ncsn_names = [
        f"NCSN's protocol, 10 x {experiment.sizes.ncsn_steps} steps{more}" for more in ("", ", and a denoising step")
    ]
    # Its thousand steps are run once for both rows.
    chains = cache(partial(draw_ncsn, model, samples, steps=experiment.sizes.ncsn_steps, seed=experiment.seed))
    plans |= {name: partial(lambda i: chains()[i], i) for i, name in enumerate(ncsn_names)}
    figures = {
        name: experiment.quality_row(f"speed, {name}", partial(experiment.measured, make))
        for name, make in plans.items()
    }
    figures = {name: row for name, row in figures.items() if "missing" not in row}
    rows: list[list[Cell]] = [
        [name, row["nfe"], row["s_per_64"], row["frechet_distance"], row["precision"], row["recall"]]
        for name, row in figures.items()
    ]
    text = paper.REASONS["speed"] + experiment.left_out("speed, ")
    machines = sorted({row.get("hardware", "not recorded") for row in figures.values()})
    # Where rows were made on several machines, seconds do not compare.
    cost, less = ("s_per_64", "less time") if len(machines) == 1 else ("nfe", "fewer evaluations")
    for ncsn_name in (name for name in ncsn_names if name in figures):
        ncsn = figures[ncsn_name]
        as_good = {
            n: r
            for n, r in figures.items()
            if n.startswith("two-stage") and r["frechet_distance"] <= ncsn["frechet_distance"]
        }
        if as_good:
            best = min(as_good, key=lambda name: as_good[name][cost])
            ratio = ncsn[cost] / as_good[best][cost]
            text += (
                f"\n\nThe fastest two-stage sampler that is at least as good as {ncsn_name} ({best}) takes {ratio:.1f} "
                f"times {less}; the paper reports {paper.SPEEDUP:.1f} against NCSN as published."
            )
        else:
            text += f"\n\nNo two-stage sampler of this table reaches the distance of {ncsn_name}."
    kinds = {
        "two-stage, K = 0": "two-stage, no latent steps",
        f"two-stage, K = {default.semantic.steps}": f"two-stage, {default.semantic.steps} latent steps",
        "heun": "heun",
        "NCSN": "NCSN's protocol",
    }
    shown = {name: row for name, row in figures.items() if name != ncsn_names[1]}
    curves = {
        label: sorted((row["nfe"], row["frechet_distance"]) for name, row in shown.items() if name.startswith(start))
        for start, label in kinds.items()
    }
    picture = Picture(
        png_bytes(cost_curves(curves, xlabel="NFE (network evaluations an image)", ylabel="FD")),
        "Distance against network evaluations.",
        "falling curves of several samplers",
    )
    caption = f"{experiment.evaluator.protocol(samples, 'test')}; seed {experiment.seed}; batches of 128; {', '.join(machines)}."
    if len(machines) > 1:
        caption += " WARNING: rows were made on several machines, whose seconds do not compare."
    table = Table(["sampler", "nfe", "s per 64", "frechet_distance", "precision", "recall"], rows, caption)
    return Section("Speed", text, table, [picture])
