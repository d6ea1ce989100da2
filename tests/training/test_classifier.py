"""Training of a classifier of noisy images: the same loop, other numbers, and no mistaking it for a diffusion model."""

import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import classifier_accuracy
from cfg.data.digits import digits
from cfg.diffusion import loss, schedule
from cfg.evaluation import sweep
from cfg.features import opening
from cfg.features.network import FeatureNetwork, Features
from cfg.modes import describe, sample
from cfg.modes.status import run as status_of
from cfg.runs import state
from cfg.runs.checkpoints import Checkpoints
from cfg.runs.trained import TrainedRun
from cfg.runtime.errors import UserError
from cfg.settings.checks import check_config
from cfg.settings.data import spec_of
from cfg.settings.networks import abstract_params, build_classifier, build_trained, init_params
from cfg.settings.values import config_dict
from cfg.training import build, loop
from cfg.training.bands import accuracies, band_names
from cfg.training.meter import average
from cfg.training.step import example_keys
from configs import digits_classifier, imagenet64_classifier
from tests.conftest import small_config

SHAPE, CLASSES = (8, 8, 1), 10
BANDS = ['1.8_to_20.0', '0.0_to_1.8', '-1.8_to_0.0', '-20.0_to_-1.8']


def config_of(**train):
    """A classifier that compiles in seconds, and four steps."""
    config = digits_classifier.get_config()
    config.model, config.sampling = small_config().model, small_config().sampling
    config.classifier.channels = 8
    config.classifier.head_channels = 8
    config.classifier.norm_groups = 4
    config.classifier.attention_resolutions = ()
    config.train.num_steps = 4
    config.train.batch_size = 16
    config.train.log_every = 2
    config.train.sample_every = 4
    config.train.checkpoint_every = 2
    config.eval.steps = ()
    config.train.update(train)
    return config


pytestmark = pytest.mark.usefixtures('kept_training')


@pytest.fixture(scope='module', name='run')
def run_fixture(tmp_path_factory):
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp('classifier')
    loop.train(config_of(), workdir)
    return workdir


@pytest.fixture(scope='module', name='model')
def model_fixture(tmp_path_factory):
    """A workdir whose checkpoint says that it is a diffusion model's."""
    workdir = tmp_path_factory.mktemp('model')
    config = small_config()
    empty = state.create({'a': np.zeros(2, np.float32)}, build.make_optimizer(config))
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(
            jax.tree.map(np.asarray, empty)._replace(step=np.int32(2)),
            meta={'config': config_dict(config), 'kind': 'model'},
        )
    return workdir


def digests(workdir):
    return [line for line in status_of(workdir).splitlines() if 'sha256' in line or line.startswith('step')]


def open_run(run, config=None, shape=SHAPE, classes=CLASSES):
    """The classifier of a workdir, checked as where it guides a model."""
    config = config or config_of()
    classifier = TrainedRun.beside(config, run, what='it', kind='classifier')
    classifier.check_images(config, shape, classes)
    classifier.check_levels(config)
    return classifier


def test_the_log_tells_accuracies_by_noise_level_in_training_and_on_held_out_images(run):
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [2, 4, 4]
    bands = {f'accuracy_logsnr_{name}' for name in BANDS}
    for row in rows[:2]:
        assert bands | {'loss', 'accuracy', 'grad_norm'} <= set(row)
    assert {f'held_out_{name}' for name in bands | {'loss', 'accuracy'}} == set(rows[2]) - {'step'}
    for row in rows:
        of_bands = [value for name, value in row.items() if 'accuracy_' in name]
        assert 0 <= min(of_bands) <= max(of_bands) <= 1
        # The bands are equally probable, and in strata equally full.
        whole = next(value for name, value in row.items() if name.endswith('accuracy'))
        assert np.mean(of_bands) == pytest.approx(whole, abs=1e-6)
    status = status_of(run)
    assert 'kind: classifier' in status
    assert re.search(r'last_log: step 4, loss .*, accuracy .*, held_out_accuracy', status)


def test_held_out_numbers_are_those_of_the_averaged_parameters_on_the_other_half(run):
    """Worked out again: the images of the test half, each at its stratum of p(logsnr)."""
    held, classifier = digits('test'), open_run(run)
    count = len(held)
    u_time = jnp.float32((np.random.default_rng(0).permutation(count) + 0.5) / count)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(count))
    z, logsnr = [], schedule.logsnr_from_u(u_time, logsnr_min=-20.0, logsnr_max=20.0)
    alpha, sigma = (x[:, None, None, None] for x in schedule.alpha_sigma(logsnr))
    z = alpha * (held.images / 127.5 - 1.0) + sigma * loss.draw(keys, SHAPE).eps
    logits = np.float64(jax.jit(classifier.bind(classifier.params()))(z, logsnr))
    right = logits.argmax(axis=1) == held.labels
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    row = json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])
    assert row['held_out_loss'] == pytest.approx(-np.mean(log_p[np.arange(count), held.labels]), rel=1e-4)
    assert row['held_out_accuracy'] == pytest.approx(right.mean(), abs=2 / count)
    clean = np.asarray(logsnr) > 1.763
    assert row['held_out_accuracy_logsnr_1.8_to_20.0'] == pytest.approx(right[clean].mean(), abs=8 / count)


