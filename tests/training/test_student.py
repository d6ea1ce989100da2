"""Students: they begin as their teacher, go on from their checkpoints, and are evaluated as any run."""

import json
import shutil

import jax
import numpy as np
import pytest

from cfg.data.digits import digits
from cfg.diffusion.rules import Cfg, OnePass
from cfg.evaluation import candidates, sweep
from cfg.modes import tune
from cfg.modes.status import run as describe
from cfg.report.results import Results
from cfg.runs.generate import Generator, binder
from cfg.runs.run_files import sealed
from cfg.runs.trained import counted
from cfg.runtime import parallel
from cfg.runtime.errors import UserError
from cfg.settings.networks import abstract_params, build_network, init_params
from cfg.settings.sampler import read_sampler
from cfg.training import loop
from cfg.training.build import objective_of
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
    opened.check_same(opened.sha256)
    with pytest.raises(UserError, match=r'holds another checkpoint of step .* than for process 0'):
        opened.check_same({'model': '0' * 64})
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


LEARNED = ('power', 'cfg_zero', 'tcfg', 'fdg', 'rectified_gradient', 'feedback(pi=1.0)')
LEARNED += ('time_step', 'perturbed_attention', 'blurred_attention(sigma=1.0)')


@pytest.mark.parametrize('text', LEARNED)
def test_rules_that_a_single_evaluation_shows_can_be_learned(teacher, text):
    """Their objective has a gradient, of a batch whose examples each have their level and w."""
    config, source = student_of(teacher, teacher_guidance=text), digits('all')
    network, opened = build_network(config, source), open_teacher(config, source)
    objective, params = objective_of(config, network, opened), abstract_params(network, source)
    batch = source.fetch(np.arange(4))
    images, labels = np.float32(batch['image']) / 127.5 - 1, batch['label']
    fixed = {name: run.params() for name, run in opened.networks.items()}

    def mean_loss(params):
        keys = jax.random.split(jax.random.key(0), 4)
        return objective(params, images, labels, keys, np.arange(4), fixed)[0].mean()

    gradient = jax.eval_shape(jax.grad(mean_loss), params)
    assert jax.tree.map(lambda leaf: leaf.shape, gradient) == jax.tree.map(lambda leaf: leaf.shape, params)


