from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from denoising_ebm import config as config_module
from denoising_ebm.config import (
    MAX_STEPS,
    Config,
    ContrastiveConfig,
    EnergyConfig,
    NetworkConfig,
    NoiseConfig,
    PixelSampler,
    SamplingConfig,
    SemanticChain,
    TrainingConfig,
    TrainingStage,
    from_dict,
    merged,
    to_dict,
)

# -- round trips ----------------------------------------------------------------------------------------------------

positive = st.floats(1e-8, 1e6)
natural = st.integers(0, MAX_STEPS)
sigmas = st.tuples(st.floats(1e-6, 1.0), st.floats(1.001, 1e4)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    depth = draw(st.integers(2, 4))
    widths = st.lists(st.sampled_from([8, 16, 24, 64, 192]), min_size=depth, max_size=depth).map(tuple)
    network = NetworkConfig(
        image_size=draw(st.sampled_from([16, 32, 64, 96])),
        channels=draw(st.sampled_from([1, 3])),
        widths=draw(widths),
        decoder_widths=draw(widths),
        attention=(),
        latent_dim=draw(st.integers(1, 500)),
        precondition=draw(st.sampled_from(get_args(config_module.Precondition))),
        sigma_data=draw(positive),
    )
    low, high = draw(sigmas)
    noise = NoiseConfig(
        sigma_min=low,
        sigma_max=high,
        num_sigmas=draw(st.integers(2, 1000)),
        draw=draw(st.sampled_from(get_args(config_module.SigmaDraw))),
        p_mean=draw(st.floats(-100, 100)),
        weighting=draw(st.sampled_from(get_args(config_module.Weighting))),
    )
    low, high = draw(sigmas)
    method = draw(st.sampled_from(get_args(config_module.PixelMethod)))
    by_gradient = draw(st.booleans())
    density = not by_gradient and draw(st.booleans())
    drifts = [drift for drift in get_args(config_module.Drift) if density or drift != "density"]
    pixel = PixelSampler(
        method=method,
        sigma_min=low,
        sigma_max=high,
        step_size=draw(st.none() | positive)
        if method in ("annealed-langevin", "consistent-annealed", "mala")
        else None,
        drift="energy" if method == "mala" else draw(st.sampled_from(drifts)),
        schedule=draw(st.sampled_from(get_args(config_module.Schedule))),
        temperature=draw(st.floats(0, 10)),
    )
    sampling = SamplingConfig(SemanticChain(steps=draw(natural)), pixel, noise_init=draw(st.booleans()))
    contrastive = ContrastiveConfig(
        positive_samples=draw(st.sampled_from(get_args(config_module.PositiveSamples))),
        chains=draw(st.sampled_from(get_args(config_module.ChainKind))),
        restart_rate=draw(st.floats(0, 1)),
        weight=draw(positive),
    )
    training = TrainingConfig(
        learning_rate=draw(positive),
        betas=(draw(st.floats(0, 0.999)), draw(st.floats(0, 0.999))),
        max_minutes=draw(st.floats(0, 1e5)),
        seed=draw(st.integers(0, 2**40)),
        flip=draw(st.booleans()),
    )
    objectives = ["score", "contrastive"] if by_gradient else ["denoising", "contrastive"]
    last = st.sampled_from([*objectives, "energy"] if density else objectives)
    stages = draw(st.lists(st.builds(TrainingStage, last, positive, st.none() | positive), min_size=1, max_size=4))
    energy = EnergyConfig(False, "gradient") if by_gradient else EnergyConfig(draw(st.booleans()), "output", density)
    return Config(network, noise, energy, sampling, contrastive, training, tuple(stages))


@settings(deadline=None)
@given(configs())
def test_round_trips(config: Config) -> None:
    values = to_dict(config)
    assert from_dict(Config, values) == config
    assert from_dict(Config, yaml.safe_load(yaml.safe_dump(values, sort_keys=False))) == config
    assert from_dict(Config, json.loads(json.dumps(values))) == config


def test_dictionaries_hold_plain_values_only() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert type(value) in (int, float, str, bool, type(None))

    check(to_dict(Config()))


def test_missing_fields_keep_their_defaults() -> None:
    config = from_dict(Config, {"noise": {"num_sigmas": 64}})
    assert config == replace(Config(), noise=NoiseConfig(num_sigmas=64))


def test_merged_replaces_what_is_given_and_leaves_its_arguments_alone() -> None:
    values = {"noise": {"sigma_min": 0.1, "sigma_max": 2.0}, "stages": [1, 2], "seed": 3}
    changes = {"noise": {"sigma_max": 5.0}, "stages": [4], "extra": {"a": 1}}
    assert merged(values, changes) == {
        "noise": {"sigma_min": 0.1, "sigma_max": 5.0},
        "stages": [4],
        "seed": 3,
        "extra": {"a": 1},
    }
    assert values["noise"] == {"sigma_min": 0.1, "sigma_max": 2.0}


def test_whole_numbers_serve_as_floats() -> None:
    noise = from_dict(NoiseConfig, {"sigma_max": 3})
    assert noise.sigma_max == 3.0 and isinstance(noise.sigma_max, float)


@pytest.mark.parametrize(("text", "value"), [("5e-4", 5e-4), ("1E+2", 100.0), ("1.5e3", 1500.0)])
def test_floats_as_people_write_them_in_yaml(text: str, value: float) -> None:
    assert from_dict(TrainingConfig, yaml.safe_load(f"learning_rate: {text}")).learning_rate == value


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nois": {}}, r"^run\.yaml: unknown field 'nois' \(known: network, noise"),
        ({"noise": {"sigma_mx": 1.0}}, r"^run\.yaml: noise: unknown field 'sigma_mx'"),
        ({"noise": {"num_sigmas": 3.5}}, r"^run\.yaml: noise: num_sigmas: expected int, got 3\.5$"),
        ({"noise": {"num_sigmas": True}}, r"^run\.yaml: noise: num_sigmas: expected int, got True$"),
        ({"noise": {"sigma_max": "1"}}, r"^run\.yaml: noise: sigma_max: expected float, got '1'$"),
        ({"noise": {"sigma_max": True}}, r"^run\.yaml: noise: sigma_max: expected float, got True$"),
        ({"noise": {"sigma_max": None}}, r"^run\.yaml: noise: sigma_max: expected float, got None$"),
        ({"noise": {"draw": "uniform"}}, r"^run\.yaml: noise: draw: expected one of grid, lognormal, got 'uniform'$"),
        ({"noise": [1]}, r"^run\.yaml: noise: expected a mapping, got list$"),
        ({"network": {"widths": 32}}, r"^run\.yaml: network: widths: expected a list, got 32$"),
        ({"network": {"widths": [32, "64"]}}, r"^run\.yaml: network: widths: expected int, got '64'$"),
        ({"training": {"betas": [0.9]}}, r"^run\.yaml: training: betas: expected 2 values, got 1$"),
        ({"training": {"flip": 1}}, r"^run\.yaml: training: flip: expected bool, got 1$"),
        ({"stages": {"objective": "score"}}, r"^run\.yaml: stages: expected a list"),
        ({"stages": [{"objective": "sliced"}]}, r"^run\.yaml: stages: objective: expected one of denoising,"),
    ],
)
def test_wrong_files(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_dict(Config, values, where="run.yaml")
    assert "\n" not in str(caught.value)


SMALL = {"image_size": 16, "widths": (8, 16), "decoder_widths": (8, 16), "attention": (8,)}

REFUSALS: list[tuple[type, dict[str, Any], str]] = [
    (NetworkConfig, {"channels": 17}, "network.channels"),
    (NetworkConfig, {"patch": 3}, "network.patch"),
    (NetworkConfig, {"image_size": 8}, "network.image_size"),
    (NetworkConfig, {"image_size": 512}, "network.image_size"),
    (NetworkConfig, {"image_size": 36}, "network.image_size"),
    (NetworkConfig, {"widths": (32,)}, "network.widths"),
    (NetworkConfig, {**SMALL, "decoder_widths": (8, 8, 16)}, "network.decoder_widths"),
    (NetworkConfig, {**SMALL, "widths": (8, 12)}, "network.widths"),
    (NetworkConfig, {**SMALL, "decoder_widths": (8, 0)}, "network.decoder_widths"),
    (NetworkConfig, {**SMALL, "attention": (4,)}, "network.attention"),
    (NetworkConfig, {**SMALL, "heads": 3}, "network.heads"),
    (NetworkConfig, {**SMALL, "attention": (), "heads": 0}, "network.heads"),
    (NetworkConfig, {"blocks": 0}, "network.blocks"),
    (NetworkConfig, {"decoder_blocks": 0}, "network.decoder_blocks"),
    (NetworkConfig, {"latent_dim": 0}, "network.latent_dim"),
    (NetworkConfig, {"embedding_dim": 0}, "network.embedding_dim"),
    (NetworkConfig, {"sigma_data": 0.0}, "network.sigma_data"),
    (NoiseConfig, {"sigma_min": 0.0}, "noise.sigma_min"),
    (NoiseConfig, {"sigma_min": float("nan")}, "noise.sigma_min"),
    (NoiseConfig, {"sigma_max": 0.01}, "noise.sigma_max"),
    (NoiseConfig, {"num_sigmas": 1}, "noise.num_sigmas"),
    (NoiseConfig, {"p_std": 0.0}, "noise.p_std"),
    (SemanticChain, {"steps": -1}, "sampling.semantic.steps"),
    (SemanticChain, {"step_size": 0.0}, "sampling.semantic.step_size"),
    (SemanticChain, {"sigma_min": 0.0}, "sampling.semantic.sigma_min"),
    (SemanticChain, {"sigma_max": 0.05}, "sampling.semantic.sigma_max"),
    (SemanticChain, {"prior": -1.0}, "sampling.semantic.prior"),
    (SemanticChain, {"temperature": -1.0}, "sampling.semantic.temperature"),
    (PixelSampler, {"steps": -1}, "sampling.pixel.steps"),
    (PixelSampler, {"step_size": -0.1}, "sampling.pixel.step_size"),
    (PixelSampler, {"step_size": 0.0}, "sampling.pixel.step_size"),
    (PixelSampler, {"method": "dpmpp-2m-sde", "step_size": 0.1}, "sampling.pixel.step_size"),
    (PixelSampler, {"method": "mala", "drift": "denoiser"}, "sampling.pixel.drift"),
    (PixelSampler, {"sigma_min": 0.0}, "sampling.pixel.sigma_min"),
    (PixelSampler, {"sigma_max": 0.001}, "sampling.pixel.sigma_max"),
    (PixelSampler, {"temperature": -1.0}, "sampling.pixel.temperature"),
    (PixelSampler, {"low_temperature": -1.0}, "sampling.pixel.low_temperature"),
    (PixelSampler, {"low_temperature_sigma": -1.0}, "sampling.pixel.low_temperature_sigma"),
    (ContrastiveConfig, {"reconstruction_steps": -1}, "contrastive.reconstruction_steps"),
    (ContrastiveConfig, {"semantic_steps": -1}, "contrastive.semantic_steps"),
    (ContrastiveConfig, {"texture_steps": -1}, "contrastive.texture_steps"),
    (ContrastiveConfig, {"chain_batch": -1}, "contrastive.chain_batch"),
    (ContrastiveConfig, {"weight": -1.0}, "contrastive.weight"),
    (ContrastiveConfig, {"regularisation": -1.0}, "contrastive.regularisation"),
    (ContrastiveConfig, {"buffer_size": 0}, "contrastive.buffer_size"),
    (ContrastiveConfig, {"restart_rate": 1.5}, "contrastive.restart_rate"),
    (ContrastiveConfig, {"gap_bound": 0.0}, "contrastive.gap_bound"),
    (TrainingStage, {"fraction": 0.0}, "stages.fraction"),
    (TrainingConfig, {"batch_size": 0}, "training.batch_size"),
    (TrainingConfig, {"learning_rate": 0.0}, "training.learning_rate"),
    (TrainingConfig, {"ema_decay": 1.0}, "training.ema_decay"),
    (TrainingConfig, {"cooldown": 1.5}, "training.cooldown"),
    (TrainingConfig, {"max_images": 0}, "training.max_images"),
    (TrainingConfig, {"log_every": 0}, "training.log_every"),
    (TrainingConfig, {"decoder_sigma_max": 0.0}, "training.decoder_sigma_max"),
    (TrainingConfig, {"micro_batch_size": -1}, "training.micro_batch_size"),
    (TrainingConfig, {"warmup_images": -1}, "training.warmup_images"),
    (TrainingConfig, {"clip_norm": -1.0}, "training.clip_norm"),
    (TrainingConfig, {"decoder_weight": -1.0}, "training.decoder_weight"),
    (TrainingConfig, {"max_minutes": -1.0}, "training.max_minutes"),
    (TrainingConfig, {"sample_minutes": -1.0}, "training.sample_minutes"),
    (TrainingConfig, {"holdout": -1}, "training.holdout"),
    (Config, {"stages": ()}, "stages"),
    (Config, {"stages": (TrainingStage("score"),)}, "energy.denoiser"),
    (Config, {"stages": (TrainingStage("energy"),)}, "energy.density"),
    (Config, {"contrastive": ContrastiveConfig(energy="density")}, "energy.density"),
    (Config, {"sampling": SamplingConfig(pixel=PixelSampler(drift="density"))}, "energy.density"),
    (TrainingStage, {"learning_rate": 0.0}, "stages.learning_rate"),
    (Config, {"energy": EnergyConfig(False, "gradient"), "stages": (TrainingStage("denoising"),)}, "energy.denoiser"),
    (Config, {"energy": EnergyConfig(True, "gradient"), "stages": (TrainingStage("score"),)}, "energy.inner_noise"),
    (
        Config,
        {
            "energy": EnergyConfig(False, "gradient"),
            "stages": (TrainingStage("score"),),
            "training": TrainingConfig(compile=True),
        },
        "training.compile",
    ),
]


@pytest.mark.parametrize(("kind", "values", "field"), REFUSALS, ids=[f"{r[2]}-{i}" for i, r in enumerate(REFUSALS)])
def test_refusals_name_their_field(kind: type, values: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError) as caught:
        kind(**values)
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_numeric_field_is_checked() -> None:
    """Each number of the file formats has a range: what stands nowhere above would pass silently."""
    unbounded = {"noise.p_mean", "training.betas", "training.seed"}
    covered = {field for _, _, field in REFUSALS} | unbounded
    sections = {
        "network": NetworkConfig,
        "noise": NoiseConfig,
        "sampling.semantic": SemanticChain,
        "sampling.pixel": PixelSampler,
        "contrastive": ContrastiveConfig,
        "training": TrainingConfig,
    }
    for name, kind in sections.items():
        for field in dataclasses.fields(kind):
            if str(field.type) in ("int", "float", "float | None"):
                assert f"{name}.{field.name}" in covered


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().noise.num_sigmas = 3  # type: ignore[misc]
