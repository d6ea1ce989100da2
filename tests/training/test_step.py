import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfg.data.digits import digits
from cfg.data.images import to_float
from cfg.data.pipeline import train_batches
from cfg.diffusion import loss
from cfg.runs import state
from cfg.runtime import parallel
from cfg.runtime.digest import sha256
from cfg.runtime.errors import UserError
from cfg.settings.networks import build_network, init_params
from cfg.training import build
from cfg.training.optimizer import learning_rate_schedule, optimizer
from cfg.training.step import example_keys, mean_gradient, train_step
from tests.conftest import small_config


def config_of(**train):
    config = small_config()
    config.train.update(train)
    return config


def run(config, *, devices, steps=3):
    """The state after a few steps on the digits, on the first `devices` devices, and the last metrics."""
    devices = jax.local_devices()[:devices]
    source = digits('all')
    network = build_network(config, source)
    params = init_params(network, source, seed=config.seed)
    # Zero-initialised layers would hide most of the network's gradients from a comparison.
    params = jax.tree.map(lambda x: x + 0.05 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32), params)
    step = build.step_of(config, network, build.make_optimizer(config), devices)
    replicated = parallel.replicate(state.create(params, build.make_optimizer(config)), devices)
    batches = train_batches(source, batch_size=config.train.batch_size, seed=config.seed, start_step=0)
    for _ in range(steps):
        replicated, metrics = step(
            replicated, parallel.shard(next(batches), devices), parallel.number_for_each(0, devices)
        )
    return params, parallel.unreplicate(replicated), parallel.unreplicate(metrics)


def assert_close(a, b, tolerance=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=1e-4)


def test_two_devices_with_pieces_train_like_one_device():
    """Mean over devices and accumulation are both the mean over the batch; dropout and noise follow the example."""
    start, one, metrics = run(config_of(grad_accum=1), devices=1)
    _, other, metrics_other = run(config_of(grad_accum=2), devices=2)
    assert int(one.step) == 3
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (start, one.params)), strict=True)) > 1e-4
    assert_close(other.params, one.params)
    assert_close(other.ema_params, one.ema_params)
    np.testing.assert_allclose(metrics_other['loss'], metrics['loss'], rtol=1e-5)
    np.testing.assert_allclose(metrics_other['grad_norm'], metrics['grad_norm'], rtol=1e-4)


def test_a_step_that_is_not_finite_leaves_everything_but_its_number():
    tx = optimizer(learning_rate=0.1, warmup_steps=3, beta1=0.9, beta2=0.999, weight_decay=0.0, grad_clip=1.0)
    before = state.create({'a': jnp.array([3.0, -2.0])}, tx)
    batch = {'image': np.zeros((2, 1, 1, 1), np.uint8), 'label': np.zeros(2, np.int32), 'index': np.arange(2)}

    def run(start, factor, skip):
        return train_step(
            start,
            batch,
            loss_fn=lambda params, images, labels, keys, index: (factor * jnp.sum(params['a']) * jnp.ones(2), {}),
            tx=tx,
            ema_decay=0.5,
            grad_accum=1,
            seed=0,
            mean_over_devices=lambda tree: tree,
            skip_nonfinite=skip,
        )

    for factor in (jnp.nan, jnp.inf):
        after, metrics = run(before, factor, True)
        assert int(after.step) == 1
        jax.tree.map(np.testing.assert_array_equal, after[1:], before[1:])
        assert not np.isfinite(metrics['grad_norm'])
        np.testing.assert_allclose(metrics['param_norm'], np.sqrt(13.0), rtol=1e-6)
    # Where all is finite, nothing changes by looking.
    jax.tree.map(np.testing.assert_array_equal, run(before, 1.0, True)[0], run(before, 1.0, False)[0])


def test_a_step_is_adam_on_the_clipped_gradient_with_ema():
    """One step of a linear model, against Adam's first step written out: lr * sign(g) up to eps."""
    params = {'a': jnp.array([3.0, -2.0])}
    tx = optimizer(learning_rate=0.1, warmup_steps=0, beta1=0.9, beta2=0.999, weight_decay=0.0, grad_clip=1.0)

    def loss_fn(params, images, labels, keys, index):
        return jnp.sum(params['a'] * jnp.array([30.0, 40.0])) * jnp.ones(len(labels)), {}

    batch = {
        'image': np.zeros((4, 1, 1, 1), np.uint8),
        'label': np.zeros(4, np.int32),
        'index': np.arange(4, dtype=np.int32),
    }
    new, metrics = train_step(
        state.create(params, tx),
        batch,
        loss_fn=loss_fn,
        tx=tx,
        ema_decay=0.75,
        grad_accum=1,
        seed=0,
        mean_over_devices=lambda tree: tree,
    )
    np.testing.assert_allclose(new.params['a'], [2.9, -2.1], rtol=1e-5)
    np.testing.assert_allclose(new.ema_params['a'], [3.0 - 0.025, -2.0 - 0.025], rtol=1e-5)
    assert float(metrics['grad_norm']) == pytest.approx(50.0)
    assert int(new.step) == 1
    # The clipped gradient [0.6, 0.8], not [30, 40], is what Adam's second moment saw.
    nu = next(s.nu['a'] for s in jax.tree.leaves(new.opt_state, is_leaf=lambda s: hasattr(s, 'nu')) if hasattr(s, 'nu'))
    np.testing.assert_allclose(nu, 0.001 * np.array([0.36, 0.64]), rtol=1e-4)


