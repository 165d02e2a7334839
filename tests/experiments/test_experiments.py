from __future__ import annotations

import json
import math
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from denoising_ebm.cli.reproduce import _read
from denoising_ebm.config import EnergyConfig, TrainingStage
from denoising_ebm.datasets.images import load_images
from denoising_ebm.experiments import samplers
from denoising_ebm.experiments.cache import ResultCache, identity, settings_hash
from denoising_ebm.experiments.experiment import Experiment
from denoising_ebm.experiments.figures import speed
from denoising_ebm.experiments.run import STUDIES, Images, _fingerprint, reproduce
from denoising_ebm.experiments.samplers import Drawn, draw, draw_ncsn
from denoising_ebm.experiments.settings import ABLATIONS, SIZES, ablation_config, base_config, variant_config
from denoising_ebm.experiments.tables import ROWS, row_name, table1
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.presets import preset
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.quality.frechet import feature_statistics, frechet_distance
from denoising_ebm.training import trainer
from denoising_ebm.training.once import train_once
from denoising_ebm.viz.plots import png_bytes
from denoising_ebm.viz.report import Picture, Section, Table
from support import random_pixels, tiny_config

#: Rows of the results that are kept with the project.
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

# -- ledger ---------------------------------------------------------------------------------------------------------


def test_rows_are_made_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> dict[str, Any]:
        calls.append(1)
        return {"distance": 3.5}

    settings = {"scale": "tiny", "seed": 0}
    first = ResultCache(tmp_path / "out", settings).row("table 3, sigma from 0.5", make)
    again = ResultCache(tmp_path / "out", settings).row("table 3, sigma from 0.5", make)
    assert first == again and first["distance"] == 3.5 and first["seconds"] >= 0 and len(calls) == 1
    with pytest.raises(ValueError, match="holds a reproduction with seed 0, not 1"):
        ResultCache(tmp_path / "out", settings | {"seed": 1})


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    result_cache = ResultCache(tmp_path / "out", {})
    result_cache.row("a", lambda: {"x": 1})
    path = tmp_path / "out" / "rows" / "a.json"
    path.write_text(path.read_text()[:5])
    with pytest.raises(ValueError, match=rf"^{path}: not valid JSON \(.*\); delete it to make the row anew$"):
        result_cache.row("a", lambda: {"x": 2})
    path.unlink()
    assert result_cache.row("a", lambda: {"x": 2})["x"] == 2


def test_rows_of_other_images_are_made_anew(tmp_path: Path) -> None:
    result_cache = ResultCache(tmp_path / "out", {})
    assert result_cache.row("a", lambda: {"x": 1}, test="abc")["x"] == 1
    assert result_cache.row("a", lambda: {"x": 2}, test="abc")["x"] == 1
    assert result_cache.row("a", lambda: {"x": 3}, test="def")["x"] == 3
    assert result_cache.row("a", lambda: {"x": 4}, test="def")["x"] == 3


def test_a_row_made_with_more_serves_where_less_is_asked(tmp_path: Path) -> None:
    """FIDs that took days are not lost to a command without them; the other way the row is made anew."""
    result_cache = ResultCache(tmp_path / "out", {})
    assert result_cache.row("a", lambda: {"fid": None}, test="abc", inception="")["fid"] is None
    assert result_cache.row("a", lambda: {"fid": 2.0}, test="abc", inception="yes")["fid"] == 2.0
    assert result_cache.row("a", lambda: {"fid": None}, test="abc", inception="")["fid"] == 2.0


def test_a_missing_row_is_marked_and_tried_again(tmp_path: Path) -> None:
    result_cache = ResultCache(tmp_path / "out", {})

    def fails() -> dict[str, Any]:
        raise ValueError("weights.pth: no such file")

    assert result_cache.row("fid", fails) == {"missing": "weights.pth: no such file"}
    assert result_cache.row("fid", lambda: {"fid": 1.0})["fid"] == 1.0


