"""Holds the parts of benchmarks/accelerator.py: each is a function that yields a row as soon as it knows one.

Rates, memory and utilisation are those of one device, and a batch is a device's share. Kernels are random where time
alone counts. Nothing here needs more than jax, flax, optax and ml_collections.
"""

import functools
import importlib.util
import itertools
import json
import platform
import re
import statistics as stats
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import common, evaluation, sampling, side_by_side, train_step
from benchmarks.accelerator import Row, Run, row
from cfg.diffusion import schedule
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.solvers import SOLVERS
from cfg.models.attention import attention, kernel_of
from cfg.runtime import parallel
from cfg.runtime.errors import UserError, first_line, out_of_memory
from cfg.runtime.targets import CHIPS
from cfg.settings.data import open_source, spec_of
from cfg.settings.networks import build_network
from cfg.settings.sampler import read_sampler

GIB = 2.0**30
# The kernel for attention that a platform has, and what a program that calls it holds.
FLASH = {'gpu': 'cudnn', 'tpu': 'splash'}
CALLS = {'cudnn': '"__cudnn$fmha', 'splash': '"tpu_custom_call"'}
FIRST_BATCH = {'imagenet64': 64, 'imagenet128': 16}
W = 1.0  # of guided samples
FEW = 8  # steps that are timed in the place of T
GUIDED = f'{SOLVERS[0].name}, w={W:g}'


def relative(got: Any, expected: Any) -> float:
    """Returns |got - expected| / |expected| over all arrays of a tree, in float64."""
    a, b = (np.concatenate([np.float64(x).ravel() for x in jax.tree.leaves(tree)]) for tree in (got, expected))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def on_host(fn: Callable, *args: Any) -> Any:
    """Computes on the host's CPU, where float32 products are just that; returns numpy."""
    return jax.device_get(jax.jit(fn)(*jax.device_put(args, jax.local_devices(backend='cpu')[0])))


def calls(kernel: str, program: Any) -> dict[str, int]:
    """Counts the calls of a kernel in a compiled program; {} for XLA's own products."""
    return {f'calls of {kernel}': program.as_text().count(CALLS[kernel])} if kernel in CALLS else {}


def unless_out_of_memory(do: Callable[[], Any]) -> Any:
    """Returns what a function does; None if the memory does not suffice."""
    try:
        return do()
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error, ''):
            return None
        raise


def timed(run: Run, work: common.Work, *, units: int) -> dict[str, float | None]:
    """Times some units of work after the one that compiles; peak memory is that of the part so far."""
    times = common.measure(work, units=1 if run.tiny else units, warmup=0)
    seconds, count = stats.median(times.units), jax.local_device_count()
    best = common.peak_flops(jax.local_devices()[0].device_kind)
    memory = parallel.memory().get('device_memory_peak_bytes')
    return {
        'images/s': work.images / count / seconds,
        'ms': 1e3 * seconds,
        'utilisation': work.flops / count / seconds / best if best and work.flops else None,
        'peak GiB': memory and memory / GIB,
        'compile s': max(times.first - seconds, 0.0),
    }


def device(run: Run) -> Iterator[Row]:
    """Names the device and the versions."""
    first = jax.local_devices()[0]
    peak, memory = common.peak_flops(first.device_kind), (first.memory_stats() or {}).get('bytes_limit')
    figures = {'count': jax.local_device_count(), 'GiB': memory and memory / GIB, 'TFLOP/s': peak and peak / 1e12}
    versions = f'Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}'
    yield row(first.device_kind, figures, f'{first.platform}; {versions}')


