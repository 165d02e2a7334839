"""`debm train`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from denoising_ebm.cli.common import check_apart, note
from denoising_ebm.cli.options import HARDWARE, TRAIN_IMAGES, HardwareOptions, ImageOptions
from denoising_ebm.config import Config, from_dict, merged, to_dict
from denoising_ebm.migration import migrate_config
from denoising_ebm.presets import PRESETS
from denoising_ebm.presets import preset as read_preset
from denoising_ebm.utils.io import read_regular_file
from denoising_ebm.utils.lock import locked
from denoising_ebm.utils.parsing import MAX_YAML, parse_yaml
from denoising_ebm.utils.text import counted


def train(
    data: str | None = None,
    *,
    out: Path | None = None,
    preset: str | None = None,
    config: Path | None = None,
    print_config: bool = False,
    resume: bool = False,
    initial: str | None = None,
    max_minutes: float | None = None,
    max_images: int | None = None,
    seed: int | None = None,
    tensorboard: bool = False,
    images: ImageOptions = TRAIN_IMAGES,
    hardware: HardwareOptions = HARDWARE,
    settings: Annotated[dict[str, Any], Config],
) -> int:
    r"""Train a model on any images.

    Settings come from --preset. --config changes some of them, and the dotted options below change others. The help
    shows the values of the preset, file or run that is named before --help, or else the paper's.

    Ctrl-C stops and saves, and so does a closed terminal; --resume continues exactly there, on the same kind of device and
    in the same precision. A run that was killed continues from its last save. The exit status is 1 if training
    diverged and did not recover, or with much of it thrown away.

    Writes into the folder --out: config.yaml, metrics.jsonl, samples/ (pictures), state.pt and state-previous.pt (to resume)
    and model/ (the result). One command at a time may write there.

    Examples:
        debm train fashion-mnist --out runs/fashion --max-minutes 7
        debm train my-images/ --preset cifar10-small --resize lanczos --out runs/mine
        debm train celeba/ --preset celeba64-paper --center-crop 140 --resize lanczos --out runs/celeba
        debm train my-images/ --out runs/mine --resume --max-minutes 60
        debm train my-images/ --preset cifar10 --out runs/b --training.learning_rate 5e-4 --sampling.pixel.steps 8
        debm train my-images/ --preset cifar10 --out runs/c \
            --stages '[{objective: denoising, fraction: 3}, {objective: contrastive, fraction: 1}]'
        debm train --preset cifar10 --print_config > mine.yaml
        debm train my-images/ --config mine.yaml --out runs/d
        torchrun --nproc_per_node 8 -m denoising_ebm train my-images/ --preset cifar10 --out runs/e

    Args:
        data: Folder of images or of Parquet files, one such file, bundled dataset (fashion-mnist, digits), or hf://owner/name
            on the Hugging Face Hub.
        out: The run folder.
        preset: fashion-mnist, cifar10-small, cifar10, cifar10-paper, svhn-paper or celeba64-paper. Needed unless --config
            or --resume or --initial is given or DATA is fashion-mnist.
        config: YAML file with settings that replace the preset's, such as config.yaml of a run.
        print_config: Print all settings as YAML for --config, and exit.
        resume: Continue the run in --out. Its config.yaml takes the place of --preset. Of its settings only budgets,
            intervals, training.micro_batch_size and training.compile may change.
        initial: Start from the weights of this model, which must have the same sizes, and without --preset from its
            settings.
        max_minutes: Short for --training.max_minutes.
        max_images: Short for --training.max_images.
        seed: Short for --training.seed.
        tensorboard: Also write TensorBoard events.
        images: How to read DATA.
        hardware: Where to compute.
        settings: Changes of single settings.
    """
    short = {"max_minutes": max_minutes, "max_images": max_images, "seed": seed}
    changes = merged(settings, {"training": {name: value for name, value in short.items() if value is not None}})
    missing = [name for name, value in (("DATA", data), ("--out", out)) if value is None]
    if missing and not print_config:
        raise ValueError(f"required: {', '.join(missing)}")
    if print_config or data is None or out is None:
        import yaml

        chosen = _settings(data, out, preset, config, resume, initial, changes)
        print(yaml.safe_dump(to_dict(chosen), sort_keys=False), end="")
        return 0
    # Pictures of the run would be images of the next.
    check_apart("--out", out, data)
    check_apart("--out", out / "samples", data)
    from denoising_ebm.model import DenoisingEBM
    from denoising_ebm.training import trainer
    from denoising_ebm.training.checkpoint import read_run_preprocessing

    with locked(out, "debm train"):
        chosen = _settings(data, out, preset, config, resume, initial, changes)
        network = chosen.network
        prepared = images
        if resume and (before := read_run_preprocessing(out)) is not None:
            # Given again or not: the images must be those of the run.
            prepared = images.like(before, "the run is on", "resume keeps how images are prepared", refuse=True)
        loaded = prepared.load(data, (network.channels, network.image_size, network.image_size))
        result = trainer.train(
            loaded.pixels,
            chosen,
            out,
            data_name=data,
            resume=resume,
            initial=DenoisingEBM.from_pretrained(initial) if initial else None,
            preprocessing=prepared.preprocessing_for(network),
            device=hardware.device,
            precision=hardware.precision,
            tensorboard=tensorboard,
        )
        if not result.finished:
            command = shlex.join(["debm", "train", data, "--out", str(out), "--resume", *images.given()])
            note(f"stopped and saved; continue with: {command}")
            return 130
        log = out / "metrics.jsonl"
        if result.problems:
            again = "; --resume tries the last stage again" if result.diverged else ""
            note(f"diverged: {'; '.join(result.problems)}. See {log}, and try a lower --training.learning_rate{again}")
            return 1
        if result.rollbacks:
            note(f"training went wrong and back to a good state {counted(result.rollbacks, 'time')}; see {log}")
        note(f"model: {out / 'model'}")
        return 0


def _settings(
    data: str | None,
    out: Path | None,
    preset: str | None,
    config: Path | None,
    resume: bool,
    initial: str | None,
    changes: Mapping[str, Any],
) -> Config:
    base = _base_settings(data, out, preset, config, resume, initial)
    if base is None:
        raise ValueError(f"--preset is needed: one of {', '.join(PRESETS)} (or --config FILE, or --initial MODEL)")
    return from_dict(Config, merged(base, changes), where="settings")


def help_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that `debm train --help` shows: those of what was named before it, or else the paper's."""
    out, config = (Path(given[name]) if given.get(name) else None for name in ("out", "config"))
    known = given.get("data"), out, given.get("preset"), config, bool(given.get("resume")), given.get("initial")
    base = _base_settings(*known)
    return to_dict(Config()) if base is None else base


