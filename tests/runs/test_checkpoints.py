"""What a checkpoint that cannot be used is called: damaged, of other types, or on a disk that is away."""

import contextlib
import errno
import gc
import os
import resource
import shutil
import time
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfg.runs import checkpoints as module
from cfg.runs import run_files, state
from cfg.runs.checkpoints import Checkpoints, digests
from cfg.runs.run_files import DamagedError
from cfg.runtime.errors import UserError

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def tree(dtype):
    return {'a': np.arange(3, dtype=np.float32), 'b': {'kernel': np.linspace(0, 1, 6).astype(dtype)}}


def state_of(params, step):
    moments = TX.init(params)
    moments = (moments[0], (moments[1][0]._replace(mu=params, nu=params), *moments[1][1:]))
    return state.TrainState(np.int32(step), params, params, moments, {})


@pytest.fixture(name='write')
def write_fixture(tmp_path):
    def write(*dtypes):
        with Checkpoints(tmp_path, keep_last=len(dtypes)) as checkpoints:
            for step, dtype in enumerate(dtypes, 1):
                checkpoints.save(state_of(tree(dtype), step), meta={'config': {}})
            checkpoints.wait()
        return tmp_path

    return write


def restore(workdir, dtype=np.float32):
    with Checkpoints(workdir, keep_last=2) as checkpoints:
        found, _ = checkpoints.restore_newest(state_of(tree(dtype), 0))
    return found


@pytest.mark.parametrize(
    ('theirs', 'ours'), [(np.float64, np.float32), (np.float32, np.float64), (jnp.bfloat16, np.float32)]
)
def test_a_checkpoint_of_other_types_is_whole(write, theirs, ours):
    workdir = write(ours, theirs)
    types = rf"\['b'\]\['kernel'\] is {np.dtype(theirs)} there and {np.dtype(ours)} here, and 0 more differ"
    with pytest.raises(UserError, match=rf'checkpoints/2 is whole but .*{types}.*JAX_ENABLE_X64') as error:
        restore(workdir, ours)
    assert not isinstance(error.value, DamagedError)
    assert not (workdir / 'damaged_checkpoints').exists()
    assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['1', '2']


@pytest.mark.parametrize('ema', [True, False])
def test_parameters_of_other_types_are_not_sampled_from(write, ema):
    with (
        Checkpoints(write(np.float64), read_only=True) as checkpoints,
        pytest.raises(UserError, match='is float64 there and float32 here'),
    ):
        checkpoints.restore_params(1, ema=ema)


def test_a_damaged_checkpoint_of_other_types_is_damaged(write, monkeypatch):
    """Its digests are those of what was read as it was saved, and of nothing else."""
    workdir = write(np.float32, np.float64)
    monkeypatch.setattr(module, 'digests', lambda trees: {**digests(trees)} | {'opt_state': workdir.name})
    with pytest.raises(UserError, match=r'the oldest: .*1 is damaged: its opt_state are not those'):
        restore(workdir)
    assert [path.name for path in (workdir / 'damaged_checkpoints').iterdir()] == ['2']


def test_a_checkpoint_of_another_optimizer_is_whole(write):
    workdir = write(np.float32, np.float32)
    other = optax.chain(optax.adam(1e-3), optax.trace(0.9)).init(tree(np.float32))
    like = state_of(tree(np.float32), 0)._replace(opt_state=other)
    with (
        Checkpoints(workdir, keep_last=2) as checkpoints,
        pytest.raises(UserError, match=r'2/opt_state has other parts than the optimizer here \(0\.0\.count and'),
    ):
        checkpoints.restore_newest(like)
    assert not (workdir / 'damaged_checkpoints').exists()


PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.EMFILE, errno.ENOSPC, errno.ELOOP)


@pytest.mark.parametrize('number', PASSING)
@pytest.mark.parametrize('what', ['meta', 'arrays'])
def test_an_error_of_the_file_system_is_no_damage(write, monkeypatch, number, what):
    workdir = write(np.float32, np.float32)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number), 'a file')

    if what == 'meta':
        monkeypatch.setattr(run_files.Path, 'read_bytes', fail)
    else:
        monkeypatch.setattr(module.ocp.CheckpointManager, 'restore', fail)
    with pytest.raises(UserError, match=rf'2 cannot be read now \({os.strerror(number)}\)') as error:
        restore(workdir)
    assert not isinstance(error.value, DamagedError)
    assert not (workdir / 'damaged_checkpoints').exists()


@pytest.mark.parametrize('name', ['manifest.ocdbt', 'd'])
def test_an_error_of_the_file_system_that_tensorstore_tells(write, name):
    """A link to itself is what it cannot open, even as root."""
    workdir = write(np.float32)
    path = workdir / 'checkpoints' / '1' / 'params' / name
    if path.is_dir():
        (path,) = path.iterdir()
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(UserError, match=rf'cannot be read now \({os.strerror(errno.ELOOP)}\)') as error:
        restore(workdir)
    assert not isinstance(error.value, DamagedError)


def test_files_that_are_not_there_are_damage(write):
    workdir = write(np.float32, np.float32)
    shutil.rmtree(workdir / 'checkpoints' / '2' / 'params' / 'd')
    assert int(restore(workdir).step) == 1
    assert [path.name for path in (workdir / 'damaged_checkpoints').iterdir()] == ['2']


@contextlib.contextmanager
def full_disk(size=40_000):
    """Refuses this process what a full disk would: files of more than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence_and_no_traceback(tmp_path, capfd, caplog):
    rng = np.random.default_rng(0)
    params = {f'{number}': rng.normal(size=(128, 128)).astype(np.float32) for number in range(40)}
    with (
        pytest.raises(UserError, match=r'could not be written .*File too large; .*there is no earlier one'),
        full_disk(),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(state_of(params, 1), meta={'config': {}})
        checkpoints.wait()
    gc.collect()  # asyncio tells then of what nobody asked for
    time.sleep(0.5)
    assert 'Traceback' not in ''.join(capfd.readouterr()) + caplog.text


def test_what_else_nobody_can_catch_is_still_told(monkeypatch):
    told = []
    monkeypatch.setattr(module.sys, 'unraisablehook', told.append)
    module._leave_the_last_word()
    for text in ('Event loop is closed', 'something else'):
        module.sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
    assert [str(each.exc_value) for each in told] == ['something else']