def unet(run: Run) -> Iterator[Row]:
    """Compares forward pass and gradient of a narrow UNet with float32 on the host."""
    narrow = {'model.channels': 64, 'model.channel_mult': (1, 2, 3), 'model.num_res_blocks': 1}
    narrow |= {'model.attention_resolutions': (32, 16)}  # which the host compiles and computes in seconds
    config = run.config('imagenet64', **({} if run.tiny else narrow))
    spec, rng = spec_of(config), np.random.default_rng(0)
    network = build_network(config, spec)
    params = common.random_params(network, spec)
    z = rng.standard_normal((2, *spec.image_shape), np.float32)
    inputs = (z, np.float32([-3.0, 4.0]), np.int32([1, spec.num_classes]))

    def outputs(network, params, *inputs):
        def loss(params):
            output = network.apply({'params': params}, *inputs)
            return jnp.mean(output**2), output

        (_, output), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return output, gradient

    host = network.clone(dtype=jnp.float32, attention_kernel='xla')
    exact = on_host(functools.partial(outputs, host), params, *inputs)
    note = f'{config.model.channels} channels, {config.model.num_res_blocks} blocks, against float32 on the host'
    for name, dtype in (('float32, default precision', jnp.float32), ('bfloat16', jnp.bfloat16)):
        program = jax.jit(functools.partial(outputs, network.clone(dtype=dtype))).lower(params, *inputs).compile()
        forward, gradient = (relative(*pair) for pair in zip(program(params, *inputs), exact, strict=True))
        kernel = network.attention_kernel if name == 'bfloat16' else ''
        yield row(name, {'forward error': forward, 'gradient error': gradient} | calls(kernel, program), note)


def attention_kernels(run: Run) -> Iterator[Row]:
    """Compares the platform's kernels for attention with float32 on the host, with gradients, and times them."""
    rng, auto = np.random.default_rng(0), kernel_of('auto')
    for shape in [(2, 128, 1, 8)] if run.tiny else [(8, 1024, 6, 64), (8, 256, 9, 64), (8, 1024, 4, 128)]:
        arrays = [rng.standard_normal(shape, np.float32).astype(jnp.bfloat16) for _ in range(4)]

        def both(kernel, q, k, v, weights):
            output, pull = jax.vjp(functools.partial(attention, kernel=kernel), q, k, v)
            return output, pull(weights)

        exact = on_host(functools.partial(both, 'xla'), *(x.astype(np.float32) for x in arrays))
        for kernel in dict.fromkeys([FLASH.get(jax.default_backend(), 'xla'), 'xla']):
            what = f'{kernel} {"x".join(map(str, shape))}'
            try:
                program = jax.jit(functools.partial(both, kernel)).lower(*arrays).compile()
                times = common.time_units(program, *jax.device_put(arrays), repeats=1 if run.tiny else 10)
            except Exception as error:  # one kernel of several
                yield row(what, {}, f'does not serve here: {first_line(error)}')
                continue
            figures = {'error': relative(program(*arrays), exact), 'ms': 1e3 * stats.median(times)}
            note = f"bfloat16 with gradients, against float32 on the host; 'auto' is {auto}"
            yield row(what, figures | calls(kernel, program), note)


def ancestral(run: Run) -> Iterator[Row]:
    """Draws guided samples by Alg. 2 with the exact eps of a Gaussian; they have a known mean and variance."""
    count, sampler = (2**12, Sampler(num_steps=16, clip_x=False)) if run.tiny else (2**20, Sampler(clip_x=False))

    def eps(z, logsnr, labels):
        alpha, sigma = schedule.alpha_sigma(jnp.broadcast_to(logsnr, labels.shape))
        mean, deviation = (jnp.float32(values)[labels] for values in (MEANS, DEVIATIONS))
        return (sigma * (z[:, 0] - alpha * mean) / (alpha**2 * deviation**2 + sigma**2))[:, None]

    def draw(seed):
        keys, labels = jax.random.split(jax.random.key(seed), count), jnp.zeros(count, jnp.int32)
        return sampler.sample(Models(Denoiser(eps, 1)), keys, labels, jnp.float32(W), shape=(1,))

    samples = np.float64(jax.jit(draw)(0))
    mean, variance = gaussian_moments(sampler)
    figures = {
        'mean': float(samples.mean()),
        'exact mean': mean,
        'variance': float(samples.var()),
        'exact variance': variance,
        'mean off by': float((samples.mean() - mean) / np.sqrt(variance / count)),
        'variance off by': float((samples.var() / variance - 1) / np.sqrt(2 / count)),
    }
    note = f'{count} samples; off by standard errors, of which 3 are chance'
    yield row(f'T={sampler.num_steps}, w={W:g}', figures, note)


# Of the Gaussians of the label and of the null label.
MEANS, DEVIATIONS = np.array([0.4, -0.2]), np.array([0.5, 1.0])