def test_the_accuracy_by_noise_level_beside_bayes_rule(run):
    """As benchmarks/classifier_accuracy.py prints it: the rule is right where there is little noise alone."""
    text = classifier_accuracy.describe(config_of(), str(run), draws=1)
    head, *lines = text.splitlines()
    assert head.split()[-1] == 'all'
    assert len(lines) == 6
    rule = [float(cell.rstrip('%')) for cell in lines[4].split()[-5:]]
    assert rule[0] > 95
    assert rule[3] < 40
    assert rule[4] == pytest.approx(np.mean(rule[:4]), abs=1)
    assert all(0 <= float(cell.rstrip('%')) <= 100 for line in lines[::2] for cell in line.split()[-5:])


def test_stopped_and_resumed_is_the_same_as_unbroken(run, tmp_path):
    """Decay, weight decay, dropout and the average go on where they were."""
    config = config_of(checkpoint_every=3, keep_last=5)
    stopped = config.copy_and_resolve_references()
    stopped.train.num_steps = 3
    loop.train(stopped, tmp_path)
    loop.train(config, tmp_path)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [3, 4]
        assert checkpoints.meta(4)['kind'] == 'classifier'
    assert digests(tmp_path) == digests(run)


def test_dropout_and_noise_are_drawn_anew_at_every_step_and_learned_through():
    """The whole loss of the config: sixty steps on sixteen images bring it well below that of guessing, log 10."""
    config = config_of(learning_rate=5e-3, warmup_steps=1)
    source = digits('all')
    network = build_trained(config, source)
    loss_fn = build.objective_of(config, network)
    params = init_params(network, source, seed=0)
    tx = build.make_optimizer(config)
    batch, index = source.fetch(np.arange(16)), jnp.arange(16)
    images = jnp.float32(batch['image']) / 127.5 - 1

    @jax.jit
    def step(params, opt_state, i):
        def mean(params):
            losses, measured = loss_fn(params, images, batch['label'], example_keys(0, i, index), index)
            return losses.mean(), measured

        (value, measured), grads = jax.value_and_grad(mean, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state, value, measured['accuracy'][0].mean()

    opt_state, losses = tx.init(params), []
    for i in range(60):
        params, opt_state, value, accuracy = step(params, opt_state, i)
        losses.append(float(value))
    assert losses[0] == pytest.approx(np.log(10), abs=0.4)
    assert np.mean(losses[-10:]) < 1.5
    assert accuracy > 0.4


def test_bands_are_quarters_of_p_logsnr():
    names = band_names(logsnr_min=-20.0, logsnr_max=20.0)
    assert names == BANDS
    # The quartile of the hyperbolic secant law: -2 log tan(pi / 8).
    assert float(names[0].split('_')[0]) == pytest.approx(-2 * np.log(np.tan(np.pi / 8)), abs=0.05)
    assert band_names(logsnr_min=-19.8, logsnr_max=10.1)[0].endswith('_to_10.1')


def test_accuracies_by_band_are_quotients_of_sums():
    u_time = jnp.float32([0.0, 0.2, 0.25, 0.6, 0.74, 1.0])
    correct = jnp.float32([1, 0, 1, 0, 1, 1])
    found = accuracies(correct, u_time, ['a', 'b', 'c', 'd'])
    of = {name: [float(x.sum()) for x in pair] for name, pair in found.items()}
    assert of == {
        'accuracy': [4, 6],
        'accuracy_logsnr_a': [1, 2],
        'accuracy_logsnr_b': [1, 1],
        'accuracy_logsnr_c': [1, 2],
        'accuracy_logsnr_d': [1, 1],
    }
    # Over steps an accuracy is that of all their examples, and of none there is none.
    assert average([(0.1, 0.1), (0.0, 0.3)]) == pytest.approx(0.25)
    assert average([(0.0, 0.0), (0.0, 0.0)]) is None
    assert average([1.0, 2.0]) == 1.5


def test_the_config_reaches_loss_and_network():
    """Strata, the range of logsnr and the keys of dropout, as the network sees them."""
    seen = []

    def apply(variables, z, logsnr, dropout_keys):
        seen.append((logsnr, jax.random.key_data(dropout_keys)))
        return jnp.zeros((len(z), CLASSES)).at[:, 3].set(1.0)

    config = config_of(batch_size=64, stratified=True)
    config.diffusion.logsnr_min, config.diffusion.logsnr_max = -5.0, 4.0
    loss_fn = build.objective_of(config, SimpleNamespace(apply=apply))
    index = jnp.arange(64)

    @jax.jit
    def run(keys):
        return *loss_fn({}, jnp.zeros((64, *SHAPE)), index % 10, keys, index), seen.pop()

    losses, measured, (logsnr, keys) = run(example_keys(0, 0, index))
    u = schedule.u_from_logsnr(logsnr, logsnr_min=-5.0, logsnr_max=4.0)
    np.testing.assert_array_equal(np.floor(np.float64(u) * 64 + 1e-4), np.arange(64))
    assert len(np.unique(keys, axis=0)) == 64
    np.testing.assert_allclose(losses, np.log(9 + np.e) - (index % 10 == 3), rtol=1e-5)
    assert float(measured['accuracy'][0].sum()) == 7
    config.classifier.dropout = 0.25
    assert build_trained(config, digits('all')).dropout == 0.25


def test_remat_changes_nothing_but_memory():
    config = config_of()
    spec = spec_of(config)
    trees, kept = [], []
    for remat in (False, True):
        config.train.remat = remat
        network = build_trained(config, spec)
        trees.append(abstract_params(network, spec))
        kept.append(describe.activation_bytes(config, network, spec, trees[-1]))
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
    assert kept[1] < 0.7 * kept[0]


# ---- kinds are told apart


def test_each_kind_needs_a_workdir_of_its_own(run, model):
    with pytest.raises(UserError, match=r"holds a classifier, and config\.train\.kind='model' trains a model"):
        loop.train(small_config(), run)
    with pytest.raises(UserError, match=r"holds a model, and config\.train\.kind='classifier' trains a classifier"):
        loop.train(config_of(), model)


def test_a_classifier_is_neither_sampled_nor_evaluated(run):
    config = config_of()
    config.eval.num_samples = 80
    config.eval.steps = (300,)
    for use in (sample.run, sweep.evaluate):
        with pytest.raises(UserError, match=r'holds a classifier, not a model: give the workdir of a model'):
            use(config, run)
    config.sampling.uncond_workdir = str(run)
    with pytest.raises(UserError, match=r'holds a classifier, not a model'):
        TrainedRun.beside(config, config.sampling.uncond_workdir, what='config.sampling.uncond_workdir', kind='model')


def test_a_model_is_not_opened_as_a_classifier(model, tmp_path):
    with pytest.raises(UserError, match=r'holds a model, not a classifier: give the workdir of a classifier'):
        open_run(model)
    with pytest.raises(UserError, match=r'none does not exist: give the workdir of a classifier'):
        open_run(tmp_path / 'none')
    with pytest.raises(UserError, match='holds no checkpoints'):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ('part', 'field', 'value'),
    [
        ('classifier', 'norm_groups', 2),
        ('classifier', 'head_channels', 4),
        ('classifier', 'dropout', 0.2),
        ('model', 'time', 'adm_cosine'),
        ('diffusion', 'logsnr_max', 10.0),
        ('data', 'split', 'all'),
    ],
)
def test_training_goes_on_with_what_the_classifier_means_and_nothing_else(run, part, field, value):
    config = config_of(num_steps=6)
    config[part][field] = value
    with pytest.raises(UserError, match=rf'config\.{part}\.{field}=.*, not {value!r}'):
        loop.train(config, run)


