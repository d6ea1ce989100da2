"""The script for a TPU or a GPU runs where there is neither, on a tiny network; what it times there means nothing."""

import json
import math
import os
import subprocess
import sys
import time

import pytest

from benchmarks import accelerator
from benchmarks.accelerator import PARTS, Part, row
from tests.command_line import ROOT

# Packages of the project that a machine with an accelerator may lack; each raises where it is imported.
ABSENT = ('PIL', 'clu', 'grain', 'jinja2', 'matplotlib', 'orbax', 'sklearn', 'tensorflow', 'tensorflow_datasets')


@pytest.fixture(name='dry_run', scope='module')
def dry_run_fixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp('accelerator')
    for name in ABSENT:
        (folder / f'{name}.py').write_text(f'raise ImportError("{name} must not be needed")\n')
    command = [sys.executable, 'benchmarks/accelerator.py', '--tiny', '--patience=20', f'--out={folder / "out"}']
    environ = os.environ | {'PYTHONPATH': str(folder), 'XLA_FLAGS': ''}  # and one device
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=900)
    return done, json.loads((folder / 'out' / accelerator.FILE).read_text()), folder / 'out'


def found(result, part):
    return {row['what']: row['figures'] for row in result['rows'] if row['part'] == part}


@pytest.mark.chaos
@pytest.mark.xdist_group('dry_run')  # which takes a minute, once
def test_a_dry_run_has_every_part(dry_run):
    done, result, out = dry_run
    assert {name: part['ended'] for name, part in result['parts'].items()} == dict.fromkeys(PARTS, 'done'), done.stderr
    assert done.returncode == 0
    assert {row['part'] for row in result['rows']} == PARTS.keys()
    assert done.stdout == (out / accelerator.TABLE).read_text() == accelerator.table(result) + '\n'
    lines = done.stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [row['part'] for row in result['rows']]
    for line, each in zip(lines, result['rows'], strict=True):
        assert all(name in line for name in (each['what'], each['note'], *each['figures']))


@pytest.mark.chaos
@pytest.mark.xdist_group('dry_run')
def test_the_figures_of_a_dry_run(dry_run):
    _, result, _ = dry_run
    assert found(result, 'device')['cpu']['count'] == 1
    errors = found(result, 'unet')
    assert errors['float32, default precision']['forward error'] == 0.0  # the host is the device
    assert 1e-3 < errors['bfloat16']['gradient error'] < 0.05
    assert found(result, 'attention')['xla 2x128x1x8']['error'] < 0.01
    (moments,) = found(result, 'ancestral').values()
    assert abs(moments['mean off by']) < 3
    assert abs(moments['variance off by']) < 3
    assert found(result, 'inception')['as evaluated']['error'] < 1e-5
    # Both sizes are the same tiny network, and the first is asked for more.
    guided = ('interval', "label_in='decoder'", 'ddim', 'forth_and_back', 'dpm_solver_2m', 'heun')
    assert [*found(result, 'train64')] == ['batch 4', 'batch 8']
    assert [*found(result, 'sample64')][2:] == [f'{name}, w=1' for name in guided]
    # 8 of 16 steps were timed; a step of second order takes two predictions, but for the last.
    heun = found(result, 'sample64')['heun, w=1']
    assert heun['images/s'] == pytest.approx(4e3 / heun['ms'] * (2 * 8 - 1) / (2 * 16 - 1))
    for size in ('64', '128'):
        step, sampled = found(result, f'train{size}')['batch 4'], found(result, f'sample{size}')['ancestral, w=1']
        assert [*found(result, f'train{size}_remat')] == ['batch 4']
        assert step['images/s'] == pytest.approx(4e3 / step['ms'])
        assert sampled['images/s'] == pytest.approx(2e3 / sampled['ms'])
        assert 'ancestral, w=0' in found(result, f'sample{size}')
        hours = found(result, 'hours')[f'imagenet{size}']
        assert hours['sampling'] == pytest.approx(40 / sampled['images/s'] / 3600)
        assert hours['all'] == pytest.approx(hours['sampling'] + hours['features'] + hours['statistics'])
    assert math.isfinite(found(result, 'digits')['3 steps']['at last'])
    assert 'missing: a clone' in next(row['note'] for row in result['rows'] if row['part'] == 'peer')


