"""What files of models, detectors and runs may hold, checked before any of it is used.

Names, shapes, types and finiteness of tensors are checked here, those of settings by `config.from_dict`. Sizes come first:
shapes from the head of a file, before its tensors are read, against shapes of a module on the device `meta`, which has no
memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from denoising_ebm.utils.io import open_regular_file, read_regular_file
from denoising_ebm.utils.parsing import check_depth, shown, shown_name
from denoising_ebm.utils.text import reason_of

#: Bytes of the head of a safetensors file at most: names and shapes of a thousand tensors take 100 kB.
MAX_HEAD = 4 * 2**20

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TYPES = {**_FLOATS, "I64": torch.int64}

Named = TypeVar("Named")


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor must be.

    Attributes:
        shape: Its sizes; None where any will do.
        whole: int64; else a floating-point type.
        positive: All values must be above zero.
        missing: Rows may be NaN throughout, for what was never measured.
        most: Largest absolute value; None where any finite one will do.
    """

    shape: tuple[int | None, ...]
    whole: bool = False
    positive: bool = False
    missing: bool = False
    most: float | None = None

    @classmethod
    def of(cls, tensor: Tensor, **options: Any) -> TensorSpec:
        """Return that of tensors such as this one, which may be on the device `meta`."""
        return cls(tuple(tensor.shape), whole=not tensor.is_floating_point(), **options)


@dataclass(frozen=True)
class _Head:
    """Shape and type of a tensor in a file, as far as that is known without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Specs = Mapping[str, TensorSpec]


# -- tensors ------------------------------------------------------------------------------------------------------------


def read_tensors(
    path: Path,
    specs: Specs | Callable[[Mapping[str, tuple[int, ...]]], Specs],
    *,
    misfit: str,
    rename: Callable[[dict[str, Any]], dict[str, Any]] = lambda named: named,
) -> dict[str, Tensor]:
    """Read a safetensors file whose tensors are known beforehand; nothing of it is read before its head fits.

    Args:
        path: Of the file.
        specs: Of its tensors by name, or a function that returns them, given the shapes by name.
        misfit: Said of tensors that do not fit, `weights do not fit config.json`.
        rename: From names of earlier forms to today's.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is damaged, or a tensor is missing, unknown, of another shape or type, or not finite.
    """
    try:
        head = rename(_head(path))
        wanted = specs({name: found.shape for name, found in head.items()}) if callable(specs) else specs
        _check_names(wanted, head, path, misfit)
        for name, spec in wanted.items():
            _check_shape(name, spec, head[name].shape, head[name].dtype, path, misfit)
        tensors = rename(safetensors.torch.load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({reason_of(error)})") from None
    for name, spec in wanted.items():
        _check_values(name, spec, tensors[name], path)
    return tensors


def load_tensors(path: Path, max_bytes: int) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a safetensors file, unchecked, and the hash of its bytes.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is damaged or larger than `max_bytes`.
    """
    content = read_regular_file(path, max_bytes)
    _check_head_size(path, content[:8])
    try:
        return safetensors.torch.load(content), hashlib.sha256(content).hexdigest()
    # A type that torch lacks is a KeyError of the library's.
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({reason_of(error)})") from None


def check_tensors(specs: Specs, tensors: Mapping[str, Tensor], path: Path, *, misfit: str) -> None:
    """Refuse tensors that are missing, unknown, of another shape or type, or not finite.

    Args:
        specs: Of the tensors by name.
        tensors: The tensors.
        path: Where they come from, for messages.
        misfit: Said of tensors that do not fit, `weights do not fit the settings`.

    Raises:
        ValueError: Naming the first such tensor.
    """
    _check_names(specs, tensors, path, misfit)
    for name, spec in specs.items():
        _check_shape(name, spec, tuple(tensors[name].shape), tensors[name].dtype, path, misfit)
        _check_values(name, spec, tensors[name], path)


def module_specs(module: torch.nn.Module, **options: dict[str, bool]) -> dict[str, TensorSpec]:
    """Return the specs of a module's tensors, which may be on the device `meta`.

    Args:
        module: The module.
        options: Of single tensors by name, as for `TensorSpec`.
    """
    return {name: TensorSpec.of(tensor, **options.get(name, {})) for name, tensor in module.state_dict().items()}


def _head(path: Path) -> dict[str, _Head]:
    with open_regular_file(path) as file:
        _check_head_size(path, file.read(8))
    with safetensors.safe_open(path, "pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}
        kinds = {name: part.get_dtype() for name, part in parts.items()}
        for name, kind in kinds.items():
            if kind not in _TYPES:
                raise ValueError(f"{path}: {shown(name)} is of type {kind}, expected one of {', '.join(_TYPES)}")
        return {name: _Head(tuple(part.get_shape()), _TYPES[kinds[name]]) for name, part in parts.items()}


def _check_head_size(path: Path, start: bytes) -> None:
    # Before the library reads it, which takes much more memory than the head itself.
    if int.from_bytes(start, "little") > MAX_HEAD:
        raise ValueError(f"{path}: not a readable safetensors file (its head is larger than {MAX_HEAD:,} bytes)")


def _check_names(specs: Iterable[str], found: Iterable[str], path: Path, misfit: str) -> None:
    specs, found = dict.fromkeys(specs), dict.fromkeys(found)
    missing = [name for name in specs if name not in found]
    unknown = [name for name in found if name not in specs]
    if missing or unknown:
        what = f"{missing[0]} is missing" if missing else f"{shown_name(unknown[0])} is unknown"
        many = f" ({len(missing) + len(unknown):,} such names)"
        raise ValueError(f"{path}: {misfit}: {what}{many}")


def _check_shape(
    name: str, spec: TensorSpec, shape: tuple[int, ...], dtype: torch.dtype, path: Path, misfit: str
) -> None:
    same = len(shape) == len(spec.shape) and all(
        size in (None, got) for size, got in zip(spec.shape, shape, strict=True)
    )
    if not same:
        expected = str(spec.shape).replace("None", "any")
        raise ValueError(f"{path}: {misfit}: {name} has shape {shape}, expected {expected}")
    if dtype not in ((torch.int64,) if spec.whole else _FLOATS.values()):
        kind = "int64" if spec.whole else "floating-point numbers"
        raise ValueError(f"{path}: {name} is of type {str(dtype).removeprefix('torch.')}, expected {kind}")


def _check_values(name: str, spec: TensorSpec, tensor: Tensor, path: Path) -> None:
    if spec.whole:
        return
    # As float32, with which models compute: a double may be finite and too large.
    finite = tensor.float().isfinite()
    if spec.missing:
        finite = finite | tensor.isnan().all(-1, keepdim=True)
    if not bool(finite.all()):
        raise ValueError(f"{path}: {name} holds values that are not finite")
    if spec.positive and not bool((tensor > 0).all()):
        raise ValueError(f"{path}: {name} must be > 0 throughout")
    if spec.most is not None and not bool((tensor.abs() <= spec.most).all()):
        raise ValueError(f"{path}: {name} must be within -{spec.most:g}..{spec.most:g} throughout")


# -- values -------------------------------------------------------------------------------------------------------------


def checked_metadata(values: Any, where: str) -> dict[str, Any]:
    """Return what is known of weights or of a detector: a mapping from texts to plain values.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a mapping, got {type(values).__name__}")
    for name in values:
        if not isinstance(name, str):
            raise ValueError(f"{where}: expected names, got {shown(name)}")
    check_depth(values)
    return dict(values)


def plain_metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as JSON knows it: numbers that are not finite as texts."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
