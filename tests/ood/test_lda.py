"""Discriminants against what can be computed: Fisher's direction, the likelihood ratio, images of equal energies."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor

from denoising_ebm.ood.lda import FisherDiscriminants, log_mean_exp
from denoising_ebm.ood.metrics import auroc


def draw(num: int, seed: int, dim: int = 40) -> tuple[Tensor, Tensor]:
    """Correlated normal features, and covariates that say nothing about them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(dim, dtype=torch.float64)
    mixing += 0.1 * torch.randn(dim, dim, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    rows = torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mixing
    return rows, torch.randn(num, 2, generator=generator, dtype=torch.float64)


def shifted(rows: Tensor, shifts: list[Tensor]) -> Tensor:
    return torch.stack([rows, *(rows + shift for shift in shifts)])


def score(found: FisherDiscriminants, rows: Tensor, covariates: Tensor) -> Tensor:
    return log_mean_exp(found.projections(rows, covariates))


@pytest.fixture(scope="module")
def shift() -> Tensor:
    """A change of two standard deviations in the metric of the features' covariance."""
    rows, _ = draw(20_000, 5)
    drift = torch.randn(40, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    scale = math.sqrt(float(drift @ torch.linalg.solve(torch.cov(rows.mT), drift)))
    return 2 * drift / scale


def test_finds_fishers_discriminant(shift: Tensor) -> None:
    """Two normal distributions two standard deviations apart along w: AUROC Phi(2 / sqrt 2)."""
    rows, covariates = draw(6000, 0)
    some, of_some = draw(50, 1)
    found = FisherDiscriminants.fit(rows, covariates, shifted(some, [shift]), of_some.expand(2, -1, -1), ridge=1e-6)
    fresh, of_fresh = draw(4000, 2)
    expected = 0.5 * (1 + math.erf(2 / 2))
    measured = auroc(score(found, fresh, of_fresh), score(found, fresh + shift, of_fresh))
    assert measured == pytest.approx(expected, abs=0.02)
    # A density of the same features sees 40 directions and is lost in them.
    blind = EmpiricalCovariance().fit(rows.numpy()).mahalanobis
    assert auroc(blind(fresh.numpy()), blind((fresh + shift).numpy())) < expected - 0.15
    projections = found.projections(fresh, of_fresh)
    assert float(projections.mean()) == pytest.approx(0, abs=0.08)
    assert float(projections.std()) == pytest.approx(1, abs=0.05)


def test_score_is_the_mean_likelihood_ratio_of_its_projections(shift: Tensor) -> None:
    rows, covariates = draw(500, 0)
    some, of_some = draw(20, 1)
    tables = shifted(some, [shift, -shift, shift.flip(0)])
    projections = FisherDiscriminants.fit(rows, covariates, tables, of_some.expand(4, -1, -1)).projections(
        some, of_some
    )
    assert projections.shape == (20, 3)
    for size in (0.5, 1.0, 2.0):
        expected = (size * projections).exp().mean(1).log() / size
        torch.testing.assert_close(log_mean_exp(projections, size), expected)
    # A corruption and its opposite have opposite discriminants.
    torch.testing.assert_close(projections[:, 0], -projections[:, 1])


def test_features_are_compared_with_those_of_images_of_equal_energies() -> None:
    """Features that spread with the energy: among images of equal energy a small change is plain."""
    generator = torch.Generator().manual_seed(0)
    energies = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    rows = 3 * energies + 0.3 * torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    tables, of_tables = shifted(rows[:50], [torch.tensor([0.6])]), energies[:50].expand(2, -1, -1)
    adjusted = FisherDiscriminants.fit(rows, energies, tables, of_tables, components=1, ridge=1e-6)
    unrelated = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    alone = FisherDiscriminants.fit(rows, unrelated, tables, of_tables, components=1, ridge=1e-6)
    c = torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    fresh = 3 * c + 0.3 * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    assert auroc(score(adjusted, fresh, c), score(adjusted, fresh + 0.6, c)) == pytest.approx(0.92, abs=0.02)
    assert auroc(score(alone, fresh, c), score(alone, fresh + 0.6, c)) < 0.6


def test_blocks_are_standardised_and_averaged(shift: Tensor) -> None:
    rows, covariates = draw(3000, 0)
    some, of_some = draw(50, 1)
    tables, of_tables = shifted(some, [shift]), of_some.expand(2, -1, -1)
    halves = [list(range(20)), list(range(20, 40))]
    together = FisherDiscriminants.fit(rows, covariates, tables, of_tables, blocks=halves)
    held_out, of_held_out = rows[:600], covariates[:600]  # what projections are standardised on
    alone = [
        FisherDiscriminants.fit(rows[:, half], covariates, tables[..., half], of_tables).projections(
            held_out[:, half], of_held_out
        )
        for half in halves
    ]
    mean = alone[0] + alone[1]
    torch.testing.assert_close(together.projections(held_out, of_held_out), (mean - mean.mean(0)) / mean.std(0))
    one = FisherDiscriminants.fit(rows, covariates, tables, of_tables, blocks=[list(range(40))])
    none = FisherDiscriminants.fit(rows, covariates, tables, of_tables)
    torch.testing.assert_close(score(none, held_out, of_held_out), score(one, held_out, of_held_out))


def test_kept_tensors_give_the_same_scores(shift: Tensor) -> None:
    rows, covariates = draw(200, 0)
    some, of_some = draw(20, 1)
    found = FisherDiscriminants.fit(rows, covariates, shifted(some, [shift]), of_some.expand(2, -1, -1))
    kept = {f"lda.{name}": tensor.clone() for name, tensor in found.tensors().items()}
    again = FisherDiscriminants.from_tensors(kept, "lda.")
    assert torch.equal(score(again, some, of_some), score(found, some, of_some))
    del kept["lda.adjustment.scaler.std"]
    with pytest.raises(KeyError, match=r"lda\.adjustment\.scaler\.std"):
        FisherDiscriminants.from_tensors(kept, "lda.")


def test_a_constant_feature_and_wild_values_do_no_harm(shift: Tensor) -> None:
    rows, covariates = draw(200, 0)
    rows[:, 3] = 7.0
    rows[:, 4] = 7.0 + 1e-8 * rows[:, 5]
    some = rows[:20]
    found = FisherDiscriminants.fit(rows, covariates, shifted(some, [shift]), covariates[:20].expand(2, -1, -1))
    wild = score(found, 1e6 * rows[:5], 1e6 * covariates[:5])
    assert bool(wild.isfinite().all())
    kept = FisherDiscriminants.from_tensors({name: tensor.float() for name, tensor in found.tensors().items()})
    torch.testing.assert_close(score(kept, rows, covariates), score(found, rows, covariates), rtol=1e-3, atol=1e-3)


def test_refusals(shift: Tensor) -> None:
    rows, covariates = draw(30, 0)
    tables, of_tables = shifted(rows, [shift]), covariates.expand(2, -1, -1)
    with pytest.raises(ValueError, match="at least 5 normal images, got 4"):
        FisherDiscriminants.fit(rows[:4], covariates[:4], tables, of_tables)
    with pytest.raises(ValueError, match="30 rows of features, but 29"):
        FisherDiscriminants.fit(rows, covariates[1:], tables, of_tables)
    with pytest.raises(ValueError, match=r"corrupted must have shape \(1 \+ kinds, m, 40\)"):
        FisherDiscriminants.fit(rows, covariates, tables[..., :3], of_tables)
    with pytest.raises(ValueError, match=r"corrupted must have shape .* got \(2, 30, 40\) and \(1, 30, 2\)"):
        FisherDiscriminants.fit(rows, covariates, tables, of_tables[:1])
    found = FisherDiscriminants.fit(rows, covariates, tables, of_tables)
    with pytest.raises(ValueError, match="30 rows of features, but 1 of"):
        found.projections(rows, covariates[:1])
    with pytest.raises(ValueError, match="expected 40 features"):
        found.projections(rows[:, :3], covariates)
    with pytest.raises(ValueError, match="not finite"):
        FisherDiscriminants.fit(rows / 0, covariates, tables, of_tables)
    with pytest.raises(ValueError, match=r"must have shape \(n, d\)"):
        FisherDiscriminants.fit(rows[0], covariates, tables, of_tables)
