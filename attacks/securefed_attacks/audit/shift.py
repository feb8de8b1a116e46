"""Are members and non-members from one distribution? Asked without the model: if they can be told apart, the audit measures that.

Duan et al. 2024, "Do Membership Inference Attacks Work on Large Language Models?" (arXiv 2402.07841): many
published successes are such shifts. A blind classifier, cross-validated, is the test: it never saw the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefed_attacks.audit.candidates import Candidates
from securefed_attacks.statistics import Interval, auc_interval

FEWEST = 10
"""Records on each side below which a cross-validated classifier says nothing."""
CONFIDENCE = 0.99
SMALLEST_AUC = 0.55
"""A shift that explains less than this is named and does not void a membership verdict."""


@dataclass(frozen=True)
class Shift:
    """What a blind classifier can tell.

    Attributes:
        auc: of telling members from non-members without the model; None with too few records.
        duplicates: non-members that are, word for word, also members.
    """

    auc: Interval | None
    duplicates: int = 0

    @property
    def shifted(self) -> bool:
        """Whether the two groups differ clearly enough to explain a membership score."""
        return self.auc is not None and self.auc.low > 0.5 and self.auc.value >= SMALLEST_AUC


def measure_shift(candidates: Candidates, seed: int = 0) -> Shift:
    """A bag-of-words (or linear) classifier of membership, five folds; labels and lengths count as well."""
    members, others = candidates.members, candidates.others
    if min(len(members), len(others)) < FEWEST:
        return Shift(None, _duplicates(candidates))
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    assert candidates.member is not None
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = LogisticRegression(C=1.0, max_iter=300)
    scores = cross_val_predict(
        model, _features(candidates), candidates.member, cv=folds, method="decision_function"
    )
    return Shift(auc_interval(scores, candidates.member, CONFIDENCE), _duplicates(candidates))


def _features(candidates: Candidates) -> Any:
    from scipy.sparse import csr_matrix, hstack

    beside = [_one_hot(candidates.labels)] if candidates.labels is not None else []
    if candidates.texts is None:
        assert candidates.inputs is not None
        flat = candidates.inputs.reshape(len(candidates), -1).double().numpy()
        spread = flat.std(0)
        scaled = (flat - flat.mean(0)) / np.where(spread > 0, spread, 1.0) / np.sqrt(max(1, flat.shape[1]))
        return np.hstack([scaled, *beside])
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"(?u)\S+", max_features=20_000).fit_transform(candidates.texts)
    lengths = np.log1p([[len(t)] for t in candidates.texts])
    spread = float(lengths.std()) or 1.0
    return hstack([words, csr_matrix((lengths - lengths.mean()) / spread), *map(csr_matrix, beside)]).tocsr()


def _one_hot(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    kinds = np.unique(labels)
    found: NDArray[np.float64] = (labels[:, None] == kinds[None, :]).astype(np.float64)
    return found


def _duplicates(candidates: Candidates) -> int:
    if candidates.texts is not None:
        inside = {candidates.texts[i] for i in candidates.members}
        return sum(candidates.texts[i] in inside for i in candidates.others)
    assert candidates.inputs is not None
    rows = [row.numpy().tobytes() for row in candidates.inputs]
    seen = {rows[i] for i in candidates.members}
    return sum(rows[i] in seen for i in candidates.others)