def test_an_interrupt_keeps_the_rows_before(tmp_path: Path) -> None:
    result_cache = ResultCache(tmp_path / "out", {})
    result_cache.row("a", lambda: {"x": 1})

    def stop() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        result_cache.row("b", stop)
    assert [path.stem for path in (tmp_path / "out" / "rows").iterdir()] == ["a"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/reproduce.json")), ids=lambda path: path.parent.name)
def test_kept_rows_are_of_todays_settings(path: Path) -> None:
    """A setting that is new must leave the rows in benchmarks/results valid, or they are to be made anew."""
    kept = json.loads(path.read_text())
    if "preset" in kept:
        assert kept["configuration"] == settings_hash(identity(preset(kept["preset"])))
    else:
        base = base_config(kept["scale"], 32, 3 if kept["data"] == "CIFAR10" else 1, kept["minutes"], kept["seed"])
        assert kept["configuration"] == _fingerprint(kept["scale"], base)


def test_a_setting_counts_once_it_changes_something() -> None:
    config = tiny_config()

    def with_sampling(**changes: float) -> str:
        return settings_hash(identity(replace(config, sampling=replace(config.sampling, **changes))))  # type: ignore[arg-type]

    assert with_sampling(low_temperature_sigma=0.5) == settings_hash(identity(config))
    cold = with_sampling(low_temperature=0.5)
    assert (
        len({settings_hash(identity(config)), cold, with_sampling(low_temperature=0.5, low_temperature_sigma=0.5)}) == 3
    )


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="exists and is no reproduction"):
        ResultCache(tmp_path, {})


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", list(SIZES))
def test_settings_of_every_row_are_valid(scale: Any) -> None:
    base = base_config(scale, 32, 3, 0.0, 7)
    for variant in ("denoising", "contrastive", "score"):
        config = variant_config(base, variant)  # type: ignore[arg-type]
        assert config.training.seed == 7 and config.training.max_images == base.training.max_images
    for sigma_max, levels in ABLATIONS.values():
        config = ablation_config(base, sigma_max, levels, 8, 0.5)
        assert (config.noise.sigma_max, config.noise.levels, config.noise.draw) == (sigma_max, levels, "grid")
        assert config.sampling.texture_sigma_max <= sigma_max and config.training.seed == 8
    assert base_config(scale, 32, 3, 2.5, 0).training.max_minutes == 2.5


# -- samplers -------------------------------------------------------------------------------------------------------


def test_evaluations_are_counted_as_they_happen(tiny_model: DenoisingEBM) -> None:
    """Forward passes counted by a hook; every backward pass is worth two more."""
    counts = {"forward": 0, "backward": 0}
    tiny_model.dae.register_forward_hook(lambda *_: counts.__setitem__("forward", counts["forward"] + 1))
    tiny_model.dae.register_full_backward_hook(lambda *_: counts.__setitem__("backward", counts["backward"] + 1))
    base = tiny_model.config
    for drift in ("energy", "denoiser"):
        sampling = replace(base.sampling, drift=drift, semantic_steps=3, texture_steps=4)
        tiny_model.config = replace(base, sampling=sampling)
        for sampler, steps in (("two-stage", None), ("annealed", 5), ("heun", 4), ("mala", 10)):
            counts.update(forward=0, backward=0)
            drawn = draw(tiny_model, 2, sampler, steps=steps)  # type: ignore[arg-type]
            assert drawn.nfe == counts["forward"] + 2 * counts["backward"], (drift, sampler)
            assert (drawn.semantic is not None) == (sampler == "two-stage")
    tiny_model.config = replace(base, sampling=replace(base.sampling, semantic_steps=3))
    with_latent = draw(tiny_model, 2, "two-stage", steps=2).nfe
    assert with_latent - draw(tiny_model, 2, "two-stage", steps=2, semantic_steps=0).nfe == 9
    assert tiny_model.config.sampling.semantic_steps == 3
    # A model trained by `score` follows its whole gradient, whatever its config says.
    energy = EnergyConfig(inner_noise=False, denoiser="gradient")
    sampling = replace(base.sampling, drift="denoiser")
    tiny_model.config = replace(base, energy=energy, sampling=sampling, stages=(TrainingStage("score"),))
    for sampler in ("two-stage", "annealed", "heun"):
        counts.update(forward=0, backward=0)
        drawn = draw(tiny_model, 2, sampler, steps=4)  # type: ignore[arg-type]
        assert drawn.nfe == counts["forward"] + 2 * counts["backward"], sampler


