"""Readers of models, detectors, states and settings on a few hundred hostile files (reliability/fuzz.py: on many more)."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzzing import KINDS, Readers

ENDINGS: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Readers:
    return Readers(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", KINDS)
def test_sound_or_refused_in_one_line(kind: str, readers: Readers) -> None:
    """What a reader returns is what was written (or valid, where no hash says what that was); else it names the file."""

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def change_and_read(seed: int) -> None:
        readers.restore()
        ENDINGS[kind][getattr(readers, kind)(random.Random(seed))] += 1

    change_and_read()
    # A reader that refuses everything would pass as well.
    readers.restore()
    assert ENDINGS[kind]["refused"] > 10
    reads = [readers.read_model(), readers.read_detector(), readers.read_state(), readers.read_settings()]
    assert reads == ["sound"] * 4


def test_memory_is_bounded_by_the_files(readers: Readers) -> None:
    """Reading 60 hostile files takes no more than reading sound ones, some tens of megabytes for their parsing aside."""
    resource = pytest.importorskip("resource")
    for kind in KINDS:
        readers.restore()
        getattr(readers, kind)(random.Random(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in KINDS:
        for seed in range(10):
            readers.restore()
            getattr(readers, kind)(random.Random(10_000 + seed))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_damage_is_found_in_a_copied_folder_too(readers: Readers, tmp_path: Path) -> None:
    """Hashes do not depend on the place."""
    import shutil

    from denoising_ebm import DenoisingEBM

    readers.restore()
    shutil.copytree(readers.run, tmp_path / "copy")
    model = DenoisingEBM.from_pretrained(tmp_path / "copy")
    assert model.config == readers.model.config
