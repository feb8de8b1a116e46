"""The bound over runs that divide the same records differently, against brute force over records."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.privacy import site
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import NonPrivate, SampledGaussian, merge
from securefed.privacy.ledger import Ledger, ShardKey
from securefed.privacy.site import per_shard, worst_cases

A, B = SampledGaussian(1.0, 0.1, 10), SampledGaussian(2.0, 0.1, 10)


def test_a_shard_with_less_of_the_same_is_left_out() -> None:
    assert worst_cases([[(A,), (SampledGaussian(1.0, 0.1, 4),), ()]]) == [(A,)]


def test_shards_that_differ_in_kind_are_all_cases() -> None:
    assert set(worst_cases([[(A,), (B,)], [(A,)]])) == {merge([A, A]), merge([A, B])}


def test_no_runs_is_one_empty_case() -> None:
    assert worst_cases([]) == [()]
    assert worst_cases([[]]) == [()]


def test_equal_partitions_are_composed_shard_by_shard() -> None:
    assert per_shard([{"x": [A], "y": [B]}, {"x": [A]}]) == {"x": merge([A, A]), "y": (B,)}


def test_many_combinations_are_bounded_from_above() -> None:
    partitions = [[(SampledGaussian(1 + k + r / 10, 0.1, 3),) for k in range(3)] for r in range(6)]  # 3^6
    cases = worst_cases(partitions)
    assert len(cases) <= site.MOST_CASES
    for choice in ([p[0] for p in partitions], [p[2] for p in partitions]):
        needed = Counter({e: 1 for (e,) in choice})
        assert any(all(e in case for e in needed) for case in cases)


def test_a_release_without_noise_stays_in_every_bound() -> None:
    assert worst_cases([[(NonPrivate(), A), (B,)]])[0][0] == NonPrivate()


RECORDS = 4
runs_of_records = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=RECORDS, max_size=RECORDS),  # record -> client
        st.booleans(),  # disjoint
        st.lists(st.tuples(st.integers(0, 2), st.sampled_from([A, B])), max_size=4),  # spending
    ),
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(runs_of_records)
def test_site_epsilon_is_never_below_any_records_true_spending(tmp_path_factory, runs) -> None:  # type: ignore[no-untyped-def]
    path: Path = tmp_path_factory.mktemp("site") / "ledger.sqlite"
    met: dict[int, list[SampledGaussian]] = {record: [] for record in range(RECORDS)}
    with Ledger(path) as ledger:
        for number, (holder, disjoint, spending) in enumerate(runs):
            held = {c: [r for r in range(RECORDS) if holder[r] == c] for c in range(3)}
            shards = {c: ShardKey(f"{records}", len(records)) for c, records in held.items()}
            ledger.register(f"run{number}", shards, "toy", "example", disjoint)
            for client, event in spending:
                ledger.reserve(run=f"run{number}", client=client, round=0, event=event)
                for record in range(RECORDS):
                    if not disjoint or holder[record] == client:
                        met[record].append(event)
        true = max(epsilon_of(events, 1e-5) for events in met.values())
        bound = ledger.site_epsilon(1e-5, "toy")
        assert bound >= true
        for number in range(len(runs)):
            assert bound >= ledger.epsilon(1e-5, run=f"run{number}")
        if len({(tuple(h), d) for h, d, _ in runs}) <= 1 and all(len(set(h)) == 3 for h, _, _ in runs):
            assert bound == true  # one partition, every shard inhabited: exact
