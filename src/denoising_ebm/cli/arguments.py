"""Options of a command from its function: names and types from the signature, help from the docstring.

A parameter before the `*` is a positional argument, a keyword-only one an option. `batch_size` becomes `--batch-size`, a
bool a flag without a value, and `list[str]` an option that may be repeated; of a Path, '' stands for None. The fields of a
dataclass such as `ImageOptions` become a group of options. `Annotated[dict[str, Any], Config]` takes every field of a config
as a dotted option, and gets those that were given.

jsonargparse would add a function's options itself, but with underscores in names and a value after each flag.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from denoising_ebm.utils.text import reason_of

Command = Callable[..., int | None]
HelpDefaults = Callable[[Mapping[str, Any]], dict[str, Any]]

_METAVARS = {int: "N", float: "X", Path: "PATH"}


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults and types, but no `null` and no type that says nothing, and keeps the lines of examples."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        # What ends as "(required, type: str)", "(type: int, default: null)" or "(default: False)" says nothing by it.
        text = re.sub(r"\((?:required, )?type: (?:Literal\[[^()]*?\]|str)(?:, )?", "(", text)
        return re.sub(r"\s*\((?:type: [^()]*, )?(?:default: (?:null|False)|required)?\)$", "", text)


def command_parser(name: str, command: Command, help_defaults: HelpDefaults | None = None) -> ArgumentParser:
    """Return the parser of a command.

    Args:
        name: Of the command.
        command: The function that runs it.
        help_defaults: Called with what was parsed before `--help`: defaults for the help to show.
    """
    text = _Docstring(command)
    parser = ArgumentParser(
        description=text.description,
        epilog=f"Examples:\n{textwrap.indent(text.section('Examples'), '  ')}",
        formatter_class=HelpFormatter,
        exit_on_error=False,
        print_config=None,  # `debm train` has its own
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=_help_action(help_defaults), help="show this help message and exit")
    usage = ["debm", name]
    hints, helps = typing.get_type_hints(command, include_extras=True), text.entries("Args")
    for parameter in inspect.signature(command).parameters.values():
        hint, default = hints[parameter.name], parameter.default
        if typing.get_origin(hint) is Annotated:
            _add_config(parser, hint.__metadata__[0])
        elif dataclasses.is_dataclass(hint):
            _add_group(parser, hint, default)
        else:
            positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            metavar = _add(parser, parameter.name, hint, default, helps[parameter.name], positional=positional)
            if positional or default is parameter.empty:
                usage.append(metavar if positional else f"{_spelled(parameter)} {metavar}")
    parser.usage = " ".join([*usage, "[options]"])
    return parser


def call(command: Command, given: Mapping[str, Any]) -> int:
    """Run a command with what was given of its options; return its exit status.

    Raises:
        ValueError: If an option that needs a path got an empty one.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    arguments: dict[str, Any] = {}

    def fields_of(kind: Any) -> dict[str, Any]:
        return {field.name: given[field.name] for field in dataclasses.fields(kind) if field.name in given}

    for name, parameter in inspect.signature(command).parameters.items():
        hint = hints[name]
        if typing.get_origin(hint) is Annotated:
            arguments[name] = fields_of(hint.__metadata__[0])
        elif dataclasses.is_dataclass(hint):
            arguments[name] = dataclasses.replace(parameter.default, **fields_of(hint))
        elif name in given and _without_none(hint) is Path:
            if not given[name] and hint is Path:
                raise ValueError(f"{_spelled(parameter)} must not be empty")
            arguments[name] = Path(given[name]) if given[name] else None
        elif name in given:
            arguments[name] = given[name]
    return command(**arguments) or 0


