"""Measures a global model: on the public test set, on every client's own, and beside the baselines.

In a real federation only the public test set exists; what is read from clients' own data here is a
diagnostic of a simulation, covered by no guarantee.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from securefed.data.batch import Encoded
from securefed.engine.liars import triggered
from securefed.layout import Layout
from securefed.tracking.tracker import UNTRAINED
from securefed.types import Vector

if TYPE_CHECKING:
    from securefed.assembly import Assembly
    from securefed.training.client import ClientRunner
    from securefed.training.frozen_cache import FrozenCache
    from securefed.training.metrics import Predictions

Scores = dict[str, float]


class Evaluator:
    """Evaluates over the runner's resident model; test records are encoded once.

    Where the clients' own test sets make up the global one, each record is predicted once and counted in
    both, so judging every client costs nothing more.

    Attributes:
        cache: hidden states of frozen layers, shared with whoever else runs the same model.
    """

    def __init__(self, assembly: Assembly, runner: ClientRunner) -> None:
        self._assembly, self._runner = assembly, runner
        self.cache: FrozenCache | None = runner.cache
        self._global: Encoded | None = None
        self._clients: dict[int, Encoded] = {}
        parts = sum(len(s.test) for s in assembly.shards)
        self._covered = parts == len(assembly.dataset.test)
        self._triggered = triggered(assembly.config, assembly.dataset)
        self._backdoor: Encoded | None = None

    def evaluate(
        self, vector: Vector, local: Mapping[int, Vector], kept: Layout, *, whole: bool = True
    ) -> tuple[Scores, dict[int, Scores]]:
        """Global scores, and each client's own where the job asks for them.

        Where simulated liars plant a backdoor, `attack_success` is the share of triggered test records that
        get the liars' label.

        Args:
            vector: the global model (d,). local: client -> what it keeps, over `kept`; a client is judged
                with its own parts, the global test set with the server's.
            whole: whether the server's model can judge at all; where its head is at the clients, the global scores are
                those of all clients' own models on their own test records.
        """
        scores, own = self._evaluate(vector, local, kept, whole)
        if self._triggered is not None:
            scores = {**scores, "attack_success": self._attack_success()}
        return scores, own

    def _attack_success(self) -> float:
        assert self._triggered is not None
        if self._backdoor is None:
            self._backdoor = self._runner.encode(self._triggered)
        return self._score(self._predict(self._backdoor))["accuracy"]

    def _evaluate(
        self, vector: Vector, local: Mapping[int, Vector], kept: Layout, whole: bool
    ) -> tuple[Scores, dict[int, Scores]]:
        model = self._assembly.model
        model.write(vector, model.layout)
        personal = bool(kept.names)
        asked = self._assembly.config.evaluate.clients
        if not asked and whole:
            return self._score(self._predict_global()), {}
        if self._covered and not personal:
            own = {k: self._predict_client(k) for k in self._judged()}
            return self._score(_joined(list(own.values()))), {k: self._score(p) for k, p in own.items()}
        together = self._predict_global() if whole else None
        own = self.predictions(vector, local, kept)
        pooled, scores = _joined(list(own.values())), {k: self._score(p) for k, p in own.items()}
        found = self._score(pooled if together is None else together)
        if personal and whole:
            found |= {f"personal_{name}": value for name, value in self._score(pooled).items()}
        return found, scores if asked else {}

    def predictions(
        self, vector: Vector, local: Mapping[int, Vector], kept: Layout, only: Sequence[int] = ()
    ) -> dict[int, Predictions]:
        """Each client's own test records, predicted by the global model with the client's parts over `kept` in it.

        Args:
            only: these clients; all by default. A client that is not in `local` has the global model's parts.
        """
        model, found = self._assembly.model, {}
        model.write(vector, model.layout)
        for k in self._judged():
            if not only or k in only:
                if kept.names:
                    model.write(local[k] if k in local else model.layout.gather(vector, kept), kept)
                found[k] = self._predict_client(k)
        model.write(vector, model.layout)
        return found

    def baselines(self) -> dict[str, Scores]:
        """Majority class, TF-IDF or pixels with logistic regression, frozen-feature probe: on pooled data.

        For a language model the model itself, before a step is taken. It is at its initial values when this is called.
        """
        from securefed.training.baselines import baselines

        assembly = self._assembly
        if assembly.model.task != "classification":
            return {UNTRAINED: self._score(self._predict_global())}
        found = baselines(
            assembly.dataset.train,
            assembly.dataset.test,
            assembly.model,
            [self._runner.encoded(s.client) for s in assembly.shards],
            [self._client(k) for k in self._judged()] if self._covered else [self._whole()],
            assembly.config,
            self.cache,
        )
        return {name: m.values() for name, m in found.items()}

    def _judged(self) -> list[int]:
        return [s.client for s in self._assembly.shards if len(s.test)]

    def _client(self, client: int) -> Encoded:
        if client not in self._clients:
            self._clients[client] = self._runner.encode(self._assembly.shards[client].test)
        return self._clients[client]

    def _whole(self) -> Encoded:
        if self._global is None:
            self._global = self._runner.encode(self._assembly.dataset.test)
        return self._global

    def _predict_client(self, client: int) -> Predictions:
        return self._predict(self._client(client))

    def _predict_global(self) -> Predictions:
        return self._predict(self._whole())

    def _predict(self, data: Encoded) -> Predictions:
        from securefed.training.metrics import predict

        train = self._assembly.config.train
        return predict(
            self._assembly.model,
            data,
            physical_tokens=train.physical_tokens,
            physical_batch=train.physical_batch,
            cache=self.cache,
        )

    def _score(self, predictions: Predictions) -> Scores:
        return predictions.score(len(self._assembly.dataset.classes)).values()


def _joined(parts: list[Predictions]) -> Predictions:
    first, *rest = parts
    return first.joined(rest)
