"""`federate`: any code, client-level privacy only, the same rounds as every federation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import securefed as sf
from securefed.cli import main
from securefed.config import Component
from securefed.errors import (
    BudgetExceeded,
    CheckpointError,
    ConfigError,
    ModelError,
    PrivacyError,
    ProtocolError,
)
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import SampledGaussian, SkellamSum
from securefed.privacy.words import DISTRIBUTED, SHARED
from securefed.protect.masking import Masking
from securefed.types import SERVER
from tests.entropy import SeededEntropy

CLIENTS = 20


def push(model: Any, shard: float, round: int) -> None:
    """Moves every weight by the shard's number."""
    model["w"] += shard


def weights(size: int = 4) -> dict[str, Any]:
    return {"w": np.zeros(size)}


def federate(folder: Path, **changes: Any) -> sf.Result:
    options: dict[str, Any] = {
        "model": weights(),
        "rounds": 3,
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "clip": 1.0,
        "data_id": "numbers",
        "folder": folder / "out",
        **changes,
    }
    train, shards = options.pop("train", push), options.pop("shards", [0.1] * CLIENTS)
    return sf.federate(train, shards, **options)


def test_without_privacy_it_is_the_mean_of_the_updates(tmp_path: Path) -> None:
    model = weights()
    result = federate(
        tmp_path,
        model=model,
        shards=[1.0, 2.0, 6.0],
        rounds=2,
        unit="none",
        noise_multiplier=None,
        evaluate=lambda m: {"first": m["w"][0]},
    )
    np.testing.assert_allclose(model["w"], 6.0, rtol=1e-6)
    assert result.metrics == {"first": pytest.approx(6.0)}
    assert (result.rounds, result.stopped, result.ledger) == (2, "rounds", None)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["metrics"]["first"] for line in lines] == [pytest.approx(3.0), pytest.approx(6.0)]


def test_public_weights_weigh_without_privacy(tmp_path: Path) -> None:
    model, options = weights(), {"unit": "none", "noise_multiplier": None, "rounds": 1}
    federate(tmp_path, model=model, shards=[1.0, 5.0], weights=[3.0, 1.0], **options)
    np.testing.assert_allclose(model["w"], 2.0, rtol=1e-6)


def test_a_torch_module_is_trained_in_place_and_its_buffers_stay(tmp_path: Path) -> None:
    """A buffer that a client's training changes would carry its data past clip and noise."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def train(net: nn.Module, shard: torch.Tensor, round: int) -> None:
        assert net is model
        assert net.training
        net(shard).sum().backward()
        with torch.no_grad():
            net[0].bias += 1  # type: ignore[index]  # a Sequential

    shards = [torch.randn(8, 3) + 5 for _ in range(4)]
    federate(tmp_path, model=model, shards=shards, train=train, unit="none", noise_multiplier=None, rounds=1)
    running = model[1].running_mean
    assert torch.equal(running, torch.zeros(2))  # type: ignore[arg-type]  # BatchNorm has one


def test_a_list_of_arrays_works_as_well(tmp_path: Path) -> None:
    model = [np.zeros(3, np.float32), np.zeros((2, 2))]

    def train(arrays: Any, shard: float, round: int) -> None:
        arrays[1] += shard

    federate(tmp_path, model=model, train=train, unit="none", noise_multiplier=None, rounds=1)
    np.testing.assert_allclose(model[1], 0.1, rtol=1e-6)
    np.testing.assert_array_equal(model[0], 0)


@pytest.mark.parametrize("wild", [1.0, 1e6])
def test_one_client_moves_the_model_by_at_most_the_clip_over_the_cohort(tmp_path: Path, wild: float) -> None:
    """Neighbours by one client, equal noise: the released models differ by at most clip / expected cohort."""
    ends = []
    for k, shards in enumerate(([0.1] * CLIENTS, [0.1] * (CLIENTS - 1) + [wild])):
        model = weights()
        federate(tmp_path / str(k), model=model, shards=shards, rounds=1, entropy=SeededEntropy(4))
        ends.append(model["w"])
    # one client's whole update is replaced: twice the sensitivity of adding or removing it
    assert 0 < np.linalg.norm(ends[0] - ends[1]) <= 2 * 1.0 / CLIENTS * (1 + 1e-5)


@pytest.mark.parametrize("factor", [1.0, 2 / 3, 3 / 2])
def test_the_noise_is_the_size_that_is_accounted(
    tmp_path: Path, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 values: the standard deviation's relative error is 0.5 %; a bound of 3 % fails by chance once in 10^9
    runs, and a mechanism broken to 2/3 or 3/2 of its noise does not pass."""
    from securefed.privacy import server_mechanism

    honest = server_mechanism.noisy_mean

    def broken(total: Any, sensitivity: float, noise: float, *rest: Any) -> Any:
        return honest(total, sensitivity, noise * factor, *rest)

    monkeypatch.setattr(server_mechanism, "noisy_mean", broken)
    model = weights(20_000)
    federate(tmp_path, model=model, train=lambda m, s, r: None, rounds=1, noise_multiplier=2.0, clip=0.5)
    right = 2.0 * 0.5 / CLIENTS
    assert (abs(float(np.std(model["w"])) / right - 1) < 0.03) == (factor == 1.0)


