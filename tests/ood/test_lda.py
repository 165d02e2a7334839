"""Discriminants against what can be computed: Fisher's direction, the likelihood ratio, images of equal energies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from denoising_ebm.ood.densities import Mahalanobis
from denoising_ebm.ood.lda import FisherDiscriminants
from denoising_ebm.ood.metrics import auroc


def draw(num: int, seed: int, dim: int = 40) -> tuple[Tensor, Tensor]:
    """Correlated normal features, and columns that say nothing about them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(dim, dtype=torch.float64)
    mixing += 0.1 * torch.randn(dim, dim, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    rows = torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mixing
    return rows, torch.randn(num, 2, generator=generator, dtype=torch.float64)


def shifted(rows: Tensor, shifts: list[Tensor]) -> Tensor:
    return torch.stack([rows, *(rows + shift for shift in shifts)])


@pytest.fixture(scope="module")
def shift() -> Tensor:
    """A change of two standard deviations in the metric of the features' covariance."""
    rows, _ = draw(20_000, 5)
    drift = torch.randn(40, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    scale = math.sqrt(float(drift @ torch.linalg.solve(torch.cov(rows.mT), drift)))
    return 2 * drift / scale


def test_finds_fishers_discriminant(shift: Tensor) -> None:
    """Two normal distributions two standard deviations apart along w: AUROC Phi(2 / sqrt 2)."""
    rows, given = draw(6000, 0)
    some, by = draw(50, 1)
    found = FisherDiscriminants(ridge=1e-6).fit(rows, given, shifted(some, [shift]), by.expand(2, -1, -1))
    fresh, fresh_given = draw(4000, 2)
    expected = 0.5 * (1 + math.erf(2 / 2))
    measured = auroc(found.score(fresh, fresh_given), found.score(fresh + shift, fresh_given))
    assert measured == pytest.approx(expected, abs=0.02)
    # A density of the same features sees 40 directions and is lost in them.
    blind = Mahalanobis().fit(rows)
    assert auroc(blind.score(fresh), blind.score(fresh + shift)) < expected - 0.15
    heads = found.heads(fresh, fresh_given)
    assert float(heads.mean()) == pytest.approx(0, abs=0.08) and float(heads.std()) == pytest.approx(1, abs=0.05)


def test_score_is_the_mean_likelihood_ratio_of_its_heads(shift: Tensor) -> None:
    rows, given = draw(500, 0)
    some, by = draw(20, 1)
    tables = shifted(some, [shift, -shift, shift.flip(0)])
    for size in (0.5, 1.0, 2.0):
        found = FisherDiscriminants(shift=size).fit(rows, given, tables, by.expand(4, -1, -1))
        heads = found.heads(some, by)
        assert heads.shape == (20, 3)
        expected = (size * heads).exp().mean(1).log() / size
        torch.testing.assert_close(found.score(some, by), expected)
    # An alteration and its opposite have opposite discriminants.
    torch.testing.assert_close(heads[:, 0], -heads[:, 1])


def test_features_are_judged_by_images_of_equal_energies() -> None:
    """Features that spread with the energy: among images of equal energy a small change is plain."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    rows = 3 * given + 0.3 * torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    tables, by = shifted(rows[:50], [torch.tensor([0.6])]), given[:50].expand(2, -1, -1)
    judged = FisherDiscriminants(components=1, ridge=1e-6).fit(rows, given, tables, by)
    unrelated = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    alone = FisherDiscriminants(components=1, ridge=1e-6).fit(rows, unrelated, tables, by)
    c = torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    fresh = 3 * c + 0.3 * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    assert auroc(judged.score(fresh, c), judged.score(fresh + 0.6, c)) == pytest.approx(0.92, abs=0.02)
    assert auroc(alone.score(fresh, c), alone.score(fresh + 0.6, c)) < 0.6


def test_blocks_are_standardised_and_averaged(shift: Tensor) -> None:
    rows, given = draw(3000, 0)
    some, by = draw(50, 1)
    tables, by = shifted(some, [shift]), by.expand(2, -1, -1)
    halves = [list(range(20)), list(range(20, 40))]
    together = FisherDiscriminants().fit(rows, given, tables, by, halves)
    fresh, fresh_given = rows[:600], given[:600]  # what heads are standardised on
    alone = [
        FisherDiscriminants().fit(rows[:, half], given, tables[..., half], by).heads(fresh[:, half], fresh_given)
        for half in halves
    ]
    mean = alone[0] + alone[1]
    torch.testing.assert_close(together.heads(fresh, fresh_given), (mean - mean.mean(0)) / mean.std(0))
    whole = FisherDiscriminants().fit(rows, given, tables, by, [list(range(40))]).score(fresh, fresh_given)
    torch.testing.assert_close(FisherDiscriminants().fit(rows, given, tables, by).score(fresh, fresh_given), whole)


def test_kept_tensors_give_the_same_scores(shift: Tensor) -> None:
    rows, given = draw(200, 0)
    some, by = draw(20, 1)
    found = FisherDiscriminants().fit(rows, given, shifted(some, [shift]), by.expand(2, -1, -1))
    again = FisherDiscriminants().load({name: tensor.clone() for name, tensor in found.tensors().items()})
    assert torch.equal(again.score(some, by), found.score(some, by))


def test_a_constant_feature_and_wild_values_do_no_harm(shift: Tensor) -> None:
    rows, given = draw(200, 0)
    rows[:, 3] = 7.0
    rows[:, 4] = 7.0 + 1e-8 * rows[:, 5]
    some = rows[:20]
    found = FisherDiscriminants().fit(rows, given, shifted(some, [shift]), given[:20].expand(2, -1, -1))
    wild = found.score(1e6 * rows[:5], 1e6 * given[:5])
    assert bool(wild.isfinite().all())
    kept = {name: tensor.float() for name, tensor in found.tensors().items()}
    torch.testing.assert_close(
        FisherDiscriminants().load(kept).score(rows, given), found.score(rows, given), rtol=1e-3, atol=1e-3
    )


def test_refusals(shift: Tensor) -> None:
    rows, given = draw(30, 0)
    tables, by = shifted(rows, [shift]), given.expand(2, -1, -1)
    with pytest.raises(ValueError, match="fit first"):
        FisherDiscriminants().score(rows, given)
    with pytest.raises(ValueError, match="at least 5 normal images, got 4"):
        FisherDiscriminants().fit(rows[:4], given[:4], tables, by)
    with pytest.raises(ValueError, match="30 rows of features, but 29"):
        FisherDiscriminants().fit(rows, given[1:], tables, by)
    with pytest.raises(ValueError, match=r"altered must have shape \(1 \+ kinds, m, 40\)"):
        FisherDiscriminants().fit(rows, given, tables[..., :3], by)
    with pytest.raises(ValueError, match=r"altered must have shape .* got \(2, 30, 40\) and \(1, 30, 2\)"):
        FisherDiscriminants().fit(rows, given, tables, by[:1])
    with pytest.raises(ValueError, match="30 rows of features, but 1 of"):
        FisherDiscriminants().fit(rows, given, tables, by).score(rows, given[:1])
    with pytest.raises(ValueError, match="expected 40 features"):
        FisherDiscriminants().fit(rows, given, tables, by).score(rows[:, :3], given)
