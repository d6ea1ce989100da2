"""Weights & Biases beside TensorBoard, with a stand-in for the package: what is sent, and that it ends no run."""

import json
import sys
import types

import numpy as np
import pytest

from cfg.data.crop import from_png
from cfg.modes import evaluate
from cfg.training import loop
from cfg.training.logs import Logs
from cfg.training.wandb_writer import ID_FILE, WandbWriter
from tests import in_process
from tests.report.rows import row_of, write_rows

pytestmark = pytest.mark.usefixtures('kept_training')


class Error(Exception):
    """As `wandb.errors` names them."""


class CommError(Error):
    pass


class AuthenticationError(CommError):
    pass


class UsageError(Error):
    pass


class Run:
    """A run of W&B that keeps what it is sent, or fails."""

    def __init__(self, fails=False, **options):
        self.options, self.fails, self.sent, self.ended = options, fails, [], None

    def define_metric(self, name, step_metric):
        assert name == '*'
        self.axis = step_metric

    def log(self, values):
        if self.fails:
            raise BrokenPipeError('the service is gone')
        self.sent.append(values)

    def finish(self, exit_code):
        self.ended = exit_code

    def values(self, name):
        return {sent[self.axis]: sent[name] for sent in self.sent if name in sent}


@pytest.fixture(name='wandb')
def wandb_fixture(monkeypatch):
    """Takes the place of the package; `refuses` is raised by init unless it is offline, and `fails` is of its runs."""
    fake = types.ModuleType('wandb')
    fake.errors = types.SimpleNamespace(
        Error=Error, CommError=CommError, AuthenticationError=AuthenticationError, UsageError=UsageError
    )
    fake.runs, fake.refuses, fake.fails = [], None, False
    fake.Settings, fake.Image = dict, np.asarray
    fake.Table = lambda columns, data: [dict(zip(columns, line, strict=True)) for line in data]

    in_use = []

    def init(**options):
        if in_use:  # as the service says of the id of an attempt that failed
            raise Error('run ID is in use')
        if fake.refuses and options.get('mode') != 'offline':
            in_use.append(options['id'])
            raise fake.refuses
        fake.runs.append(Run(fake.fails, **options))
        return fake.runs[-1]

    fake.init, fake.teardown = init, in_use.clear
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    monkeypatch.delenv('WANDB_RUN_ID', raising=False)
    return fake


def test_a_run_and_what_goes_on_of_it_are_one_run(wandb, small_config, tmp_path):
    small_config.train.sample_every = 3
    small_config.train.wandb_project = 'guidance'
    for steps in (3, 6):
        small_config.train.num_steps = steps
        loop.train(small_config, tmp_path)
    first, second = wandb.runs
    assert first.options['project'] == 'guidance'
    assert first.options['config']['train']['p_uncond'] == small_config.train.p_uncond
    assert (first.options['resume'], first.options['dir']) == ('allow', str(tmp_path))
    assert first.options['id'] == second.options['id'] == (tmp_path / ID_FILE).read_text().strip()
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert first.values('loss') | second.values('loss') == {line['step']: line['loss'] for line in lines}
    images = first.values('samples') | second.values('samples')
    assert images.keys() == {3, 6}
    for step, image in images.items():
        np.testing.assert_array_equal(image, from_png((tmp_path / f'samples/train_step{step:08d}.png').read_bytes()))
    assert [first.ended, second.ended] == [0, 0]


def test_a_run_that_does_not_ask_for_it_has_none(wandb, tmp_path, small_config):
    small_config.train.num_steps = 1
    loop.train(small_config, tmp_path)
    assert wandb.runs == []


def test_the_users_id_comes_first(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_RUN_ID', 'mine')
    WandbWriter('p', tmp_path, {})
    monkeypatch.delenv('WANDB_RUN_ID')
    WandbWriter('p', tmp_path, {}, job='eval')
    assert [run.options['id'] for run in wandb.runs] == ['mine', 'mine-eval']


def test_what_fails_there_ends_no_run(wandb, tmp_path, caplog):
    wandb.fails = True
    writer = WandbWriter('p', tmp_path, {})
    with Logs(tmp_path, start_step=0, beside=[writer]) as logs:
        for step in (1, 2):
            logs.scalars(step, {'loss': 0.5})
        logs.image(2, 'samples', np.zeros((4, 4, 3), np.uint8))
    assert caplog.text.count('Weights & Biases fails (the service is gone), and the run goes on.') == 1
    assert [json.loads(line)['step'] for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()] == [1, 2]


def test_a_run_that_fails_is_called_failed(wandb, tmp_path):
    with pytest.raises(RuntimeError), Logs(tmp_path, start_step=0, beside=[WandbWriter('p', tmp_path, {})]):
        raise RuntimeError
    assert wandb.runs[0].ended == 1


def test_a_network_that_is_down_leaves_the_run_for_later(wandb, tmp_path, caplog):
    wandb.refuses = CommError('context deadline exceeded\nand more')
    WandbWriter('p', tmp_path, {})
    assert wandb.runs[0].options['mode'] == 'offline'
    assert 'cannot be reached (context deadline exceeded): `wandb sync` sends it later' in caplog.text


@pytest.mark.parametrize('refuses', [UsageError('No API key configured.'), AuthenticationError('invalid key')])
def test_one_that_is_not_logged_in_is_refused_before_the_first_step(wandb, tmp_path, refuses):
    wandb.refuses = refuses
    said = in_process.refused('--mode=train', f'--workdir={tmp_path / "run"}', '--config.train.wandb_project=p')
    assert f"refuses config.train.wandb_project='p' ({refuses}): give WANDB_API_KEY" in said
    assert not (tmp_path / 'run' / ID_FILE).exists()


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    for mode in ('train', 'eval'):
        (tmp_path / 'eval').mkdir(exist_ok=True)
        said = in_process.refused(f'--mode={mode}', f'--workdir={tmp_path / mode}', '--config.train.wandb_project=p')
        assert "config.train.wandb_project='p' needs the package wandb" in said
        assert 'pip install wandb' in said
        assert not list(tmp_path.glob('*/*'))


def test_rows_of_a_sweep_are_a_table_of_a_run_beside_it(wandb, tmp_path, small_config, monkeypatch):
    small_config.train.wandb_project = 'p'
    monkeypatch.setattr(evaluate.sweep, 'evaluate', lambda *_: write_rows(tmp_path, [row_of(w=w) for w in (0.0, 1.0)]))
    evaluate.run(small_config, tmp_path)
    (run,) = wandb.runs
    (sent,) = run.sent
    assert [(line['w'], line['fid'], line['guidance']) for line in sent['results']] == [
        (0.0, 2.5, 'cfg'),
        (1.0, 2.5, 'cfg'),
    ]
    assert run.options['job_type'] == 'eval'
    assert run.ended == 0
