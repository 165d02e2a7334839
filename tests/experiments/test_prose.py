from __future__ import annotations

import pytest

from denoising_ebm.experiments.prose import prose


def test_texts_are_filled_in_and_keep_their_paragraphs() -> None:
    text = prose("speedup", rival="NCSN", best="ours", ratio=32.06, less="less time", paper=13.85)
    assert "that of NCSN is ours: it takes 32.1 times less time" in text and "\n" not in text
    assert len(prose("generation").split("\n\n")) == 2
    with pytest.raises(KeyError, match="rival"):
        prose("speedup")
