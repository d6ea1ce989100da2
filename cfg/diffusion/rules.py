"""Guidance rules: what a sampler is given in place of a network.

A rule turns (z, logsnr, labels, state) into a prediction of (x, eps) and the next state. An eps function alone cannot
say all that newer guidance says: a state along the steps (a running sum, a count), a change of x (thresholds), and an
eps to renoise with that is not the one x comes from (CFG++). A plain eps function is lifted to a rule, so samplers take
either. Each rule is one constructor: it takes a pair of predictions (`cfg.diffusion.pairs`), a strength w
(`cfg.diffusion.strength`) and its parameters. `clipped` and `thresholded` go around any rule.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cfg.diffusion import corrections, guidance, process
from cfg.diffusion.guidance import EpsFn
from cfg.diffusion.pairs import PairFn
from cfg.diffusion.process import Prediction
from cfg.diffusion.strength import Strength, strength_at

Array = jax.Array

# Separates what rules draw from the noise of the samplers, which is numbered from 0.
_STREAM = 0x52554C45


class Rule(NamedTuple):
    """A guidance rule.

    Attributes:
      init: (keys [N], z [N, ...]) -> state, a pytree whose arrays have the leading axis N or none.
      predict: (z [N, ...], logsnr [] or [N], labels [N], state) -> (prediction, state), for every evaluation.
      renoises: whether the eps of a prediction is not the one of its x. A sampler then steps from alpha x + sigma eps
        in place of z.
    """

    init: Callable[[Array, Array], Any]
    predict: Callable[[Array, Array, Array, Any], tuple[Prediction, Any]]
    renoises: bool = False


def as_rule(model: EpsFn | Rule) -> Rule:
    """A plain eps function as a rule without state: x = (z - sigma eps) / alpha. Rules pass through."""
    if isinstance(model, Rule):
        return model

    def predict(z, logsnr, labels, state):
        eps = model(z, logsnr, labels)
        return Prediction(process.x_from_eps(z, eps, logsnr), eps), state

    return Rule(lambda keys, z: (), predict)


def origin(rule: Rule, z: Array, prediction: Prediction, logsnr: Array) -> Array:
    """Where a step starts: z, or alpha x + sigma eps if the rule renoises with another eps."""
    return process.diffuse(prediction.x, prediction.eps, logsnr) if rule.renoises else z


def needs_of_classifier_free(w: Array) -> tuple[Array, Array]:
    """Whether Eq. 6 needs (the conditional, the other) prediction at w."""
    return w != -1.0, w != 0.0


def needs_of_cfg_plus_plus(w: Array) -> tuple[Array, Array]:
    """As `needs_of_classifier_free`, for a rule that always renoises with the other one."""
    return w != -1.0, jnp.ones_like(w, bool)


def needs_of_correction(w: Array) -> tuple[Array, Array]:
    """As `needs_of_classifier_free`, for a rule that always refers to the conditional one."""
    return jnp.ones_like(w, bool), w != 0.0


def classifier_free(pair: PairFn, w: Strength) -> Rule:
    """eps = (1 + w) eps_cond - w eps_other (Eq. 6).

    With `null_label_pair` the paper's rule, with `two_model_pair` its two models, with `independent_pair` independent
    condition guidance, with `autoguidance_pair` autoguidance. Two evaluations; one where every w is 0 or -1.
    """

    def combine(z, logsnr, eps, other, w, memory):
        guided = guidance.classifier_free(eps, other, w)
        return Prediction(process.x_from_eps(z, guided, logsnr), guided), memory

    return _paired(pair, w, combine, needs=needs_of_classifier_free)


def cfg_plus_plus(pair: PairFn, w: Strength) -> Rule:
    """CFG++ (Chung et al. 2024, arXiv 2406.08070): x from the guided eps, renoised with the unguided one.

    x comes from eps_other + lambda (eps_cond - eps_other), and the next z from x and eps_other. Our w is lambda - 1, so
    that x is that of Eq. 6. The paper has lambda in [0, 1], w in [-1, 0]: w = -1 is unconditional sampling, and no w is
    conditional sampling, as even lambda = 1 renoises with eps_other. A DDIM step with it is one of Eq. 6 with
    1 + w = lambda / (1 - e^((logsnr_t - logsnr_s) / 2)), which grows as steps get shorter. Two evaluations; one where
    every w is -1.
    """

    def combine(z, logsnr, eps, other, w, memory):
        guided = guidance.classifier_free(eps, other, w)
        return Prediction(process.x_from_eps(z, guided, logsnr), other), memory

    return _paired(pair, w, combine, needs=needs_of_cfg_plus_plus, renoises=True)


def rescaled(pair: PairFn, w: Strength, *, phi: float | Array, prediction: str) -> Rule:
    """Eq. 6, then the standard deviation of the conditional output: see `corrections.rescale` (Lin et al. 2023).

    phi = 0 is Eq. 6. Two evaluations; one where every w is 0.

    Args:
      prediction: of which output the deviation is matched: eps, x or v. The paper's models output v; common code takes
        whatever the network outputs.
    """

    def combine(z, logsnr, eps, other, w, memory):
        guided = process.from_output(guidance.classifier_free(eps, other, w), z, logsnr, prediction='eps')
        cond = process.from_output(eps, z, logsnr, prediction='eps')
        outputs = (process.target(p.x, p.eps, logsnr, prediction=prediction) for p in (guided, cond))
        output = corrections.rescale(*outputs, phi=phi)
        return process.from_output(output, z, logsnr, prediction=prediction), memory

    return _paired(pair, w, combine, needs=needs_of_correction)


def projected(
    pair: PairFn,
    w: Strength,
    *,
    eta: float | Array,
    norm_threshold: float | Array,
    momentum: float | Array,
) -> Rule:
    """Adaptive projected guidance on the estimates of x: see `corrections.adaptive_projection` (Sadat et al. 2024).

    The update is the running sum m <- x_cond - x_other + momentum m over the evaluations, of each example on its own;
    one at w = 0 leaves m as it is. eta = 1, norm_threshold = infinity and momentum = 0 are Eq. 6. Two evaluations; one
    where every w is 0.

    Args:
      eta: what is kept of the parallel part of the update.
      norm_threshold: the paper's r, of the L2 norm of an image's update.
      momentum: the paper's beta; it proposes negative values.
    """

    def combine(z, logsnr, eps, other, w, memory):
        x_cond, x_other = (process.x_from_eps(z, e, logsnr) for e in (eps, other))
        update = x_cond - x_other + process.expand(momentum, z) * memory
        x = corrections.adaptive_projection(x_cond, update, w, eta=eta, norm_threshold=norm_threshold)
        unguided = process.expand(w == 0.0, z)
        memory = jnp.where(unguided, memory, update)
        # Eq. 6 on x and on eps are the same, so at w = 0 this is the conditional eps itself.
        return Prediction(x, jnp.where(unguided, eps, process.eps_from_x(z, x, logsnr))), memory

    return _paired(pair, w, combine, needs=needs_of_correction, memory=jnp.zeros_like)


def clipped(rule: Rule) -> Rule:
    """The rule with its x clipped to [-1, 1] ("static thresholding")."""
    return _on_x(rule, lambda x: jnp.clip(x, -1.0, 1.0))


def thresholded(rule: Rule, *, quantile: float) -> Rule:
    """The rule with dynamic thresholding of its x: see `corrections.dynamic_threshold` (Imagen)."""
    return _on_x(rule, lambda x: corrections.dynamic_threshold(x, quantile=quantile))


def _on_x(rule: Rule, change: Callable[[Array], Array]) -> Rule:
    """The rule with its x changed, and the eps that matches; of one that renoises, the x of that eps likewise."""

    def predict(z, logsnr, labels, state):
        (x, eps), state = rule.predict(z, logsnr, labels, state)
        x = change(x)
        of_eps = change(process.x_from_eps(z, eps, logsnr)) if rule.renoises else x
        return Prediction(x, process.eps_from_x(z, of_eps, logsnr)), state

    return Rule(rule.init, predict, rule.renoises)


class _State(NamedTuple):
    keys: Array  # of the examples, [N]
    count: Array  # of the evaluations so far, []
    memory: Any  # what the combination carries along


def _paired(
    pair: PairFn,
    w: Strength,
    combine: Callable[..., tuple[Prediction, Any]],
    *,
    needs: Callable[[Array], tuple[Array, Array]],
    memory: Callable[[Array], Any] = lambda z: (),
    renoises: bool = False,
) -> Rule:
    """The rule that combines two predictions.

    Args:
      combine: (z, logsnr, eps, other eps, w, memory) -> (prediction, memory).
      needs: w [N] -> which of the two predictions each example needs, two bool [N].
      memory: z -> the memory before the first evaluation.
    """

    def init(keys, z):
        streams = jax.vmap(lambda key: jax.random.fold_in(key, _STREAM))(keys)
        return _State(streams, jnp.zeros((), jnp.int32), memory(z))

    def predict(z, logsnr, labels, state):
        now = jnp.broadcast_to(strength_at(w, logsnr), labels.shape)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, state.count))(state.keys)
        cond, other = needs(now)
        eps, other_eps = pair(z, logsnr, labels, keys, cond=cond, other=other)
        prediction, after = combine(z, logsnr, eps, other_eps, now, state.memory)
        return prediction, _State(state.keys, state.count + 1, after)

    return Rule(init, predict, renoises)