def test_fields_have_ranges():
    for part, field, value in (
        ('train', 'kind', 'clasifier'),
        ('classifier', 'dropout', 1.0),
        ('train', 'decay_steps', 3),
        ('train', 'decay_steps', -1),
    ):
        config = config_of()
        config[part][field] = value
        with pytest.raises(UserError, match=rf'config\.{part}\.{field}={value!r}'):
            check_config(config)


# ---- the classifier of a workdir


def test_a_classifier_is_read_with_its_own_network(run):
    """Whatever the config of the model says of classifiers; its own head count changes no shape."""
    config = small_config()
    config.classifier.head_channels = 64
    config.classifier.channels = 128
    config.model.time = 'adm_cosine'
    classifier = open_run(run, config)
    assert (classifier.network.head_channels, classifier.network.norm_groups) == (8, 4)
    assert (classifier.logsnr_max, classifier.imported) == (20.0, False)
    assert f'ema_params_sha256: {classifier.sha256}' in status_of(run)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.float32)
    network = build_classifier(config_of(), spec_of(config_of()))
    with Checkpoints(run, read_only=True) as checkpoints:
        params = checkpoints.restore_params(4, ema=True)
    logsnr = jnp.float32([-20, 0, 20])
    logits = jax.jit(classifier.bind(classifier.params()))(z, logsnr)
    assert logits.shape == (3, CLASSES)
    np.testing.assert_allclose(logits, jax.jit(network.apply)({'params': params}, z, logsnr), atol=1e-5)
    # One level for all is the same as that level for each.
    one = jax.eval_shape(classifier.bind(classifier.params()), z, jnp.float32(-1.0))
    assert one.shape == (3, CLASSES)


