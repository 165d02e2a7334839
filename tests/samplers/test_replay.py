from __future__ import annotations

import math

import pytest
import torch

from denoising_ebm.samplers import (
    ReplayBuffer,
)


def full_buffer(capacity: int = 10, restart_rate: float = 0.3) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, restart_rate)
    values = torch.arange(capacity).float()
    buffer.put(torch.full((capacity,), -1), {"x": values, "z": torch.stack([values, -values], 1)})
    return buffer


def test_buffer_fills_first(generator: torch.Generator) -> None:
    buffer = ReplayBuffer(5, 0.0)
    for size in (2, 4, 5):
        slots, states = buffer.draw(2, generator)
        assert slots.tolist() == [-1, -1]
        assert all(len(rows) == 0 for rows in states.values())
        buffer.put(slots, {"x": torch.tensor([size + 0.1, size + 0.2])}, generator)
        assert len(buffer) == size
    slots, states = buffer.draw(4, generator)
    assert sorted(slots.tolist()) != [-1] * 4 and len(set(slots.tolist())) == 4
    assert len(states["x"]) == 4


def test_restart_rate(generator: torch.Generator) -> None:
    buffer, rounds = full_buffer(), 2000
    restarts = sum(int((buffer.draw(6, generator)[0] < 0).sum()) for _ in range(rounds))
    n = 6 * rounds
    assert restarts / n == pytest.approx(0.3, abs=4.5 * math.sqrt(0.3 * 0.7 / n))


def test_slots_are_drawn_once_and_evenly(generator: torch.Generator) -> None:
    buffer, counts = full_buffer(restart_rate=0.0), torch.zeros(10)
    for _ in range(2000):
        slots = buffer.draw(4, generator)[0]
        assert len(set(slots.tolist())) == 4
        counts[slots] += 1
    assert bool(((counts / 2000 - 0.4).abs() < 5 * math.sqrt(0.4 * 0.6 / 2000)).all())


def test_continued_chains_go_back_to_their_slot(generator: torch.Generator) -> None:
    buffer = full_buffer()
    for turn in range(50):
        before = {name: rows.clone() for name, rows in buffer.state_dict().items()}
        slots, states = buffer.draw(6, generator)
        going_on = slots >= 0
        assert torch.equal(states["x"], before["x"][slots[going_on]])
        assert torch.equal(states["z"][:, 1], before["z"][slots[going_on], 1])
        new = 100.0 * (turn + 1) + torch.arange(6)
        buffer.put(slots, {"x": new, "z": torch.stack([new, -new], 1)}, generator)
        after = buffer.state_dict()
        assert len(buffer) == 10
        assert torch.equal(after["x"][slots[going_on]], new[going_on])
        assert set(new.tolist()) <= set(after["x"].tolist())  # restarts are stored too, nothing of this round is lost
        assert int((after["x"] == before["x"]).sum()) == 4  # and nothing else has changed
        assert torch.equal(after["z"], torch.stack([after["x"], -after["x"]], 1))  # rows stay together


def test_buffer_state_round_trip(generator: torch.Generator) -> None:
    first, second = full_buffer(), ReplayBuffer(10, 0.3)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        draws = [b.draw(5, torch.Generator().manual_seed(3)) for b in (first, second)]
        assert torch.equal(draws[0][0], draws[1][0])
        assert torch.equal(draws[0][1]["x"], draws[1][1]["x"])
        new = torch.rand(5, generator=generator)
        for buffer in (first, second):
            buffer.put(draws[0][0], {"x": new, "z": new[:, None].repeat(1, 2)}, torch.Generator().manual_seed(4))
    assert torch.equal(first.state_dict()["x"], second.state_dict()["x"])
    assert first.state_dict()["x"].data_ptr() != second.state_dict()["x"].data_ptr()


def test_more_chains_than_the_buffer_holds(generator: torch.Generator) -> None:
    buffer = full_buffer(capacity=4, restart_rate=0.0)
    slots, states = buffer.draw(7, generator)
    assert sorted(slots.tolist()) == [-1, -1, -1, 0, 1, 2, 3] and len(states["x"]) == 4
    new = 100.0 + torch.arange(7)
    buffer.put(slots, {"x": new, "z": torch.stack([new, -new], 1)}, generator)
    assert len(buffer) == 4
    assert torch.equal(buffer.state_dict()["x"][slots[:4]], new[:4])


def test_buffer_refuses() -> None:
    with pytest.raises(ValueError, match="buffer_size"):
        ReplayBuffer(0, 0.1)
    with pytest.raises(ValueError, match="restart_rate"):
        ReplayBuffer(3, 1.1)