def gaussian_moments(sampler: Sampler) -> tuple[float, float]:
    """Computes mean and variance of what Alg. 2 draws with these Gaussians, as all is linear; in float64."""
    levels = np.float64(sampler.grid.levels(sampler.num_steps, logsnr_min=-20.0, logsnr_max=20.0))
    alphas, sigmas = np.sqrt(1 / (1 + np.exp(-levels))), np.sqrt(1 / (1 + np.exp(levels)))
    weights, v = np.array([1 + W, -W]), sampler.solver.logvar_interp
    mean, variance = 0.0, 1.0
    for t, (alpha, sigma) in enumerate(zip(alphas, sigmas, strict=True)):
        slopes = sigma / (alpha**2 * DEVIATIONS**2 + sigma**2)  # eps = slope (z - alpha mean), and Eq. 6 of both
        x = (1 - sigma * weights @ slopes) / alpha, sigma * weights @ (slopes * MEANS)  # of z and 1
        if t + 1 < len(levels):
            kept, left = np.exp(levels[t] - levels[t + 1]), -np.expm1(levels[t] - levels[t + 1])
            onto = kept * alphas[t + 1] / alpha + left * alphas[t + 1] * x[0]  # Eq. 3
            noise = (left * sigmas[t + 1] ** 2) ** (1 - v) * (left * sigma**2) ** v  # Eq. 4
            mean, variance = onto * mean + left * alphas[t + 1] * x[1], onto**2 * variance + noise
    return float(x[0] * mean + x[1]), float(x[0] ** 2 * variance)


def inception(run: Run) -> Iterator[Row]:
    """Times Inception, and compares its features with float32 on the host, as such and as FID."""
    from cfg.features.inception import Inception
    from cfg.features.network import default_cache, inception_features
    from cfg.features.weights import INCEPTION_FILES, load_weights
    from cfg.metrics.distances import fid
    from cfg.metrics.moments import Moments

    config = run.config('imagenet64')
    for batch in (4,) if run.tiny else (64, 256):
        config.eval.batch_size = batch * jax.local_device_count()
        figures = timed(run, evaluation.prepare_inception(config), units=5)
        yield row(f'batch {batch}', figures, f'{config.data.image_size} pixels, features to the host')

    try:
        params, weights = load_weights(INCEPTION_FILES, '', default_cache('')).params, 'its weights'
    except UserError:
        params, weights = evaluation.random_inception(), 'random weights, as the file is not there'
    count, width = (4, 16) if run.tiny else (128, 2048)
    shape = (count, *spec_of(config).image_shape)
    images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)

    def pool(params, images):
        return Inception().apply({'params': params}, images).pool

    exact = on_host(pool, params, images)
    reference = Moments.of(exact[:, :width])
    for name, fn in (('as evaluated', lambda *args: inception_features(*args).pool), ('default precision', pool)):
        got = np.asarray(jax.jit(fn)(params, images))
        distance = fid(Moments.of(got[:, :width]), reference)
        total = float(np.trace(reference.covariance()))
        figures = {'error': relative(got, exact), 'FID': distance, 'FID/variance': distance / total}
        yield row(name, figures, f'{count} images, {weights}, against float32 on the host')


def training(run: Run, name: str, remat: str = '') -> Iterator[Row]:
    """Times the training step at batches that double until one does not fit or the time is over."""
    config = run.config(name, **{'train.remat': bool(remat)})
    batch, largest = (4, 8 if name == 'imagenet64' and not remat else 4) if run.tiny else (FIRST_BATCH[name], 2**20)
    tried, spent = set(), 0.0
    while 0 < batch <= largest and batch not in tried and time.monotonic() + spent < run.end:
        tried.add(batch)
        begin = time.monotonic()
        config.train.batch_size = batch * jax.local_device_count()
        figures = unless_out_of_memory(lambda: timed(run, train_step.prepare(config), units=8))
        yield row(f'batch {batch}', figures or {}, '' if figures else 'does not fit')
        spent = time.monotonic() - begin
        batch = 2 * batch if figures else batch // 2


