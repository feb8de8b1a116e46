"""Many copies in one pass, and layers that never move run once: the same numbers as the plain way, or the plain way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from securefed_attacks.audit.base import open_target
from securefed_attacks.audit.candidates import read_candidates
from securefed_attacks.audit.captured import Captured, capture
from securefed_attacks.audit.copies import Copies, _passes
from securefed_attacks.audit.frozen_prefix import FrozenPrefix
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.replay import Replay
from securefed_attacks.audit.stand_in import stand_in
from securefed_attacks.audit.states import read_state
from securefed_attacks.audit.target import Target
from tests.attacks.audit import scenes, words

RECIPE: dict[str, Any] = {"optimizer": "sgd", "steps": 4, "learning_rate": 0.1, "batch_size": 3}


@pytest.fixture(scope="module", params=words.KINDS)
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Target, Captured]:
    """An adapter of a small BERT (with a head that trains) or Llama, and ten records of unlike length."""
    folder = tmp_path_factory.mktemp(request.param)
    records = [" ".join(t.split()[: 3 + k % 5]) for k, t in enumerate(words.texts(10, 8, 1))]
    words.capture(folder, request.param, words.texts(2, 7, 0), steps=2)
    path = words.write(records, np.arange(10) < 5, folder / "records.jsonl")
    found = capture(read_state(folder / "before", "before"), read_state(folder / "after", "after"))
    target = open_target(str(folder / "base"), found, read_candidates(path, None), Recipe.of(RECIPE))
    assert isinstance(target, Target)
    return target, found


def replay(opened: tuple[Target, Captured], **changes: Any) -> Replay:
    target, found = opened
    recipe = Recipe.of({**RECIPE, **changes})
    return Replay(target, found.before.tensors, target.trainable(found.names), recipe)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_shadows_of_adapters_trained_together_are_those_trained_alone(
    opened: tuple[Target, Captured], optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = replay(opened, optimizer=optimizer, learning_rate=0.01)
    rows = [np.arange(0, 6), np.arange(3, 9), np.array([0, 2, 4, 6, 8, 9])]
    alone = [played.update(r, 5 + k) for k, r in enumerate(rows)]
    for few in (500_000, 0):  # each record with its copy's numbers, or a copy's records together
        monkeypatch.setattr("securefed_attacks.audit.copies.FEW_NUMBERS", few)
        together = played.together(rows, [5, 6, 7])
        assert together is not None
        for one, other in zip(alone, together, strict=True):
            states = [
                {**played.before, **{n: played.before[n] + u[n] for n in played.names}} for u in (one, other)
            ]
            losses = [played.target.score(state).loss for state in states]
            np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)
            if optimizer == "sgd":  # Adam makes steps of the rounding of gradients that are zero but for it
                for name in played.names:
                    torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=2e-5)
        assert max(float((together[0][n] - together[1][n]).abs().max()) for n in played.names) > 1e-3


def test_gradients_of_many_records_in_a_pass_are_those_of_each_alone(opened: tuple[Target, Captured]) -> None:
    target, found = opened
    before, names = found.before.tensors, target.trainable(found.names)
    assert Copies.of(target, before, names) is not None
    rows = np.array([7, 0, 3, 9], np.int64)
    for row, gradient in zip(rows, target.gradients(before, names, rows), strict=True):
        alone = target.gradient(before, names, [int(row)])
        for name in names:
            torch.testing.assert_close(gradient[name], alone[name], rtol=1e-3, atol=1e-6)


def test_a_model_that_mixes_its_rows_has_no_copies(opened: tuple[Target, Captured]) -> None:
    target, found = opened
    before, names = found.before.tensors, target.trainable(found.names)
    assert target.body is not None

    def mixing(_module: nn.Module, _inputs: Any, out: torch.Tensor) -> torch.Tensor:
        return out + out.mean(0, keepdim=True)

    hook = target.body.get_input_embeddings().register_forward_hook(mixing)
    try:
        assert Copies.of(target, before, names) is None
    finally:
        hook.remove()


def test_what_is_no_linear_layers_alone_has_no_copies(opened: tuple[Target, Captured]) -> None:
    target, found = opened
    embeddings = next(n for n in target.own if "embed" in n and n.endswith("weight"))
    state = {**found.before.tensors, embeddings: target.own[embeddings]}
    assert Copies.of(target, state, (embeddings,)) is None


def test_copies_of_a_plain_net_are_right_too() -> None:
    scene = scenes.memorized()
    found = capture(read_state(scene.before, "before"), read_state(scene.after, "after"))
    rows = read_candidates((scene.x, scene.y), scene.member)
    target = open_target(scene.model, found, rows, Recipe())
    assert isinstance(target, Target)
    names = target.trainable(found.names)
    few = np.array([3, 100, 41], np.int64)
    for row, gradient in zip(few, target.gradients(found.before.tensors, names, few), strict=True):
        alone = target.gradient(found.before.tensors, names, [int(row)])
        for name in names:
            torch.testing.assert_close(gradient[name], alone[name], rtol=1e-4, atol=1e-6)


def test_passes_hold_every_copy_once_and_like_lengths_side_by_side() -> None:
    lengths = np.array([9, 400, 3, 9, 2, 300], np.int64)
    passes = _passes(lengths, 1, 10)
    assert sorted(int(k) for p in passes for k in p) == list(range(6))
    assert [lengths[p].tolist() for p in passes] == [[2, 3, 9, 9], [300], [400]]
    assert len(_passes(lengths, 1, 10_000_000)) == 4, "two copies of so many numbers a pass"


# --------------------------------------------------------------------------------------------- layers that never move


def upper(target: Target, found: Captured) -> list[str]:
    return [n for n in target.trainable(found.names) if ".0." not in n]


def test_layers_below_all_that_moved_run_once_and_change_no_number(opened: tuple[Target, Captured]) -> None:
    target, found = opened
    before, moved = found.before.tensors, upper(target, found)
    state = {**before, **{n: before[n] + 0.1 for n in moved}}
    plain, gradient = target.score(state), target.gradient(state, moved, [0, 4])
    target.keep_prefix(before, moved)
    try:
        assert target._prefix is not None
        assert len(target._prefix.layers) == 1
        first = target._prefix.layers[0]
        calls: list[int] = []
        inner = next(m for m in first.modules() if isinstance(m, nn.Linear))
        hook = inner.register_forward_hook(lambda *_: calls.append(1))
        np.testing.assert_allclose(target.score(state).loss, plain.loss, rtol=1e-4, atol=1e-5)
        for name, value in target.gradient(state, moved, [0, 4]).items():
            torch.testing.assert_close(value, gradient[name], rtol=1e-3, atol=1e-6)
        hook.remove()
        assert not calls, "the first layer did not run again"
    finally:
        target.keep_prefix(before, target.trainable(found.names))
    assert target._prefix is None, "the first layer moved: nothing is kept"


def test_embeddings_that_moved_leave_no_prefix(opened: tuple[Target, Captured]) -> None:
    target, found = opened
    embeddings = next(n for n in target.own if "embed" in n and n.endswith("weight"))
    assert FrozenPrefix.of(target, found.before.tensors, [embeddings]) is None


def test_a_model_that_reads_a_lower_layer_past_the_cut_leaves_no_prefix(
    opened: tuple[Target, Captured],
) -> None:
    """Its layers run in turn, so that only asking the model with and without the prefix shows it."""
    target, found = opened
    assert target.body is not None
    layers = next(list(m) for m in target.body.modules() if isinstance(m, nn.ModuleList))
    seen: list[torch.Tensor] = []
    hooks = [
        next(layers[0].children()).register_forward_hook(lambda *_: seen.append(torch.ones(()))),
        layers[-1].register_forward_hook(lambda _m, _i, out: out if seen else out.roll(1, -1)),
    ]
    assert FrozenPrefix.of(target, found.before.tensors, upper(target, found)) is not None, (
        "seen before the cut"
    )
    hooks.append(layers[0].register_forward_pre_hook(lambda *_: seen.clear()))
    try:
        assert FrozenPrefix.of(target, found.before.tensors, upper(target, found)) is None
    finally:
        for hook in hooks:
            hook.remove()


def test_a_stand_in_ends_also_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="mine"), stand_in({layer: _fail}):
        layer(torch.ones(1, 2))
    assert "forward" not in layer.__dict__
    assert layer(torch.ones(1, 2)).shape == (1, 2)


def _fail(*_: Any) -> None:
    raise RuntimeError("mine")


@pytest.mark.parametrize("below", [False, True])
def test_an_adapter_in_the_upper_layers_is_audited_with_the_lower_run_once(
    below: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is the same with and without; also where another client of the sum moved a lower layer."""
    from securefed_attacks.audit import audit

    words.capture(tmp_path, "bert", words.texts(4, 7, 0), steps=3)
    from safetensors.torch import load_file, save_file

    name = tmp_path / "after" / "adapter_model.safetensors"
    old = load_file(tmp_path / "before" / "adapter_model.safetensors")
    save_file({n: old[n] if ".0." in n else t for n, t in load_file(name).items()}, name)
    others = [str(shutil.copytree(tmp_path / "after", tmp_path / "other"))] if below else []
    if below:
        theirs = {n: t + 0.3 * torch.randn(t.shape) if ".0." in n else t for n, t in load_file(name).items()}
        save_file(theirs, tmp_path / "other" / "adapter_model.safetensors")
    path = words.write(
        [*words.texts(4, 7, 0), *words.texts(8, 7, 5)], np.arange(12) < 4, tmp_path / "r.jsonl"
    )
    given: dict[str, Any] = {
        "base": str(tmp_path / "base"),
        "candidates": path,
        "recipe": RECIPE,
        "shadows": 0,
        "others": others,
    }
    kept: list[bool] = []
    whole = Target.keep_prefix

    def counted(self: Target, *args: Any) -> None:
        whole(self, *args)
        kept.append(self._prefix is not None)

    monkeypatch.setattr(Target, "keep_prefix", counted)
    quick = audit(tmp_path / "before", tmp_path / "after", **given)
    assert kept == [not below]
    monkeypatch.setattr(Target, "keep_prefix", lambda *_: None)
    slow = audit(tmp_path / "before", tmp_path / "after", **given)
    assert quick.verdict == slow.verdict
    assert quick.membership is not None
    assert slow.membership is not None
    for one, other in zip(quick.membership.results, slow.membership.results, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-3, atol=1e-5)
