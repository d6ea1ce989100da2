"""Successive halving as arithmetic: its rungs, who goes on, and how often the best of noisy candidates is found."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from cfg.evaluation.halving import Rung, climb, kept, plan


def test_each_rung_has_an_equal_share_of_the_budget():
    assert plan(54_000, candidates=1000, least=250, factor=3) == [
        Rung(54, 250),
        Rung(18, 750),
        Rung(6, 2250),
        Rung(2, 6750),
    ]


def test_few_candidates_have_more_samples():
    assert plan(54_000, candidates=6, least=250, factor=3) == [Rung(6, 4500), Rung(2, 13_500)]


@pytest.mark.parametrize(('budget', 'candidates', 'rungs'), [(499, 9, []), (500, 9, [Rung(2, 250)]), (500, 1, [])])
def test_the_smallest_search_has_two_candidates(budget, candidates, rungs):
    assert plan(budget, candidates=candidates, least=250, factor=3) == rungs


@given(
    budget=st.integers(0, 10**6), candidates=st.integers(0, 500), least=st.integers(1, 5000), factor=st.integers(2, 5)
)
def test_a_plan_stays_within_its_budget(budget, candidates, least, factor):
    rungs = plan(budget, candidates=candidates, least=least, factor=factor)
    assert sum(rung.candidates * rung.samples for rung in rungs) <= budget
    assert bool(rungs) == (budget >= 2 * least and candidates >= 2)
    for rung, following in itertools.pairwise(rungs):
        assert following.candidates == rung.candidates // factor
        assert following.samples >= factor * rung.samples
    if rungs:
        assert rungs[0].candidates <= candidates
        assert rungs[-1].candidates >= 2
    assert all(rung.samples % least == 0 for rung in rungs)


SCORES = st.lists(st.tuples(st.sampled_from([0.5, 1.0, 2.0, math.inf, math.nan]), st.booleans()), max_size=30)


@given(pairs=SCORES, count=st.integers(1, 12))
def test_the_lowest_go_on_and_a_third_of_them_are_of_each_kind(pairs, count):
    scores, plain = [score for score, _ in pairs], [is_plain for _, is_plain in pairs]
    found = kept(scores, count, plain)
    right = [place for place, score in enumerate(scores) if math.isfinite(score)]
    ranks = [(scores[place], place) for place in found]
    assert ranks == sorted(set(ranks))
    assert len(found) == min(count, len(right))
    share = max(1, count // 3)
    of_kind = {kind: [place for place in right if plain[place] is kind] for kind in (True, False)}
    if count > 1:
        for kind, places in of_kind.items():
            assert sum(plain[place] is kind for place in found) >= min(share, len(places))
    # Who stays behind though better than some that go on makes room for a few of the other kind.
    for place in set(right) - set(found):
        worse = [other for other in found if (scores[other], other) > (scores[place], place)]
        assert all(plain[other] is not plain[place] for other in worse)
        assert len(worse) <= share


def test_without_noise_the_best_of_a_known_function_is_found():
    """A valley over w for each of several rules; the places are shuffled."""
    rng = np.random.default_rng(0)
    true = np.array([base + (w - 0.4) ** 2 for base in (1.0, 0.8, 1.3) for w in np.linspace(0, 3, 31)])
    drawn = rng.permutation(len(true)).tolist()
    plain = [place < 31 for place in range(len(true))]
    rungs = plan(100_000, candidates=len(true), least=100, factor=3)
    climbed = climb(rungs, drawn, plain, lambda number, alive: [true[place] for place in alive])
    assert len(rungs) > 2
    assert [len(one.ranked) for one in climbed] == [rung.candidates for rung in rungs]
    for one, following in itertools.pairwise(climbed):
        assert set(one.ranked[: one.kept]) == set(following.ranked)
    last = climbed[-1].ranked
    assert last[0] == np.argmin(true)
    assert next(place for place in last if plain[place]) == np.argmin(true[:31])


def probability(rungs, gap, noise):
    """That the best of candidates survives all rungs, if it is better by `gap` than the others, which are alike.

    It goes on unless `following` of the others come before it; fresh noise makes the rungs independent.
    """
    found = 1.0
    for rung, following in zip(rungs, [*(rung.candidates for rung in rungs[1:]), 1], strict=True):
        deviation = noise / math.sqrt(rung.samples)

        def survives(z, others=rung.candidates - 1, most=following - 1, deviation=deviation):
            return stats.norm.pdf(z) * stats.binom.cdf(most, others, stats.norm.cdf(z - gap / deviation))

        found *= integrate.quad(survives, -9, 9)[0]
    return found


@pytest.mark.parametrize('gap', [0.1, 0.25, 0.5])
def test_the_best_survives_noise_as_often_as_the_closed_form_says(gap):
    rungs = plan(20_000, candidates=40, least=100, factor=3)
    assert [rung.candidates for rung in rungs] == [40, 13, 4]
    noise, times = 5.0, 2000
    rng = np.random.default_rng(1)
    survived = 0
    for _ in range(times):

        def measure(number, alive):
            means = [-gap * (place == 39) for place in alive]  # the last one is the best
            return rng.normal(means, noise / math.sqrt(rungs[number].samples)).tolist()

        survived += climb(rungs, range(40), [False] * 40, measure)[-1].ranked[0] == 39
    expected = probability(rungs, gap, noise)
    assert 0.03 < expected < 0.97
    assert abs(survived / times - expected) < 4 * math.sqrt(expected * (1 - expected) / times)
