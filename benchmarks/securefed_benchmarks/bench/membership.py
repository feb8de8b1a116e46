"""Who was trained on: three attacks on a run's final model, with records that nobody trained on beside.

The adversary has the final global model; LiRA's also the recipe and data of the same source. The members are
the records that `data.limit` kept, the others those it left out: drawn alike, so a score tells membership
and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.config import Config
from securefed.data.records import Examples
from securefed.errors import ConfigError
from securefed_benchmarks.bench.measures import Measured, Played

Floats = NDArray[np.float64]
LOW_FPR = (0.01, 0.001)
POINTS = 120
SHADOWS = 16


@dataclass(frozen=True)
class _Membership:
    """What the three share: the records, the statistics, and what a job needs for them."""

    def check(self, config: Config) -> None:
        """Raises ConfigError where a job leaves no record of its source untrained."""
        if config.data.limit <= 0:
            raise ConfigError(
                "membership needs records that nobody trained on; set data.limit below the training records"
            )
        if config.model.task != "classification":
            raise ConfigError(
                f"membership is measured on classification, found model.task={config.model.task}"
            )

    def pool(self, played: Played) -> tuple[Examples, Examples]:
        """Members and others, equally many, since chance is then one half everywhere.

        Raises:
            ConfigError: `data.limit` keeps every record.
        """
        size = min(len(played.members), len(played.others))
        if size == 0:
            raise ConfigError("data.limit keeps every record, so nobody is left out; lower it")
        rng = np.random.default_rng([played.config.seed, 0x3E3B])
        rows = [np.sort(rng.permutation(len(e))[:size]) for e in (played.members, played.others)]
        return played.members.take(rows[0]), played.others.take(rows[1])

    def judged(self, name: str, scores: Floats, members: NDArray[np.bool_]) -> Measured:
        """AUC, TPR at low FPR and the curve, by the statistics of `securefed_attacks`."""
        from securefed_attacks.statistics import auc, roc, tpr_at_fpr

        curve = roc(scores, members)
        found = {f"{name}_auc": auc(scores, members)}
        for fpr in LOW_FPR:
            if curve.nonmembers * fpr >= 1:  # else no threshold resolves it
                found[f"{name}_tpr_at_{fpr:g}"] = tpr_at_fpr(scores, members, fpr)
        return Measured(found, {f"roc {name}": _thinned(curve.fpr, curve.tpr)})


@dataclass(frozen=True)
class LossThreshold(_Membership):
    """A member has a smaller loss (Yeom et al. 2018)."""

    def measure(self, played: Played) -> Measured:
        """The attack's scores on the final model."""
        inside, outside = self.pool(played)
        scores = np.concatenate([-_losses(played, inside), -_losses(played, outside)])
        return self.judged("loss", scores, _members(len(inside)))


@dataclass(frozen=True)
class LossGain(_Membership):
    """A member's loss fell further since the first model, which takes out how hard a record is by itself."""

    def measure(self, played: Played) -> Measured:
        """The attack's scores: loss before less loss after."""
        model, (inside, outside) = played.assembly.model, self.pool(played)
        after = np.concatenate([_losses(played, inside), _losses(played, outside)])
        final = model.read(model.layout)
        model.write(played.first, model.layout)
        before = np.concatenate([_losses(played, inside), _losses(played, outside)])
        model.write(final, model.layout)
        return self.judged("gain", before - after, _members(len(inside)))


@dataclass(frozen=True)
class Lira(_Membership):
    """LiRA online with shadows of the same net, trained on halves of members and others in one place.

    A shadow is trained by plain SGD for as many passes as the job makes: the adversary knows the recipe, not
    the federation's course. Against DP or robust rules the attack is thus not the strongest there is.
    """

    def check(self, config: Config) -> None:
        """Raises ConfigError also where shadows would be whole language models."""
        from securefed.models.zoo import is_small

        super().check(config)
        if not is_small(config.model.name):
            raise ConfigError(
                f"lira trains {SHADOWS} shadows, here for small nets only, found {config.model.name}; measure loss or gain"
            )

    def measure(self, played: Played) -> Measured:
        """Likelihood ratios of the final model beside shadows with and without each record."""
        from securefed.models.small_nets import small_net
        from securefed_attacks.lira import confidence, lira
        from securefed_attacks.shadows import ShadowTraining, train_shadows

        c, (inside, outside) = played.config, self.pool(played)
        images = np.concatenate([_images(inside), _images(outside)])
        x, y = torch.from_numpy(images), torch.from_numpy(np.concatenate([_labels(inside), _labels(outside)]))
        shape, classes = images.shape[1:], len(played.assembly.dataset.classes)
        included = pairs(SHADOWS // 2, len(x), np.random.default_rng([c.seed, 0x5AD1]))
        recipe = ShadowTraining(
            epochs=max(1, round(_passes(c, len(inside)))),
            batch_size=c.train.batch_size,
            learning_rate=c.train.learning_rate,
            momentum=c.train.momentum,
            seed=c.seed,
        )
        net = small_net(c.model, shape, classes).net
        net.load_state_dict(played.assembly.model.module.net.state_dict())  # type: ignore[union-attr]  # a small net's
        shadows = train_shadows(lambda: small_net(c.model, shape, classes).net, x, y, included, recipe)
        with torch.no_grad():
            target = confidence(net(x), y)
        return self.judged(
            "lira", lira(target, confidence(shadows.logits(x), y), included), _members(len(inside))
        )


def pairs(count: int, records: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Halves of an even number of records and their complements, (2 count, records).

    Every record is in `count` shadows, as in LiRA's own split, and every shadow has equally many records.
    """
    order = generator.random((count, records)).argsort(1)
    first: NDArray[np.bool_] = order < records // 2
    return np.concatenate([first, ~first])


def _passes(config: Config, records: int) -> float:
    """How often the job goes over a record."""
    t = config.train
    if t.epochs:
        return float(config.rounds * t.epochs)
    rate = config.privacy.sample_rate if config.privacy.unit == "example" else None
    per_step = rate if rate is not None else t.batch_size * max(1, config.data.clients) / records
    return config.rounds * t.steps * min(1.0, per_step)


def _losses(played: Played, examples: Examples) -> Floats:
    from securefed.training.metrics import predict

    c, model = played.config, played.assembly.model
    encoded = model.encode(examples, c.data.max_length)
    found = predict(
        model, encoded, physical_tokens=c.train.physical_tokens, physical_batch=c.train.physical_batch
    )
    return found.losses


def _images(examples: Examples) -> NDArray[np.float32]:
    assert examples.images is not None  # small nets read nothing else
    return examples.images


def _labels(examples: Examples) -> NDArray[np.int64]:
    assert examples.labels is not None  # checked: classification
    return examples.labels


def _members(size: int) -> NDArray[np.bool_]:
    return np.repeat([True, False], size)


def _thinned(fpr: Floats, tpr: Floats) -> list[tuple[float, float]]:
    """The curve at rates that lie evenly on a logarithmic axis, the highest point of each."""
    low = max(float(fpr[fpr > 0].min()), 1e-5)
    at = np.unique(np.concatenate([np.geomspace(low, 1, POINTS)]))
    index = np.searchsorted(fpr, at * (1 + 1e-9), "right") - 1
    return [(float(x), float(tpr[i])) for x, i in zip(at, index, strict=True)]
