"""`debm` itself: help, usage, errors."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from denoising_ebm import DenoisingEBM
from denoising_ebm.cli import COMMANDS, main


def test_help_shows_commands_examples_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--help"])
        text = capsys.readouterr().out
        assert stop.value.code == 0 and "Examples:\n  debm " in text and "null" not in text
    assert main([]) == 2
    with pytest.raises(SystemExit):
        main(["train", "--preset", "cifar10-small", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    # The comment of the field, its type, and the preset's own value.
    assert "--training.batch_size BATCH_SIZE Images per optimizer step over all ranks. (type: int, default: 16)" in text
    assert "--training.learning_rate LEARNING_RATE Adam's. (type: float, default: 0.001)" in text


def test_examples_of_the_help_are_understood(debm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    names = {command: name for name, command in COMMANDS.items()}
    monkeypatch.setattr("denoising_ebm.cli.call", lambda command, given: ran.append(names[command]) or 0)
    for name, command in COMMANDS.items():
        section = (command.__doc__ or "").partition("Examples:\n")[2].partition("\n\n")[0]
        lines = [shlex.split(line) for line in section.replace("\\\n", " ").splitlines()]
        assert len(lines) >= 2
        for words in lines:
            if words[0] == "torchrun":
                words = words[words.index("denoising_ebm") :]
            words = words[: words.index(">")] if ">" in words else words
            assert debm(*words[1:]).status == 0 and ran.pop() == name


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from denoising_ebm.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'datasets', 'matplotlib', 'numpy', 'lightning_fabric'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n"), done.stdout[-200:]


def test_lazy_names_of_the_package() -> None:
    import denoising_ebm

    assert all(hasattr(denoising_ebm, name) for name in denoising_ebm.__all__)
    assert set(denoising_ebm.__all__) <= set(dir(denoising_ebm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        denoising_ebm.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paint"], "invalid choice: 'paint'"),
        (["sample"], "required: MODEL"),
        (
            ["sample", "m", "--sampler", "euler"],
            "--sampler: expected one of 'two-stage', 'annealed-langevin', 'consistent-annealed', 'ancestral', "
            "'dpmpp-2m-sde', 'heun', 'mala', got euler",
        ),
        (["sample", "m", "--n", "many"], "--n: expected int, got many"),
        (["sample", "m", "--semantic", "s.png", "--sampler", "heun"], "--semantic needs --sampler two-stage"),
        (["sample", "m", "--out", "grid.jpg"], "grid.jpg: expected a file name that ends in .png"),
        (["sample", "m", "--out", ""], "nothing to write"),
        (["train", "d", "--out", "x"], "--preset is needed: one of fashion-mnist, cifar10-small"),
        (["train", "d", "--out", "x", "--preset", "imagenet"], "unknown preset 'imagenet'"),
        (["train", "d", "--preset", "cifar10"], "required: --out"),
        (["train", "d", "--out", "x", "--preset"], "argument --preset: expected one argument"),
        (["train", "d", "--out", "x", "--preset", "cifar10", "--network.depth", "3"], "--network.depth"),
        (["train", "d", "--out", "x", "--preset", "cifar10", "--network.latent_dim", "x"], "network.latent_dim"),
        (["train", "d", "--out", "x", "--preset", "cifar10", "--network.latent_dim", "0"], "network.latent_dim must"),
        (["train", "d", "--out", "x", "--preset", "cifar10", "--noise.sigma_min", "-1"], "noise.sigma_min must be > 0"),
        (["train", "d", "--out", "x", "--preset", "cifar10", "--stages", "[{objective: magic}]"], "got 'magic'"),
        (["score", "m", "d", "--sigma", "-0.1"], "--sigma must be > 0, got -0.1"),
        (["score", "m", "d", "--sigma", "0"], "--sigma must be > 0, got 0"),
        (["score", "m", "d", "--fpr", "1.5"], "--fpr must be in (0, 1), got 1.5"),
        (["score", "m", "d", "--fdr", "0"], "--fdr must be in (0, 1), got 0"),
        (["score", "m", "d", "--fpr", "0.1", "--fdr", "0.1"], "--fpr and --fdr exclude each other"),
        (["score", "m", "d", "--tiles"], "--tiles needs --maps"),
        (["score", "m", "d", "--report", "page.pdf"], "page.pdf: expected a file name that ends in .html"),
        (["fit-detector", "m", "d", "--images", "5"], "--images must be >= 20, got 5"),
        (
            ["fit-detector", "fashion-mnist", "d"],
            "fashion-mnist: is part of the package; choose a folder for the detector with --out",
        ),
        (["evaluate", "m", "--in", "d", "--ood", "x", "--sigma", "0"], "--sigma must be > 0, got 0"),
        (["score", "m", "d", "--out", "scores.xls"], "scores.xls: unknown suffix '.xls'; use one of .csv"),
        (["info", "nowhere"], "nowhere: no such model folder"),
        (["demo", "--minutes", "0"], "--minutes must be > 0"),
    ],
)
def test_usage_errors_are_one_line(debm: Any, arguments: list[str], message: str) -> None:
    assert message in debm(*arguments).error


def test_ctrl_c_outside_training(debm: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DenoisingEBM, "from_pretrained", interrupt)
    stopped = debm("sample", run)
    assert stopped.status == 130 and stopped.err == "debm: interrupted\n"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: 8 bytes")]
)
def test_too_little_memory_is_one_line(debm: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def ends(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(DenoisingEBM, "from_pretrained", ends)
    assert debm("sample", "fashion-mnist").error == "out of memory; use a smaller --batch-size"


def test_other_errors_keep_their_traceback(debm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(DenoisingEBM, "from_pretrained", ends)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        debm("sample", "fashion-mnist")