def test_what_is_spent_is_one_sampled_release_a_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = federate(tmp_path, clients_per_round=5, rounds=4)
    assert result.ledger is not None
    right = epsilon_of([SampledGaussian(1.0, 0.25, 4)], 1e-3)
    assert result.ledger.epsilon(1e-3) == pytest.approx(right)
    assert main(["epsilon", str(result.folder)]) == 0
    told = capsys.readouterr().out
    for words in (
        "everything of one client",
        "not against the server",
        "every one of the 20 clients",
        "delta = 0.001",
    ):
        assert words in told


def test_epsilon_calibrates_for_all_rounds(tmp_path: Path) -> None:
    result = federate(tmp_path, noise_multiplier=None, epsilon=5.0, rounds=6)
    assert result.ledger is not None
    assert 4.9 < result.ledger.epsilon(1e-3) <= 5.0


def test_a_federation_without_privacy_is_noted_in_the_ledger(tmp_path: Path) -> None:
    federate(tmp_path, unit="none", noise_multiplier=None)
    assert sf.Ledger.site().site_epsilon(1e-3, "numbers") == float("inf")


def test_a_second_federation_on_the_same_clients_meets_the_sites_cap(tmp_path: Path) -> None:
    first = federate(tmp_path / "a")
    assert first.ledger is not None
    cap = first.ledger.epsilon(1e-3) * 1.01
    with pytest.raises(BudgetExceeded, match="site"):
        federate(tmp_path / "b", site_epsilon=cap)
    assert not (tmp_path / "b" / "out").exists()


def test_a_killed_federation_resumes_with_its_account_and_ends_as_if_whole(tmp_path: Path) -> None:
    whole = weights()
    federate(tmp_path / "whole", model=whole, entropy=SeededEntropy(1))

    def crashes(model: Any, shard: float, round: int) -> None:
        if round == 2:
            raise KeyboardInterrupt
        push(model, shard, round)

    cut = weights()
    with pytest.raises(KeyboardInterrupt):
        federate(tmp_path, model=cut, train=crashes, entropy=SeededEntropy(1))
    result = federate(tmp_path, model=weights(), entropy=SeededEntropy(1), resume=True)
    assert result.rounds == 3
    assert result.ledger is not None
    assert len(result.ledger.events()) == 4, "the attempt that was cut stays charged"
    again = federate(tmp_path, model=cut, resume=True)
    assert again.rounds == 3
    np.testing.assert_array_equal(cut["w"], whole["w"])


def test_a_resumption_of_another_job_is_refused(tmp_path: Path) -> None:
    federate(tmp_path)
    with pytest.raises(CheckpointError, match="another"):
        federate(tmp_path, rounds=4, resume=True)
    with pytest.raises(CheckpointError, match="exists"):
        federate(tmp_path)
    with pytest.raises(CheckpointError, match="not the folder"):
        federate(tmp_path / "nothing", resume=True)


def test_an_update_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    model = weights()
    federate(
        tmp_path,
        model=model,
        shards=[1.0, np.nan, 3.0],
        rounds=1,
        unit="none",
        noise_multiplier=None,
    )
    np.testing.assert_allclose(model["w"], 2.0, rtol=1e-6)
    with pytest.raises(ProtocolError, match="survived"):
        federate(tmp_path / "b", shards=[np.inf] * 3, unit="none", noise_multiplier=None)


