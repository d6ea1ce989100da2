"""Times the evaluation of one w by part, or a feature network beside PyTorch's (benchmarks/README.md).

python benchmarks/evaluation.py --config=configs/imagenet64.py [--sampler_batch_size=4] [--num_steps=2]
python benchmarks/evaluation.py --config=configs/imagenet64.py --beside_pytorch_fid
python benchmarks/evaluation.py --config=configs/imagenet64.py --config.eval.batch_size=8 --beside_transformers
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import ConfigDict

from benchmarks import common, sampling, side_by_side
from cfg.runtime import command_line
from cfg.runtime.errors import UserError

FLAGS = flags.FLAGS

NETWORKS = ('sampler', 'Inception')


class Part(NamedTuple):
    """A part is something that an evaluation of one w does.

    Attributes:
      name: for the user.
      seconds: of one w.
      how: it was measured.
    """

    name: str
    seconds: float
    how: str


def prepare_inception(config: ConfigDict) -> common.Work:
    """Sends a batch of random images through the network of published FIDs, all outputs, to the host."""
    from cfg.features.network import inception_features

    return _prepare(config, inception_features, random_inception(), 'Inception', 299)


def prepare_dinov2(config: ConfigDict) -> common.Work:
    """Sends a batch of random images through the network of published FD-DINOv2s, to the host."""
    from cfg.features.dinov2 import VIT_L14, dinov2_shapes
    from cfg.features.network import dinov2_features

    return _prepare(config, dinov2_features(VIT_L14), common.drawn(dinov2_shapes()), 'DINOv2 ViT-L/14', VIT_L14.pixels)


def _prepare(config: ConfigDict, features: Callable, params: Any, name: str, pixels: int) -> common.Work:
    """Sends random images of the config's size through a network that resizes them to `pixels`."""
    import jax
    import numpy as np

    from cfg.features.network import on_devices
    from cfg.settings.data import spec_of

    height, width, _ = spec_of(config).image_shape
    batch_size = config.eval.batch_size
    extract = on_devices(features, params, batch_size=batch_size)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, height, width, 3), dtype=np.uint8)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    resized = f'{height}x{width} images resized to {pixels}x{pixels}'
    return common.Work(
        lambda: extract(images),
        images=batch_size,
        flops=0.0,
        network=f'{name}, {count / 1e6:.1f}M parameters, {resized}, float32',
        ahead=0,  # features end on the host
    )


# What may run beside PyTorch, by the name of the peer (peer_features.py).
BESIDE = {'pytorch_fid': prepare_inception, 'transformers': prepare_dinov2}


def random_inception() -> Any:
    """Draws weights of the shapes of Inception's."""
    from cfg.features.inception import inception_shapes

    # With this gain the features neither vanish nor grow from layer to layer.
    return common.drawn(inception_shapes(), gain=2.0)


def seconds(do: Callable[[], object]) -> float:
    """Returns the seconds of one call."""
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def network_parts(config: ConfigDict, *, w: float, num_steps: int, batch_size: int, repeats: int) -> list[Part]:
    """Returns the sampler, in batches of `batch_size`, and Inception, scaled to all samples."""
    num_samples, steps = config.eval.num_samples, config.sampling.num_steps
    smaller = config.copy_and_resolve_references()
    smaller.sampling.batch_size = batch_size
    drawn = sampling.prepare(smaller, w=w, num_steps=num_steps)
    of_batch = statistics.median(common.measure(drawn, units=repeats, warmup=0).units)
    rate = drawn.images * num_steps / steps / of_batch
    features = prepare_inception(config)
    of_features = statistics.median(common.measure(features, units=repeats, warmup=1).units)
    feature_rate = features.images / of_features
    scaled = f'{drawn.images} samples of {num_steps} of T={steps} steps'
    return [
        Part('sampler', num_samples / rate, f'{rate:.4g} images/s; scaled from {scaled}'),
        Part('Inception', num_samples / feature_rate, f'{feature_rate:.4g} images/s; scaled from {features.images}'),
    ]


