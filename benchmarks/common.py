"""Holds what the scripts share: the command line, timing, statistics, and what a device could do at best.

JAX is imported inside functions: XLA's flags come first, and the parent of a comparison must not take the device.
"""

import functools
import itertools
import math
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from cfg.runtime import command_line
from cfg.runtime.errors import UserError
from cfg.runtime.targets import CHIPS

flags.disclaim_key_flags()  # what is defined here is shown by --help of the script

# Dense bfloat16 FLOP/s of one device of JAX, from the vendors' data sheets. The first substring of `device_kind` that
# is found counts. A device of TPU v2 and v3 is one of the two cores of a chip (v3: 123e12 a chip).
PEAKS = {
    'H100 PCIe': 756e12,
    'TPU v2': 22.5e12,
    'TPU v3': 61.5e12,
    'TPU v4 lite': 138e12,
    'TPU v5e': 197e12,
} | {facts['device_kind']: 1e12 * facts['tflops'] for facts in CHIPS.values()}


class Peak(NamedTuple):
    """A peak is the FLOP/s that all devices together could reach, and where the number is from."""

    flops: float
    source: str


class Work(NamedTuple):
    """A `Work` is something to time.

    Attributes:
      start: begins one unit and returns arrays that are ready when it is done.
      images: in a unit, over all devices.
      flops: of a unit; see `cfg.models.flops`.
      network: what is run, for the user.
      ahead: how many units may have begun before the oldest is waited for.
    """

    start: Callable[[], Any]
    images: int
    flops: float
    network: str
    ahead: int


class Times(NamedTuple):
    """Times are the seconds of each unit, and of the first call, which traces and compiles."""

    first: float
    units: list[float]


def define_flags() -> None:
    """Defines the flags of both scripts."""
    command_line.define_config('--config.train.batch_size=64')
    flags.DEFINE_float('peak_tflops', None, 'What one device could do at best, for the utilisation.', lower_bound=1e-9)
    command_line.define_path('peer', 'A clone of openai/guided-diffusion: times it side by side, in PyTorch.')
    define_comparison_flags()


def define_comparison_flags() -> None:
    """Defines the flags of timing beside a peer."""
    flags.DEFINE_integer('warmup', 2, 'Untimed steps after the one that compiles.', lower_bound=0)
    flags.DEFINE_string('variant', '', 'With --peer: the variant of PyTorch to compare with; empty = the fastest.')
    flags.DEFINE_integer('rounds', 8, 'With --peer: rounds that count.', lower_bound=1)
    flags.DEFINE_float('round_seconds', 3.0, 'With --peer: about how long a round of each side is.', lower_bound=0.0)
    flags.DEFINE_float(
        'other_cores', 0.1, 'With --peer, on the CPU: a round is discarded if all else used more cores than this.'
    )
    flags.DEFINE_bool('child', False, 'Set by --peer itself: answer commands instead of printing.')


def read_config() -> ConfigDict:
    """Returns the config of the command line, checked.

    Raises:
      UserError: names what is missing or out of range.
    """
    from cfg.settings.checks import check_config

    config = command_line.read_config()
    check_config(config)
    return config


def peak_flops(device_kind: str) -> float | None:
    """Returns the dense bfloat16 FLOP/s of a known accelerator, by JAX's name for it."""
    return next((peak for name, peak in PEAKS.items() if name.lower() in device_kind.lower()), None)


def find_peak(peak_tflops: float | None, dtype: str) -> Peak:
    """Returns the peak of all local devices: as given, as known, or measured now.

    Args:
      peak_tflops: of one device, in 1e12 FLOP/s.
      dtype: what an accelerator that is not known multiplies in the measurement.
    """
    import jax

    devices = jax.local_devices()
    if peak_tflops is not None:
        return Peak(peak_tflops * 1e12 * len(devices), '--peak_tflops')
    kind = devices[0].device_kind
    known = peak_flops(kind)
    if known is not None:
        return Peak(known * len(devices), f"{kind}'s bfloat16 peak")
    if devices[0].platform == 'cpu':
        # Devices of the CPU share its cores, so one of them already shows what all can do.
        return Peak(matmul_rate(2048, 'float32'), 'a 2048x2048 float32 matrix product measured in this run')
    return Peak(
        matmul_rate(8192, dtype) * len(devices), f'an 8192x8192 {dtype} matrix product measured in this run, a device'
    )


