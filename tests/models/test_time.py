"""The network's time, against ADM's schedules worked out step by step."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfg.models import time


def products(kind):
    """alpha^2 after each step, one multiplication at a time."""
    kept, alpha_squared = [], 1.0
    for t in range(1000):
        if kind == 'adm_linear':
            beta = 1e-4 + (0.02 - 1e-4) * t / 999
        else:
            level = [math.cos((s / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for s in (t, t + 1)]
            beta = min(1 - level[1] / level[0], 0.999)
        alpha_squared *= 1 - beta
        kept.append(alpha_squared)
    return np.array(kept)


@pytest.mark.parametrize('kind', ['adm_linear', 'adm_cosine'])
def test_the_levels_are_adms(kind):
    alpha_squared = products(kind)
    levels = time.adm_logsnrs(kind)
    np.testing.assert_allclose(levels, np.log(alpha_squared / (1 - alpha_squared)), rtol=1e-9)
    assert (np.diff(levels) < 0).all()


@pytest.mark.parametrize('kind', ['adm_linear', 'adm_cosine'])
def test_a_level_of_the_schedule_is_its_step_and_between_two_it_is_between(kind):
    levels = time.adm_logsnrs(kind)
    fn = time.TIME_FNS[kind]
    np.testing.assert_allclose(fn(jnp.asarray(levels, jnp.float32)), np.arange(1000), atol=2e-3)
    middle = fn(jnp.asarray((levels[1:] + levels[:-1]) / 2, jnp.float32))
    np.testing.assert_allclose(middle, np.arange(999) + 0.5, atol=2e-3)
    assert fn(jnp.array([20.0, -20.0])).tolist() == [0.0, 999.0]


@pytest.mark.parametrize('kind', time.TIMES)
@given(st.floats(-20, 20), st.floats(-20, 20))
def test_every_time_is_within_0_and_1000_and_falls_with_logsnr(kind, one, other):
    low, high = sorted((one, other))
    times = time.TIME_FNS[kind](jnp.array([low, high], jnp.float32))
    assert 0 <= times[1] <= times[0] <= 1000


def test_another_schedule_is_refused():
    with pytest.raises(ValueError, match='adm_sine'):
        time.adm_logsnrs('adm_sine')
