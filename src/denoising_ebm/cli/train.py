"""`debm train`: from images to a model folder."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from denoising_ebm.cli.common import DATA_HELP, MODEL_HELP, add_device_options, add_source_options, note, read_images
from denoising_ebm.config import (
    Config,
    ContrastiveConfig,
    EnergyConfig,
    NetworkConfig,
    NoiseConfig,
    SamplingConfig,
    TrainingConfig,
    from_dict,
    to_dict,
)
from denoising_ebm.migration import migrate_config
from denoising_ebm.presets import PRESETS, preset

HELP = "train a model on any images"
USAGE = "debm train DATA --preset NAME --out DIR [options]"
DESCRIPTION = """\
Train a model. Settings come from the preset; --config changes some of them, options change others. The defaults below are
those of --preset, --config or the run that --resume continues, if --help stands beside them; else the paper's.

Ctrl-C stops and saves; --resume continues exactly there, on the same kind of device and in the same precision. The exit
status is 1 if a phase of the recipe diverged.

Writes into DIR: config.yaml, metrics.jsonl, samples/ (pictures), state.pt (to resume) and model/ (the result)."""
EPILOG = """\
Examples:
  debm train fashion-mnist --out runs/fashion --max-minutes 7
  debm train my-images/ --preset cifar10-small --resize lanczos --out runs/mine
  debm train celeba/ --preset celeba64-paper --center-crop 140 --resize lanczos --out runs/celeba
  debm train my-images/ --out runs/mine --resume --max-minutes 60
  debm train my-images/ --preset cifar10 --out runs/b --training.learning_rate 5e-4 --network.latent_dim 256
  debm train my-images/ --preset cifar10 --out runs/c \\
      --stages '[{objective: denoising, fraction: 3}, {objective: contrastive, fraction: 1}]'
  debm train --preset cifar10 --print_config > mine.yaml
  debm train my-images/ --config mine.yaml --out runs/d
  torchrun --nproc_per_node 8 -m denoising_ebm train my-images/ --preset cifar10 --out runs/e"""

_SECTIONS = {
    "network": NetworkConfig,
    "noise": NoiseConfig,
    "energy": EnergyConfig,
    "sampling": SamplingConfig,
    "contrastive": ContrastiveConfig,
    "training": TrainingConfig,
}


def add(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the options, with the defaults that the preset, the config file or the run named in `argv` gives them."""
    chosen, rest = _peek(argv) if argv[:1] == ["train"] else (argparse.Namespace(print_config=False), [])
    printing = chosen.print_config
    parser.add_argument("data", nargs="?" if printing else None, metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"one of {', '.join(PRESETS)}; needed unless --config or --resume is given or DATA is fashion-mnist",
    )
    parser.add_argument("--out", required=not printing, metavar="DIR", help="the run folder")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out; its config.yaml takes the place of --preset, and of its settings only "
        "budgets, intervals, training.micro_batch_size and training.compile may change",
    )
    parser.add_argument("--max-minutes", type=float | None, metavar="M", help="short for --training.max_minutes")
    parser.add_argument("--max-images", type=int | None, metavar="N", help="short for --training.max_images")
    parser.add_argument("--seed", type=int | None, metavar="S", help="short for --training.seed")
    parser.add_argument(
        "--initial", metavar="MODEL", help=f"start from the weights of this model of the same sizes: {MODEL_HELP}"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    parser.add_argument(
        "--config", metavar="FILE", help="YAML with settings that replace the preset's, such as a run's config.yaml"
    )
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML for --config, and exit")
    add_source_options(parser, "train")
    add_device_options(parser)
    base = _base(chosen, rest)
    for name, section in _SECTIONS.items():
        parser.add_class_arguments(section, name)
    parser.add_argument(
        "--stages",
        type=list[dict[str, Any]],
        help="training stages in order: objective (denoising, contrastive, score) and fraction",
    )
    parser.set_defaults(_flat(to_dict(base)))


def run(args: Namespace) -> int:
    """Train, or print the settings."""
    config = _config(args)
    if args.print_config:
        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        return 0
    images = read_images(args.data, args, config.network.image_size, config.network.channels)

    from denoising_ebm.model import DenoisingEBM
    from denoising_ebm.training.trainer import train

    result = train(
        images.pixels,
        config,
        args.out,
        data_name=args.data,
        resume=args.resume,
        initial=DenoisingEBM.from_pretrained(args.initial) if args.initial else None,
        device=args.device,
        precision=args.precision,
        tensorboard=args.tensorboard,
    )
    if not result.finished:
        command = shlex.join(["debm", "train", args.data, "--out", args.out, "--resume", *_image_options(args)])
        note(f"stopped and saved; continue with: {command}")
        return 130
    if result.diverged:
        note(
            f"{result.diverged} phase(s) of the recipe diverged and ended at their last good state, from which those after "
            f"them went on; see {Path(args.out) / 'metrics.jsonl'}, and try a lower --training.learning_rate"
        )
        return 1
    note(f"model: {Path(args.out) / 'model'}")
    return 0


def _image_options(args: Namespace) -> list[str]:
    """Return the options for images that were given: a resumed run must see the same."""
    given = {name: args[name] for name in ("limit", "resize", "center_crop") if args[name] is not None}
    if args.split != "train":
        given["split"] = args.split
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return options + ["--convert"] * args.convert


class _PeekParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _peek(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the options that decide the defaults of the others."""
    parser = _PeekParser(add_help=False, allow_abbrev=False)
    for option in ("--preset", "--config", "--out"):
        parser.add_argument(option)
    for option in ("--resume", "--print_config", "--help", "-h"):
        parser.add_argument(option, action="store_true")
    return parser.parse_known_args(argv[1:])


def _base(chosen: argparse.Namespace, rest: list[str]) -> Config:
    """Return the settings before options."""
    if chosen == argparse.Namespace(print_config=False):
        return Config()
    config = Config()
    resumed = Path(chosen.out or "") / "config.yaml"
    name = chosen.preset or ("fashion-mnist" if "fashion-mnist" in rest else None)
    if name:
        config = preset(name)
    if chosen.resume and chosen.out:
        if not resumed.is_file():
            raise FileNotFoundError(f"{resumed}: nothing to resume")
        config = _merge(Config(), resumed)
    elif not (name or chosen.config or chosen.help or chosen.h):
        raise ValueError(f"--preset is needed: one of {', '.join(PRESETS)} (or --config FILE)")
    return _merge(config, Path(chosen.config)) if chosen.config else config


def _merge(config: Config, path: Path) -> Config:
    """Replace in `config` what the YAML file gives."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    merged = to_dict(config)
    for name, value in migrate_config(values).items():
        merged[name] = _merged(merged.get(name), value)
    try:
        return from_dict(Config, merged, where="settings")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}


def _config(args: Namespace) -> Config:
    values = {name: args[name].as_dict() for name in _SECTIONS}
    config = from_dict(Config, {**values, "stages": args.stages}, where="settings")
    short = {name: args[name] for name in ("max_minutes", "max_images", "seed") if args[name] is not None}
    return replace(config, training=replace(config.training, **short))


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = _flat(value) if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{key}".removesuffix("."): item for key, item in inner.items()}
    return flat