def _base_settings(
    data: str | None, out: Path | None, preset: str | None, config: Path | None, resume: bool, initial: str | None
) -> dict[str, Any] | None:
    """Return the settings before those of single options; None where nothing says which."""
    name = preset or ("fashion-mnist" if data == "fashion-mnist" and not initial else None)
    base = to_dict(read_preset(name) if name else Config())
    if resume and out is not None:
        base = _settings_of_run(out)
    elif not name and initial:
        from denoising_ebm.hub import read_config_of

        base = to_dict(read_config_of(initial))
    elif not name and config is None:
        return None
    return base if config is None else _changed(base, config)


def _settings_of_run(folder: Path) -> dict[str, Any]:
    """Return the settings of a run: those of its config.yaml or, if it died before that was written, of its state."""
    path = folder / "config.yaml"
    if path.is_file():
        return _changed(to_dict(Config()), path, "; without it the settings in state.pt are taken")
    from denoising_ebm.training.checkpoint import read_config

    return merged(to_dict(Config()), read_config(folder))


def _changed(base: dict[str, Any], path: Path, hint: str = "") -> dict[str, Any]:
    """Return `base` with what a YAML file says.

    Raises:
        ValueError: If the file holds no settings, or wrong ones.
    """
    content = read_regular_file(path, MAX_YAML)
    try:
        values = parse_yaml(content)
    except ValueError as error:
        raise ValueError(f"{path}: not valid YAML: {error}{hint}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, found {type(values).__name__}{hint}")
    try:
        changed = merged(base, migrate_config(values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    from_dict(Config, changed, where=str(path))
    return changed