def test_warm_up_and_weight_decay():
    """With a constant gradient Adam moves by the learning rate, which grows linearly and then stays."""
    tx = optimizer(learning_rate=0.1, warmup_steps=4, beta1=0.9, beta2=0.999, weight_decay=0.0, grad_clip=0.0)
    params, opt_state, moves = jnp.array(0.0), tx.init(jnp.array(0.0)), []
    for _ in range(6):
        updates, opt_state = tx.update(jnp.array(1.0), opt_state, params)
        moves.append(-float(updates))
    np.testing.assert_allclose(moves, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-4)
    rate = learning_rate_schedule(0.1, warmup_steps=4, decay_steps=8)
    np.testing.assert_allclose([rate(i) for i in (0, 2, 3, 4, 8, 9)], [0.025, 0.05625, 0.0625, 0.05, 0, 0], rtol=1e-6)

    tx = optimizer(learning_rate=0.1, warmup_steps=0, beta1=0.9, beta2=0.999, weight_decay=0.5, grad_clip=0.0)
    updates, _ = tx.update(jnp.array(0.0), tx.init(jnp.array(2.0)), jnp.array(2.0))
    assert float(updates) == pytest.approx(-0.1 * 0.5 * 2.0)


def test_example_keys_follow_seed_step_and_place():
    keys = {
        (seed, step): jax.random.key_data(example_keys(seed, step, jnp.arange(5))) for seed in (0, 1) for step in (0, 1)
    }
    every = np.concatenate([np.asarray(k) for k in keys.values()])
    assert len({tuple(row) for row in every.tolist()}) == 20
    part = jax.random.key_data(example_keys(0, 1, jnp.array([3, 4])))
    assert np.array_equal(part, keys[0, 1][3:])


