"""From a typed function to options, and from options to a call of it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest

from denoising_ebm.cli import COMMANDS
from denoising_ebm.cli.arguments import call, command_parser, error_line
from denoising_ebm.config import Config


@dataclass(frozen=True)
class Size:
    """Sizes.

    Attributes:
        height: Of an image.
        keep_ratio: Whatever the height.
    """

    height: int = 8
    keep_ratio: bool = False


@dataclass(frozen=True)
class Inner:
    """Part of a config.

    Attributes:
        rate: A rate.
    """

    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    """A config.

    Attributes:
        inner: Its part.
        stages: What is done.
    """

    inner: Inner = field(default_factory=Inner)
    stages: tuple[str, ...] = ()


SMALL = Size(height=4)
seen: dict[str, Any] = {}


def paint(
    motif: str,
    colours: list[Literal["red", "blue"]],
    *,
    task: Literal["oil", "ink"],
    out: Path | None = Path("a.png"),
    folder: Path = Path("runs"),
    num_copies: int = 1,
    scale: float | None = None,
    filter_: Literal["box", "sharp"] | None = None,
    varnish: bool = False,
    layer: list[str] | None = None,
    weights: list[float] | None = None,
    size: Size = SMALL,
    config: Annotated[dict[str, Any], Outer],
) -> None:
    """Paint a picture.

    At length.

    Examples:
        debm paint tree red --task oil
        debm paint house blue \\
            --task ink

    Args:
        motif: What.
        colours: One or more.
        task: How, which
            takes a second line.
        out: A file.
        folder: A folder.
        num_copies: How many.
        scale: How large.
        filter_: Which.
        varnish: At the end.
        layer: May be repeated.
        weights: A list.
        size: How large.
        config: Everything else.
    """
    seen.clear()
    seen.update(locals())


def given(*arguments: str) -> dict[str, Any]:
    parsed = command_parser("paint", paint).parse_args(list(arguments), defaults=False)
    values: dict[str, Any] = parsed.as_dict()
    return values


def test_what_is_not_given_has_the_functions_defaults() -> None:
    assert call(paint, given("tree", "red", "blue", "--task", "oil")) == 0
    bound = inspect.signature(paint).parameters
    assert seen.pop("motif") == "tree" and seen.pop("colours") == ["red", "blue"] and seen.pop("task") == "oil"
    assert seen.pop("config") == {}
    assert seen == {name: bound[name].default for name in seen} and len(seen) == 9


def test_every_kind_of_option() -> None:
    options = ["--out", "b.png", "--folder", "c", "--num-copies", "3", "--scale", "2", "--filter", "box", "--varnish"]
    options += ["--layer", "x", "--layer", "y=z@t", "--weights", "[1, 2.5]", "--height", "9", "--keep-ratio"]
    options += ["--inner.rate", "5e-4", "--stages", "[{name: first}]"]
    call(paint, given("tree", "red", "--task", "ink", *options))
    expected = {
        "out": Path("b.png"),
        "folder": Path("c"),
        "num_copies": 3,
        "scale": 2.0,
        "filter_": "box",
        "varnish": True,
        "layer": ["x", "y=z@t"],
        "weights": [1.0, 2.5],
        "size": Size(9, keep_ratio=True),
        "config": {"inner": {"rate": 5e-4}, "stages": [{"name": "first"}]},
    }
    assert {name: seen[name] for name in expected} == expected
    assert isinstance(seen["scale"], float)


def test_an_empty_path_is_none_where_none_may_be() -> None:
    call(paint, given("tree", "red", "--task", "ink", "--out", ""))
    assert seen["out"] is None
    with pytest.raises(ValueError, match=r"^--folder must not be empty$"):
        call(paint, given("tree", "red", "--task", "ink", "--folder", ""))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tree"], "required: COLOURS, --task"),
        (["tree", "red"], "required: --task"),
        (["tree", "green", "--task", "ink"], "COLOURS: expected one of 'red', 'blue', got green"),
        (["tree", "red", "--task", "chalk"], "--task: expected one of 'oil', 'ink', got chalk"),
        (["tree", "red", "--task", "ink", "--filter", "wax"], "--filter: expected one of 'box', 'sharp', got wax"),
        (["tree", "red", "--task", "ink", "--num-copies", "2.5"], "--num-copies: expected int, got 2.5"),
        (["tree", "red", "--task", "ink", "--scale", "big"], "--scale: expected float, got big"),
        (["tree", "red", "--task", "ink", "--weights", "[a]"], "--weights: expected float, got a"),
        (["tree", "red", "--task", "ink", "--height", "x"], "--height: expected int, got x"),
        (["tree", "red", "--task", "ink", "--inner.rate", "x"], "--inner.rate: expected float, got x"),
        (["tree", "red", "--task", "ink", "--inner.speed", "x"], "unrecognized arguments: --inner.speed x"),
        (["tree", "red", "--task", "ink", "--num", "2"], "unrecognized arguments: --num 2"),
        (["tree", "red", "--task"], "argument --task: expected one argument"),
    ],
)
def test_errors_name_the_option_as_it_is_typed(arguments: list[str], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        given(*arguments)
    assert error_line(caught.value, paint) == message


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    def help_defaults(before: Mapping[str, Any]) -> dict[str, Any]:
        return {"inner": {"rate": 0.25 if before.get("varnish") else 0.75}}

    parser = command_parser("paint", paint, help_defaults)
    for arguments, rate in ((["--varnish", "--help"], 0.25), (["-h", "--varnish"], 0.75)):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(arguments, defaults=False)
        text = capsys.readouterr().out
        words = " ".join(text.split())
        assert stop.value.code == 0
        assert f"A rate. (type: float, default: {rate})" in words
    assert text.startswith(
        "usage: debm paint MOTIF COLOURS --task oil|ink [options]\n\nPaint a picture.\n\nAt length.\n"
    )
    assert text.endswith("Examples:\n  debm paint tree red --task oil\n  debm paint house blue \\\n      --task ink\n")
    for line in (
        "--task {oil,ink} How, which takes a second line. --out",
        "--out PATH A file. (default: a.png)",
        "--num-copies N How many. (type: int, default: 1)",
        "--scale X How large. --filter",
        "--varnish At the end. --layer",
        "Sizes: --height N Of an image. (type: int, default: 4) --keep-ratio Whatever the height.",
    ):
        assert line in words
    assert "null" not in text and "required" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_documented(name: str) -> None:
    # A parameter without a line in the docstring stops the parser from being made, and so every command.
    parser = command_parser(name, COMMANDS[name])
    assert str(parser.usage).startswith(f"debm {name}") and "Examples:\n  debm" in str(parser.epilog)


def test_every_setting_is_documented() -> None:
    def check(kind: Any) -> int:
        names = [field.name for field in dataclasses.fields(kind)]
        assert re.findall(r"^        (\w+): ", str(kind.__doc__), re.M) == names, kind
        inner = [hint for hint in get_type_hints(kind).values() if dataclasses.is_dataclass(hint)]
        return len(names) + sum(check(hint) for hint in inner)

    assert check(Config) > 60
