"""Figures 4 and 5 and the comparison of speed: each study takes the experiment and returns its section of the page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from denoising_ebm.config import PixelSampler, SamplerName
from denoising_ebm.datasets.images import to_float
from denoising_ebm.experiments import paper
from denoising_ebm.experiments.drawing import Drawn, draw, draw_ncsn
from denoising_ebm.experiments.experiment import Experiment, png_text
from denoising_ebm.experiments.prose import prose
from denoising_ebm.experiments.settings import sampler_title, with_steps
from denoising_ebm.model import DenoisingEBM, Sampler
from denoising_ebm.quality.memorization import memorization_test, nearest
from denoising_ebm.samplers import METHODS, Trajectory
from denoising_ebm.viz.grids import image_grid, trajectory_grid
from denoising_ebm.viz.plots import chain_energies, cost_curves, png_bytes
from denoising_ebm.viz.report import Picture, Section, Table

COST_AXES = {"xlabel": "NFE (network evaluations an image)", "ylabel": "FD to test images"}


# -- figure 4: samples --------------------------------------------------------------------------------------------------


def figure4(experiment: Experiment) -> Section:
    """Figure 4: samples, uncurated, and whether they are copies."""
    title, pictures = "Figure 4: samples, and whether they are copies", _sheets(experiment)
    row = experiment.row("memorization", partial(_memorization, experiment))
    if "missing" in row:
        return Section(title, row["missing"], pictures=pictures)
    pairs = base64.b64decode(row["pairs"])
    caption = "The twenty samples nearest to a training image; each stands left of it."
    pictures.append(Picture(pairs, caption, "pairs of similar images"))
    columns = {
        "number": "images",
        "nearer than the 1 % quantile": "near",
        "training image nearer than test image": "nearer",
        "95 % interval": "between",
    }
    records = {
        name: each | {"between": "{:.3f}-{:.3f}".format(*each["interval"])} for name, each in row["sets"].items()
    }
    caption = experiment.prose("memorization_caption", train=len(experiment.train))
    table = Table.from_records(records, columns, first="images", caption=caption)
    return Section(title, prose("memorization"), table, pictures)


def _sheets(experiment: Experiment) -> list[Picture]:
    """Return sheets of samples by three samplers, of the semantic images, and of test images."""
    num = min(100, experiment.sizes.samples)
    samplers: tuple[SamplerName, ...] = ("two-stage", "dpmpp-2m-sde", "heun")

    def sheets() -> dict[str, bytes]:
        model, images = experiment.model("denoising"), {}
        for sampler in samplers:
            drawn = model.sample(num, sampler=sampler, seed=experiment.seed)
            images[f"samples, {sampler_title(sampler, model.config.sampling)}"] = drawn.images
            if drawn.semantic is not None:
                images["semantic images h(z), which they start from"] = drawn.semantic
        return {what: png_bytes(image_grid(sheet, columns=10)) for what, sheet in images.items()}

    pictures = [
        Picture(png, f"{num} {what}; seed {experiment.seed}, nothing selected.", f"a sheet of {what}")
        for what, png in experiment.pictures("figure4", sheets).items()
    ]
    real = png_bytes(image_grid(to_float(experiment.test[:num]), columns=10))
    return [*pictures, Picture(real, f"{len(experiment.test[:num])} test images.", "a sheet of real images")]


def _memorization(experiment: Experiment) -> dict[str, Any]:
    """Compare samples, and held-out images in their place, with training and held-out images."""
    evaluator, sizes, test = experiment.evaluator, experiment.sizes, experiment.test
    pool = min(sizes.reference, len(test) // 2, len(experiment.train))
    num = min(sizes.ablation_samples, pool)
    train, held_out = evaluator.features(experiment.train), evaluator.features(test[:pool])
    normal = nearest(held_out, train)[0].quantile(0.01)
    sets = {"samples": experiment.sample_pixels[:num], "other test images": test[pool : pool + num]}
    result: dict[str, Any] = {"sets": {}}
    for name, images in sets.items():
        features = evaluator.features(images)
        distance, index = nearest(features, train)
        found = memorization_test(features, train[:pool], held_out)
        result["sets"][name] = {
            "images": len(images),
            "near": float((distance < normal).double().mean()),
            "nearer": found.nearer,
            "interval": found.interval,
        }
        if name == "samples":
            first = distance.argsort()[:20]
            pairs = torch.stack([images[first], experiment.train[index[first]]], 1).flatten(0, 1)
            result["pairs"] = png_text(png_bytes(image_grid(to_float(pairs), columns=10)))
    return result


# -- figure 5: chains ---------------------------------------------------------------------------------------------------


def figure5(experiment: Experiment) -> Section:
    """Figure 5: chains on their way, and whether the semantic start shortens them."""
    model, sizes = experiment.model("denoising"), experiment.sizes
    own, high = model.config.sampling.pixel, model.config.noise.sigma_max
    # The control tells what h(z) is worth from what a lower first noise level is.
    starts: dict[str, Sampler] = {
        "h(z)": "two-stage",
        f"noise of {high:g}": own.method,
        f"noise of {own.sigma_max:g}": _from_noise(model, own.sigma_max),
    }
    rows = {
        (steps, start): experiment.quality_row(
            f"chain of {steps} from {start}", partial(_measure_chain, experiment, sampler, steps)
        )
        for steps in sizes.chain_lengths
        for start, sampler in starts.items()
    }
    curves = {
        f"from {start}": [
            (row["nfe"], row["frechet_distance"])
            for (_, of), row in rows.items()
            if of == start and "missing" not in row
        ]
        for start in starts
    }
    picture = Picture(
        png_bytes(cost_curves(curves, **COST_AXES)),
        "FD by the cost of a sample, of both stages, with and without the semantic start.",
        "three falling curves",
    )
    cells = [
        [steps, *(rows[steps, start].get(key) for start in starts for key in ("nfe", "frechet_distance"))]
        for steps in sizes.chain_lengths
    ]
    caption = experiment.prose("chains_caption", sizes.chain_samples, low=own.sigma_max, high=high)
    columns = ["T", *(f"{figure} from {start}" for start in starts for figure in ("NFE", "FD"))]
    text = prose("chains", method=METHODS[own.method].title) + experiment.left_out("chain of")
    title = "Figure 5: chains, and what the semantic start is worth"
    return Section(title, text, Table(columns, cells, caption), [*_trajectories(experiment, model), picture])


def _from_noise(model: DenoisingEBM, sigma_max: float) -> PixelSampler:
    """Return the model's own method, from noise of another first level."""
    sampler = model.configure_sampler(model.config.sampling.pixel.method)
    assert isinstance(sampler, PixelSampler)
    return replace(sampler, sigma_max=sigma_max)


