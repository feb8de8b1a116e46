"""The table of k, threshold and quorum, recomputed from the definition in exact integers.

This is a second program: it shares no code with `securefed.protect.graph`, counts with whole numbers, and
stops with an error where the two disagree or a promise is not kept (2^-40 that anything leaks, 2^-20
that a round is stuck when 10 % drop at random). Printed beside: sizes against a server that chooses who
drops, and without the quorum, where two lists of survivors could be shown.

    python -m securefed_benchmarks.masking_tables
"""

from __future__ import annotations

import json
from fractions import Fraction
from functools import cache
from itertools import accumulate
from math import comb, prod

from securefed.protect.graph import COMPLETE_UP_TO, neighbourhood

COHORTS, GAMMAS, DROP = (16, 32, 64, 100, 200, 500, 1000), (5, 10, 20, 33), 10  # of a hundred
LEAK, STUCK = Fraction(1, 2**40), Fraction(1, 2**20)


@cache
def _tails(population: int, marked: int, drawn: int) -> tuple[int, ...]:
    """Ways to draw x or more marked ones, x = 0 .. drawn; the first entry counts all ways."""
    ways = [comb(marked, i) * comb(population - marked, drawn - i) for i in range(drawn + 1)]
    return tuple(accumulate(reversed(ways)))[::-1]


def at_least(population: int, marked: int, drawn: int, x: int) -> Fraction:
    """P[x or more marked ones among the drawn], rounded up to a multiple of 2^-200."""
    if x > drawn:
        return Fraction(0)
    tails = _tails(population, marked, drawn)
    return Fraction(-(-(tails[max(x, 0)] << 200) // tails[0]), 1 << 200)


def apart(n: int, k: int, removed: int) -> Fraction:
    """Bound on the chance that two runs of k/2 places of the ring hold no honest survivor."""
    run = prod((Fraction(max(0, removed - i), n - 1 - i) for i in range(k // 2)), start=Fraction(1))
    return (n * run) ** 2


def stuck(n: int, k: int, threshold: int, gone: int) -> Fraction:
    """Bound on the chance that a secret of a survivor, or of a client that is gone, keeps too few holders."""
    alive = (n - gone) * at_least(n - 1, gone, k, k + 2 - threshold)
    return alive + (gone * at_least(n - 1, gone - 1, k, k + 1 - threshold) if gone else 0)


def smallest(n: int, percent: int, *, quorum: bool = True, chosen: bool = False) -> tuple[int, int] | None:
    """(k, threshold) by search from below; None where only the complete graph is left."""
    corrupt, gone = n * percent // 100, n * DROP // 100
    for k in range(2, n - 1, 2):
        if apart(n, k, corrupt + gone) > LEAK:
            continue
        for threshold in range(2, k + 2):
            needed = threshold if quorum else 2 * threshold - (k + 1)  # two lists: shares of both kinds
            if n * at_least(n - 1, corrupt, k, needed) > LEAK or needed < 1:
                continue
            beside = threshold - 1 - k // 2  # so many colluders in a run of k/2 places let an arc be cut off
            if chosen and (beside < 0 or 2 * n * at_least(n - 1, corrupt, k // 2, beside) > LEAK):
                continue
            if stuck(n, k, threshold, gone) <= STUCK:
                return k, threshold
            break
    return None


def check(n: int, percent: int) -> None:
    """Raises SystemExit where the library's row is not this program's."""
    for chosen in (False, True):
        row = neighbourhood(n, percent / 100, DROP / 100, chosen_drops=chosen)
        found = smallest(n, percent, chosen=chosen) if n > COMPLETE_UP_TO else None
        if (row.k, row.threshold) != (found or (n - 1, row.threshold)):
            raise SystemExit(f"n={n}, gamma={percent} %: the library says {row}, counting says {found}")
        if 2 * row.quorum <= n + n * percent // 100:
            raise SystemExit(f"n={n}, gamma={percent} %: a quorum of {row.quorum} may be reached twice")


def main() -> None:
    """Prints one JSON line a cohort, after every row has been checked."""
    for n in COHORTS:
        rows = {}
        for percent in GAMMAS:
            check(n, percent)
            row = neighbourhood(n, percent / 100, DROP / 100)
            rows[f"gamma {percent} %"] = {
                "k, threshold, quorum": (row.k, row.threshold, row.quorum),
                "drops chosen by the server": smallest(n, percent, chosen=True)
                if n > COMPLETE_UP_TO
                else None,
                "without the quorum": smallest(n, percent, quorum=False) if n > COMPLETE_UP_TO else None,
            }
        print(json.dumps({"n": n, "complete": n <= COMPLETE_UP_TO, **rows}))


if __name__ == "__main__":
    main()
