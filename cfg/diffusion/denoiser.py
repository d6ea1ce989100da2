"""Networks as guidance sees them, and the two predictions that it tells apart.

`Denoiser` is the one interface of a network. A rule compares the prediction for the label with another that is worse or
knows less: of the same network for another label, or of a second network.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import process
from cfg.diffusion.process import Prediction
from cfg.runtime.errors import UserError

Array = jax.Array
# (z [N, ...], logsnr [] or [N], labels [N]) -> eps [N, ...], or what else a network predicts.
EpsFn = Callable[[Array, Array, Array], Array]


class Perturbation(NamedTuple):
    """A perturbation says how self-attention is made worse, so that guidance has something to lead away from."""

    blocks: int  # so many of the attention blocks of the way down and the middle, the last ones
    sigma: float | None = None  # of a Gaussian over positions that blurs the queries; None for identity attention


class Annealing(NamedTuple):
    """An annealing says how the embeddings of classes are changed by noise, see `corrections.anneal`; each is [N]."""

    keys: Array  # of the noise, each example's own
    kept: Array  # of the embedding; 1 is all
    scale: Array  # of the noise
    mix: Array  # how far mean and deviation of the embedding are restored


@dataclass(frozen=True)
class Denoiser:
    """A denoiser is a network with its parameters, or any eps function.

    Attributes:
      fn: (z [N, ..., C], logsnr [] or [N], labels [N]) -> [N, ..., at least C]. Channels past the first C are learned
        variances (ADM), which this method does not use. A network that takes the strength has w [N] as a fourth input.
      num_classes: labels are 0 to num_classes - 1, and `null_label` after them.
      prediction: what the network predicts: eps, x or v.
      both_fn: (z, logsnr, labels, other_labels) -> two of what `fn` returns, where that is cheaper than a batch of 2N.
      perturbed_fn: a perturbation of the network's attention -> another `fn`.
      anneal: what `fn` and `both_fn` are told by a keyword of that name, of each example; None for nothing.
    """

    fn: EpsFn
    num_classes: int
    prediction: str = 'eps'
    both_fn: Callable[[Array, Array, Array, Array], tuple[Array, Array]] | None = None
    perturbed_fn: Callable[[Perturbation], EpsFn] | None = None
    anneal: Annealing | None = None

    @property
    def null_label(self) -> int:
        """Returns the label of the unconditional prediction."""
        return self.num_classes

    def __call__(self, z: Array, logsnr: Array, labels: Array) -> Array:
        """Returns what the network predicts, [N, ..., C]."""
        return self._of(self.fn(z, logsnr, labels, **self._told), z)

    def at_strength(self, z: Array, logsnr: Array, labels: Array, w: Array) -> Array:
        """Returns what a network predicts that takes the guidance strength, [N, ..., C]."""
        return self._of(self.fn(z, logsnr, labels, w), z)

    def both(self, z: Array, logsnr: Array, labels: Array, other_labels: Array) -> tuple[Array, Array]:
        """Returns the outputs for `labels` and for `other_labels`, by `both_fn` or from one batch of 2N."""
        if self.both_fn is not None:
            output, other = self.both_fn(z, logsnr, labels, other_labels, **self._told)
            return self._of(output, z), self._of(other, z)
        levels = jnp.broadcast_to(logsnr, labels.shape)
        two = [jnp.concatenate(pair) for pair in ((z, z), (levels, levels), (labels, other_labels))]
        output, other = jnp.split(self.annealed(twice(self.anneal))(*two), 2)
        return output, other

    def annealed(self, anneal: Annealing | None) -> 'Denoiser':
        """Returns the network with noise on the embeddings of classes, of so many examples as it will be asked for."""
        return dataclasses.replace(self, anneal=anneal)

    def perturbed(self, perturbation: Perturbation) -> 'Denoiser':
        """Returns the network with perturbed attention; raises UserError for a function that is not told of any."""
        if self.perturbed_fn is None:
            raise UserError('This network has no attention to perturb: give its Denoiser a perturbed_fn.')
        return dataclasses.replace(self, fn=self.perturbed_fn(perturbation), both_fn=None)

    @property
    def _told(self) -> dict[str, Annealing]:
        return {} if self.anneal is None else {'anneal': self.anneal}

    def _of(self, output: Array, z: Array) -> Array:
        check_output(output, z)
        return output[..., : z.shape[-1]].astype(z.dtype)


def check_output(output: Any, z: Array) -> None:
    """Refuses an output of a network by which samples would silently be others.

    Raises:
      UserError: when it is no array of floating point numbers of the shape of z, but for more channels.
    """
    if not isinstance(output, jax.Array | np.ndarray):
        found = f'no array but {type(output).__name__}'
    elif jnp.issubdtype(output.dtype, jnp.floating):
        if output.shape[:-1] == z.shape[:-1] and output.shape[-1] >= z.shape[-1]:
            return
        found = f'the shape {output.shape}'
    else:
        found = str(output.dtype)
    raise UserError(
        f'The network returned {found} for z of the shape {z.shape}: it must return an array of floating point numbers '
        'of the shape of z (more channels at the end are left out).'
    )


def twice(told: Annealing | None) -> Annealing | None:
    """Returns what two batches of the same examples are told, one after the other."""
    return jax.tree.map(lambda of: jnp.concatenate([of, of]), told)


class Models(NamedTuple):
    """The models are all networks that a rule may ask."""

    model: Denoiser  # what is guided
    uncond: Denoiser | None = None  # gives the unconditional prediction, in the place of the model's null label
    weaker: Denoiser | None = None  # what autoguidance compares with
    # (z [N, ...], logsnr [] or [N]) -> logits [N, num_classes], log p(c | z) up to a constant of z
    classifier: Callable[[Array, Array], Array] | None = None


class Point(NamedTuple):
    """A point says where a prediction is made, and how its outputs are read."""

    z: Array  # [N, ...]
    logsnr: Array  # [] or [N]
    w: Array  # the guidance strength at this level, [N]
    prediction: str  # what the outputs predict: eps, x or v

    def read(self, output: Array) -> Prediction:
        """Returns the x and eps of an output, without a detour that costs precision."""
        return process.from_output(output, self.z, self.logsnr, prediction=self.prediction)

    def told_in(self, output: Array, prediction: str) -> Array:
        """Returns what an output says in eps, x or v, as `prediction` says."""
        read = self.read(output)
        return process.target(read.x, read.eps, self.logsnr, prediction=prediction)

    def change(self, output: Array, changed: Array, prediction: str) -> Prediction:
        """Returns the prediction of an output whose eps, x or v, as `prediction` says, is replaced.

        A new eps moves x by -e^(-logsnr / 2) (eps - old eps), which costs less precision than x from the new eps.
        """
        if prediction != 'eps' or self.prediction == 'eps':
            return process.from_output(changed, self.z, self.logsnr, prediction=prediction)
        before = self.read(output)
        moved = process.expand(jnp.exp(-0.5 * self.logsnr), changed) * (changed - before.eps)
        return Prediction(before.x - moved, changed)


def of_one_network(
    model: Denoiser, z: Array, logsnr: Array, labels: Array, other_labels: Array, needed: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Returns the outputs of one network for two labels; where no example needs both, one pass gives each its own.

    `needed` tells which of the two each example needs, two bool [N]. With one pass both results are that one.
    """
    cond, other = needed

    def single(z):
        output = model(z, logsnr, jnp.where(cond, labels, other_labels))
        return output, output

    return jax.lax.cond(jnp.any(cond & other), lambda z: model.both(z, logsnr, labels, other_labels), single, z)


def of_two_networks(
    models: tuple[Denoiser, Denoiser],
    z: Array,
    logsnr: Array,
    labels: Array,
    other_labels: Array,
    needed: tuple[Array, Array],
) -> tuple[Array, Array]:
    """Returns the outputs of two networks, each for its own label, as predictions of the first one's kind.

    `needed` tells which of the two each example needs, two bool [N]. What none needs is not run, and both results are
    the output of the other.
    """
    model, second = models
    cond, other = needed

    def of_second(z):
        output = second(z, logsnr, other_labels)
        if second.prediction == model.prediction:
            return output
        read = process.from_output(output, z, logsnr, prediction=second.prediction)
        return process.target(read.x, read.eps, logsnr, prediction=model.prediction)

    def of_model(z):
        return model(z, logsnr, labels)

    branches = (lambda z: (of_model(z),) * 2, lambda z: (of_second(z),) * 2, lambda z: (of_model(z), of_second(z)))
    return jax.lax.switch(jnp.where(jnp.any(other), jnp.where(jnp.any(cond), 2, 1), 0), branches, z)