def sampling_rates(run: Run, name: str) -> Iterator[Row]:
    """Times sampling: the paper's with and without guidance, an interval, a shared encoder, and every other solver."""
    cases = [
        (SOLVERS[0].name, {}, (W, 0.0)),
        ('interval', {'sampling.guidance': 'cfg(interval=(-3, 3))'}, (W,)),
        ("label_in='decoder'", {'model.label_in': 'decoder'}, (W,)),
        *[(solver.name, {'sampling.sampler': solver.name}, (W,)) for solver in SOLVERS[1:]],
    ]
    batch = run.config(name).sampling.batch_size
    for what, changes, ws in cases[:1] if run.tiny and name != 'imagenet64' else cases:
        rows: list[Row] | None = None
        while batch and rows is None:
            config = run.config(name, **changes)
            config.sampling.batch_size = batch * jax.local_device_count()
            rows = unless_out_of_memory(lambda: samples(run, config, what, ws))  # noqa: B023
            yield from [row(what, {}, f'batch {batch} does not fit')] if rows is None else rows
            batch = batch // 2 if rows is None else batch


def samples(run: Run, config: ConfigDict, what: str, ws: tuple[float, ...]) -> list[Row]:
    """Times FEW steps at each w, which are one program; the rate is scaled to T by the predictions that both take."""
    draw, rows = sampling.drawer(config, num_steps=FEW), []
    for w in ws:
        few, full = (read_sampler(config, num_steps=t).passes(w).total for t in (FEW, config.sampling.num_steps))
        figures = timed(run, draw(w), units=2)
        figures['images/s'] *= few / full
        figures['batch'] = config.sampling.batch_size // jax.local_device_count()
        note = f'ms of {FEW} steps ({few} predictions); images/s scaled to T={config.sampling.num_steps} ({full})'
        rows.append(row(f'{what}, w={w:g}', figures, note))
    return rows


def statistics(run: Run) -> Iterator[Row]:
    """Times everything of an evaluation but the networks, on the host."""
    config, (num_real, widths) = run.config('imagenet64'), (20, (16, 8)) if run.tiny else (10_000, None)
    with tempfile.TemporaryDirectory() as folder:
        for part in evaluation.other_parts(config, num_real=num_real, folder=Path(folder), widths=widths):
            yield row(part.name, {'s': part.seconds}, f'{config.eval.num_samples} samples, {part.how}')


def hours(run: Run) -> Iterator[Row]:
    """Computes the hours of one w from the rates of the parts before."""
    options = run.config('imagenet64').eval
    parts = [evaluation.Part(name, figures['s'], '') for name, figures in run.found('statistics').items()]
    seconds = [part.seconds for part in evaluation.with_savings(parts, options.save_seconds)]
    features = [figures['images/s'] for figures in run.found('inception').values() if 'images/s' in figures]
    for size in ('64', '128'):
        drawn = run.found(f'sample{size}').get(GUIDED)
        figures = {
            'sampling': options.num_samples / drawn['images/s'] / 3600 if drawn else None,
            'features': options.num_samples / max(features) / 3600 if features else None,
            'statistics': sum(seconds) / 3600 if 'saving' in run.found('statistics') else None,
        }
        figures['all'] = None if None in figures.values() else sum(figures.values())
        note = f'hours of {options.num_samples} samples at w={W:g} on one device, computed from the rows above'
        yield row(f'imagenet{size}', figures, note)


def digits(run: Run) -> Iterator[Row]:
    """Trains the network of the digits on one batch, for its speed and to see its loss fall, and samples."""
    config, steps = run.config('digits'), 3 if run.tiny else 300
    try:
        source = open_source(config)
        data, note = source.fetch(range(config.train.batch_size)), 'of the digits'
    except ImportError:
        data, note = None, 'of random images, as scikit-learn is not there'
    config.train.batch_size *= jax.local_device_count()
    work = train_step.prepare(config, data)
    ends, losses = [time.perf_counter()], []
    for _ in range(steps):
        losses.append(float(parallel.unreplicate(work.start()['loss'])))
        ends.append(time.perf_counter())
    figures = {'s': ends[-1] - ends[0], 'first step s': ends[1] - ends[0]}
    figures |= {'loss at first': stats.mean(losses[:20]), 'at last': stats.mean(losses[-20:])}
    yield row(f'{steps} steps', figures, f'of {config.train.num_steps} in configs/digits.py, one batch {note}')
    config.sampling.batch_size *= jax.local_device_count()
    work = sampling.drawer(config, num_steps=config.sampling.num_steps)(W)
    figures = timed(run, work, units=5)
    yield row(f'{work.images} samples', figures, f'T={config.sampling.num_steps}, w={W:g}')