def test_robust_rules_and_server_optimizers_are_the_same_as_everywhere(tmp_path: Path) -> None:
    from securefed.config import ServerConfig

    model = weights()
    federate(
        tmp_path,
        model=model,
        shards=[1.0] * 5,
        rounds=1,
        unit="none",
        noise_multiplier=None,
        server=ServerConfig(learning_rate=0.5),
    )
    np.testing.assert_allclose(model["w"], 0.5, rtol=1e-6)
    with pytest.raises(ConfigError, match="no aggregator named"):
        federate(tmp_path / "b", aggregator="krumm")


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"unit": "example"}, PrivacyError, "train_fn may do anything"),
        ({"noise_multiplier": None}, ConfigError, "epsilon"),
        ({"epsilon": 1.0}, PrivacyError, "not both"),
        ({"noise_multiplier": 0.0}, PrivacyError, "no noise"),
        ({"delta": 0.05}, PrivacyError, "1/20"),
        ({"unit": "none"}, ConfigError, "unit"),
        ({"clip": 0.0}, ConfigError, "max_grad_norm"),
        ({"weights": [1.0] * CLIENTS}, PrivacyError, "weigh the same"),
        ({"weights": [1.0], "unit": "none", "noise_multiplier": None}, ConfigError, "20 finite"),
        ({"rounds": 0}, ConfigError, "rounds"),
        ({"clients_per_round": 21}, ConfigError, "21"),
        ({"model": {"w": np.zeros(3, int)}}, ModelError, "floats"),
        ({"model": {}}, ModelError, "nothing to train"),
        ({"model": 3.0}, ModelError, "found float"),
        ({"train": lambda m, s, r: m.update(w=np.zeros(9))}, ModelError, "shape"),
    ],
)
def test_what_cannot_hold_is_refused(tmp_path: Path, changes: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        federate(tmp_path, **changes)


# ------------------------------------------------------------------------------- noise that clients share

MASKED: dict[str, Any] = {"noise": "skellam", "protection": Component("masking", {"bits": 24})}


def without_noise(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What was released before it is applied, of every round."""
    found: list[np.ndarray] = []
    from securefed.privacy.distributed_release import DistributedRelease

    honest = DistributedRelease.release

    def watched(self: DistributedRelease, *arguments: Any) -> Any:
        found.append(honest(self, *arguments))
        return found[-1]

    monkeypatch.setattr(DistributedRelease, "release", watched)
    return found


def test_clients_share_the_noise_of_any_code_under_masking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = without_noise(monkeypatch)
    result = federate(tmp_path, model=weights(600), shards=[0.0] * CLIENTS, **MASKED)
    assert result.ledger is not None
    events = result.ledger.events(client=SERVER)
    assert {type(event) for event in events} == {SkellamSum}
    statement = result.ledger.statement(1e-3)
    assert (statement.unit, statement.adversary, statement.accountant) == ("client", DISTRIBUTED, "rdp")
    survivors, corrupt = Masking(bits=24).noise_floor(CLIENTS)
    claimed = (CLIENTS / (survivors - corrupt)) ** 0.5 / CLIENTS
    assert np.std(np.concatenate(found)) == pytest.approx(claimed, rel=0.12)  # 1,800 draws: 1.7 % each way
    stored = json.loads((tmp_path / "out" / "privacy.json").read_text())
    assert stored["adversary"] == DISTRIBUTED


def test_code_that_gives_no_number_sends_zero_and_its_noise(tmp_path: Path) -> None:
    """Who takes part is seen, so its silence would tell."""

    def wild(model: Any, shard: float, round: int) -> None:
        model["w"] += np.nan if shard > 1 else 0.0

    federate(tmp_path, train=wild, shards=[2.0] + [0.0] * (CLIENTS - 1), rounds=1, **MASKED)
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text())
    assert (line["survivors"], line["refused"]) == (CLIENTS, 0)


def test_shared_noise_resumes_with_its_account(tmp_path: Path) -> None:
    calls = 0

    def dies(model: Any, shard: float, round: int) -> None:
        nonlocal calls
        calls += 1
        if calls == CLIENTS + 3:
            raise KeyboardInterrupt
        model["w"] += shard

    with pytest.raises(KeyboardInterrupt):
        federate(tmp_path, train=dies, **MASKED)
    result = federate(tmp_path, resume=True, **MASKED)
    assert result.ledger is not None
    assert result.rounds == 3
    assert len(result.ledger.events(client=SERVER)) == 4, "the attempt that died stays charged"


def test_shares_are_encrypted_under_ckks(tmp_path: Path) -> None:
    pytest.importorskip("tenseal", reason="the extra ckks is not installed")
    protection = Component("ckks", {"min_survivors": 16, "value_range": 16.0})
    result = federate(tmp_path, rounds=1, noise="gaussian", protection=protection)
    assert result.ledger is not None
    assert result.ledger.statement(1e-3).adversary == SHARED
    assert np.all(np.isfinite(list(result.metrics.values())))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise": "skellam"}, 'use protection = "masking"'),
        ({"noise": "gaussian", "protection": "masking"}, 'use protection = "ckks"'),
        ({"noise": "laplace"}, "privacy.noise"),
        ({"noise": "skellam", "protection": "masking", "unit": "none", "noise_multiplier": None}, "set privacy.unit"),
    ],
)  # fmt: skip
def test_shared_noise_that_protects_nobody_is_refused(tmp_path: Path, changes: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        federate(tmp_path, **changes)


# ------------------------------------------------------------------------------------- what was found by trying


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"unit": "Client"}, "did you mean 'client'"),
        ({"unit": None}, "privacy.unit"),
        ({"clients_per_round": 2.5}, "a whole number"),
        ({"rounds": 1.5}, "rounds must be a whole number"),
        ({"rounds": True}, "rounds must be a whole number"),
        ({"delta": "1e-5"}, "privacy.delta must be a number"),
        ({"clip": math.inf}, "max_grad_norm must be a finite number"),
        ({"accountant": "gdp"}, "privacy.accountant"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"server": 5}, "server is a table"),
        ({"protection": 5}, "protection is a name"),
        ({"train": 5}, "train_fn"),
        ({"evaluate": 5}, "evaluate"),
        ({"shards": None}, "shards is a sequence"),
        ({"shards": [object()] * 3, "data_id": None}, 'data_id="..."'),
    ],
)
def test_what_is_of_no_known_word_or_type_is_refused_before_anything_is_trained(
    tmp_path: Path, home: Path, wrong: dict[str, Any], said: str
) -> None:
    """A unit that is mistyped was once released without noise, at an epsilon of zero."""
    model = weights()
    with pytest.raises(sf.SecureFedError, match=said):
        federate(tmp_path, model=model, **wrong)
    assert not model["w"].any()
    with sf.Ledger.site() as ledger:
        assert ledger.events(unit="client") == ()


def test_numpys_numbers_are_numbers(tmp_path: Path, home: Path) -> None:
    numbers = {"rounds": np.int64(1), "clip": np.float32(1.0), "noise_multiplier": np.float64(2.0)}
    assert federate(tmp_path, **numbers, seed=np.int32(3)).rounds == 1


def test_shards_that_are_dicts_or_numbers_have_a_fingerprint(tmp_path: Path, home: Path) -> None:
    for number, shards in enumerate([[{"x": np.ones(3), "y": k} for k in range(3)], [1.0, 2.0, 3.0]]):
        done = federate(
            tmp_path / str(number), train=lambda m, s, r: None, shards=shards, data_id=None, rounds=1
        )
        assert done.rounds == 1


def test_a_client_that_puts_its_own_tensors_into_the_model_is_refused(tmp_path: Path, home: Path) -> None:
    """The global weights would be written to tensors that nobody reads, and what it trained stay in the model."""
    model = torch.nn.Linear(2, 1)

    def assign(lent: torch.nn.Module, shard: float, round: int) -> None:
        lent.load_state_dict({k: v + shard for k, v in lent.state_dict().items()}, assign=True)

    with pytest.raises(ModelError, match="another tensor in the place of weight"):
        federate(tmp_path, train=assign, model=model)

    def grow(lent: torch.nn.Module, shard: float, round: int) -> None:
        lent.more = torch.nn.Parameter(torch.full((2,), shard))

    with pytest.raises(ModelError, match="added more"):
        federate(tmp_path / "b", train=grow, model=torch.nn.Linear(2, 1))


def test_a_buffer_that_no_state_names_goes_back_too(tmp_path: Path, home: Path) -> None:
    class Counting(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 1)
            self.register_buffer("seen", torch.zeros(3), persistent=False)

    def remember(lent: Any, shard: float, round: int) -> None:
        lent.seen += 1000 * shard

    model = Counting()
    federate(tmp_path, train=remember, model=model)
    assert not model.seen.any()


def test_the_command_states_integer_noise_by_the_accountant_that_is_valid_for_it(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = federate(tmp_path, noise="skellam", protection="masking", rounds=1)
    assert done.ledger is not None
    assert main(["epsilon", str(done.folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["epsilon"], told["accountant"]) == (done.ledger.statement(1e-3).epsilon, "rdp")
    assert main(["epsilon", str(done.folder), "--accountant", "pld"]) != 0
    assert main(["epsilon", str(done.folder), "--client", str(CLIENTS - 1)]) == 0
    for nobody in (CLIENTS, -1, -7):
        assert main(["epsilon", str(done.folder), f"--client={nobody}"]) != 0
    (done.folder / "run.json").write_text('{"run": "x", "delta": "q"}')
    assert main(["epsilon", str(done.folder)]) != 0
    assert "its delta is no number" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ a clip that moves


def lengths(model: Any, shard: float, round: int) -> None:
    model["w"][0] += shard


ADAPTIVE: dict[str, Any] = {
    "train": lengths,
    "adaptive_clip": True,
    "clip_learning_rate": 1.0,
    "rounds": 4,
    "shards": [0.2 + k / 100 for k in range(CLIENTS)],
    "noise_multiplier": 0.5,
}
SHARED_WAYS: dict[str, dict[str, Any]] = {
    "central": {},
    "skellam": {"noise": "skellam", "protection": Component("masking", {"bits": 24})},
    "gaussian": {
        "noise": "gaussian",
        "protection": Component("ckks", {"min_survivors": CLIENTS, "value_range": 32.0}),
    },
}


def clips_of(folder: Path) -> list[float]:
    return [json.loads(line)["clip"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("first", [4.0, 0.01])
@pytest.mark.parametrize("name", SHARED_WAYS)
def test_a_clip_follows_the_clients_norms(tmp_path: Path, home: Path, name: str, first: float) -> None:
    if name == "gaussian":
        pytest.importorskip("tenseal", reason="the extra ckks is not installed")
    done = federate(tmp_path, **{**ADAPTIVE, **SHARED_WAYS[name], "clip": first})
    met = clips_of(done.folder)
    assert met[0] == pytest.approx(first)
    assert met[-1] < 0.6 * first if first > 1 else met[-1] > 1.6 * first
    assert done.ledger is not None
    events = done.ledger.events()
    if name == "skellam":
        assert len(events) == 8, "the bits' noise is an event of its own"
    else:
        assert [e.noise_multiplier for e in events if isinstance(e, SampledGaussian)] == [0.5] * 4


def test_a_clip_that_moves_costs_what_a_fixed_one_costs(tmp_path: Path, home: Path) -> None:
    fixed = federate(tmp_path / "a", rounds=2)
    moving = federate(tmp_path / "b", rounds=2, adaptive_clip=True)
    assert fixed.ledger is not None
    assert moving.ledger is not None
    assert fixed.ledger.epsilon(1e-3) == moving.ledger.epsilon(1e-3)
    with pytest.raises(ConfigError, match='unit = "client"'):
        federate(tmp_path / "c", unit="none", noise_multiplier=None, adaptive_clip=True)
    with pytest.raises(ConfigError, match="clip_quantile"):
        federate(tmp_path / "c", adaptive_clip=True, clip_quantile=1.0)


def test_the_clip_outlives_a_stop_and_a_round_that_was_released_before_it(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from securefed.wrapping import federate as module

    whole = clips_of(federate(tmp_path / "a", **ADAPTIVE, entropy=SeededEntropy(3), clip=4.0).folder)
    saves = []

    def dies(*args: Any) -> None:
        saves.append(args)
        if len(saves) == 3:
            raise KeyboardInterrupt
        save(*args)

    save = module.save_state
    with monkeypatch.context() as patched:
        patched.setattr(module, "save_state", dies)
        with pytest.raises(KeyboardInterrupt):
            federate(tmp_path / "b", **ADAPTIVE, entropy=SeededEntropy(3), clip=4.0)
    done = federate(tmp_path / "b", **ADAPTIVE, entropy=SeededEntropy(3), clip=4.0, resume=True)
    assert clips_of(done.folder) == whole
    assert done.ledger is not None
    assert len(done.ledger.events()) == 4, "the third round was journaled, and is applied again at no charge"


def test_a_budget_that_the_bit_would_break_is_refused_before_either_is_charged(
    tmp_path: Path, home: Path
) -> None:
    """The update alone would fit."""
    options = {**ADAPTIVE, **SHARED_WAYS["skellam"], "noise_multiplier": 1.0, "clip_count_std": 0.6}
    probe = federate(tmp_path / "a", **{**options, "rounds": 1})
    assert probe.ledger is not None
    update, bit = probe.ledger.events()
    both, alone = epsilon_of([update, bit], 1e-3), epsilon_of([update], 1e-3)
    assert alone < 0.95 * both
    with pytest.raises(BudgetExceeded):
        federate(
            tmp_path / "b", **options, site_epsilon=(alone + both) / 2, data_id="another", accountant="rdp"
        )
    with sf.Ledger.site() as ledger:
        assert len(ledger.events(unit="client", dataset="another")) == 0