def test_a_student_that_was_stopped_ends_as_one_that_was_not(teacher, student, tmp_path):
    loop.train(student_of(teacher, num_steps=4), tmp_path)
    moved = shutil.copytree(teacher, tmp_path / 'moved')
    loop.train(student_of(moved), tmp_path)
    digests = [[line for line in describe(workdir).splitlines() if 'sha256' in line] for workdir in (tmp_path, student)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(('steps', 'sampler'), [(1, 'ddim'), (2, 'forth_and_back')])
def test_a_student_of_few_steps_learns_from_a_network_that_takes_w(tmp_path, steps, sampler):
    sampling = {'sampler': sampler, 'grid': 'nested', 'num_steps': steps}
    changes = {'diffusion': {'prediction': 'v'}, 'sampling': sampling}
    workdirs = tmp_path / 'teacher', tmp_path / 'student'
    halving = {'student_steps': steps, 'student_sampler': sampler, 'teacher_guidance': 'one_pass'}
    halving['weighting'] = 'truncated'
    for workdir, train in zip(workdirs, ({'kind': 'guidance_free'}, halving), strict=True):
        config = student_of(workdirs[0], **train)
        config.update(changes)
        workdir.mkdir()
        loop.train(config, workdir)
    config.eval.w, config.eval.num_samples, config.eval.num_steps = (1.0,), 20, (steps, 4)
    sweep.evaluate(config, workdir)
    for row in (row.settings for row in Results(workdir).read()):
        assert (row['evaluations'], row['grid']) == (row['num_steps'], 'nested')
        asked = f'learned {counted(steps)} of {sampler} on the grid nested, and here takes others' in ' '.join(
            row['warnings']
        )
        assert asked is (row['num_steps'] == 4)
    config.tune.w = (0.0, 1.0, 5.0)
    found, notes = candidates.candidates(candidates.as_sweep(config, workdir), workdir)
    learned = read_sampler(config)
    assert [(point.sampler, point.w) for point in found] == [(learned, 0.0), (learned, 1.0)]
    assert notes == ['1 candidates are not what the network learned, and are left out.']


def retold(workdir, place, **train):
    """Copies a run, whose checkpoints then tell of another training."""
    shutil.copytree(workdir, place)
    for path in place.glob('checkpoints/*/meta/metadata'):
        meta = json.loads(path.read_text())
        meta['config']['train'].update(train)
        path.write_text(json.dumps(sealed(meta)))
    return place


@pytest.mark.parametrize(
    ('told', 'changes', 'sentence'),
    [
        ({}, {'w': (0.0, 8.0)}, 'w = 8 is outside the range 0 to 4 that the network learned'),
        ({'student_steps': 4}, {}, 'is a student of 4 steps of ddim, .*train.student_steps=2'),
        ({'student_steps': 4}, {'student_steps': 4}, 'is a student of 4 steps of ddim, .*train.student_steps=2'),
        ({'student_steps': 1}, {}, 'is a student of 1 step of ddim, which no other halves with'),
        (
            {'student_steps': 4},
            {'student_steps': 2, 'student_sampler': 'forth_and_back'},
            "of 4 steps of ddim, .*student_steps=4 with student_sampler='forth_and_back'",
        ),
        (
            {'student_steps': 8, 'student_sampler': 'forth_and_back'},
            {'student_steps': 4},
            'of 8 steps of forth_and_back, .*student_steps=2 with',
        ),
    ],
)
def test_a_teacher_is_asked_only_what_it_learned(student, tmp_path, told, changes, sentence):
    config = student_of(retold(student, tmp_path / 'teacher', **told), teacher_guidance='one_pass', **changes)
    with pytest.raises(UserError, match=sentence):
        open_teacher(config, digits('all'))


def test_a_student_of_few_steps_has_the_levels_of_its_teacher(student, tmp_path):
    config = student_of(retold(student, tmp_path / 'teacher', student_steps=4), student_steps=4)
    config.train.teacher_guidance, config.train.student_sampler = 'one_pass', 'forth_and_back'
    assert open_teacher(config, digits('all')).sampler.rule.name == 'one_pass'
    config.train.student_steps, config.train.student_sampler = 2, 'ddim'
    assert open_teacher(config, digits('all')).networks['model'].student_steps == 4
    config.diffusion.logsnr_max = 10.0
    with pytest.raises(UserError, match='learned the levels from -20 to 20, not from -20 to 10'):
        open_teacher(config, digits('all'))


def test_a_network_that_takes_w_is_no_companion(teacher, student):
    config = small_config()
    config.sampling.uncond_workdir = str(student)
    with pytest.raises(UserError, match=r'uncond_workdir=.* takes w as an input'):
        sweep.evaluate(config, teacher)


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
        ('', {'train': {'student_steps': 4}, 'diffusion': {'prediction': 'v'}}, "must be 'ddim' with .*num_steps=4"),
        ('train', {'weighting': 'truncated'}, "weighting='truncated' must be 'eps' where the network predicts eps"),
        ('train', {'w': (2.0, 1.0)}, r'config.train.w=\(2.0, 1.0\) must be two numbers, the smaller first'),
        ('train', {'teacher_guidance': 'temperature'}, "'temperature' must be a rule that changes the prediction"),
        ('train', {'teacher_guidance': 'cfg_plus_plus'}, "'cfg_plus_plus' must be a rule that changes the prediction"),
        ('train', {'teacher_guidance': 'cfg(w=1)'}, 'must be a rule that changes the prediction .* without w'),
        ('train', {'teacher_guidance': 'feedback'}, 'must be a rule that a single evaluation shows'),
        ('train', {'teacher_guidance': 'adaptive'}, 'must be a rule that a single evaluation shows'),
        ('train', {'teacher_guidance': 'cfg_zero(zero_init=1)'}, 'must be a rule that a single evaluation shows'),
        ('train', {'teacher_guidance': 'cfg(anneal_label=(0.5, 0.9, 1.0, 1.0))'}, 'a rule without anneal_label'),
        ('train', {'kind': 'guidance_free', 'p_uncond': 0.0}, 'p_uncond=0.0 must be below 1 .*above 0'),
        ('train', {'p_uncond': 1.0}, 'p_uncond=1.0 must be below 1'),
        ('train', {'kind': 'model'}, "config.sampling.guidance='one_pass' must be another than 'one_pass'"),
        (
            'sampling',
            {'guidance': 'cfg'},
            "config.sampling.guidance='cfg' must be 'one_pass' with train.kind='student'",
        ),
        ('model', {'channels': 16}, 'is of another architecture than config.model'),
        ('model', {'label_in': 'decoder'}, "teacher_workdir=.* was trained with config.model.label_in='everywhere'"),
        ('diffusion', {'prediction': 'v'}, "teacher_workdir=.* was trained with config.diffusion.prediction='eps'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(teacher, tmp_path, part, changes, sentence):
    config = student_of(teacher)
    (config[part] if part else config).update(changes)
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
    config.tune.evaluations, config.tune.w, config.tune.num_steps = 4, (1.0, 2.0), (4,)
    config.tune.sampler, config.tune.grid, config.tune.final_seeds = (), (), 2
    config.tune.first_samples, config.tune.samples = 65, 2 * 65 + 2 * 2 * 20
    assert 'the last rung had no plain cfg, or had nothing else' in tune.run(config, workdir)
    config.eval.guidance = ('cfg',)
    with pytest.raises(UserError, match="takes w as an input, so its guidance is 'one_pass'"):
        sweep.evaluate(config, workdir)
    plain = small_config()
    plain.eval.guidance = ('one_pass',)
    with pytest.raises(UserError, match="takes no w, so it cannot be 'one_pass'"):
        sweep.evaluate(plain, shutil.copytree(teacher, tmp_path / 'teacher'))