def _measure_chain(experiment: Experiment, sampler: Sampler, steps: int) -> dict[str, Any]:
    model, samples = experiment.model("denoising"), experiment.sizes.chain_samples
    return experiment.measure(draw(model, samples, sampler, steps=steps, seed=experiment.seed))


def _trajectories(experiment: Experiment, model: DenoisingEBM) -> list[Picture]:
    """Return six chains on their way and their energies, from h(z) and from noise."""
    own, longest = model.config.sampling, experiment.sizes.chain_lengths[-1]
    chains: dict[str, tuple[Sampler, int]] = {
        f"from h(z), T = {own.pixel.steps}": ("two-stage", own.pixel.steps),
        f"from noise, T = {longest}": (own.pixel.method, longest),
    }

    def make() -> dict[str, bytes]:
        result = {}
        for what, (sampler, steps) in chains.items():
            trajectory = Trajectory(model.decode, chains=6)
            end = model.sample(6, sampler=sampler, steps=steps, seed=experiment.seed, callback=trajectory)
            trajectory.add(end.images, "end")
            grid = trajectory_grid(trajectory.states, trajectory.labels)
            result[f"Six chains {what}; seed {experiment.seed}."] = png_bytes(grid)
            result[f"Their energies, {what}."] = png_bytes(chain_energies(trajectory.energies))
        return result

    return [
        Picture(png, caption, "falling curves" if "energies" in caption else "images that become clear, left to right")
        for caption, png in experiment.pictures("figure5", make).items()
    ]


# -- speed --------------------------------------------------------------------------------------------------------------


