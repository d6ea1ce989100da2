import json
import os
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from cfg.data.digits import digits
from cfg.modes.status import run as describe
from cfg.runs import state
from cfg.runs.checkpoints import Checkpoints, check_shapes
from cfg.runs.run_files import checkpoint_meta, find_step, read_metrics
from cfg.runtime import stopping
from cfg.runtime.errors import UserError
from cfg.runtime.files import lock
from cfg.settings.networks import abstract_params, build_network
from cfg.training import build, loop
from cfg.training.logs import Logs
from cfg.training.meter import Meter
from tests.conftest import small_config

pytestmark = pytest.mark.usefixtures('kept_training')


@pytest.fixture(scope='module', name='run')
def run_fixture(tmp_path_factory):
    """A finished run of six steps."""
    workdir = tmp_path_factory.mktemp('run')
    config = small_config()
    config.train.sample_every = 3
    loop.train(config, workdir)
    return workdir


def digests(workdir):
    return [line for line in describe(workdir).splitlines() if 'sha256' in line or line.startswith('step')]


def metrics(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_a_run_leaves_what_it_should(run):
    assert [row['step'] for row in metrics(run)] == [2, 4, 6]
    assert all(np.isfinite(list(row.values())).all() for row in metrics(run))
    with Checkpoints(run, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 4, 6]
        assert checkpoints.meta(6)['config']['train']['num_steps'] == 6
    status = describe(run)
    assert 'step: 6' in status
    assert 'num_steps: 6' in status


def test_tensorboard_holds_the_same_numbers_and_the_grids(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(run / 'tensorboard'))
    events.Reload()
    losses = {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors('loss')}
    assert losses == pytest.approx({row['step']: row['loss'] for row in metrics(run)})
    assert {event.step for event in events.Tensors('samples')} == {3, 6}


def test_the_metrics_are_on_disk_after_every_line(tmp_path):
    """Also where a file appears when it is closed, as in a bucket that is mounted: no line waits in an open one."""
    with Logs(tmp_path, start_step=0) as logs:
        logs.scalars(1, {'loss': 0.5})
        open_files = {path.readlink() for path in Path('/proc/self/fd').iterdir() if path.is_symlink()}
        assert tmp_path / 'metrics.jsonl' not in open_files
        logs.scalars(2, {'loss': 0.25})
    assert read_metrics(tmp_path / 'metrics.jsonl') == [{'step': 1, 'loss': 0.5}, {'step': 2, 'loss': 0.25}]


def test_stopped_and_resumed_is_the_same_as_unbroken(run, tmp_path, small_config):
    """In one process; killing a real one is tested with the command line."""
    small_config.train.num_steps = 3
    loop.train(small_config, tmp_path)
    # As if killed after step 5 was logged: the lines after the checkpoint must not come twice.
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 4, "loss": 9.0}\n{"step": 5, "lo')
    small_config.train.num_steps = 6
    loop.train(small_config, tmp_path)
    assert digests(tmp_path) == digests(run)
    assert [row['step'] for row in metrics(tmp_path)] == [2, 3, 4, 6]
    assert metrics(tmp_path)[2]['loss'] != 9.0


def test_data_that_cannot_be_read_cost_no_finished_step(run, tmp_path, small_config, monkeypatch):
    train_batches = loop.train_batches

    def breaking(*args, **kwargs):
        for number, batch in enumerate(train_batches(*args, **kwargs)):
            if number == 5:  # three ahead of the step that needs it
                raise UserError('the disk is away')
            yield batch

    monkeypatch.setattr(loop, 'train_batches', breaking)
    with pytest.raises(UserError, match='the disk is away'):
        loop.train(small_config, tmp_path)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 4]
    monkeypatch.undo()
    loop.train(small_config, tmp_path)
    assert digests(tmp_path) == digests(run)


def test_nothing_is_trained_twice(run, small_config):
    before = digests(run)
    small_config.train.num_steps = 5
    loop.train(small_config, run)
    assert digests(run) == before


def test_other_numbers_need_another_workdir(run, small_config):
    small_config.train.beta2 = 0.99
    with pytest.raises(UserError, match=r'config\.train\.beta2=0\.999, not 0\.99.*another --workdir'):
        loop.train(small_config, run)
    small_config = small_config.copy_and_resolve_references()
    small_config.train.beta2 = 0.999
    small_config.seed = 4
    with pytest.raises(UserError, match=r'config\.seed=0, not 4'):
        loop.train(small_config, run)
    small_config.seed = 0
    small_config.model.label_in = 'decoder'
    with pytest.raises(UserError, match=r"config\.model\.label_in='everywhere', not 'decoder'"):
        loop.train(small_config, run)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, small_config):
    small_config.train.learning_rate = 1e30
    small_config.train.grad_clip = 0.0
    small_config.train.warmup_steps = 0
    with pytest.raises(UserError, match=r'of step [2-6] is (nan|inf).*learning_rate'):
        loop.train(small_config, tmp_path)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        for step in checkpoints.steps():
            params = checkpoints.restore_params(step, ema=False)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_steps_that_are_not_finite_may_be_left_out_so_many_times_in_a_row(tmp_path, small_config, caplog):
    small_config.train.learning_rate = 1e30  # the first step is fine, and what it leaves is not
    small_config.train.grad_clip = 0.0
    small_config.train.warmup_steps = 0
    small_config.train.max_skipped = 2
    with (
        caplog.at_level('WARNING', logger='cfg'),
        pytest.raises(UserError, match=r'of step 4 is (nan|inf), after 2 steps in a row that were left out'),
    ):
        loop.train(small_config, tmp_path)
    assert re.search(r'of step 3 is (nan|inf): the step is left out \(2 in a row, 2 in all\)', caplog.text)


