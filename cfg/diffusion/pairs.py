"""The two predictions that guidance tells apart: eps for the label, and another that is worse or knows less.

A pair is a function (z, logsnr, labels, keys, *, cond, other) -> (eps, other eps). `cond` and `other` [N] say which of
the two each example needs. If no example needs both, one pass gives each its own, and both results are that one.
`keys` [N] are new for every evaluation.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cfg.diffusion.guidance import EpsFn, predict_both

Array = jax.Array
PairFn = Callable[..., tuple[Array, Array]]
# (z [N, ...], logsnr [] or [N], labels [N], other_labels [N]) -> (eps, other eps): both predictions of one network that
# has a cheaper way to them than two evaluations.
BothFn = Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def null_label_pair(eps_fn: EpsFn, *, null_label: int, both_fn: BothFn | None = None) -> PairFn:
    """(eps(z, c), eps(z, null)) of one network: classifier-free guidance (Eq. 6).

    Where both are needed they come from `both_fn`, or else from one batch of 2N.
    """
    return _one_network(eps_fn, lambda labels, keys: jnp.full_like(labels, null_label), both_fn)


def independent_pair(eps_fn: EpsFn, *, num_classes: int, both_fn: BothFn | None = None) -> PairFn:
    """(eps(z, c), eps(z, c')) with c' uniform over the classes and independent of all: independent condition guidance.

    Sadat et al. 2024, arXiv 2407.02687: for a network that has no null label. c' is drawn anew for every evaluation,
    from the example's own key. `both_fn` as in `null_label_pair`.
    """

    def draw(labels, keys):
        one = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes, labels.dtype))
        return one(keys)

    return _one_network(eps_fn, draw, both_fn)


def two_model_pair(eps_fn: EpsFn, uncond_eps_fn: EpsFn, *, null_label: int) -> PairFn:
    """(eps(z, c), eps'(z, null)): Eq. 6 with the unconditional eps of a second network (Section 3.2). Two passes."""
    return _two_networks(eps_fn, uncond_eps_fn, lambda labels: jnp.full_like(labels, null_label))


def autoguidance_pair(eps_fn: EpsFn, guide_eps_fn: EpsFn) -> PairFn:
    """(eps(z, c), eps'(z, c)), both conditional: autoguidance (Karras et al. 2024, arXiv 2406.02507).

    The second is a worse model of the same kind, smaller or less trained. Two passes, the second cheaper if the model
    is smaller.
    """
    return _two_networks(eps_fn, guide_eps_fn, lambda labels: labels)


def _one_network(eps_fn: EpsFn, other_label: Callable[[Array, Array], Array], both_fn: BothFn | None) -> PairFn:
    def pair(z, logsnr, labels, keys, *, cond, other):
        other_labels = other_label(labels, keys)

        def both(z):
            if both_fn is None:
                eps, other_eps = predict_both(eps_fn, z, logsnr, labels, other_labels=other_labels)
            else:
                eps, other_eps = both_fn(z, logsnr, labels, other_labels)
            return eps.astype(z.dtype), other_eps.astype(z.dtype)

        def single(z):
            eps = eps_fn(z, logsnr, jnp.where(cond, labels, other_labels)).astype(z.dtype)
            return eps, eps

        return jax.lax.cond(jnp.any(cond & other), both, single, z)

    return pair


def _two_networks(eps_fn: EpsFn, other_eps_fn: EpsFn, other_label: Callable[[Array], Array]) -> PairFn:
    def pair(z, logsnr, labels, keys, *, cond, other):
        def first(z):
            eps = eps_fn(z, logsnr, labels).astype(z.dtype)
            return eps, eps

        def second(z):
            eps = other_eps_fn(z, logsnr, other_label(labels)).astype(z.dtype)
            return eps, eps

        def both(z):
            return first(z)[0], second(z)[0]

        needed = jnp.where(jnp.any(other), jnp.where(jnp.any(cond), 2, 1), 0)
        return jax.lax.switch(needed, (first, second, both), z)

    return pair
