"""What the project says of itself, against what it is."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import denoising_ebm

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "denoising_ebm"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Packages whose import has another name.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "skimage": "scikit-image"}


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_every_imported_package_is_declared() -> None:
    third_party = set().union(*(imported(path) for path in SOURCE.rglob("*.py"))) - sys.stdlib_module_names
    needed = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in third_party - {"denoising_ebm"}}
    extras = {
        name_of(each) for extra, names in PROJECT["optional-dependencies"].items() if extra != "dev" for each in names
    }
    declared = {name_of(each) for each in PROJECT["dependencies"]}
    assert needed - declared - extras == set()
    assert declared - needed == set(), "declared, but imported nowhere"


def test_every_dependency_has_a_lower_bound() -> None:
    tools = {"types-pyyaml", "denoising-ebm"}
    for requirement in [
        *PROJECT["dependencies"],
        *(each for names in PROJECT["optional-dependencies"].values() for each in names),
    ]:
        assert name_of(requirement) in tools or re.search(r"[>=]=\d", requirement), requirement


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version, date = re.findall(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[0]
    assert denoising_ebm.__version__ == citation["version"] == version
    assert str(citation["date-released"]) == date


def test_citation_is_the_repositorys() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"] == PROJECT["urls"]["Homepage"]
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert paper["url"].rpartition("/")[2] == paper["identifiers"][0]["value"].removeprefix("arXiv:")


def test_public_checks_do_what_ours_do() -> None:
    """Each `make` target of .ci/run is a step of the public workflow, on every Python that the classifiers name."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = " ".join(step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)
    assert {"lint", "types", "test", "wheel"} <= set(targets)
    for target in targets:
        script = re.search(rf"^{target}:.*\n\t\S+ (scripts/\w+\.py)$", makefile, re.M)
        assert re.search(rf"make [\w ]*\b{target}\b", steps) or (script and script.group(1) in steps), target
    pythons = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    named = [match.group(1) for each in PROJECT["classifiers"] if (match := re.search(r":: (3\.\d+)$", each))]
    assert pythons == named
    assert PROJECT["requires-python"] == f">={pythons[0]}"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LICENSE", "README.md"])
def test_files_that_people_look_for_stand_at_the_top(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8")) > 500
