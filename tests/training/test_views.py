"""What a run shows of its network while it trains."""

import jax
import numpy as np
import pytest

from cfg.data.digits import digits
from cfg.runs.state import TrainState
from cfg.runtime import parallel
from cfg.settings.networks import build_network, init_params
from cfg.training import views
from tests.conftest import small_config


def grids(p_uncond, *nulls, guidance='cfg', **changes):
    """The sample grid of a fresh network for each number that its row of the null label is multiplied by."""
    config = small_config()
    config.train.sample_every = 1
    config.train.p_uncond = p_uncond
    config.sampling.guidance = guidance
    config.sampling.update(changes)
    source = digits('train')
    network = build_network(config, source)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + rng.normal(0, 0.1, x.shape).astype(x.dtype), init_params(network, source, seed=0)
    )
    (table,) = [x for path, x in jax.tree_util.tree_leaves_with_path(params) if x.shape[0] == source.num_classes + 1]
    view, row, found = views.open_view(config, source, network), table[-1].copy(), []
    for null in nulls:
        table[-1] = null * row
        state = TrainState(step=np.int32(0), params=params, ema_params=params, opt_state=(), averages={})
        found.append(view(parallel.replicate(state)).images['samples'])
    return found


@pytest.mark.parametrize(
    ('p_uncond', 'guidance', 'w', 'rows'),
    [
        (0.0, 'cfg', (0.0, 1.0, 3.0), 1),
        (0.0, 'cfg(w=(0.0, 2.0))', (1.0,), 1),
        (0.0, 'cfg', (1.0, 3.0), 1),  # the model alone
        (0.0, 'cfg(against="random")', (0.0, 1.0), 2),
        (0.0, 'autoguidance(step=1)', (0.0, 1.0), 1),  # as Eq. 6
        (0.2, 'cfg', (0.0, 1.0, 3.0), 3),
    ],
)
def test_sample_grids_show_no_untrained_null_label(p_uncond, guidance, w, rows, caplog):
    """With p_uncond = 0 no pixel depends on the null label; rows that would are left out, with a line in the log."""
    with caplog.at_level('WARNING', 'cfg'):
        shown, other = grids(p_uncond, 1.0, -5.0, guidance=guidance, w=w)
    assert round(10 * shown.shape[0] / shown.shape[1]) == rows  # of ten columns
    assert np.array_equal(shown, other) == (p_uncond == 0)
    assert ('Sample grids leave out' in caplog.text) == (p_uncond == 0 and 'random' not in guidance)


def test_a_model_without_classes_shows_its_unconditional_samples():
    """All columns of a row differ by their noise alone, whatever their labels mean."""
    (without,), (unconditional,) = grids(1.0, 1.0, w=(0.0, 1.0, 3.0)), grids(0.2, 1.0, w=(-1.0,))
    assert np.array_equal(without, unconditional)