def speed(experiment: Experiment) -> Section:
    """Speed: quality against network evaluations, beside NCSN's protocol on the same network."""
    curves, rivals = _speed_plans(experiment)
    made = {
        name: experiment.quality_row(f"speed, {name}", lambda make=make: experiment.measure(make()))  # type: ignore[misc]
        for plans in curves.values()
        for name, make in plans.items()
    }
    rows = {name: row for name, row in made.items() if "missing" not in row}
    machines = sorted({row["hardware"] for row in rows.values()})
    ours = [name for curve, plans in curves.items() if "from h(z)" in curve for name in plans]
    speedups = [_speedup(rows, ours, rival, by_seconds=len(machines) == 1) for rival in rivals if rival in rows]
    text = "\n\n".join([prose("speed") + experiment.left_out("speed, "), *speedups])
    points = {
        curve: sorted((rows[name]["nfe"], rows[name]["frechet_distance"]) for name in plans if name in rows)
        for curve, plans in curves.items()
    }
    picture = Picture(
        png_bytes(cost_curves(points, **COST_AXES)), "FD against NFE.", "falling curves of several samplers"
    )
    caption = experiment.prose("speed_caption", experiment.sizes.speed_samples, machines=", ".join(machines))
    caption += " " + prose("speed_machines") if len(machines) > 1 else ""
    columns = {
        "NFE": "nfe",
        "s per 64": "s_per_64",
        "FD": "frechet_distance",
        "precision": "precision",
        "recall": "recall",
    }
    return Section("Speed", text, Table.from_records(rows, columns, first="sampler", caption=caption), [picture])


def _speed_plans(experiment: Experiment) -> tuple[dict[str, dict[str, Callable[[], Drawn]]], list[str]]:
    """Return for each curve its rows by name and how they are drawn; and the names of NCSN's rows."""
    model, sizes = experiment.model("denoising"), experiment.sizes
    by = partial(draw, model, sizes.speed_samples, seed=experiment.seed)
    own = model.config.sampling
    title, latent = sampler_title("two-stage", own), own.semantic.steps
    # Its thousand steps are run once for both rows.
    ncsn = cache(partial(draw_ncsn, model, sizes.speed_samples, steps=sizes.ncsn_steps, seed=experiment.seed))
    protocol = f"NCSN's protocol, 10 x {sizes.ncsn_steps} steps"
    rivals = [protocol, f"{protocol}, and a denoising step"]
    heun = sampler_title("heun", own)
    curves: dict[str, dict[str, Callable[[], Drawn]]] = {
        f"{title}, no latent steps": {
            f"{title}, K = 0, T = {steps}": partial(by, with_steps(own, semantic=0), steps=steps)
            for steps in sizes.chain_lengths
        },
        f"{title}, {latent} latent steps": {f"{title}, K = {latent}, T = {own.pixel.steps}": by},
        heun: {f"{heun}, T = {steps}": partial(by, "heun", steps=steps) for steps in sizes.heun_steps},
        "NCSN's protocol": {rivals[0]: lambda: ncsn()[0]},
        "NCSN's protocol, denoised": {rivals[1]: lambda: ncsn()[1]},
    }
    return curves, rivals


def _speedup(rows: Mapping[str, Mapping[str, Any]], ours: Collection[str], rival: str, *, by_seconds: bool) -> str:
    """Say how much less than a rival the cheapest of our rows costs that is at least as good.

    Args:
        rows: Figures by name.
        ours: Names of our rows.
        rival: Name of the rival's row.
        by_seconds: Count seconds; else network evaluations, since rows were made on several machines.
    """
    cost, less = ("s_per_64", "less time") if by_seconds else ("nfe", "fewer evaluations")
    as_good = [name for name in ours if name in rows]
    as_good = [n for n in as_good if rows[n]["frechet_distance"] <= rows[rival]["frechet_distance"]]
    if not as_good:
        return prose("no_speedup", rival=rival)
    best = min(as_good, key=lambda name: rows[name][cost])
    ratio = rows[rival][cost] / rows[best][cost]
    return prose("speedup", rival=rival, best=best, ratio=ratio, less=less, paper=paper.SPEEDUP)
