"""The job: what is read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.config import Component, Config, check_against_shards, load_config, parse_value, to_toml
from securefed.errors import ConfigError

BASE: dict[str, Any] = {"train": {"steps": 1}}
PRIVATE = {"privacy.unit": "example", "privacy.epsilon": 3.0}


def refusal(overrides: Any, source: Any = BASE) -> str:
    """The message that refuses this job; always one line."""
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("round", "rounds"),
        ("privacy.epsilom", "privacy.epsilon"),
        ("train.lerning_rate", "train.learning_rate"),
        ("model.rnk", "model.rank"),
        ("dat.name", "data"),
        ("max_grad_norm", "privacy.max_grad_norm"),  # the right name in the wrong table
        ("sample_rate", "privacy.sample_rate"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    message = refusal({key: 1})
    assert key.split(".")[-1] in message or key.split(".")[0] in message
    assert f"did you mean {nearest}" in message


def test_a_key_near_to_nothing_lists_what_is_known() -> None:
    assert "known here" in refusal({"train.zzzzzz": 1})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),
        ({"rounds": 0}, "rounds"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"clients_per_round": -1}, "clients_per_round"),
        ({"clients_per_round": 13, "data.clients": 12}, "clients_per_round"),
        ({"data.clients": -1}, "data.clients"),
        ({"data.alpha": 0.0}, "data.alpha"),
        ({"data.min_examples": 0}, "data.min_examples"),
        ({"data.test_fraction": 0.0}, "data.test_fraction"),
        ({"data.test_fraction": 1.0}, "data.test_fraction"),
        ({"data.max_length": 1}, "data.max_length"),
        ({"data.limit": -1}, "data.limit"),
        ({"model.rank": 0}, "model.rank"),
        ({"model.alpha": 0.0}, "model.alpha"),
        ({"model.dropout": 1.0}, "model.dropout"),
        ({"model.dropout": -0.1}, "model.dropout"),
        ({"model.hidden": 0}, "model.hidden"),
        ({"model.layers": 0}, "model.layers"),
        ({"engine.workers": -1}, "engine.workers"),
        ({"engine.threads": -1}, "engine.threads"),
        ({"engine.checkpoint_every": -1}, "engine.checkpoint_every"),
        ({"evaluate.every": -1}, "evaluate.every"),
        ({"stop.patience": -1}, "stop.patience"),
        ({"train.steps": 0}, "train.steps"),
        ({"train.epochs": 1}, "train.epochs"),  # beside steps
        ({"train.learning_rate": 0.0}, "train.learning_rate"),
        ({"train.head_learning_rate": 0.0}, "train.head_learning_rate"),
        ({"train.momentum": 1.0}, "train.momentum"),
        ({"train.momentum": -0.1}, "train.momentum"),
        ({"train.weight_decay": -1.0}, "train.weight_decay"),
        ({"train.batch_size": 0}, "train.batch_size"),
        ({"train.accumulate": 0}, "train.accumulate"),
        ({"train.physical_tokens": 63}, "train.physical_tokens"),
        ({"train.physical_batch": 0}, "train.physical_batch"),
        ({"train.warmup_steps": -1}, "train.warmup_steps"),
        ({"train.label_smoothing": 1.0}, "train.label_smoothing"),
        ({"train.proximal_mu": -0.1}, "train.proximal_mu"),
        ({"train.cache_mib": -1}, "train.cache_mib"),
        ({"train.client_learning_rate": {"first": 0.1}}, "train.client_learning_rate"),
        ({"train.client_learning_rate": {"0": 0.0}}, "train.client_learning_rate.0"),
        ({"server.learning_rate": 0.0}, "server learning rates"),
        ({"server.head_learning_rate": 0.0}, "server learning rates"),
        ({"server.momentum": 1.0}, "server momenta"),
        ({"server.head_momentum": -0.1}, "server momenta"),
        ({"server.beta2": 1.0}, "server.beta2"),
        ({"server.tau": 0.0}, "server.tau"),
        ({"privacy.epsilon": 3.0}, "privacy.unit"),  # a guarantee nobody asked to keep
        ({"privacy.noise_multiplier": 1.0}, "privacy.unit"),
        ({**PRIVATE, "privacy.epsilon": 0.0}, "privacy.epsilon"),
        ({**PRIVATE, "privacy.epsilon": -1.0}, "privacy.epsilon"),
        ({**PRIVATE, "privacy.delta": 0.0}, "privacy.delta"),
        ({**PRIVATE, "privacy.delta": 1.0}, "privacy.delta"),
        ({**PRIVATE, "privacy.max_grad_norm": 0.0}, "privacy.max_grad_norm"),
        ({**PRIVATE, "privacy.sample_rate": 0.0}, "privacy.sample_rate"),
        ({**PRIVATE, "privacy.sample_rate": 1.1}, "privacy.sample_rate"),
        ({**PRIVATE, "privacy.site_epsilon": -1.0}, "privacy.site_epsilon"),
        ({**PRIVATE, "privacy.noise_multiplier": -1.0}, "privacy.noise_multiplier"),
        ({**PRIVATE, "privacy.noise_multiplier": 0.0}, "no finite epsilon"),
        ({"privacy.unit": "example"}, "privacy.epsilon"),
        ({**PRIVATE, "stop.patience": 1}, "stop.patience"),
        ({**PRIVATE, "train.weight_decay": 0.1}, "adamw"),
        ({**PRIVATE, "train.steps": 0, "train.epochs": 1}, "train.steps"),
        ({**PRIVATE, "train.accumulate": 2}, "train.accumulate"),
        ({**PRIVATE, "train.proximal_mu": 0.1}, "train.steps"),
        ({**PRIVATE, "privacy.unit": "client", "weights": "size"}, "weights"),
        ({**PRIVATE, "model.gradient_checkpointing": True, "privacy.grad_sample_mode": "ghost"}, "ghost"),
        (
            {
                **PRIVATE,
                "model.adapter": "lora",
                "model.ranks": [2, 4],
                "algorithm": "flexlora",
                "privacy.grad_sample_mode": "ghost",
            },
            "ghost",
        ),
        (
            {
                **PRIVATE,
                "algorithm": "fedsgd",
                "train.steps": 1,
                "protection": "masking",
                "privacy.noise": "skellam",
                "privacy.grad_sample_mode": "ghost",
            },
            "ghost",
        ),
        ({"model.name": "mlp"}, "model.adapter"),
        ({"model.name": "mlp", "model.adapter": "full", "model.layers": 1}, "model.layers"),
        ({"model.name": "cnn", "model.adapter": "full", "model.task": "causal-lm"}, "model.task"),
        ({"model.task": "causal-lm", "model.adapter": "head"}, "head"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value,
)
def test_a_value_out_of_range_is_refused_by_name(overrides: dict[str, Any], words: str) -> None:
    assert words in refusal(overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        PRIVATE,
        {**PRIVATE, "privacy.unit": "client"},
        {**PRIVATE, "train.weight_decay": 0.1, "train.optimizer": "adamw"},
        {**PRIVATE, "train.proximal_mu": 0.1, "train.steps": 2},
        {**PRIVATE, "privacy.sample_rate": 1.0},
        {"model.name": "mlp", "model.adapter": "full"},
        {"train.steps": 0, "train.epochs": 1},
        {"train.physical_tokens": 64},
        {"model.layers": [0, 5]},
        {"model.layers": "all"},
        {"model.targets": ["query", "value"]},
        {"clients_per_round": 12, "data.clients": 12},
    ],
    ids=str,
)
def test_a_job_at_the_edge_of_its_ranges_is_accepted(overrides: dict[str, Any]) -> None:
    assert load_config(BASE, overrides).rounds == 10


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"rounds": "ten"}, "rounds must be a whole number"),
        ({"rounds": 1.5}, "rounds must be a whole number"),
        ({"rounds": True}, "rounds must be a whole number"),
        ({"tracking.tensorboard": 1}, "tracking.tensorboard must be true or false"),
        ({"privacy.delta": float("nan")}, "privacy.delta must be a finite number"),
        ({"data.alpha": float("inf")}, "data.alpha must be a finite number"),
        ({"model.adapter": "roalra"}, "did you mean 'rolora'"),
        ({"data": 3}, "data is a table"),
        ({"train.client_learning_rate": 3}, "is a table"),
        ({"model.targets": "query"}, "model.targets"),
        ({"protection": 3}, "protection is a name or a table"),
        ({"name.first": 1}, "name"),
        ({"data.name.first": 1}, "data.name"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_with_what_the_field_takes(
    overrides: dict[str, Any], words: str
) -> None:
    if overrides == {"name.first": 1} or overrides == {"data.name.first": 1}:
        assert words in refusal(overrides, {"name": "x", "data": {"name": "y"}, **BASE})
    else:
        assert words in refusal(overrides)


@pytest.mark.parametrize("text", ["rounds", "=3", "  =3"])
def test_an_override_without_key_and_value_says_how_to_write_one(text: str) -> None:
    assert "key=value" in refusal([text])


def test_overrides_given_as_text_are_read_as_toml_or_as_plain_words() -> None:
    config = load_config(
        BASE, ["privacy.unit=example", "privacy.epsilon=3", "model.layers=[0, 1]", "name=trial", "rounds = 4"]
    )
    assert (config.privacy.epsilon, config.model.layers, config.name, config.rounds) == (
        3.0,
        (0, 1),
        "trial",
        4,
    )
    assert isinstance(config.privacy.epsilon, float)


def test_a_later_override_wins_and_the_source_stays_as_it_was() -> None:
    source = {"rounds": 2, "train": {"steps": 1}}
    assert load_config(source, ["rounds=3", "rounds=4", "train.steps=2"]).rounds == 4
    assert source == {"rounds": 2, "train": {"steps": 1}}


@pytest.mark.parametrize(
    "start", [BASE, {**BASE, "protection": "plain"}, {**BASE, "protection": {"name": "plain"}}]
)
def test_an_option_of_a_component_can_be_overridden_however_it_was_named(start: dict[str, Any]) -> None:
    config = load_config(start, ["protection.keep_updates=false"])
    assert config.protection == Component("plain", {"keep_updates": False})


def test_an_option_that_a_component_lacks_is_refused_with_the_nearest() -> None:
    assert "did you mean keep_updates" in refusal(["protection.keep_update=false"])


def test_a_config_can_be_changed_again() -> None:
    first = load_config(BASE, PRIVATE)
    second = load_config(first, {"privacy.epsilon": 5.0})
    assert (first.privacy.epsilon, second.privacy.epsilon) == (3.0, 5.0)
    assert load_config(second, {"privacy.epsilon": 3.0}) == first


def test_files_that_cannot_be_read_give_one_line_each(tmp_path: Path) -> None:
    broken, binary = tmp_path / "broken.toml", tmp_path / "binary.toml"
    broken.write_text("rounds = \n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, words in [
        (tmp_path / "none.toml", "no config file"),
        (tmp_path, "is a folder"),
        (broken, "not valid TOML"),
        (binary, "not UTF-8"),
    ]:
        assert words in refusal((), str(path))


def test_a_file_and_its_mapping_are_the_same_job(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text('rounds = 3\nprotection = "plain"\n[train]\nsteps = 1\n')
    assert load_config(path) == load_config({"rounds": 3, "protection": "plain", "train": {"steps": 1}})


def test_the_jobs_that_ship_load() -> None:
    shipped = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
    assert shipped
    for path in shipped:
        assert load_config(path).rounds >= 1


@given(
    st.recursive(
        st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False), st.lists, max_leaves=5
    )
)
def test_an_override_that_was_printed_as_toml_is_read_back(value: Any) -> None:
    from securefed.config.toml import toml_value

    assert parse_value(toml_value(value)) == value


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
rates = st.floats(1e-9, 1e6, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    name=words.filter(lambda n: "/" not in n and n not in (".", "..")),
    data=words,
    seed=st.integers(0, 2**63 - 1),
    rate=rates,
    epsilon=st.none() | rates,
    layers=st.one_of(st.just("all"), st.integers(1, 40), st.lists(st.integers(0, 40), max_size=4)),
    clients=st.dictionaries(st.integers(0, 99).map(str), rates, max_size=3),
    targets=st.one_of(st.just("auto"), st.lists(words, max_size=3)),
)
def test_a_resolved_job_written_as_toml_reads_back_equal(
    name: str,
    data: str,
    seed: int,
    rate: float,
    epsilon: float | None,
    layers: Any,
    clients: dict[str, float],
    targets: Any,
) -> None:
    privacy = {} if epsilon is None else {"unit": "example", "epsilon": epsilon}
    config = load_config(
        {
            "name": name,
            "seed": seed,
            "protection": {"name": "plain", "keep_updates": False},
            "data": {"name": data},
            "model": {"layers": layers, "targets": targets},
            "train": {"steps": 1, "learning_rate": rate, "client_learning_rate": clients},
            "privacy": privacy,
        }
    )
    import tomllib

    assert load_config(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("overrides", "sizes", "words"),
    [
        ({}, [], "no client"),
        ({}, [5, 0], "client 1 has no records"),
        ({"clients_per_round": 3}, [5, 5], "only 2 clients"),
        ({"train.client_learning_rate": {"2": 0.1}}, [5, 5], "names client 2"),
        (
            {**PRIVATE, "privacy.delta": 0.01},
            [10, 1000],
            "the largest has 1000",
        ),  # exactly 1/n is refused too
        ({**PRIVATE, "privacy.unit": "client", "privacy.delta": 0.6}, [5, 5], "1/2"),
    ],
    ids=str,
)
def test_shards_that_contradict_the_job_are_refused(
    overrides: dict[str, Any], sizes: list[int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_against_shards(load_config(BASE, overrides), sizes)
    assert "\n" not in str(caught.value)


def test_shards_that_fit_the_job_are_accepted() -> None:
    check_against_shards(load_config(BASE, PRIVATE), [10, 99_999])


def test_the_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().rounds = 3  # type: ignore[misc]  # the error is the test


def test_overrides_are_read_and_not_written_to() -> None:
    """A table among them, and a field of it after it: the caller's table stays as it is."""
    table = {"name": "fedbuff", "concurrency": 5}
    given = {"algorithm": table, "algorithm.concurrency": 3, "clients_per_round": 2, "clock.seconds": 1.0}
    assert (
        load_config({"train": {"steps": 1}, "model": {"adapter": "lora"}}, given).algorithm.options[
            "concurrency"
        ]
        == 3
    )
    assert table == {"name": "fedbuff", "concurrency": 5}
