"""What `state.pt` may hold, checked before any of it is used: an archive of tensors and plain values, as torch writes it."""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.config import Config, from_dict
from denoising_ebm.hub import read_preprocessing
from denoising_ebm.model import empty_model, specs_of
from denoising_ebm.schema import TensorSpec, check_tensors
from denoising_ebm.training.health import Record
from denoising_ebm.utils.parsing import shown, shown_name
from denoising_ebm.utils.text import reason_of

#: Entries of the archive at most; it has one for each tensor.
MAX_ENTRIES = 100_000
#: What the pickle in the archive may name: what tensors in dictionaries are made of, and nothing that takes memory by
#: itself, as `bytearray` does, which torch allows.
_KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *(f"torch {kind}Storage" for kind in _KINDS)}
#: Settings of the optimizer that no run changes.
_ADAM = {"eps": 1e-8, "weight_decay": 0, "amsgrad": False, "maximize": False}
_MISFIT = "does not fit its settings"


def find_archive_problem(content: bytes) -> str:
    """Return why the bytes of a file are not those of a state, from its table of contents; empty if nothing says so.

    Only what is stored as it is is read, so that no file unfolds to more than its size, and of the pickle in it only what
    makes tensors and plain values.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                return f"an archive of {len(entries):,} entries"
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if packed or sum(entry.file_size for entry in entries) > len(content):
                return f"{shown_name(packed[0]) if packed else 'the archive'} unfolds to more than is stored"
            pickles = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                return f"an archive of {len(pickles)} pickles"
            for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
                if opcode.name == "GLOBAL" and argument not in _NAMES:
                    return f"its pickle names {shown_name(argument)}, which no state does"
                if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                    return f"its pickle uses {opcode.name}, which no state does"
    except Exception as error:  # zipfile and pickletools raise many kinds for what is not their own
        return reason_of(error)
    return ""


def check_state(saved: Any, path: Path, clock: type[Any]) -> None:
    """Refuse what is no state of a run, in today's form, whose settings it holds itself.

    Args:
        saved: What the file holds.
        path: Of the file, for messages.
        clock: The dataclass of where a run stands.

    Raises:
        ValueError: Naming what is missing, of another type or shape, or not finite.
    """
    saved = _mapping(saved, f"{path}")
    for name in ("model", "average", "optimizer", "objective", "clock", "config"):
        _mapping(saved.get(name), f"{path}: {name}")
    config = from_dict(Config, saved["config"], where=f"{path}: config")
    model = empty_model(config)
    specs = specs_of(model)
    check_tensors(specs, _tensors(saved["model"], f"{path}: model"), path, misfit=f"model {_MISFIT}")
    average = {f"module.{name}": spec for name, spec in specs.items()} | {"n_averaged": TensorSpec((), whole=True)}
    check_tensors(average, _tensors(saved["average"], f"{path}: average"), path, misfit=f"average {_MISFIT}")
    parameters = [TensorSpec.of(parameter) for parameter in model.parameters()]
    _check_optimizer(saved["optimizer"], config, parameters, path)
    _check_objective(saved["objective"], config, path)
    place = f"{path}: clock"
    where = from_dict(clock, saved["clock"], where=place)
    for name, value in vars(where).items():
        if value < 0:
            raise ValueError(f"{place}: {name} must be >= 0, got {value}")
    if where.stage > len(config.stages):
        raise ValueError(f"{place}: stage is {where.stage}, of {len(config.stages)}")
    _check_record(saved.get("record", {}), path)
    for name, value in _mapping(saved.get("past", {}), f"{path}: past").items():
        check_number(value, f"{path}: past: {shown_name(name)}")
    if not isinstance(saved.get("images", ""), str):
        raise ValueError(f"{path}: images: expected a text, got {shown(saved['images'])}")
    for name, value in _mapping(saved.get("hardware", {}), f"{path}: hardware").items():
        if not isinstance(value, str):
            raise ValueError(f"{path}: hardware: {shown_name(name)}: expected a text, got {shown(value)}")
    read_preprocessing(saved.get("preprocessing"), config, f"{path}: preprocessing")


def check_number(value: Any, where: str) -> float:
    """Return a value that must be a finite number >= 0.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: expected a number, got {shown(value)}")
    if not (0 <= value < 2**63 and math.isfinite(value)):
        raise ValueError(f"{where}: expected a number >= 0, got {shown(value)}")
    return value


def _check_optimizer(saved: Mapping[str, Any], config: Config, parameters: list[TensorSpec], path: Path) -> None:
    place = f"{path}: optimizer"
    groups = saved.get("param_groups")
    if not (isinstance(groups, list) and len(groups) == 1):
        raise ValueError(f"{place}: param_groups: expected a list of one, got {shown(groups)}")
    group = _mapping(groups[0], f"{place}: param_groups")
    if group.get("params") != list(range(len(parameters))):
        raise ValueError(f"{place}: param_groups: params are not those of its settings")
    check_number(group.get("lr"), f"{place}: lr")
    for name, value in {**_ADAM, "betas": config.training.betas}.items():
        found = group.get(name, value)
        if (tuple(found) if isinstance(found, list) else found) != value:
            raise ValueError(f"{place}: {name} is {shown(found)}, not {value}")
    for number, moments in _mapping(saved.get("state"), f"{place}: state").items():
        if not isinstance(number, int) or not 0 <= number < len(parameters):
            raise ValueError(f"{place}: state: there is no parameter {shown(number)}")
        spec = parameters[number]
        specs = {"step": TensorSpec(()), "exp_avg": spec, "exp_avg_sq": spec}
        check_tensors(
            specs, _tensors(moments, f"{place}: state {number}"), path, misfit=f"optimizer state {number} {_MISFIT}"
        )


def _check_objective(saved: Mapping[str, Any], config: Config, path: Path) -> None:
    """Check persistent chains: their codes, images and noise levels."""
    if not saved:
        return
    network, tensors = config.network, _tensors(saved, f"{path}: objective")
    count = len(tensors["sigma"]) if "sigma" in tensors and tensors["sigma"].ndim else 0
    if count > config.contrastive.buffer_size:
        raise ValueError(
            f"{path}: objective: {count} chains, contrastive.buffer_size is {config.contrastive.buffer_size}"
        )
    specs = {
        "z": TensorSpec((count, network.latent_dim)),
        "x": TensorSpec((count, network.channels, network.image_size, network.image_size)),
        "sigma": TensorSpec((count,), positive=True),
    }
    check_tensors(specs, tensors, path, misfit=f"objective {_MISFIT}")


def _check_record(saved: Any, path: Path) -> None:
    """Check what a run is compared with; runs of before have none."""
    place, defaults = f"{path}: record", vars(Record())
    for name, value in _mapping(saved, place).items():
        if name not in defaults:
            raise ValueError(f"{place}: {shown_name(name)} is unknown")
        if name == "best":
            for which, loss in _mapping(value, f"{place}: best").items():
                check_number(loss, f"{place}: best: {shown_name(which)}")
        elif isinstance(defaults[name], int) and not isinstance(value, int):
            raise ValueError(f"{place}: {name}: expected a whole number, got {shown(value)}")
        else:
            check_number(value, f"{place}: {name}")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a mapping, got {type(value).__name__}")
    return value


def _tensors(value: Any, where: str) -> dict[str, Tensor]:
    """Return what must be tensors by names."""
    for name, tensor in _mapping(value, where).items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{where}: expected tensors by name, got {type(tensor).__name__} {shown(name)}")
    return dict(value)