def test_ncsn_protocol_is_its_formula(tiny_model: DenoisingEBM, monkeypatch: pytest.MonkeyPatch) -> None:
    """x += a score + sqrt(2 a) z with a = eps sigma_i^2 / sigma_L^2, as in the released code, from uniform noise."""
    monkeypatch.setattr(samplers, "NCSN_SIGMAS", (0.8, 0.1))
    monkeypatch.setattr(samplers, "NCSN_LEVELS", 2)
    base = tiny_model.config
    plain = replace(base.energy, inner_noise=False)
    tiny_model.config = replace(base, energy=plain, sampling=replace(base.sampling, drift="denoiser"))
    published, denoised = draw_ncsn(tiny_model, 2, steps=2, seed=5)
    generator = torch.Generator().manual_seed(5)
    x = 2 * torch.rand((2, 1, 16, 16), generator=generator) - 1
    with torch.no_grad():
        for sigma in (0.8, 0.8, 0.1, 0.1):
            step = 2e-5 * sigma**2 / 0.01**2
            score = (tiny_model.denoise(x, sigma) - x) / sigma**2
            x = x + step * score + (2 * step) ** 0.5 * torch.randn(x.shape, generator=generator)
        clean = tiny_model.denoise(x, 0.1)
    for drawn, expected, nfe in ((published, x, 4), (denoised, clean, 5)):
        pixels = ((expected + 1) * 127.5).round().clamp(0, 255)
        assert float((drawn.images.float() - pixels).abs().max()) <= 1 and drawn.nfe == nfe
    assert float((x - clean).abs().max()) > 0.05


def test_ncsn_protocol_needs_its_noise_levels(tiny_model: DenoisingEBM) -> None:
    assert tiny_model.config.noise.sigma_max < 2
    with pytest.raises(
        ValueError, match=r"NCSN's protocol needs noise levels from 0.02 to 2, the model was trained on"
    ):
        draw_ncsn(tiny_model, 2, steps=1)


@torch.no_grad()
def test_samples_that_are_not_finite_are_no_samples(tiny_model: DenoisingEBM) -> None:
    """As pixels they would be black images, and measured like others."""
    for parameter in tiny_model.parameters():
        parameter.fill_(math.nan)
    with pytest.raises(ValueError, match="3 of 3 samples are not finite: the chains diverged"):
        draw(tiny_model, 3, "heun", steps=2)


@pytest.mark.parametrize("sampler", ["annealed", "heun"])
def test_chains_start_at_the_level_asked_for(sampler: Any, tiny_model: DenoisingEBM) -> None:
    low = draw(tiny_model, 3, sampler, steps=4, sigma_max=0.5)
    base = tiny_model.config
    assert base.noise.sigma_max > 0.5
    tiny_model.config = replace(base, noise=replace(base.noise, sigma_max=0.5))
    assert torch.equal(low.images, draw(tiny_model, 3, sampler, steps=4).images)
    tiny_model.config = base
    assert not torch.equal(low.images, draw(tiny_model, 3, sampler, steps=4).images)


# -- all of it ------------------------------------------------------------------------------------------------------