def test_accumulated_gradient_is_the_gradient_of_the_mean():
    rng = np.random.default_rng(0)
    batch, w = jnp.array(rng.normal(size=(12, 3))), jnp.array(rng.normal(size=3))
    keys = jax.random.split(jax.random.key(0), 12)

    def loss_fn(w, x, keys):
        return (x @ w) ** 2 + jax.vmap(jax.random.uniform)(keys) * w[0], {'x': x[:, 0], 'pair': (x[:, 1], x[:, 2])}

    (value, others), gradient = mean_gradient(loss_fn, w, batch, keys, grad_accum=1)
    x, u = np.asarray(batch), np.asarray(jax.vmap(jax.random.uniform)(keys))
    np.testing.assert_allclose([others['x'], *others['pair']], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(value, np.mean((x @ w) ** 2 + u * w[0]), rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * (x * (x @ np.asarray(w))[:, None]).mean(0) + [u.mean(), 0, 0], rtol=1e-5)
    for pieces in (2, 3, 12):
        assert_close(mean_gradient(loss_fn, w, batch, keys, grad_accum=pieces), ((value, others), gradient), 1e-6)


def test_stratified_times_cover_the_batch(monkeypatch):
    """One u in each of batch_size strata, whichever part of the batch a device holds."""
    seen = []
    monkeypatch.setattr(
        loss,
        'denoising_loss',
        lambda network, x, labels, draws, **_: seen.append(draws.u_time) or jnp.zeros(len(labels)),
    )
    for stratified in (True, False):
        config = config_of(stratified=stratified, batch_size=64)
        loss_fn = build.objective_of(config, build_network(config, digits('all')))
        for part in (jnp.arange(32), jnp.arange(32, 64)):
            loss_fn({}, jnp.zeros((32, 8, 8, 1)), jnp.zeros(32, jnp.int32), example_keys(0, 0, part), part)
    even, free = np.concatenate(seen[:2]), np.concatenate(seen[2:])
    assert np.array_equal(np.floor(even * 64), np.arange(64))
    assert len(np.unique(np.floor(free * 64))) < 60


def test_a_batch_that_does_not_divide_over_devices_is_refused():
    with pytest.raises(UserError, match=r'train\.batch_size=18 does not divide over 4 devices: use 16'):
        parallel.per_device(18, 'train.batch_size')
    assert parallel.per_device(16, 'train.batch_size') == 4


def test_shard_and_unshard_are_inverse():
    tree = {'a': np.arange(24).reshape(12, 2), 'b': np.arange(12)}
    sharded = parallel.shard(tree)
    assert sharded['a'].shape == (4, 3, 2)
    back = parallel.unshard(sharded)
    assert all(np.array_equal(back[name], tree[name]) for name in tree)


def test_replicate_and_unreplicate_are_inverse():
    tree = {'a': np.arange(6.0, dtype=np.float32).reshape(2, 3), 'b': np.int32(7)}
    copies = parallel.replicate(tree)
    assert copies['a'].shape == (4, 2, 3)
    back = parallel.unreplicate(copies)
    assert back['a'].shape == (2, 3)
    assert np.array_equal(back['a'], tree['a'])
    assert back['b'] == 7


def test_sha256_tells_parameters_apart():
    params = {'x': np.zeros(3, np.float32), 'y': np.ones((2, 2), np.float32)}
    digest = sha256(params)
    assert digest == sha256({'y': jnp.ones((2, 2)), 'x': jnp.zeros(3)})
    for changed in (
        params | {'x': np.float32([0, 0, -0.0])},
        params | {'x': np.zeros((3, 1), np.float32)},
        params | {'x': np.zeros(3, np.float64)},
        {'z': params['x'], 'y': params['y']},
    ):
        assert sha256(changed) != digest


def test_the_whole_loss_learns():
    """Forty steps on four images lower the loss well below that of predicting zero, which is 1."""
    config = config_of(p_uncond=0.0, learning_rate=5e-3, warmup_steps=1, stratified=True)
    source = digits('all')
    network = build_network(config, source)
    loss_fn = build.objective_of(config, network)
    params = init_params(network, source, seed=0)
    tx = optax.adam(5e-3)
    batch = source.fetch(np.arange(16) % 4)
    index = jnp.arange(16)

    @jax.jit
    def step(params, opt_state, i):
        keys = example_keys(0, i, index)
        mean = lambda p: jnp.mean(loss_fn(p, to_float(batch['image']), batch['label'], keys, index)[0])  # noqa: E731
        value, grads = jax.value_and_grad(mean)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state, losses = tx.init(params), []
    for i in range(60):
        params, opt_state, value = step(params, opt_state, i)
        losses.append(float(value))
    assert losses[0] == pytest.approx(1.0, abs=0.15)
    assert np.mean(losses[-5:]) < 0.6


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'kind': 'classifier', 'loss_weight': 'eps'}, "loss_weight='eps' must be '' with train.kind='classifier'"),
        ({'kind': 'student', 'loss_weight': 'edm'}, "loss_weight='edm' must be '' with train.kind='student'"),
        ({'kind': 'classifier', 'augment': 0.1}, "augment=0.1 must be 0 with train.kind='classifier', which is not"),
        ({'loss_weight': 'v'}, "loss_weight='v' must be '', 'eps' or 'edm' where the network predicts eps"),
        ({'loss_weight': 'sigmoid'}, "loss_weight='sigmoid' must be '', 'eps' or 'edm' where"),
        ({'loss_weight': 'eps', 'times': 'edm'}, "times='edm' must be 'paper' unless train.loss_weight='edm'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, sentence):
    config = config_of(**{name: value for name, value in changes.items() if name != 'augment'})
    config.data.augment = changes.get('augment', 0.0)
    with pytest.raises(UserError, match=sentence):
        build.check_trainable(config)


def test_augmentation_follows_the_example_and_the_network_is_told():
    config = config_of(grad_accum=1)
    config.data.augment = 0.9
    start, one, _ = run(config, devices=1)
    assert start['augment']['kernel'].shape == (9, config.model.channels)
    config.train.grad_accum = 2
    _, other, _ = run(config, devices=2)
    assert_close(other.params, one.params)
    network = build_network(config, digits('all'))
    inputs = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.zeros(2), jnp.arange(2)
    told = [network.apply({'params': one.params}, *inputs, augment=x) for x in (None, jnp.zeros((2, 9)), jnp.eye(2, 9))]
    np.testing.assert_array_equal(told[0], told[1])
    assert np.abs(told[2] - told[0]).max() > 1e-4
    plain = {name: value for name, value in one.params.items() if name != 'augment'}
    without = build_network(config_of(), digits('all')).apply({'params': plain}, *inputs)
    np.testing.assert_allclose(told[0], without, atol=1e-6)


@pytest.mark.parametrize('kind', ['model', 'guidance_free'])
def test_the_weight_of_a_config_reaches_the_loss(kind):
    """Of the same draws: 'eps' is the plain loss, and EDM's levels and weight are none of it."""
    source = digits('all')
    batch = next(train_batches(source, batch_size=16, seed=0, start_step=0))
    keys = example_keys(0, 0, batch['index'])

    def losses(**train):
        config = config_of(kind=kind, **train)
        network = build_network(config, source)
        params = jax.tree.map(lambda x: x + 0.05, init_params(network, source, seed=0))
        inputs = to_float(batch['image']), batch['label'], keys, batch['index']
        return np.asarray(build.objective_of(config, network)(params, *inputs)[0])

    plain = losses()
    np.testing.assert_array_equal(losses(loss_weight='eps'), plain)
    weighted = losses(loss_weight='edm')
    assert np.all(weighted > 0)
    assert not np.allclose(weighted / plain, 1.0)
    assert not np.allclose(losses(loss_weight='edm', times='edm'), weighted)