def other_parts(
    config: ConfigDict, *, num_real: int, folder: Path, widths: tuple[int, int] | None = None
) -> Iterator[Part]:
    """Yields everything but the networks, on as many random features as an evaluation has.

    Args:
      num_real: real images.
      folder: for what an evaluation saves.
      widths: numbers of pool and of spatial features; those of Inception by default.
    """
    import numpy as np

    from cfg.evaluation.measurement import Measurement
    from cfg.evaluation.scoring import DENSE, NEAREST, SUBSETS_SEED, kid_subset_size
    from cfg.features.inception import NUM_CLASSES, SPATIAL_WIDTH, WIDTH
    from cfg.features.network import COLOUR_IMAGES, INCEPTION, FeatureNetwork, Features
    from cfg.metrics import distances
    from cfg.metrics.neighbours import prdc
    from cfg.settings.data import spec_of

    width, spatial_width = widths or (WIDTH, SPATIAL_WIDTH)
    options, rng = config.eval, np.random.default_rng(0)
    batch = min(config.sampling.batch_size, options.num_samples)
    log_p = np.log(rng.dirichlet(np.full(NUM_CLASSES, 0.1), batch).astype(np.float32) + 1e-12)

    def random_features(images):
        pool = rng.standard_normal((len(images), width), np.float32) ** 2
        spatial = rng.standard_normal((len(images), spatial_width), np.float32)
        return Features(pool, spatial, log_p[: len(images)], None)

    network = FeatureNetwork(INCEPTION, '', None, width, spatial_width, COLOUR_IMAGES, random_features, None, folder)
    shape = spec_of(config).image_shape
    images = np.zeros((batch, *shape), np.uint8)
    real = rng.standard_normal((num_real, width), np.float32) ** 2
    with Measurement(
        folder, network, is_split_size=options.is_split_size, image_shape=shape, save_seconds=float('inf')
    ) as measured:

        def accumulate():
            for start in range(0, options.num_samples, batch):
                kept = max(options.keep_samples - start, 0)
                measured.add(images[: options.num_samples - start], keep_images=kept)

        drawing = seconds(lambda: [random_features(images) for _ in range(0, options.num_samples, batch)])
        spent = seconds(accumulate) - drawing
        yield Part('moments, score sums', spent, f'batches of {batch}, features kept on disk')
        saving = seconds(measured.save)
        pool, spatial = measured.moments, measured.spatial
        covs = pool.covariance(), spatial.covariance()

        size = kid_subset_size(options, options.num_samples, num_real)
        timed = {
            'FID': (lambda: distances.frechet_distance(pool.mean, covs[0], pool.mean, covs[0]), f'{width} features'),
            'FID at infinity': (
                lambda: distances.fid_at_infinity(measured.features, pool.mean, covs[0], seed=SUBSETS_SEED),
                'of 15 subsets',
            ),
            'sFID': (
                lambda: distances.frechet_distance(spatial.mean, covs[1], spatial.mean, covs[1]),
                f'{spatial_width} features',
            ),
            'precision, recall': (
                lambda: prdc(real, measured.features, k=NEAREST, k_density=DENSE, dtype=options.neighbours_dtype),
                f'{options.num_samples} and {num_real} points, {options.neighbours_dtype}',
            ),
            'KID': (
                lambda: distances.kid(
                    measured.features, real, num_subsets=options.kid_subsets, subset_size=size, seed=SUBSETS_SEED
                ),
                f'{options.kid_subsets} subsets of {size}',
            ),
            'MIND': (lambda: distances.mind(measured.features, real, seed=SUBSETS_SEED), '1000 directions'),
            'inception score': (
                lambda: distances.inception_score(measured.splits.sums),
                f'{len(measured.splits.sums)} splits',
            ),
        }
        for name, (do, how) in timed.items():
            yield Part(name, seconds(do), how)
    yield Part('saving', saving, f'one of {saving:.3g} s; scaled to one each {options.save_seconds:g} s')


def with_savings(parts: list[Part], save_seconds: float) -> list[Part]:
    """Returns the parts, with that of saving scaled from one to as many as the others take."""
    others = sum(part.seconds for part in parts if part.name != 'saving')
    savings = max(1, round(others / save_seconds)) if save_seconds else 1
    return [part._replace(seconds=part.seconds * savings) if part.name == 'saving' else part for part in parts]


