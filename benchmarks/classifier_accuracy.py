"""Measures how right a classifier of noisy digits is, beside the best that its training images allow.

Bayes' rule knows the training half by heart: p(c | z) if those images, each as probable as the others, were all digits
that there are. Every image is seen with several draws of noise, at logsnr from p(logsnr).

python benchmarks/classifier_accuracy.py --config=configs/digits_classifier.py --workdir=runs/digits_classifier
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import ConfigDict

from benchmarks import common
from cfg.runtime import command_line
from cfg.runtime.errors import UserError

FLAGS = flags.FLAGS


def bayes_logits(z, logsnr, images, labels, num_classes):
    """Returns log p(c | z) + const(z), [N, num_classes], where the data are equally probable `images` [M, ...].

    p(z | x) is N(alpha x, sigma^2 I) (Eq. 1); the sum over the images of a class is that of its p(z, c).
    """
    import jax
    import jax.numpy as jnp

    from cfg.diffusion import process, schedule

    alpha, sigma = (process.expand(scale, z[:, 0, 0]) for scale in schedule.alpha_sigma(logsnr))
    z, x = z.reshape(len(z), -1), images.reshape(len(images), -1)
    square = jnp.sum(z**2, 1, keepdims=True) - 2 * alpha * (z @ x.T) + alpha**2 * jnp.sum(x**2, 1)
    log_p = -0.5 * square / sigma**2
    of_class = labels == jnp.arange(num_classes)[:, None]
    return jnp.stack([jax.nn.logsumexp(jnp.where(mask, log_p, -jnp.inf), axis=1) for mask in of_class], axis=1)


def describe(config: ConfigDict, workdir: str, *, draws: int) -> str:
    """Returns a table of accuracies and cross-entropies (nats) in four bands of logsnr, and over all.

    Raises:
      UserError: for other data than the digits, or when the workdir holds no classifier of them.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cfg.data.images import to_float
    from cfg.diffusion import process, schedule
    from cfg.runs.trained import TrainedRun
    from cfg.settings.data import open_source
    from cfg.training import bands

    if config.data.name != 'digits':
        raise UserError(f'config.data.name={config.data.name!r}: only the halves of the digits are compared here.')
    halves = {split: open_source(config, split) for split in ('train', 'test')}
    train = halves['train']
    classifier = TrainedRun.beside(config, workdir, what='--workdir', kind='classifier')
    classifier.check_images(config, train.image_shape, train.num_classes)
    limits = {name: classifier.config['diffusion'][name] for name in ('logsnr_min', 'logsnr_max')}
    known = train.fetch(np.arange(len(train)))
    known_images, known_labels = to_float(known['image']), jnp.asarray(known['label'])
    logits_of = jax.jit(lambda params, z, logsnr: classifier.bind(params)(z, logsnr))
    network = functools.partial(logits_of, classifier.params())
    posterior = jax.jit(bayes_logits, static_argnames='num_classes')
    known_half = {'images': known_images, 'labels': known_labels, 'num_classes': train.num_classes}
    rule = functools.partial(posterior, **known_half)

    lines = []
    for title, split, model in (
        ('classifier, held-out half', 'test', network),
        ('classifier, training half', 'train', network),
        ("Bayes' rule of the training half, held-out half", 'test', rule),
    ):
        source, rng, found = halves[split], np.random.default_rng(0), []
        data = source.fetch(np.arange(len(source)))
        labels = jnp.asarray(data['label'])
        for _ in range(draws):
            u_time = jnp.asarray((rng.permutation(len(source)) + rng.random(len(source))) / len(source), jnp.float32)
            eps = jnp.asarray(rng.standard_normal((len(source), *source.image_shape)), jnp.float32)
            logsnr = schedule.logsnr_from_u(u_time, **limits)
            logits = model(process.diffuse(to_float(data['image']), eps, logsnr), logsnr)
            entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
            found.append((u_time, logits.argmax(1) == labels, entropy))
        u_time, correct, entropy = (np.concatenate(parts) for parts in zip(*found, strict=True))
        band = np.minimum((u_time * bands.COUNT).astype(int), bands.COUNT - 1)
        parts = [band == number for number in range(bands.COUNT)] + [np.ones_like(correct)]
        lines.append([f'{title}, accuracy', *(f'{correct[part].mean():.1%}' for part in parts)])
        lines.append([f'{title}, cross-entropy', *(f'{entropy[part].mean():.3f}' for part in parts)])
    head = ['logsnr', *(name.replace('_', ' ') for name in bands.band_names(**limits)), 'all']
    width = max(len(line[0]) for line in lines) + 2
    return '\n'.join(f'{line[0]:<{width}}' + ''.join(f'{cell:>14}' for cell in line[1:]) for line in [head, *lines])


def main() -> None:
    """Prints the table."""
    config = common.read_config()
    if FLAGS.workdir is None:
        raise UserError('--workdir is missing: give the folder of a classifier (configs/digits_classifier.py).')
    print(describe(config, FLAGS.workdir, draws=FLAGS.draws))


if __name__ == '__main__':
    command_line.define_config('--config.eval.batch_size=64')
    command_line.define_path('workdir', 'Of the classifier.')
    flags.DEFINE_integer('draws', 10, 'Draws of noise for each image.', lower_bound=1)
    command_line.run(main, memory=lambda: 'take a smaller batch')
