"""Reading a workdir without orbax, beside orbax itself."""

import shutil
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest

from cfg.modes.status import run as describe
from cfg.runs.checkpoints import Checkpoints
from cfg.runs.run_files import DamagedError, checkpoint_meta, checkpoint_steps
from cfg.runs.state import TrainState
from cfg.runtime.errors import UserError
from tests.command_line import ROOT


@pytest.fixture(scope='module', name='saved')
def saved_fixture(tmp_path_factory):
    """A workdir with three checkpoints."""
    workdir = tmp_path_factory.mktemp('saved')
    with Checkpoints(workdir, keep_last=3) as checkpoints:
        for step in (2, 10, 9):
            tree = {'a': np.full(3, step, np.float32)}
            checkpoints.save(TrainState(step, tree, tree, ({'m': np.zeros(2)},), {}), meta={'config': {'seed': step}})
    return workdir


@pytest.fixture(name='workdir')
def workdir_fixture(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / 'run')


def by_orbax(workdir):
    """{step: meta} as orbax's own manager reads them."""
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(workdir / 'checkpoints', options=options, item_names=('meta',)) as manager:
        restored = {
            step: manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
            for step in manager.all_steps()
        }
    return restored


def test_steps_and_meta_are_those_of_orbax(workdir):
    expected = by_orbax(workdir)
    assert {step: checkpoint_meta(workdir, step) for step in checkpoint_steps(workdir)} == expected
    assert checkpoint_steps(workdir) == [2, 9, 10]
    assert expected[9]['config'] == {'seed': 9}


def test_what_is_not_finished_is_no_checkpoint_for_either(workdir):
    folder = workdir / 'checkpoints'
    (folder / '10').rename(folder / '10.orbax-checkpoint-tmp-1234')
    (folder / '11.orbax-checkpoint-tmp').mkdir()
    (folder / 'notes').mkdir()
    (folder / '12').write_text('a file')
    assert checkpoint_steps(workdir) == sorted(by_orbax(workdir)) == [2, 9]


def test_there_may_be_no_checkpoint(tmp_path):
    assert checkpoint_steps(tmp_path) == []
    with pytest.raises(UserError, match='is gone'):
        checkpoint_meta(tmp_path, 3)


@pytest.mark.parametrize('content', [b'', b'{"config": ', b'[1]', b'\xff\xfe'])
def test_a_damaged_meta_is_a_sentence(workdir, content):
    (workdir / 'checkpoints' / '10' / 'meta' / 'metadata').write_bytes(content)
    with pytest.raises(DamagedError, match='10 cannot be read'):
        checkpoint_meta(workdir, 10)
    assert 'damaged: The checkpoint' in describe(workdir)


def test_a_meta_that_is_away_is_a_sentence(workdir):
    (workdir / 'checkpoints' / '10' / 'meta' / 'metadata').unlink()
    with pytest.raises(DamagedError, match='10 cannot be read'):
        checkpoint_meta(workdir, 10)


def test_status_starts_without_what_is_slow_to_import(workdir):
    """And all that it says of the newest checkpoint comes from small files."""
    for item in ('params', 'ema_params', 'opt_state'):
        shutil.rmtree(workdir / 'checkpoints' / '10' / item)
    code = (
        'import runpy, sys\n'
        f"sys.argv = ['main.py', '--mode=status', '--workdir={workdir}']\n"
        'try:\n'
        "    runpy.run_path('main.py', run_name='__main__')\n"
        'except SystemExit as end:\n'
        '    assert not end.code\n'
        "slow = {'jax', 'flax', 'orbax', 'tensorflow', 'tensorstore', 'numpy', 'matplotlib', 'sklearn'}\n"
        'print(slow & sys.modules.keys())'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'checkpoints: 2, 9, 10\nstep: 10\n' in done.stdout
    assert 'ema_params_sha256: ' in done.stdout
    assert done.stdout.endswith('set()\n')


def test_a_turned_bit_is_noticed_wherever_it_is(workdir):
    """One in the name of a parameter, say, would else make the checkpoint one of another architecture."""
    file, sound = workdir / 'checkpoints' / '10' / 'meta' / 'metadata', checkpoint_meta(workdir, 10)
    content = file.read_bytes()
    unnoticed = []
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            found = checkpoint_meta(workdir, 10)
        except DamagedError:
            continue
        if {name: found.get(name) for name in ('config', 'shapes', 'sha256')} != {
            name: sound[name] for name in ('config', 'shapes', 'sha256')
        }:
            unnoticed.append(place)
    assert not unnoticed


def test_a_checkpoint_of_a_wrong_name_is_set_aside(workdir):
    file = workdir / 'checkpoints' / '10' / 'meta' / 'metadata'
    file.write_bytes(file.read_bytes().replace(b"['a']", b"['c']"))
    tree = {'a': np.zeros(3, np.float32)}
    with Checkpoints(workdir, keep_last=3) as checkpoints:
        state, meta = checkpoints.restore_newest(TrainState(0, tree, tree, ({'m': np.zeros(2)},), {}))
    assert (int(state.step), meta['config']) == (9, {'seed': 9})
    assert [path.name for path in (workdir / 'damaged_checkpoints').iterdir()] == ['10']
