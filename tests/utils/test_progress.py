from __future__ import annotations

import re

import pytest

from denoising_ebm.utils import progress


def test_without_a_terminal_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress_bar("scoring", 100) as advance:
        advance(10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.progress_bar("scoring", 100) as advance:
        advance(10)
        advance(40)
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"[0-9.]+ min", "t min", line) for line in lines] == [
        "scoring: 10%, t min left",
        "scoring: 50%, t min left",
    ]