def test_everything_at_tiny_scale(debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    options = ["all", "--scale", "tiny", "--ood", "interpolation", "--ood", "digits=digits", "--out", out, "--seed", 3]
    result = debm("reproduce", *options)
    assert result.status == 0, result.err
    text = (out / "results.md").read_text()
    for title in ("Table 1", "Table 2", "Table 3", "Table 4", "Samples by class", "Figure 4", "Figure 5", "Speed"):
        assert f"## {title}" in text
    assert "No second set was given: add --second DATA." in text
    assert "paper: Denoising-EBM" in text and "21.24" in text and "WARNING" in text
    # Every row of table 1 has a distance.
    for row_of in ROWS:
        row = next(line for line in text.splitlines() if line.startswith(f"| {row_name(*row_of)} |"))
        assert float(row.split("|")[2].replace(",", "")) > 0
    assert "| digits | " in text and "| interpolation | " in text
    # Samples by class: a row for each, the shares of which add up.
    table = text.split("## Samples by class")[1].split("##")[0]
    shares = [float(line.split("|")[2].strip(" %")) for line in table.splitlines() if " % |" in line]
    assert len(shares) == 10 and sum(shares) == pytest.approx(100, abs=0.5)
    pictures = re.findall(r"pictures/(\d+)\.png", text)
    assert len(pictures) >= 10
    for number in pictures:
        with Image.open(out / "pictures" / f"{number}.png") as picture:
            picture.verify()
    html = (out / "index.html").read_text()
    assert html.count("<img") == len(pictures)

    # Nothing is made a second time, and the page comes out the same.
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished row was made again")

    rows = {path.name: json.loads(path.read_text()) for path in (out / "rows").iterdir()}
    monkeypatch.setattr("denoising_ebm.training.once.train", never)
    monkeypatch.setattr("denoising_ebm.experiments.figures.generate", never)
    monkeypatch.setattr("denoising_ebm.experiments.experiment.draw", never)
    monkeypatch.setattr(Experiment, "measured", never)
    again = debm("reproduce", *options)
    assert again.status == 0, again.err
    assert (out / "results.md").read_text() == text
    assert rows == {path.name: json.loads(path.read_text()) for path in (out / "rows").iterdir()}
    assert "holds a reproduction with seed 3, not 4" in debm("reproduce", *options[:-1], 4).error
    # Rows of other counts, as of another version, are not shown beside these.
    monkeypatch.setitem(SIZES, "tiny", replace(SIZES["tiny"], speed_samples=65))
    assert "holds a reproduction with configuration" in debm("reproduce", *options).error


@pytest.fixture
def experiment(tmp_path: Path, tiny_model: DenoisingEBM, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Images of 16 pixels, a given model, and figures that cost nothing."""
    pixels = random_pixels(30)
    monkeypatch.setattr(
        "denoising_ebm.experiments.experiment.Judge",
        lambda reference, **_: FidelityEvaluator(reference, extractor=Means()),
    )
    sizes = replace(SIZES["tiny"], samples=40, reference=12)
    return Experiment(
        ResultCache(tmp_path / "out", {}), sizes, tiny_config(), pixels, pixels, data_name="x", trained=tiny_model
    )


def test_seconds_of_several_machines_are_not_divided(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand evaluations in two seconds on a GPU, eleven in 44 on a CPU: 1000 / 11 times fewer."""

    def row(name: str, make: object) -> dict[str, Any]:
        quality = {"distance": 5.0, "precision": 1.0, "recall": 1.0}
        if "NCSN" in name:
            return quality | {"nfe": 1000, "s_per_64": 2.0, "hardware": "GPU"}
        return quality | {"nfe": 11, "s_per_64": 44.0, "hardware": "CPU"}

    monkeypatch.setattr(experiment, "quality_row", row)
    section = speed(experiment)
    assert section.table is not None and "WARNING: rows were made on several machines" in section.table.caption
    assert f"takes {1000 / 11:.1f} times fewer evaluations" in section.text


def test_a_floor_of_fewer_images_says_so(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoising_ebm.experiments.tables.ROWS", ())
    table = table1(experiment).table
    assert table is not None and table.rows[0][0] == "training images (floor: 30 only, so too high)"


@pytest.mark.parametrize("target", ["table1", "table2", "table3", "figure5", "speed"])
def test_an_interrupt_in_the_first_training_can_be_gone_on_with(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def interrupted(*arguments: object, **_: object) -> None:
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("denoising_ebm.experiments.experiment.train_once", interrupted)
    monkeypatch.setattr(
        "denoising_ebm.experiments.experiment.Judge",
        lambda reference, **_: FidelityEvaluator(reference, extractor=Means()),
    )
    images = Images("x", random_pixels(30, size=32), random_pixels(30, seed=1, size=32))
    for name in ("x", "x/"):
        images = replace(images, name=name)
        with pytest.raises(KeyboardInterrupt):
            reproduce([target], "tiny", tmp_path / "out", images, second=images, device="cpu")
    assert len(calls) == 2
    with pytest.raises(ValueError, match="holds a reproduction with seed 0, not 1"):
        reproduce([target], "tiny", tmp_path / "out", images, second=images, device="cpu", seed=1)


def test_a_study_that_fails_says_why_and_the_others_go_on(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[int] = []

    def fails(_: object) -> Section:
        pages.append((tmp_path / "out" / "results.md").read_text().count("\n## "))
        raise ValueError("no chains today")

    monkeypatch.setitem(STUDIES, "table1", lambda _: Section("Table 1: samples", "fine"))
    monkeypatch.setitem(STUDIES, "figure5", fails)
    monkeypatch.setitem(STUDIES, "speed", lambda _: Section("Speed", "fast"))
    images = Images("x", random_pixels(30, size=32), random_pixels(30, size=32))
    page, failed = reproduce(["table1", "figure5", "speed"], "tiny", tmp_path / "out", images, device="cpu")
    assert page == tmp_path / "out" / "index.html" and failed == ["figure5"]
    text = (tmp_path / "out" / "results.md").read_text()
    assert "Left out: no chains today" in text and "fine" in text and "fast" in text
    assert pages == [1]  # what was finished before stood on the page already


def test_the_page_shows_what_earlier_commands_finished(
    experiment: Experiment, tmp_path: Path, monkeypatch: Any
) -> None:
    """In the order of the paper, with both commands, as long as the images are the same."""
    picture = Picture(png_bytes(Image.new("L", (8, 8), 7)), "a caption", "a text")
    table = Table(["sampler", "distance"], [["two-stage", 1.5], ["none", None]], "distances")
    monkeypatch.setitem(STUDIES, "figure5", lambda _: Section("Figure 5", "chains", pictures=[picture]))
    monkeypatch.setitem(STUDIES, "table1", lambda _: Section("Table 1", "samples", table))
    images, out = Images("x", random_pixels(30, size=32), random_pixels(30, size=32)), tmp_path / "out"

    def page_of(target: str, images: Images = images, **options: Any) -> str:
        reproduce([target], "tiny", out, images, device="cpu", command=f"debm reproduce {target}", **options)
        assert [path.name for path in (out / "pictures").glob("*")] == ["1.png"]
        return (out / "results.md").read_text()

    alone = page_of("figure5")
    both = page_of("table1")
    assert "- command: debm reproduce table1; debm reproduce figure5\n" in both
    assert both.count("- images: x: 30 to train on, 30 test images\n") == 1
    assert both.index("## Table 1") < both.index("## Figure 5") and "| none | – |" in both
    assert alone[alone.index("## Figure 5") :] == both[both.index("## Figure 5") :]
    assert (out / "pictures" / "1.png").read_bytes() == picture.png
    # The second set is not there this time: what was measured on it stands.
    monkeypatch.setitem(STUDIES, "table2", lambda _: Section("Table 2", "of the second set"))
    assert "of the second set" in page_of("table2", second=images)
    assert "of the second set" in page_of("table2") and "No second set" not in page_of("table2")
    # Of other images under the same name.
    monkeypatch.setitem(STUDIES, "figure5", lambda _: Section("Figure 5", "others", pictures=[picture]))
    others = page_of("figure5", Images("x", random_pixels(30, seed=5, size=32), random_pixels(30, size=32)))
    assert "## Figure 5" in others and "## Table 1" not in others


def test_a_study_that_fails_is_told_by_the_exit_status(
    debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> Section:
        raise ValueError("no chains today")

    monkeypatch.setitem(STUDIES, "figure5", fails)
    result = debm("reproduce", "figure5", "--out", tmp_path / "out")
    assert result.status == 1 and "debm: figure5: could not be made, see the page" in result.err
    assert f"page: {tmp_path / 'out' / 'index.html'}" in result.out


def test_rows_left_out_are_named(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCSN's levels reach beyond those that this model was trained at."""
    figures = {"nfe": 9, "s_per_64": 1.0, "distance": 5.0, "precision": 1.0, "recall": 1.0}
    monkeypatch.setattr(experiment, "measured", lambda make: figures | {"nfe": make().nfe})
    monkeypatch.setattr("denoising_ebm.experiments.figures.draw", lambda *_, **__: Drawn(experiment.test, None, 9, 1.0))
    section = speed(experiment)
    assert "Left out: speed, NCSN's protocol, 10 x 10 steps: NCSN's protocol needs noise levels" in section.text
    assert section.table is not None and not any("NCSN" in str(row[0]) for row in section.table.rows)


def test_rows_of_a_model_depend_on_how_it_denoises(experiment: Experiment, tiny_model: DenoisingEBM) -> None:
    keys = []
    base = tiny_model.config
    for changes in (
        {},
        {"energy": replace(base.energy, inner_noise=False)},
        {"noise": replace(base.noise, sigma_max=0.9)},
        {"sampling": replace(base.sampling, texture_steps=9)},
        {"training": replace(base.training, log_every=9)},
    ):
        tiny_model.config = replace(base, **changes)  # type: ignore[arg-type]
        fresh = Experiment(
            experiment.result_cache,
            experiment.sizes,
            experiment.base,
            experiment.train,
            experiment.test,
            data_name="x",
            trained=tiny_model,
        )
        keys.append(fresh.depends["model"])
    assert len(set(keys)) == 4 and keys[-1] == keys[0]


def test_mixed_channels_and_damaged_files(debm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rgb, gray = random_pixels(3, channels=3, size=28), random_pixels(2, size=28)
    for split, pictures in (("train", rgb), ("test", gray)):
        (tmp_path / split).mkdir()
        for i, image in enumerate(pictures):
            array = image.permute(1, 2, 0).squeeze(2).numpy()
            Image.fromarray(array).save(tmp_path / split / f"{i}.png")
    (tmp_path / "train" / "bad.png").write_bytes(b"no picture")
    options = ["reproduce", "speed", "--data", tmp_path, "--out", tmp_path / "out"]
    assert "--convert brings it there" in debm(*options).error
    train, test = _read(str(tmp_path), None, 16, convert=True)
    assert train.pixels.shape == (3, 3, 16, 16) and test.pixels.shape == (2, 3, 16, 16)
    assert "1 unreadable image(s) left out, first bad.png" in capsys.readouterr().err.replace("train/", "")
    error = debm(*options, "--convert", "--scale", "small").error
    assert "images of 28x28: network.image_size must be divisible by 8" in error


def test_second_set_has_rows_of_its_own(debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoising_ebm.experiments.tables.ROWS", (("denoising", "heun", None),))
    result = debm("reproduce", "table2", "--second", "fashion-mnist", "--second-size", 16, "--out", tmp_path / "out")
    assert result.status == 0, result.err
    text = (tmp_path / "out" / "results.md").read_text()
    assert "h(z^K)" not in text and "| denoising, heun |" in text and "| paper: BiDVL |" in text and "14.10" in text
    assert (tmp_path / "out" / "second" / "models" / "denoising" / "finished").is_file()
    assert not (tmp_path / "out" / "models").exists()


def test_a_source_without_splits_is_split_at_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = load_images("fashion-mnist", limit=20).pixels
    for i, image in enumerate(pixels):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i:02d}.png")
    train, test = _read(str(tmp_path), None)
    assert (len(train), len(test)) == (16, 4) and not set(train.names) & set(test.names)
    assert train.names != tuple(sorted(train.names))
    assert "has no splits, so 4 of its 20 images, drawn at random, stand for test images" in capsys.readouterr().err
    for images in (train, test):
        for name, image in zip(images.names, images.pixels, strict=True):
            assert torch.equal(image, pixels[int(name[:2])])


def test_command_refuses(debm: Any, tmp_path: Path) -> None:
    common = ["--out", tmp_path / "out"]
    assert "--inception" in debm("reproduce", "table1", "--inception", tmp_path / "no.pth", *common).error
    assert "neither NAME=DATA" in debm("reproduce", "table4", "--ood", "cats", *common).error
    assert (
        "takes images of shape (3, 32, 32)" in debm("reproduce", "figure4", "--model", "cifar10-small", *common).error
    )
    # A command that is refused leaves no folder that refuses the next one.
    assert not (tmp_path / "out").exists()


def test_command_refuses_a_model_that_may_know_the_test_images(debm: Any, tmp_path: Path) -> None:
    """Without splits, images that the model was trained on would stand for test images."""
    for i, image in enumerate(load_images("fashion-mnist", limit=10).pixels):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
    error = debm(
        "reproduce", "figure4", "--data", tmp_path, "--model", "fashion-mnist", "--out", tmp_path / "out"
    ).error
    assert f"{tmp_path}: has no splits, so fashion-mnist may have been trained on the images" in error


@pytest.mark.parametrize(
    "package, more, extra",
    [
        ("efficientnet_lite_pytorch", (), "eval"),
        ("torch_fidelity.feature_extractor_inceptionv3", ("--inception", "auto"), "fid"),
    ],
)
def test_missing_packages_are_told_before_any_work(
    package: str, more: tuple[str, ...], extra: str, debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = debm("reproduce", "table3", "--out", tmp_path / "out", *more)
    assert f"pip install 'denoising-ebm[{extra}]'" in result.error and not (tmp_path / "out").exists()
