"""Students: they begin as their teacher, go on from their checkpoints, and are evaluated as any run."""

import shutil

import jax
import numpy as np
import pytest

from cfg.data.digits import digits
from cfg.diffusion.rules import Cfg, OnePass
from cfg.evaluation import sweep
from cfg.modes.status import run as describe
from cfg.report.results import Results
from cfg.runs.generate import Generator, binder
from cfg.runtime import parallel
from cfg.runtime.errors import UserError
from cfg.settings.networks import build_network, init_params
from cfg.settings.sampler import read_sampler
from cfg.training import loop
from cfg.training.teacher import open_teacher, taught
from tests.conftest import small_config

pytestmark = pytest.mark.usefixtures('kept_training')


def student_of(workdir, **train):
    config = small_config()
    config.train.kind, config.train.teacher_workdir = 'student', str(workdir)
    config.train.weighting, config.sampling.guidance = 'eps', 'one_pass'
    config.train.update(train)
    return config


@pytest.fixture(scope='module', name='teacher')
def teacher_fixture(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('teacher')
    config = small_config()
    config.train.learning_rate = 0.01  # far from its zero-initialised output
    loop.train(config, workdir)
    return workdir


@pytest.fixture(scope='module', name='student')
def student_fixture(teacher, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('student')
    loop.train(student_of(teacher), workdir)
    return workdir


def test_a_student_begins_as_its_teacher_without_guidance(teacher):
    config, source = student_of(teacher), digits('all')
    opened = open_teacher(config, source)
    network = build_network(config, source)
    params = taught(init_params(network, source, seed=3), opened)
    labels, images = np.arange(10, dtype=np.int32), []
    for told, values, rule, w in (
        (network, params, OnePass(), 3.0),
        (opened.networks['model'].network, opened.networks['model'].params(), Cfg(), 0.0),
    ):
        generator = Generator(
            {'model': binder(told, 'eps')},
            read_sampler(config, guidance=rule.text),
            image_shape=source.image_shape,
            batch_size=10,
            devices=jax.local_devices()[:1],
        )
        replicated = parallel.replicate({'model': values}, jax.local_devices()[:1])
        images.append(np.concatenate([batch.images for batch in generator(replicated, labels, w, seed=1)]))
    np.testing.assert_array_equal(*images)


def test_a_student_that_was_stopped_ends_as_one_that_was_not(teacher, student, tmp_path):
    loop.train(student_of(teacher, num_steps=4), tmp_path)
    moved = shutil.copytree(teacher, tmp_path / 'moved')
    loop.train(student_of(moved), tmp_path)
    digests = [[line for line in describe(workdir).splitlines() if 'sha256' in line] for workdir in (tmp_path, student)]
    assert digests[0] == digests[1]


def test_a_ladder_goes_down_to_one_step(tmp_path):
    changes = {'diffusion': {'prediction': 'v'}, 'sampling': {'sampler': 'ddim', 'grid': 'nested'}}
    config = small_config()
    config.update(changes)
    (tmp_path / 'teacher').mkdir()
    loop.train(config, tmp_path / 'teacher')
    before = 'teacher'
    for steps, rule in ((0, 'cfg'), (2, 'one_pass'), (1, 'one_pass')):
        config = student_of(tmp_path / before, weighting='truncated', student_steps=steps, teacher_guidance=rule)
        config.update(changes)
        config.sampling.num_steps = config.train.student_steps or 4
        before = str(steps)
        (tmp_path / before).mkdir()
        loop.train(config, tmp_path / before)
    config.eval.w, config.eval.num_samples = (1.0,), 20
    sweep.evaluate(config, tmp_path / before)
    (row,) = (row.settings for row in Results(tmp_path / before).read())
    assert (row['evaluations'], row['num_steps'], row['grid']) == (1, 1, 'nested')


def test_another_teacher_is_refused(student, tmp_path):
    config = small_config()
    config.seed = 1
    loop.train(config, tmp_path)
    workdir = shutil.copytree(student, tmp_path / 'student')
    with pytest.raises(UserError, match='learned from another teacher than the one in'):
        loop.train(student_of(tmp_path, num_steps=8), workdir)


@pytest.mark.parametrize(
    ('part', 'changes', 'sentence'),
    [
        ('train', {'teacher_workdir': ''}, 'teacher_workdir is not set'),
        ('train', {'teacher_workdir': 'runs/none'}, 'teacher_workdir=runs/none does not exist'),
        ('train', {'teacher_step': 5}, 'has no checkpoint of step 5|step 5'),
        ('train', {'student_steps': 4}, "prediction='eps' must be 'x' or 'v' with train.student_steps"),
        ('train', {'teacher_guidance': 'one_pass'}, "takes no w, so it cannot be 'one_pass'"),
        ('train', {'weighting': 'truncated'}, "weighting='truncated' must be 'eps' where the network predicts eps"),
        ('train', {'w': (2.0, 1.0)}, r'config.train.w=\(2.0, 1.0\) must be two numbers, the smaller first'),
        ('train', {'kind': 'model'}, "config.sampling.guidance='one_pass' must be another than 'one_pass'"),
        (
            'sampling',
            {'guidance': 'cfg'},
            "config.sampling.guidance='cfg' must be 'one_pass' with train.kind='student'",
        ),
        ('model', {'channels': 16}, 'is another network than that of config.model'),
    ],
)
def test_what_does_not_fit_is_one_sentence(teacher, tmp_path, part, changes, sentence):
    config = student_of(teacher)
    config[part].update(changes)
    with pytest.raises(UserError, match=sentence):
        loop.train(config, tmp_path)


def test_a_student_is_evaluated_as_any_run(teacher, student, tmp_path):
    workdir, config = shutil.copytree(student, tmp_path / 'student'), student_of(teacher)
    config.eval.w, config.eval.num_samples = (1.0, 5.0), 20
    sweep.evaluate(config, workdir)
    inside, outside = (row.settings for row in Results(workdir).read())
    assert inside['guidance'] == 'one_pass'
    assert inside['evaluations'] == config.sampling.num_steps
    warning = 'w = 5 is outside the range 0 to 4 that the network learned.'
    assert warning in outside['warnings']
    assert warning not in inside['warnings']
    config.eval.guidance = ('cfg',)
    with pytest.raises(UserError, match="takes w as an input, so its guidance is 'one_pass'"):
        sweep.evaluate(config, workdir)
    plain = small_config()
    plain.eval.guidance = ('one_pass',)
    with pytest.raises(UserError, match="takes no w, so it cannot be 'one_pass'"):
        sweep.evaluate(plain, shutil.copytree(teacher, tmp_path / 'teacher'))


def test_guidance_free_training_runs_without_a_teacher(tmp_path):
    config = student_of('', kind='guidance_free')
    loop.train(config, tmp_path)
    config.eval.w, config.eval.num_samples = (1.0,), 20
    sweep.evaluate(config, tmp_path)
    assert [row.settings['guidance'] for row in Results(tmp_path).read()] == ['one_pass']