def test_left_out_steps_are_counted_through_a_restart(tmp_path):
    config = small_config()
    config.train.max_skipped = 3
    config.train.warmup_steps = 10
    meter = Meter(config, {'total': 5, 'in_a_row': 2})
    good = {'loss': 1.0, 'grad_norm': 2.0}
    meter.add(21, good | {'loss': np.nan})
    assert meter.skips == {'total': 6, 'in_a_row': 3}
    with pytest.raises(UserError, match=r'The grad_norm of step 22 is inf, after 3 steps'):
        meter.add(22, good | {'grad_norm': np.inf})
    meter.add(22, good)
    assert meter.skips == {'total': 6, 'in_a_row': 0}
    taken = meter.take(14)
    assert (taken['loss'], taken['skipped_steps']) == (1.0, 6)
    # The optimizer has made 14 - 6 = 8 updates, the last one with 8 tenths of the rate.
    assert taken['learning_rate'] == pytest.approx(0.8 * config.train.learning_rate)
    assert taken['host_memory_bytes'] > 1e7


def test_the_log_tells_the_health_of_the_run(run):
    for row in metrics(run):
        assert {'loss', 'grad_norm', 'param_norm', 'learning_rate', 'skipped_steps', 'host_memory_bytes'} <= set(row)
    last = metrics(run)[-1]
    assert last['learning_rate'] == pytest.approx(1e-3 * 6 / 50)
    assert 0 <= last['data_wait_share'] < 1
    assert 0 < last['checkpoint_share'] < 1
    assert last['images_per_second'] == pytest.approx(16 * last['steps_per_second'])
    with Checkpoints(run, read_only=True) as checkpoints:
        params = checkpoints.restore_params(6, ema=False)
    norm = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(params)))
    assert metrics(run)[-1]['param_norm'] == pytest.approx(norm, rel=0.01)  # the mean of the last two steps


def test_a_checkpoint_that_does_not_fit_is_refused_before_training(tmp_path, small_config, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10**6, 10**6, 10**5))
    with pytest.raises(UserError, match=r'has 0 MiB free, and a checkpoint takes \d+ MiB: make room'):
        loop.train(small_config, tmp_path)


def test_all_checkpoints_damaged_is_one_sentence_and_none_is_lost(run, tmp_path, small_config):
    shutil.copytree(run, tmp_path / 'run')
    for file in (tmp_path / 'run' / 'checkpoints').rglob('*'):
        if file.is_file() and '_METADATA' not in file.name:
            file.write_bytes(b'')
    with pytest.raises(UserError, match=r'No checkpoint in .* can be read'):
        loop.train(small_config, tmp_path / 'run')
    aside = tmp_path / 'run' / 'damaged_checkpoints'
    left = [*aside.iterdir(), *(tmp_path / 'run' / 'checkpoints').glob('[0-9]*')]
    assert sorted(path.name for path in left) == ['2', '4', '6']


def test_another_architecture_is_refused_by_name(run, small_config):
    small_config.model.channel_mult = (1, 2)
    source = digits('all')
    like = abstract_params(build_network(small_config, source), source)
    meta = checkpoint_meta(run, 6)
    with pytest.raises(UserError) as error:
        check_shapes(run / 'checkpoints' / '6', meta, like)
    assert 'another architecture' in str(error.value)
    assert "['down_0_resample']" in str(error.value)


@pytest.fixture(scope='module', name='longer')
def longer_fixture(tmp_path_factory):
    """Eight steps without a break."""
    workdir = tmp_path_factory.mktemp('longer')
    config = small_config()
    config.train.num_steps = 8
    loop.train(config, workdir)
    return workdir


