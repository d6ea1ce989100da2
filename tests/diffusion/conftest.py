"""Eager steps."""

import jax
import pytest


@pytest.fixture(scope='module', name='eager')
def eager_fixture():
    """Steps run one by one, in Python: what runs once takes ten times as long to compile. Branches are Python's too, so
    a network is called once for every evaluation and may write down what it sees."""
    with jax.disable_jit():
        yield
