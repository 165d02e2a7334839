from __future__ import annotations

import pytest
import torch

from denoising_ebm.utils.device import free_threads, torch_threads


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt), torch_threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before


def test_no_more_threads_than_torch_has() -> None:
    with torch_threads(2):
        assert free_threads(0.02) in (1, 2)
        assert torch.get_num_threads() == 2
    with torch_threads(1), torch_threads() as count:
        assert count == 1