def rest_of(parts: list[Part]) -> tuple[float, float]:
    """Returns the seconds of everything but the networks, and its share of the whole in percent."""
    rest = sum(part.seconds for part in parts if part.name not in NETWORKS)
    return rest, 100 * rest / sum(part.seconds for part in parts)


def table(parts: list[Part], save_seconds: float) -> str:
    """Returns the parts with their shares of the whole, and the share of everything but the networks.

    Args:
      parts: that of saving is seconds of one.
      save_seconds: between two savings.
    """
    scaled = with_savings(parts, save_seconds)
    total = sum(part.seconds for part in scaled)
    lines = [f'{"part":<20}{"seconds":>12}{"share":>10}  how']
    lines += [
        f'{part.name:<20}{part.seconds:>12.4g}{100 * part.seconds / total:>8.2f} %  {part.how}' for part in scaled
    ]
    rest, share = rest_of(scaled)
    lines.append(f'all but the networks: {rest:.4g} s, {share:.2f} % of the evaluation of one w')
    measured = with_savings([part for part in parts if part.name != 'sampler'], save_seconds)
    lines.append('of samples that are there already: {:.4g} s, {:.2f} %'.format(*rest_of(measured)))
    return '\n'.join(lines)


def describe(config: ConfigDict, *, w: float, num_steps: int, batch_size: int, repeats: int, num_real: int) -> str:
    """Times all parts; returns what came out, a line a part."""
    import jax

    devices = jax.local_devices()
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            *network_parts(config, w=w, num_steps=num_steps, batch_size=batch_size, repeats=repeats),
            *other_parts(config, num_real=num_real, folder=Path(folder)),
        ]
    head = f'{config.eval.num_samples} samples, {num_real} real images, w = {w:g}'
    device = f'{len(devices)} x {devices[0].device_kind} ({devices[0].platform})'
    return f'{head}; {device}\n{table(parts, config.eval.save_seconds)}'


def main() -> None:
    """Prints what the flags ask for."""
    config = common.read_config()
    num_steps = FLAGS.num_steps or config.sampling.num_steps
    if num_steps < 2:
        raise UserError(f'--num_steps={num_steps} must be at least 2, or 0 for the T of the config.')
    peer = next((name for name in BESIDE if FLAGS[f'beside_{name}'].value), '')
    if FLAGS.child:
        side_by_side.serve_work(lambda: BESIDE[peer](config), warmup=FLAGS.warmup)
    elif peer:
        from cfg.settings.data import spec_of

        script, size = Path(__file__).with_name('peer_features.py'), spec_of(config).image_shape[0]
        arguments = [str(script), peer, str(config.eval.batch_size), str(size)]
        print(side_by_side.compare_with(arguments, 'batch of images'))
    else:
        batch_size = FLAGS.sampler_batch_size or config.sampling.batch_size
        arguments = {'batch_size': batch_size, 'repeats': FLAGS.repeats, 'num_real': FLAGS.num_real}
        print(describe(config, w=FLAGS.w, num_steps=num_steps, **arguments))


if __name__ == '__main__':
    command_line.define_config('--config.eval.batch_size=64')
    common.define_comparison_flags()
    flags.DEFINE_bool('beside_pytorch_fid', False, "Times Inception in turns with pytorch-fid's.")
    flags.DEFINE_bool('beside_transformers', False, "Times DINOv2 in turns with transformers'.")
    flags.DEFINE_integer('repeats', 3, 'Timed batches of the networks.', lower_bound=1)
    flags.DEFINE_integer('num_real', 10_000, 'Real images with features.', lower_bound=4)
    flags.DEFINE_integer(
        'sampler_batch_size', 0, 'Of the timed samples, on a slow machine; 0 = that of the config.', lower_bound=0
    )
    flags.DEFINE_float('w', 1.0, 'Guidance strength; 0 costs half.')
    flags.DEFINE_integer('num_steps', 0, 'Steps of the timed samples; 0 = the T of the config.', lower_bound=0)
    command_line.run(main, memory=lambda: 'take a smaller batch')
