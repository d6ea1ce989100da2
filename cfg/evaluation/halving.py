"""Successive halving: how many candidates each rung has with how many samples, and which of them go on.

Pure functions, which take scores and know nothing of samples.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

SHARE = 3  # one in so many of a rung is plain, and one is not, so that what the best is set beside was searched for too


class Rung(NamedTuple):
    """A rung measures so many candidates with so many samples each."""

    candidates: int
    samples: int


def plan(budget: int, *, candidates: int, least: int, factor: int) -> list[Rung]:
    """Returns as many rungs as leave two candidates in the last one; none where the budget pays for no rung.

    Each has an equal share of the budget. One in `factor` candidates goes on, and so has `factor` times the samples.

    Args:
      budget: samples in all.
      candidates: how many there are; the first rung has as many of them as its share pays for.
      least: samples of a candidate, which has a multiple of it.
    """
    best = []
    while True:
        share, rungs = budget // (len(best) + 1), []
        alive = min(candidates, share // least)
        while len(rungs) <= len(best) and alive >= 2:
            rungs.append(Rung(alive, share // (alive * least) * least))
            alive //= factor
        if len(rungs) <= len(best):
            return best
        best = rungs


def kept(scores: Sequence[float], count: int, plain: Sequence[bool]) -> list[int]:
    """Returns the places of the `count` lowest scores, the lowest first; of equal ones the first counts.

    A third of them, or one, are plain, and as many are not, where so many are there. What is not finite is not kept.

    Args:
      plain: whether a candidate is plain, for each.
    """
    order = sorted((place for place, score in enumerate(scores) if math.isfinite(score)), key=lambda i: (scores[i], i))
    share = max(1, count // SHARE)
    first = [place for kind in (True, False) for place in [it for it in order if plain[it] is kind][:share]]
    first = sorted(first, key=order.index)[:count]
    others = [place for place in order if place not in first][: count - len(first)]
    return sorted(first + others, key=order.index)


class Climbed(NamedTuple):
    """This is a rung that was climbed: its candidates, those that went on before the others, each the lowest first."""

    ranked: list[int]
    kept: int


def climb(
    rungs: Sequence[Rung], alive: Sequence[int], plain: Sequence[bool], measure: Callable[[int, list[int]], list[float]]
) -> list[Climbed]:
    """Climbs all rungs; the first of the last one's candidates is the best, plain or not.

    Args:
      alive: the candidates of the first rung.
      plain: whether a candidate is plain, for each that there is.
      measure: (number of the rung, from 0; its candidates) -> their scores, inf for one that has none.
    """
    found, alive = [], list(alive)
    for number in range(len(rungs)):
        scores = measure(number, alive)
        of_alive = [plain[candidate] for candidate in alive]
        order = kept(scores, len(alive), of_alive)
        last = number + 1 == len(rungs)
        best = order[:1] if last else kept(scores, rungs[number + 1].candidates, of_alive)
        ranked = [alive[place] for place in dict.fromkeys([*best, *order])]
        found.append(Climbed(ranked, len(best)))
        alive = ranked[: len(best)]
    return found