def test_the_gradient_of_log_p_is_finite_at_every_level_and_true(run):
    """Against a difference in float32, along the gradient."""
    classifier = open_run(run)
    logits_fn = classifier.bind(classifier.params())
    z = jnp.asarray(np.random.default_rng(1).normal(size=(3, *SHAPE)), jnp.float32)
    labels = jnp.array([[0], [4], [9]])

    @jax.jit
    def log_p(z, logsnr):
        return jnp.take_along_axis(jax.nn.log_softmax(logits_fn(z, logsnr)), labels, axis=1).sum()

    slope = jax.jit(jax.grad(log_p))
    for logsnr in ([-20.0, 0.0, 20.0], [20.0, -20.0, 1.0]):
        gradient = slope(z, jnp.float32(logsnr))
        assert np.isfinite(gradient).all()
        norm = float(jnp.linalg.norm(gradient))
        direction = gradient / norm
        h = 0.05
        difference = (log_p(z + h * direction, jnp.float32(logsnr)) - log_p(z - h * direction, jnp.float32(logsnr))) / (
            2 * h
        )
        assert difference == pytest.approx(norm, rel=0.05)


def test_a_classifier_of_other_data_or_levels_is_refused(run):
    with pytest.raises(UserError, match=r'holds a classifier of digits \(images \(8, 8, 1\), 10 classes\), .*16, 16'):
        open_run(run, shape=(16, 16, 1))
    with pytest.raises(UserError, match=r'not of digits \(images \(8, 8, 1\), 11 classes'):
        open_run(run, classes=11)
    config = config_of()
    config.data.name = 'folder:/data/digits8'
    with pytest.raises(UserError, match='give one of the same data'):
        open_run(run, config)


def test_a_model_is_not_guided_at_levels_that_the_classifier_has_not_seen(run):
    config = config_of()
    config.diffusion.logsnr_max = 19.0  # a part of what it knows
    open_run(run, config)
    wider = config_of()
    wider.diffusion.logsnr_max = 20.5
    with pytest.raises(
        UserError, match=r'trained on logsnr from -20 to 20, and the model is sampled from -20 to 20\.5'
    ):
        open_run(run, wider)


def test_accuracy_by_a_trained_classifier(run, monkeypatch):
    """The features stay those of the feature network, and the classes are the classifier's at the cleanest level."""
    config = config_of()
    config.eval.classifier_workdir = str(run)
    config.eval.batch_size = 64
    images = digits('test').images[:100]

    def extract(images):
        return Features(np.ones((len(images), 2)), None, np.zeros((len(images), 2)), None)

    monkeypatch.setattr(
        opening, 'small_classifier', lambda *_, **__: FeatureNetwork('f', 'x', None, 2, 0, SHAPE, extract, None, run)
    )
    network = opening.open_features(config, SHAPE, 'the test')
    classifier = open_run(run)
    z = jnp.float32(images) / 127.5 - 1
    logits = jax.jit(classifier.bind(classifier.params()))(z, jnp.float32(20.0))
    np.testing.assert_array_equal(network.extract(images).pool, 1.0)
    np.testing.assert_array_equal(network.extract(images).classes, logits.argmax(axis=1))
    assert re.fullmatch('noise-aware classifier [0-9a-f]{16}', network.classifier)


# ---- the command


def test_describe_tells_of_the_classifier():
    config = config_of()
    text = describe.describe(config, num_devices=1)
    assert 'a classifier of noisy images' in text
    assert 'pool/positions' in text
    assert 'sampling' not in text
    assert 'training memory of a device' in text


def test_the_classifier_of_imagenet_is_adms():
    config = imagenet64_classifier.get_config()
    check_config(config)
    spec = spec_of(config)
    params = abstract_params(build_trained(config, spec), spec)
    assert sum(x.size for x in jax.tree.leaves(params)) == 65_438_568  # as in the released file