@pytest.mark.parametrize('item', ['params', 'opt_state', 'meta'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(run, longer, tmp_path, small_config, item, caplog):
    shutil.copytree(run, tmp_path / 'run')
    for file in (tmp_path / 'run' / 'checkpoints' / '6' / item).rglob('*'):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    small_config.train.num_steps = 8
    with caplog.at_level('WARNING', logger='cfg'):
        loop.train(small_config, tmp_path / 'run')
    assert re.search(r'checkpoints/6 (cannot be read|is damaged)', caplog.text)
    assert 'goes on from the one before it' in caplog.text
    assert (tmp_path / 'run' / 'damaged_checkpoints' / '6' / item).exists()
    assert digests(tmp_path / 'run') == digests(longer)


def test_last_k_and_every_nth_checkpoint_are_kept(tmp_path):
    params = {'a': np.zeros(2, np.float32)}
    tx = build.make_optimizer(small_config())
    with Checkpoints(tmp_path, keep_last=2, keep_every=4) as checkpoints:
        for step in range(1, 10):
            values = jax.tree.map(np.asarray, state.create(params, tx))._replace(step=np.int32(step))
            checkpoints.save(values, meta={})
        checkpoints.wait()
        assert checkpoints.steps() == [4, 8, 9]
    with pytest.raises(UserError, match=r'The checkpoint of step 5 is not among .*\[4, 8, 9\]'):
        find_step(tmp_path, 5)
    assert find_step(tmp_path, -1) == 9
    for inside in (tmp_path / 'checkpoints', tmp_path / 'checkpoints' / '9'):
        with pytest.raises(UserError, match=f'{inside} holds no checkpoints: the workdir is {tmp_path}'):
            find_step(inside, -1)


def test_no_checkpoints(tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match='run --mode=train'):
            find_step(tmp_path, -1)
        (tmp_path / 'checkpoints').mkdir(exist_ok=True)
    with pytest.raises(UserError, match='no finished checkpoint'):
        find_step(tmp_path, -1)


def test_a_restored_state_is_the_saved_one_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    params = {'a': {'b': rng.normal(size=(3, 4)).astype(np.float32)}, 'c': rng.normal(size=5).astype(np.float32)}
    tx = build.make_optimizer(small_config())
    saved = jax.tree.map(np.asarray, state.create(params, tx))
    saved = saved._replace(
        step=np.int32(7),
        ema_params=jax.tree.map(lambda x: x * 2, params),
        opt_state=jax.tree.map(lambda x: np.asarray(x + 3), saved.opt_state),
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved, meta={'config': {}})
        checkpoints.wait()
        restored = checkpoints.restore_state(7, jax.eval_shape(lambda: state.create(params, tx)))
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        assert np.array_equal(a, b)
        assert np.asarray(a).dtype == b.dtype


def test_the_learning_rate_may_change_in_the_middle(run, tmp_path, small_config, caplog):
    shutil.copytree(run, tmp_path / 'run')
    small_config.train.num_steps = 7
    small_config.train.learning_rate = 5e-4
    small_config.train.grad_clip = 0.0
    with caplog.at_level('INFO', logger='cfg'):
        loop.train(small_config, tmp_path / 'run')
    assert 'config.train.learning_rate is now 0.0005; it was 0.001.' in caplog.text
    assert 'step: 7' in describe(tmp_path / 'run')


def test_another_rounding_in_the_middle_is_told(run, tmp_path, small_config, caplog, monkeypatch):
    """The environment may change how numbers are rounded, and the checkpoint says what it was."""
    shutil.copytree(run, tmp_path / 'run')
    assert 'JAX_DEBUG_NANS' not in checkpoint_meta(run, 6)['environment']
    monkeypatch.setenv('JAX_DEBUG_NANS', '1')  # JAX has started
    small_config.train.num_steps = 7
    with caplog.at_level('INFO', logger='cfg'):
        loop.train(small_config, tmp_path / 'run')
    assert 'JAX_DEBUG_NANS is now 1; it was not set.' in caplog.text
    assert checkpoint_meta(tmp_path / 'run', 7)['environment']['JAX_DEBUG_NANS'] == '1'


def test_two_processes_cannot_train_in_one_workdir(run, small_config):
    with lock(run, 'train'), pytest.raises(UserError, match='Another process runs --mode=train'):
        loop.train(small_config, run)


def test_a_stop_signal_saves_the_step_in_progress(tmp_path, small_config, monkeypatch):
    """SIGTERM in the middle of an interval: the step is saved, the exit status says so, and the run can go on."""
    small_config.train.num_steps = 8
    small_config.train.checkpoint_every = 8
    update = loop.Progress.update

    def update_and_stop(self, done, note=''):
        update(self, done, note)
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Progress, 'update', update_and_stop)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        loop.train(small_config, tmp_path)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert stopped.value.code == 128 + signal.SIGTERM
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [4]


def test_a_second_signal_says_which_steps_are_lost(tmp_path, small_config, monkeypatch, caplog):
    small_config.train.num_steps = 8
    small_config.train.checkpoint_every = 2
    ended = []

    def update_and_stop(_, done, note=''):
        if done == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Progress, 'update', update_and_stop)
    monkeypatch.setattr(stopping.os, '_exit', ended.append)
    with caplog.at_level('INFO', logger='cfg'), pytest.raises(SystemExit):
        loop.train(small_config, tmp_path)
    assert ended == [128 + signal.SIGTERM]
    assert 'SIGINT: the step in progress is being saved; a second one ends at once' in caplog.text
    # The checkpoint of step 4 may still be under way.
    lost = re.search(r'Lost: (\d) steps since the checkpoint of step (\d)', caplog.text)
    assert sum(map(int, lost.groups())) in (5, 6)