def works(run, name='alone'):
    yield row(name, {'parts before': len(run.rows), 'not known': None}, 'a note')


def fails(run):
    yield row('first', {'x': 1.5})
    raise ValueError('it\nbroke')


def ends(run):
    yield row('first', {})
    os._exit(3)


def waits(run):
    yield row('first', {'x': 2.5})
    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    time.sleep(600)


def options(out, *arguments):
    return accelerator.parse([f'--out={out}', *arguments])


def test_a_part_that_fails_or_is_late_costs_no_other(tmp_path):
    parts = {'fails': Part('fails', (), 60), 'waits': Part('waits', (), 10), 'ends': Part('ends', (), 60)}
    parts['works'] = Part('works', ('last',), 60)
    result = accelerator.measure(parts, options(tmp_path), module=__name__)
    assert {name: part['ended'] for name, part in result['parts'].items()} == {
        'fails': 'failed: ValueError: it broke',
        'waits': 'stopped at its limit of 10 s',
        'ends': 'ended with status 3',
        'works': 'done',
    }
    assert {row['part']: row['figures'] for row in result['rows']} == {
        'fails': {'x': 1.5},
        'waits': {'x': 2.5},
        'ends': {},
        'works': {'parts before': 3, 'not known': None},
    }
    table = (tmp_path / accelerator.TABLE).read_text()
    assert table == accelerator.table(result) + '\n'
    assert table.count('NOT FINISHED') == 3
    assert 'not known -' in table
    # The rows of parts that are not measured again stay.
    again = accelerator.measure({'fails': Part('works', (), 60)}, options(tmp_path, '--parts=unet'), module=__name__)
    assert [(row['part'], row['what']) for row in again['rows']][-1] == ('fails', 'alone')
    assert [*again['parts']] == [*parts]
    assert again['parts']['fails']['ended'] == 'done'
    assert len(again['rows']) == 4


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    file = tmp_path / 'x.jsonl'
    assert accelerator._rows(file) == []
    file.write_text('{"what": "a"}\n{"what": "b"}\n{"wh')
    assert [row['what'] for row in accelerator._rows(file)] == ['a', 'b']


def test_the_environment_of_a_part(tmp_path, monkeypatch):
    for name, value in {'JAX_PLATFORMS': 'cuda', 'CUDA_VISIBLE_DEVICES': '3,1', 'PYTHONPATH': 'mine'}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / 'ml_collections-1-py3-none-any.whl').touch()
    environ = accelerator.environment(options(tmp_path, f'--wheels={tmp_path}'))
    assert environ['JAX_PLATFORMS'] == 'cuda,cpu'
    assert environ['CUDA_VISIBLE_DEVICES'] == '3'
    wheel = str(tmp_path / 'ml_collections-1-py3-none-any.whl')
    assert environ['PYTHONPATH'].split(os.pathsep) == [str(ROOT), wheel, 'mine']


def test_a_part_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        options('x', '--parts=unet,mine')
    assert '--parts=mine is none of device, unet' in capsys.readouterr().err


def test_every_kernel_is_looked_for_in_programs():
    from benchmarks import accelerator_parts as parts
    from cfg.models.attention import KERNELS

    assert {*parts.FLASH.values(), 'xla'} == {*parts.CALLS, 'xla'} == KERNELS.keys()


def test_the_moments_are_those_of_the_data_without_guidance(monkeypatch):
    from benchmarks import accelerator_parts as parts
    from cfg.diffusion.sampler import Sampler

    monkeypatch.setattr(parts, 'W', 0.0)
    mean, variance = parts.gaussian_moments(Sampler(num_steps=4000, clip_x=False))
    assert mean == pytest.approx(0.4, abs=1e-3)
    assert variance == pytest.approx(0.25, rel=1e-2)
