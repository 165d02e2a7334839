"""What README.md and docs/ tell a reader to type works, and their links lead somewhere.

Python blocks run in order, those of a file in one namespace. So that they take seconds, large counts in calls are lowered
before (`CAPS`), and detectors learn from fewer corrupted images; nothing else is changed. `debm` lines of shell blocks go
through the command-line parser; those that need no training and no images of the reader's are executed.
"""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from denoising_ebm import cli
from denoising_ebm.hub import bundled_models
from denoising_ebm.ood import detector
from denoising_ebm.ood.detector_config import DetectorConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [
    *PAGES,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "RESULTS.md",
]
#: The most that a count may be when a block runs: of images that are loaded, of samples, of steps.
CAPS = {"limit": 48, "num": 4, "steps": 4, "num_steps": 4, "batch_size": 4}
#: Calls whose first argument is a count, by the name of what is called.
FIRST_ARGUMENT = {"sample": 4}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language: the number of the first line, and the text."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return [(text.count("\n", 0, match.start()) + 2, match.group(1)) for match in found]


# -- Python ---------------------------------------------------------------------------------------------------------


class Capped(ast.NodeTransformer):
    """Lower the counts of `CAPS` and `FIRST_ARGUMENT`."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if node.args and name in FIRST_ARGUMENT:
            self.lower(node.args[0], FIRST_ARGUMENT[name])
        for keyword in node.keywords:
            if keyword.arg in CAPS:
                self.lower(keyword.value, CAPS[keyword.arg])
        return node

    @staticmethod
    def lower(value: ast.expr, cap: int) -> None:
        if isinstance(value, ast.Constant) and type(value.value) is int:
            value.value = min(value.value, cap)


def stated_shape(line: str) -> tuple[int, ...] | None:
    """The shape that a comment at the end of a line states: `# (64, 1, 32, 32) in [-1, 1]`."""
    match = re.search(r"#\s*\((\d+(?:, \d+)*,?)\)", line)
    return tuple(int(each) for each in match.group(1).rstrip(",").split(", ")) if match else None


def run_block(code: str, first_line: int, where: str, namespace: dict[str, Any]) -> None:
    """Execute a block statement by statement; shapes that comments state are compared, but for the number of images."""
    code = "\n" * (first_line - 1) + code  # so that tracebacks name the line of the page
    lines = code.splitlines()
    for statement in ast.parse(code).body:
        shape = stated_shape(lines[(statement.end_lineno or 1) - 1])
        tree = Capped().visit(ast.Module([statement], []))
        if isinstance(statement, ast.Expr):
            tree.body = [ast.copy_location(ast.Assign([ast.Name("_value", ast.Store())], statement.value), statement)]
        exec(compile(ast.fix_missing_locations(tree), where, "exec"), namespace)
        if shape is None:
            continue
        name = ast.unparse(statement.targets[0]) if isinstance(statement, ast.Assign) else "_value"
        value = namespace[name]
        value = value if isinstance(value, torch.Tensor) else value.images
        assert (value.ndim, tuple(value.shape[1:])) == (len(shape), shape[1:]), f"{where}: {ast.unparse(statement)}"


@dataclass(frozen=True)
class FewCorrupted(DetectorConfig):
    """The default settings of detectors but for the number of images that are corrupted in every way."""

    num_corrupted: int = 8


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "python")], ids=relative)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detector, "DetectorConfig", FewCorrupted)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for first_line, code in blocks(path, "python"):
        run_block(code, first_line, str(path), namespace)


def test_counts_are_lowered_and_shapes_compared() -> None:
    namespace: dict[str, Any] = {}
    code = "def f(*, limit): return torch.zeros(limit, 3)\nx = f(limit=10**3)\ny = f(limit=1000)  # (1000, 3)\n"
    run_block("import torch\n" + code, 1, "page", namespace)
    assert len(namespace["x"]) == 1000, "an expression is no literal count"
    assert len(namespace["y"]) == CAPS["limit"]
    with pytest.raises(AssertionError, match="page: y"):
        run_block("y = f(limit=5)  # (5, 4)\n", 1, "page", namespace)


# -- shell ----------------------------------------------------------------------------------------------------------


def debm_lines(path: Path) -> list[tuple[int, list[str], bool]]:
    """The commands `debm ...` of the shell blocks: line, arguments, and whether their output goes to a file."""
    found = []
    for first_line, text in blocks(path, "(?:sh|bash|shell|console)"):
        joined = text.replace("\\\n", "  ")
        for offset, line in enumerate(joined.splitlines()):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]
            if words[:1] == ["torchrun"] and "denoising_ebm" in words:
                words = ["debm", *words[words.index("denoising_ebm") + 1 :]]
            if words[:1] != ["debm"]:
                continue
            redirected = ">" in words
            words = words[: words.index(">")] if redirected else words
            found.append((first_line + offset, [word for word in words[1:] if word != "..."], redirected))
    return found


COMMANDS = [(path, *each) for path in PAGES for each in debm_lines(path)]
IDS = [f"{relative(path)}:{line}" for path, line, *_ in COMMANDS]


def test_pages_show_commands() -> None:
    """Else the tests below would pass by finding none."""
    assert len(COMMANDS) >= 10
    assert sum(len(blocks(path, "python")) for path in PAGES) >= 1


def is_cheap(arguments: list[str]) -> bool:
    """Whether a command asks nothing but help or settings, or draws from or describes a bundled model."""
    on_bundled = arguments[0] in ("sample", "info") and arguments[1:2] and arguments[1] in bundled_models()
    return bool({"--help", "--print_config", "--version"} & {*arguments}) or bool(on_bundled)


@pytest.mark.parametrize(("path", "line", "arguments", "redirected"), COMMANDS, ids=IDS)
def test_debm_lines_are_understood(
    path: Path,
    line: int,
    arguments: list[str],
    redirected: bool,
    debm: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    # Settings that an earlier line of the page wrote.
    for option, value in pairwise(arguments):
        if option == "--config":
            Path(value).write_text("{}\n")
    if is_cheap(arguments):
        few = ["4" if before == "--n" else word for before, word in pairwise(["", *arguments])]
        result = debm(*few)
    else:
        ran: list[str] = []
        names = {command: name for name, command in cli.COMMANDS.items()}
        monkeypatch.setattr(cli, "call", lambda command, given: ran.append(names[command]) or 0)
        result = debm(*arguments)
        assert ran == [arguments[0]], result.err
    assert result.status == 0, f"{path}:{line}: debm {shlex.join(arguments)}\n{result.err}"


def test_wrong_lines_are_not_understood(debm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "call", lambda command, given: 0)
    assert "unknown" in debm("sample", "fashion-mnist", "--unknown", "4").error
    assert debm("train", "IMAGES", "--out", "x", "--training.batch_sizes", "4").status == 2


# -- links ----------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        number = sum(1 for each in found if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", each))
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


@pytest.mark.parametrize("path", LINKED, ids=relative)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        goal = (path.parent / name).resolve() if name else path
        assert goal.exists(), f"{relative(path)}: {target}: no such file"
        assert not anchor or anchor in anchors(goal), f"{relative(path)}: {target}: no such heading"


def test_proofs_of_reliability_are_there() -> None:
    """Files and functions of tests that a promise names."""
    named = re.findall(
        r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    )
    assert len(named) > 30
    for file, function in named:
        assert (ROOT / file).is_file(), file
        assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{function}"
