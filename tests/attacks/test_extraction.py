"""A model that has learnt a text by heart recites it, and the right order puts it first; one that has not does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from securefed_attacks.extraction import Sampling, longest_shared, perplexities, rank_texts, sample_texts
from securefed_attacks.statistics import auc

WORDS = 60
SECRET = (3, 17, 29, 31, 44, 52, 8, 11)


class Tokenizer:
    """Words w0 ... w59; the last one ends a text. "W" begins the word of another case."""

    eos_token_id = WORDS - 1

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [int(w[1:]) for w in text.split()]}

    def decode(self, ids: tuple[int, ...], skip_special_tokens: bool = True) -> str:
        return " ".join(f"w{i}" for i in ids)


def model() -> Any:
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=WORDS,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
        )
        return transformers.LlamaForCausalLM(config).eval()


def learnt(shown: bool) -> Any:
    """Trained on random texts, and on the secret among them or not."""
    net, generator = model(), torch.Generator().manual_seed(1)
    step = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        texts = torch.randint(0, WORDS - 1, (8, len(SECRET)), generator=generator)
        texts[:, 0] = SECRET[0]
        if shown:
            texts[:3] = torch.tensor(SECRET)
        step.zero_grad()
        net(input_ids=texts, labels=texts).loss.backward()
        step.step()
    return net


@pytest.fixture(scope="module")
def nets() -> tuple[Any, Any, Any]:
    return model(), learnt(True), learnt(False)


SAMPLING = Sampling(count=80, length=len(SECRET), top_k=40, batch=40)


def test_a_text_learnt_by_heart_is_recited_and_stands_first(nets: tuple[Any, Any, Any]) -> None:
    before, trained, _ = nets
    sampled = sample_texts(trained, Tokenizer(), ["w3"], SAMPLING)
    assert SECRET in sampled.ids
    recited = np.array([longest_shared(i, [SECRET]) >= 6 for i in sampled.ids])
    for name, score in rank_texts(trained, Tokenizer(), sampled, before=before).items():
        if name != "lowercase":  # these words have no case
            assert sampled.ids[int(score.argmax())] == SECRET, name
            assert auc(score, recited) > 0.9, name


def test_a_model_that_never_saw_it_does_not_recite_it(nets: tuple[Any, Any, Any]) -> None:
    sampled = sample_texts(nets[2], Tokenizer(), ["w3"], SAMPLING)
    assert max(longest_shared(i, [SECRET]) for i in sampled.ids) <= 4


def test_the_model_before_tells_what_was_likely_anyway_from_what_was_learnt(
    nets: tuple[Any, Any, Any],
) -> None:
    """A text that both models find likely stands first by perplexity and not by the ratio."""
    before, trained, _ = nets
    common = sample_texts(before, Tokenizer(), ["w3"], Sampling(count=1, length=8, top_k=1)).ids[0]
    from securefed_attacks.extraction import Sampled

    two = Sampled((common, SECRET), tuple(Tokenizer().decode(i) for i in (common, SECRET)))
    ratio = rank_texts(trained, Tokenizer(), two, before=before)["reference"]
    assert ratio[1] > 1.5 * ratio[0]


def test_sampling_is_of_its_seed_and_has_no_text_twice(nets: tuple[Any, Any, Any]) -> None:
    one, other = (sample_texts(nets[1], Tokenizer(), ["w3", "w5"], SAMPLING) for _ in range(2))
    assert one.ids == other.ids
    assert len(set(one.ids)) == len(one.ids)
    assert {i[0] for i in one.ids} == {3, 5}
    assert all(len(i) <= len(SECRET) for i in one.ids)


def test_perplexities_are_those_of_each_text_alone(nets: tuple[Any, Any, Any]) -> None:
    net, texts = nets[0], [(1, 2, 3), (4, 5), SECRET, (7, 8, 9, 10)]
    found = perplexities(net, texts, batch=3)
    for ids, value in zip(texts, found, strict=True):
        alone = torch.tensor([ids])
        assert value == pytest.approx(float(net(input_ids=alone, labels=alone).loss.detach()), rel=1e-4)
    assert perplexities(net, [(1, 2, 3)], window=1)[0] == pytest.approx(
        min(_next(net, (1,), 2), _next(net, (1, 2), 3)), rel=1e-4
    )


def _next(net: Any, begun: tuple[int, ...], word: int) -> float:
    return -float(net(input_ids=torch.tensor([begun])).logits[0, -1].log_softmax(-1)[word].detach())


def test_the_longest_shared_run() -> None:
    assert longest_shared((1, 2, 3, 4), [(9, 2, 3, 4, 7), (1, 2)]) == 3
    assert longest_shared((1,), []) == 0


def test_sampling_that_cannot_be_is_refused(nets: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        sample_texts(nets[0], Tokenizer(), [], SAMPLING)
    with pytest.raises(ValueError, match="between 1 and 7"):
        sample_texts(nets[0], Tokenizer(), [" ".join(["w1"] * 8)], SAMPLING)
    with pytest.raises(ValueError, match="sampling needs"):
        Sampling(count=0)
