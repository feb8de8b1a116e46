"""What a reader compares a federated score with: majority class, TF-IDF, a probe on frozen features.

Each is trained without privacy on all clients' records in one place. That is what a real federation
cannot do; in a simulation it is the bar. Simulation diagnostics, never available to a real server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from securefed.config import Config
from securefed.data.batch import Encoded
from securefed.data.records import Examples
from securefed.training.feed import Feed
from securefed.training.frozen_cache import FrozenCache
from securefed.training.metrics import Metrics, Predictions

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel


def baselines(
    train: Examples,
    test: Examples,
    model: TaskModel,
    encoded_train: Sequence[Encoded],
    encoded_test: Sequence[Encoded],
    config: Config,
    cache: FrozenCache | None,
) -> dict[str, Metrics]:
    """Name -> scores on the test records; classification only.

    Args:
        train, test: all clients' records and the test set, as they came.
        model: at its initial values. encoded_train, encoded_test: the same records as the model reads
            them, in any division; their features are taken from `cache` where it holds them.
    """
    assert train.labels is not None
    assert test.labels is not None
    classes = model.classes
    found = {"majority_class": _majority(train.labels, test.labels, classes)}
    if train.texts is not None and test.texts is not None:
        found["tf_idf"] = _fit(
            _tf_idf(), list(train.texts), train.labels, list(test.texts), test.labels, classes
        )
        if model.depth:
            inside, y = _features(model, encoded_train, config, cache)
            outside, z = _features(model, encoded_test, config, cache)
            found["frozen_probe"] = _fit(_probe(), inside, y, outside, z, classes)
    elif train.images is not None and test.images is not None:
        flat = train.images.reshape(len(train), -1), test.images.reshape(len(test), -1)
        found["pixels"] = _fit(_pixels(), flat[0], train.labels, flat[1], test.labels, classes)
    return found


def _majority(train: NDArray[np.int64], test: NDArray[np.int64], classes: int) -> Metrics:
    shares = np.bincount(train, minlength=classes) / len(train)
    probabilities = np.tile(np.clip(shares, 1e-12, 1), (len(test), 1))
    return _score(probabilities, test, classes)


def _score(probabilities: NDArray[np.float64], labels: NDArray[np.int64], classes: int) -> Metrics:
    losses = -np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1))
    ones = np.ones(len(labels), np.int64)
    return Predictions(losses, ones, probabilities.argmax(1).astype(np.int64), labels).score(classes)


def _fit(
    pipeline: Any, x: Any, y: NDArray[np.int64], x_test: Any, y_test: NDArray[np.int64], classes: int
) -> Metrics:
    if len(np.unique(y)) < 2:
        return _majority(y, y_test, classes)
    pipeline.fit(x, y)
    wide = np.full((len(y_test), classes), 1e-12)
    wide[:, pipeline.classes_] = pipeline.predict_proba(x_test)
    return _score(wide, y_test, classes)


def _tf_idf() -> Any:
    """Word 1-2-grams and character 2-5-grams, each weighted by TF-IDF, under logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
    return make_pipeline(make_union(words, letters), LogisticRegression(C=4.0, max_iter=200))


def _probe() -> Any:
    """Logistic regression on unit-norm features, scaled so that the penalty does not drown them."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=100.0, max_iter=500)


def _pixels() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=200)


def _features(
    model: TaskModel, parts: Sequence[Encoded], config: Config, cache: FrozenCache | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pooled features (n, h) of the initial model and labels (n,), part after part."""
    heads = [name for name, part in model.part_of.items() if part == "head"]
    read = _reader(model, heads, config, cache)
    labels = [part.labels for part in parts if part.labels is not None]
    return np.concatenate([read(part) for part in parts]), np.concatenate(labels)


def _reader(
    model: TaskModel, heads: Sequence[str], config: Config, cache: FrozenCache | None
) -> Callable[[Encoded], NDArray[np.float32]]:
    train = config.train
    bounds = {"physical_tokens": train.physical_tokens, "physical_batch": train.physical_batch}

    def read(data: Encoded) -> NDArray[np.float32]:
        states = None if cache is None else cache.states(model, data, heads, **bounds)
        if states is not None and states.pooled is not None:
            return states.pooled.numpy()
        feed = Feed(data, model.device)
        rows = feed.pieces(np.arange(len(data)), train.physical_tokens, train.physical_batch)
        found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(data)
        for piece in rows:
            for i, vector in zip(
                piece, model.prefix(feed.batch(piece), model.depth).cpu().numpy(), strict=True
            ):
                found[i] = vector
        return np.stack(found)

    return read