def error_line(error: Exception, command: Command | None = None) -> str:
    """Return what an error says, in one line that names the option as it is typed.

    Args:
        error: What was raised while arguments were parsed or a command ran.
        command: The function whose arguments they are.
    """
    if isinstance(error, OSError) and error.strerror:
        reason = "no space left on device" if error.errno == errno.ENOSPC else reason_of(error)
        return f"{error.filename}: {reason}" if error.filename else reason
    text = " ".join(str(error).split()) or type(error).__name__

    def spell(key: str) -> str:
        parameters = {} if command is None else inspect.signature(command).parameters
        return _spelled(parameters[key]) if key in parameters else f"--{key if '.' in key else _option(key)}"

    if match := re.fullmatch(r"the following arguments are required: (.*)", text):
        names = (name.partition(".")[2] or name for name in match[1].split(", "))
        return f"required: {', '.join(spell(name) for name in names)}"
    # jsonargparse's words for a value of the wrong type, in ours.
    text = re.sub(r"^Parser key \"([\w.]+)\"(?: element \d+)?: ", lambda match: f"{spell(match[1])}: ", text)
    text = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*), <class 'NoneType'>\] Errors: .* "
        r"Given value type: .* Given value: ",
        r"Expected a \1. Got value: ",
        text,
    )
    text = re.sub(r"Expected an? (?:typing\.)?Literal\[(.*?)\]\. Got value: ", r"expected one of \1, got ", text)
    return re.sub(r"Expected an? (?:<class '(\w+)'>|(\S+))\. Got value: ", r"expected \1\2, got ", text)


class _Docstring:
    """The parts of a Google-style docstring."""

    def __init__(self, documented: Any) -> None:
        parts = re.split(r"^(Args|Attributes|Examples|Returns|Raises):\n", inspect.getdoc(documented) or "", flags=re.M)
        self.description = parts[0].strip()
        self._sections = dict(zip(parts[1::2], parts[2::2], strict=True))

    def section(self, name: str) -> str:
        return textwrap.dedent(self._sections.get(name, "")).strip()

    def entries(self, name: str) -> dict[str, str]:
        """Return the text of each `name: text` of a section, whose further lines are indented."""
        found = re.findall(r"^(\w+): (.*(?:\n +.*)*)", self.section(name), re.M)
        return {key: " ".join(text.split()) for key, text in found}


def _add(container: Any, name: str, hint: Any, default: Any, text: str, *, positional: bool = False) -> str:
    """Add an argument or option; return what stands for its value in the help."""
    kind = _without_none(hint)
    if kind is bool:
        container.add_argument(f"--{_option(name)}", action="store_true", help=text)
        return ""
    required = default is inspect.Parameter.empty
    options: dict[str, Any] = {"help": text, "type": kind}
    if not required:
        options["default"] = default
    if kind is Path:
        # `call` makes paths of texts.
        options["type"] = str
    elif positional and typing.get_origin(kind) is list:
        options |= {"type": typing.get_args(kind)[0], "nargs": "+"}
    elif kind == list[str]:
        options |= {"type": str, "action": "append"}
    metavar = _METAVARS.get(kind, _option(name).rpartition("-")[2].upper())
    if typing.get_origin(kind) is Literal:
        metavar = "|".join(typing.get_args(kind))
    else:
        options["metavar"] = metavar
    if positional:
        container.add_argument(name, **options, **({} if required else {"nargs": "?"}))
    else:
        container.add_argument(f"--{_option(name)}", dest=name, required=required, **options)
    return metavar


def _add_group(parser: ArgumentParser, kind: Any, default: Any) -> None:
    text, hints = _Docstring(kind), typing.get_type_hints(kind)
    group, helps = parser.add_argument_group(text.description.rstrip(".")), text.entries("Attributes")
    for field in dataclasses.fields(kind):
        _add(group, field.name, hints[field.name], getattr(default, field.name), helps[field.name])


def _add_config(parser: ArgumentParser, config: Any) -> None:
    hints, helps = typing.get_type_hints(config), _Docstring(config).entries("Attributes")
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            parser.add_class_arguments(hints[field.name], field.name)
        else:
            parser.add_argument(f"--{field.name}", type=list[dict[str, Any]], help=helps[field.name])


def _help_action(help_defaults: HelpDefaults | None) -> type[argparse.Action]:
    class Help(argparse._HelpAction):
        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
            if help_defaults is not None:
                parser.set_defaults(help_defaults(namespace.as_dict()))
            super().__call__(parser, namespace, values, option_string)

    return Help


def _spelled(parameter: inspect.Parameter) -> str:
    positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    return parameter.name.upper() if positional else f"--{_option(parameter.name)}"


def _option(name: str) -> str:
    # jsonargparse's own spelling, by which users know it.
    return name if name == "print_config" else name.strip("_").replace("_", "-")


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return kinds[0] if is_union and len(kinds) == 1 else hint
