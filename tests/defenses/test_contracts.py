"""Every rule keeps the promises of the aggregator's contract; where a rule's own definition forbids one, it says so."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from securefed.types import Aggregator, RoundContext
from securefed_defenses import (
    AGGREGATORS,
    ARC,
    CAF,
    FLAME,
    MDA,
    NNM,
    RLR,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Clip,
    DnC,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    Krum,
    MeaMed,
    Mean,
    Median,
    MoNNA,
    MultiKrum,
    NormBound,
    Pipeline,
    SignGuard,
    SignMajority,
    TrimmedMean,
)
from tests.contracts.test_aggregator import AggregatorContract


class TestMedian(AggregatorContract):
    def rule(self) -> Aggregator:
        return Median()


class TestMedianOfAnEvenCohort(TestMedian):
    n = 10


class TestTrimmedMean(AggregatorContract):
    def rule(self) -> Aggregator:
        return TrimmedMean(f=2)


class TestMeaMed(AggregatorContract):
    def rule(self) -> Aggregator:
        return MeaMed(f=3)


class TestSignMajority(AggregatorContract):
    def rule(self) -> Aggregator:
        return SignMajority()


class TestKrum(AggregatorContract):
    def rule(self) -> Aggregator:
        return Krum(f=2)


class TestMultiKrum(AggregatorContract):
    def rule(self) -> Aggregator:
        return MultiKrum(f=2, m=3)


class TestBulyan(AggregatorContract):
    def rule(self) -> Aggregator:
        return Bulyan(f=1)


class TestMDA(AggregatorContract):
    def rule(self) -> Aggregator:
        return MDA(f=3)


class TestMoNNA(AggregatorContract):
    def rule(self) -> Aggregator:
        return MoNNA(f=2, trusted=0)

    def test_the_order_of_the_clients_does_not_matter(self) -> None:
        """As long as the trusted row stays in its place: it is meant by its place."""
        rows = self.rows()
        torch.testing.assert_close(
            self.rule()(torch.cat([rows[:1], rows[1:].flip(0)])), self.rule()(rows), rtol=1e-9, atol=1e-9
        )


class TestGeometricMedian(AggregatorContract):
    def rule(self) -> Aggregator:
        return GeometricMedian(max_iter=1000, tol=1e-12)


class TestCenteredClipping(AggregatorContract):
    def rule(self) -> Aggregator:
        return CenteredClipping(radius=50.0)


class TestCAF(AggregatorContract):
    def rule(self) -> Aggregator:
        return CAF(f=2)


class TestDnC(AggregatorContract):
    def rule(self) -> Aggregator:
        return DnC(f=2)


class TestSignGuard(AggregatorContract):
    def rule(self) -> Aggregator:
        return SignGuard()


class TestFoolsGold(AggregatorContract):
    def rule(self) -> Aggregator:
        return FoolsGold()


class TestFLAME(AggregatorContract):
    def rule(self) -> Aggregator:
        return FLAME()


class TestNormBound(AggregatorContract):
    def rule(self) -> Aggregator:
        return NormBound(max_norm=100.0)


class TestRLR(AggregatorContract):
    def rule(self) -> Aggregator:
        return RLR(threshold=4)


class TestFLTrust(AggregatorContract):
    def rule(self) -> Aggregator:
        return FLTrust(root_update=torch.linspace(-1, 1, 7, dtype=torch.float64))

    def context(self, seed: int = 0) -> RoundContext:
        root = torch.linspace(-1, 1, 7, dtype=torch.float64)
        return dataclasses.replace(super().context(seed), root_update=root)

    def test_clients_that_agree_get_what_they_agree_on(self) -> None:
        """In direction; the length is the trusted update's."""
        root = torch.linspace(-1, 1, 7, dtype=torch.float64)
        torch.testing.assert_close(self.rule()((5 * root).repeat(self.n, 1)), root)


class TestNNMAndTrimmedMean(AggregatorContract):
    def rule(self) -> Aggregator:
        return Pipeline(pre=(NNM(f=2),), rule=TrimmedMean(f=2))


class TestARCAndNNMAndGeometricMedian(AggregatorContract):
    def rule(self) -> Aggregator:
        return Pipeline(pre=(ARC(f=2), NNM(f=2)), rule=GeometricMedian(max_iter=1000, tol=1e-12))


class TestBucketsOfOneAndKrum(AggregatorContract):
    def rule(self) -> Aggregator:
        return Pipeline(pre=(Bucketing(s=1),), rule=Krum(f=2))


class TestClipAndMean(AggregatorContract):
    def rule(self) -> Aggregator:
        return Pipeline(pre=(Clip(max_norm=100.0),), rule=Mean())


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_every_registered_rule_has_its_suite(name: str) -> None:
    here = [s().rule() for s in AggregatorContract.__subclasses__() if s.__module__ == __name__]
    held = {type(r) for r in here}
    assert AGGREGATORS[name] in held | {Mean}  # the mean's suite is beside the contract