def matmul_rate(size: int, dtype: str, *, repeats: int = 8) -> float:
    """Measures FLOP/s of the fastest of some products of square matrices on the first device."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    times = time_units(jax.jit(lambda a: a @ a).lower(x).compile(), x, repeats=repeats)
    return 2.0 * size**3 / min(times)


def time_units(fn: Callable, *args: Any, repeats: int) -> list[float]:
    """Returns the seconds of each of some calls after an untimed one."""
    import jax

    jax.block_until_ready(fn(*args))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn(*args))
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(work: Work, *, units: int, warmup: int) -> Times:
    """Times a unit `units` times, after the first call and `warmup` more.

    Up to `work.ahead` units are begun before the oldest is waited for, as in the training loop, so that an
    accelerator does not wait for Python; a unit's time is that between the ends of two.
    """
    import jax

    start = time.perf_counter()
    jax.block_until_ready(work.start())
    first = time.perf_counter() - start
    for _ in range(warmup):
        jax.block_until_ready(work.start())

    pending: deque = deque()
    ends = [time.perf_counter()]
    for i in range(units):
        pending.append(work.start())
        while pending and (len(pending) > work.ahead or i == units - 1):
            jax.block_until_ready(pending.popleft())
            ends.append(time.perf_counter())
    return Times(first, [end - begin for begin, end in itertools.pairwise(ends)])


def seconds_of(work: Work, units: int) -> float:
    """Returns the seconds of some units together."""
    import jax

    start = time.perf_counter()
    pending: deque = deque()
    for _ in range(units):
        pending.append(work.start())
        if len(pending) > work.ahead:
            jax.block_until_ready(pending.popleft())
    jax.block_until_ready(list(pending))
    return time.perf_counter() - start


def quartiles(values: list[float]) -> tuple[float, float]:
    """Returns the first and third quartile, interpolated; of one value that value."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, high


def describe_ratios(ratios: list[float]) -> str:
    """Describes the ratios of the rounds as median and quartiles."""
    low, high = quartiles(ratios)
    return f'{statistics.median(ratios):.3f} ({low:.3f}..{high:.3f})'


def describe_times(seconds: list[float]) -> str:
    """Describes milliseconds as median, smallest and spread."""
    low, high = quartiles(seconds)
    return (
        f'{1e3 * statistics.median(seconds):.4g} median, {1e3 * min(seconds):.4g} min, '
        f'{1e3 * (high - low):.3g} between the quartiles of {len(seconds)}'
    )


def peak_memory() -> str:
    """Returns the most memory in use so far: of a device, or of this process where the device is the CPU."""
    import jax

    from cfg.runtime import parallel

    peak = parallel.memory().get('device_memory_peak_bytes')
    if peak is not None and jax.default_backend() != 'cpu':
        return f'{peak / 2**30:.2f} GiB of device memory'
    return f'{peak_resident() / 2**30:.2f} GiB resident, the whole process'


def peak_resident() -> int:
    """Returns the bytes that this process had in memory at most."""
    status = Path('/proc/self/status')
    if status.exists():  # unlike ru_maxrss this knows nothing of the process that started this one
        for line in status.read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def describe_network(config: ConfigDict, image_shape: tuple[int, ...], params: Any) -> str:
    """Describes size, images and type of a network in a few words."""
    import jax

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f'{count / 1e6:.1f}M parameters, {"x".join(map(str, image_shape))} images, {config.model.dtype}'


