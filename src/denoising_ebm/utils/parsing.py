"""Texts that strangers wrote, read as plain values: of bounded size and depth, each key once, by data formats alone.

What the values mean is checked by those who know: `config.from_dict` for fields, `schema` for tensors.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

#: Bytes of a JSON file at most: the config of a model or detector takes 5 kB.
MAX_JSON = 4 * 2**20
#: Bytes of a YAML file at most: settings take 3 kB, and PyYAML some seconds for a megabyte.
MAX_YAML = 256 * 2**10
#: Levels of lists and mappings within each other.
MAX_DEPTH = 32
#: Digits of a whole number: floats end at 309.
MAX_DIGITS = 309


def parse_json(content: bytes) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: If it is damaged, names a key twice, or nests too deeply; the message names no file.
    """
    try:
        values = json.loads(_decoded(content), object_pairs_hook=_unique, parse_int=_whole_number)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    check_depth(values)
    return values


def parse_yaml(content: bytes) -> Any:
    """Return what a YAML text holds: plain values, without anchors, which a few lines could multiply without end.

    Raises:
        ValueError: If it is damaged, names a key twice, holds aliases or tags of other kinds, or nests too deeply; the
            message is one line and names no file.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("aliases (*name) are not read: write the value out")
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
            node = super().compose_node(parent, index)
            self.depth -= 1
            if isinstance(node, yaml.MappingNode):
                _check_unique([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            return node

    try:
        values = yaml.load(_decoded(content), Loader)
    # A tag on a value that it does not fit, `!!bool x` or the 40th of May, fails in as many ways as there are tags.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    check_depth(values)
    return values


def check_depth(values: Any) -> None:
    """Refuse lists and mappings that are nested more than `MAX_DEPTH` levels deep, or within themselves.

    Raises:
        ValueError: If they are.
    """
    level, depth = [values], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        # By identity: what a pickle holds in many places is looked at once.
        inner: dict[int, Any] = {}
        for value in level:
            if isinstance(value, dict | list | tuple | set):
                parts = value.values() if isinstance(value, dict) else value
                inner |= {id(part): part for part in parts if isinstance(part, dict | list | tuple | set)}
        level, depth = list(inner.values()), depth + 1


def shown(value: Any, limit: int = 80) -> str:
    """Return how a message shows a value of a stranger's: as Python writes it, but short and in one line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # the latter of a number of thousands of digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def shown_name(value: Any) -> str:
    """Return how a message shows a name: as it is, if it could be one of ours, else as `shown`."""
    return value if isinstance(value, str) and len(value) <= 80 and value.isprintable() else shown(value)


def _decoded(content: bytes) -> str:
    try:
        # Editors of Windows begin a file with a mark, which is no part of it.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_unique([name for name, _ in pairs])
    return dict(pairs)


def _check_unique(names: list[str]) -> None:
    if len(set(names)) < len(names):
        first = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{shown(first)} is given twice")


def _whole_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)
