"""How the tests of this folder compile: as little as they can."""

import jax
import pytest


@pytest.fixture(scope='module', autouse=True)
def programs_of_one_file():
    """Keeps what a file has compiled, in the place of the fixture that drops it. These are small programs, and the next
    file needs many of them. The first file of another folder drops them."""


@pytest.fixture(scope='module', name='eager')
def eager_fixture():
    """Steps run one by one, in Python: what runs once takes ten times as long to compile. Branches are Python's too, so
    a network is called once for every evaluation and may write down what it sees."""
    with jax.disable_jit():
        yield