@functools.lru_cache(maxsize=2)  # several batches of one network are timed after another
def random_params(network: Any, spec: Any) -> Any:
    """Draws the parameters of a network for the images of a DataSpec; see `drawn`."""
    from cfg.settings.networks import abstract_params

    return drawn(abstract_params(network, spec))


def drawn(shapes: Any, *, gain: float = 1.0) -> Any:
    """Draws float32 numpy parameters of these shapes without compiling anything, so none is zero but the biases.

    Args:
      gain: of the variance of a kernel, which is this over its number of inputs.
    """
    import jax
    import numpy as np

    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim == 1:
            return np.full(leaf.shape, path[-1].key == 'scale', np.float32)
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(math.sqrt(gain / math.prod(leaf.shape[:-1])))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def report(work: Work, times: Times, rows: list[tuple[str, str]], *, dtype: str, peak_tflops: float | None) -> str:
    """Returns all that one run says, a line a number.

    Args:
      rows: what the script itself has to say, after the device and before the rest.
    """
    import jax

    memory = peak_memory()  # before the matrices of the peak
    peak = find_peak(peak_tflops, dtype)
    median = statistics.median(times.units)
    rate = work.flops / median
    devices = jax.local_devices()
    rows = [
        ('network', work.network),
        ('device', f'{len(devices)} x {devices[0].device_kind} ({devices[0].platform})'),
        *rows,
        ('compilation', f'{max(times.first - median, 0.0):.1f} s (first call less one of the timed)'),
        ('peak memory', memory),
        ('utilisation', f'{100 * rate / peak.flops:.1f} % ({rate / 1e12:.4g} of {peak.flops / 1e12:.4g} TFLOP/s)'),
        ('its peak is', peak.source),
    ]
    return '\n'.join(f'{name:<20}{value}' for name, value in rows)


def peer_request(config: ConfigDict, spec: Any, what: str, *, guided: bool = True, num_steps: int = 1) -> dict:
    """Returns what `benchmarks/peer.py` must know: plain values, and the arguments of guided-diffusion's UNetModel.

    Args:
      spec: of the data set, a DataSpec.
      what: 'training', 'forward' or 'sampling'.
      guided: whether sampling needs two predictions a step.
      num_steps: of sampling.

    Raises:
      UserError: when guided-diffusion has no such network.
    """
    model, train = config.model, config.train
    if model.norm_groups != 32:
        raise UserError(
            f'config.model.norm_groups={model.norm_groups} must be 32 with --peer: guided-diffusion has no other.'
        )
    if model.label_in != 'everywhere':
        raise UserError(
            f"config.model.label_in={model.label_in!r} must be 'everywhere' with --peer: guided-diffusion has no other."
        )
    height, _, channels = spec.image_shape
    unet = {
        'image_size': height,
        'in_channels': channels,
        'model_channels': model.channels,
        'out_channels': 2 * channels if model.learned_variance else channels,
        'num_res_blocks': model.num_res_blocks,
        # The peer counts by which factor a map is smaller than the image.
        'attention_resolutions': [height // resolution for resolution in model.attention_resolutions],
        'dropout': model.dropout,
        'channel_mult': list(model.channel_mult),
        'num_classes': spec.num_classes + 1,  # and the null label
        'use_checkpoint': train.remat,
        'num_heads': model.num_heads or 1,
        'num_head_channels': model.head_channels or -1,
        'use_scale_shift_norm': True,
        'resblock_updown': True,
        'use_new_attention_order': True,
    }
    names = ('learning_rate', 'beta1', 'beta2', 'weight_decay', 'grad_clip', 'ema_decay', 'grad_accum', 'p_uncond')
    return {
        'what': what,
        'unet': unet,
        'batch_size': train.batch_size if what == 'training' else config.sampling.batch_size,
        'dtype': model.dtype,
        'train': {name: train[name] for name in names},
        'guided': guided,
        'num_steps': num_steps,
        'clip_x': config.sampling.clip_x,
    }