def peer(run: Run) -> Iterator[Row]:
    """Times guided-diffusion's network in PyTorch on the same device, beside what the parts before measured."""
    requests = list(itertools.chain(_requests(run, '64'), _requests(run, '128')))
    missing = {
        'a clone of openai/guided-diffusion as --peer': not Path(run.peer, 'guided_diffusion', 'unet.py').is_file(),
        'torch': importlib.util.find_spec('torch') is None,
        'measurements of ours': not requests,
    }
    if any(missing.values()):
        yield row('PyTorch', {}, f'not run; missing: {", ".join(name for name in missing if missing[name])}')
        return
    on_cpu = 'cpu' in run.found('device')
    for compiling, (what, request, ours) in itertools.product(('', ',compiled'), requests):
        kept = ',not-checkpointed' if request['what'] == 'training' else ''
        variant = f'channels-last{kept}{compiling}'
        command = [sys.executable, str(Path(__file__).with_name('peer.py')), run.peer, json.dumps(request)]
        with side_by_side.Child('PyTorch', command, {}) as child:
            hello = child.answer()
            if (hello['device'] == 'cpu') != on_cpu:
                raise UserError(f'PyTorch runs on {hello["device"]}, and JAX does not')
            answer = child.ask(f'try {variant}')
            # A compiled network may still compile in the units after the first.
            units = [child.ask('go 4')['seconds'] / 4 for _ in range(3)] if 'seconds' in answer else []
        theirs = 1e3 * min(units) if units else None
        figures = {'theirs ms': theirs, 'ours ms': ours, 'ours/theirs': theirs and theirs / ours}
        note = f'batch {request["batch_size"]}, torch {hello["torch"]} on {hello["device"]}; ratio of throughputs'
        yield row(f'{what}, {variant}', figures, answer.get('failed', note))


def _requests(run: Run, size: str) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Yields (what, request, our ms) of the training step and of sampling, at batches that we have measured."""
    config = run.config(f'imagenet{size}')
    for part, what, options in (('train', 'training', config.train), ('sample', 'sampling', config.sampling)):
        rows = run.found(f'{part}{size}')
        if rows:
            # The first one: of training the smallest mostly, which fits PyTorch too; of sampling the paper's.
            name, figures = next(iter(rows.items()))
            options.batch_size = figures.get('batch') or int(name.removeprefix('batch '))
            yield f'{what} {size}', common.peer_request(config, spec_of(config), what, num_steps=FEW), figures['ms']


def predicted(run: Run) -> Iterator[Row]:
    """Asks the device's compiler, without the device, for the memory of the training steps that were measured."""
    from cfg.modes.describe_target import describe_target

    kind = next(iter(run.found('device')), 'an unknown device').lower()
    chip = next((name for name, facts in CHIPS.items() if facts['device_kind'].lower() in kind), None)
    if chip is None:
        yield row('--target', {}, f'not asked: {kind} is not in cfg/runtime/chips.json')
        return
    target = f'{CHIPS[chip]["kind"]}:{chip}:{"x".join("1" for _ in CHIPS[chip]["topology"].split("x"))}'
    for part in ('train64', 'train128', 'train64_remat', 'train128_remat'):
        for what, figures in run.found(part).items():
            size, _, remat = part.removeprefix('train').partition('_')
            changes = {'train.remat': bool(remat), 'train.batch_size': int(what.split()[1])}
            begin = time.monotonic()
            try:
                text = describe_target(run.config(f'imagenet{size}', **changes), target, part='train', largest=False)
            except UserError as error:
                yield row(f'{part} {what}', {}, first_line(error))
                continue
            memory = float(re.search(r'memory of a device: ([\d.]+) GiB', text)[1])
            both = {'predicted GiB': memory, 'measured GiB': figures['peak GiB'], 's': time.monotonic() - begin}
            yield row(f'{part} {what}', both, f'--target={target}')
