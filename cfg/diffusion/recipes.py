"""Guidance rules, samplers and grids by name: the short texts that a config holds.

A recipe is a name with options, as in a call: 'cfg', 'apg(eta=0.0, interval=(-3, 5))', 'ddim(eta=0.5)', 'rho(rho=5)'.
Names and options are those of GUIDANCE, SAMPLERS and GRIDS below; what an option leaves out has its default. Two texts
that mean the same have one canonical form.

Everything here is made of functions: what a rule needs of networks comes as `Parts`.
"""

import ast
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import guidance, pairs, rules, sampling, schedule, solvers, strength
from cfg.diffusion.guidance import EpsFn
from cfg.diffusion.pairs import PairFn
from cfg.diffusion.rules import Rule
from cfg.diffusion.strength import Strength
from cfg.runtime.errors import UserError

Array = jax.Array


@dataclass(frozen=True)
class Option:
    """An option of a recipe.

    Attributes:
      default: its value where the text has none.
      read: the value in the text -> the value; raises TypeError or ValueError on one that is out of range.
      expected: what it must be, in words.
      place: whether it only says where something lies, and not what it is.
    """

    default: Any
    read: Callable[[Any], Any]
    expected: str
    place: bool = False


@dataclass(frozen=True)
class Recipe:
    """A name with the values of all of its options.

    Attributes:
      name: of the rule, sampler or grid.
      options: all of them.
      text: the canonical form, with the options that are not at their defaults and no places.
      w: the strengths that the text names for this rule alone, or None.
    """

    name: str
    options: Mapping[str, Any]
    text: str
    w: tuple[float, ...] | None = None

    def __hash__(self):
        return hash((self.name, tuple(self.options.items()), self.w))


def is_finite(value: Any) -> bool:
    """Whether a value is a number that is finite in float32, in which samples are computed."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


_LARGEST = float(np.finfo(np.float32).max)


def _number(default: float, low: float, high: float = math.inf, *, open_low: bool = False) -> Option:
    def read(value):
        if not is_finite(value) or not low <= value <= high or (open_low and value == low):
            raise ValueError
        return float(value)

    bounds = f'above {low:g}' if open_low else f'at least {low:g}'
    words = f'a number {bounds}' if math.isinf(high) else f'a number from {low:g} to {high:g}'
    return Option(default, read, 'a finite number' if math.isinf(low) else words)


def _optional(option: Option) -> Option:
    return Option(None, lambda value: None if value is None else option.read(value), f'{option.expected}, or None')


def _choice(*values: Any) -> Option:
    def read(value):
        if isinstance(value, bool) is not isinstance(values[0], bool) or value not in values:
            raise ValueError
        return value

    return Option(values[0], read, 'one of ' + ', '.join(map(repr, values)))


def _read_interval(value: Any) -> tuple[float | None, float | None] | None:
    if value is None:
        return None
    low, high = (None if end is None else _number(0.0, -math.inf).read(end) for end in value)
    if low is None and high is None:
        return None
    if not _end(low, -1) < _end(high, 1):
        raise ValueError
    return low, high


def _end(value: float | None, sign: int) -> float:
    return sign * math.inf if value is None else value


def _read_step(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise ValueError
    return value


def _read_folder(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_FOLDER = Option('', _read_folder, 'the workdir of a run', place=True)
_STRENGTH = {
    'interval': Option(None, _read_interval, '(lowest, highest) logsnr that is guided, or None'),
    'schedule': _choice('constant', 'linear', 'cosine'),
}
_THRESHOLD = {'threshold': _optional(_number(0.0, 0.0, 1.0))}
_PAIR = {'against': _choice('null', 'random')}
_TEMPERATURE = {'temperature': _number(1.0, 0.0)}
_RANGE = {name: _optional(_number(0.0, -20.0, 20.0)) for name in ('logsnr_min', 'logsnr_max')}

# What the paper does, and what a row of results does not need to say.
USUAL = {'guidance': 'cfg', 'sampler': 'ancestral', 'grid': 'paper'}

GUIDANCE: dict[str, dict[str, Option]] = {
    'cfg': _PAIR | _STRENGTH | _THRESHOLD,
    'cfg_plus_plus': _PAIR | _THRESHOLD,  # no w switches it off, and less of its w is more guidance
    'rescale': {'phi': _number(0.7, 0.0, 1.0), 'prediction': _choice('v', 'eps', 'x')} | _PAIR | _STRENGTH | _THRESHOLD,
    'apg': {
        'eta': _number(0.0, -math.inf),
        'norm_threshold': _optional(_number(0.0, 0.0, open_low=True)),
        'momentum': _number(0.0, -1.0, 1.0),
        **(_PAIR | _STRENGTH | _THRESHOLD),
    },
    'autoguidance': {'step': Option(-1, _read_step, 'a step, or -1 for the newest'), 'workdir': _FOLDER}
    | _STRENGTH
    | _THRESHOLD,
    'classifier': {'workdir': _FOLDER, 'model': _choice('conditional', 'unconditional')} | _STRENGTH | _THRESHOLD,
    'scaled_score': _STRENGTH | _THRESHOLD,
    'temperature': {},
}
SAMPLERS: dict[str, dict[str, Option]] = {
    'ancestral': _TEMPERATURE,
    'ddim': {'eta': _number(0.0, 0.0, 1.0)} | _TEMPERATURE,
    'dpm_solver_2m': {'stochastic': _choice(False, True)} | _TEMPERATURE,
    'heun': {
        's_churn': _number(0.0, 0.0),
        's_min': _number(0.0, 0.0),
        's_max': _optional(_number(0.0, 0.0)),
        's_noise': _number(1.0, 0.0),
    },
}
GRIDS: dict[str, dict[str, Option]] = {
    'paper': _RANGE,
    'uniform': _RANGE,
    # A smaller one overflows on the way, a larger one is 'uniform' but for rounding.
    'rho': {'rho': _number(7.0, 0.1, 1000.0)} | _RANGE,
}

# By sampler: an option without which others change nothing, what the text must say of it, and these others.
_ALONE = {
    'ddim': ('eta', 'eta', ('temperature',)),
    'dpm_solver_2m': ('stochastic', 'stochastic=True', ('temperature',)),
    'heun': ('s_churn', 's_churn', ('s_min', 's_max', 's_noise')),
}


@functools.lru_cache(maxsize=1024)
def parse_guidance(text: str, field: str = 'sampling.guidance') -> Recipe:
    """A guidance rule from its text. It may name strengths of its own: w=(0.5, 1.0) or w=0.5.

    Raises:
      UserError: names the config field, what is wrong in it, and what it may be.
    """
    return _parse(text, GUIDANCE, field, own_w=True)


@functools.lru_cache(maxsize=1024)
def parse_sampler(text: str, field: str = 'sampling.sampler') -> Recipe:
    """A sampler from its text; errors as in `parse_guidance`, and an option that would change nothing is one."""
    recipe = _parse(text, SAMPLERS, field)
    switch, words, others = _ALONE.get(recipe.name, ('', '', ()))
    for name in others:
        if not recipe.options[switch] and recipe.options[name] != SAMPLERS[recipe.name][name].default:
            raise UserError(
                f'config.{field}={text!r}: {name} changes nothing without {words}: give {words}, or leave {name} out.'
            )
    if recipe.name == 'heun' and recipe.options['s_min'] > _end(recipe.options['s_max'], 1):
        raise UserError(f'config.{field}={text!r}: s_min must be at most s_max, or s_churn changes nothing.')
    return recipe


@functools.lru_cache(maxsize=1024)
def parse_grid(text: str, field: str = 'sampling.grid') -> Recipe:
    """A grid from its text; errors as in `parse_guidance`."""
    return _parse(text, GRIDS, field)


def _parse(text: str, known: dict[str, dict[str, Option]], field: str, own_w: bool = False) -> Recipe:
    name, found = _read_call(text, field)
    if name not in known:
        raise UserError(f'config.{field}={text!r} must be one of {", ".join(known)}, with or without options.')
    w = _read_w(found.pop('w'), text, field) if own_w and 'w' in found else None
    options = known[name]
    for wrong in found.keys() - options.keys():
        has = f'has {", ".join(options)}' if options else 'has none'
        raise UserError(f'config.{field}={text!r} has an option {wrong!r} that {name} does not have: it {has}.')
    values = {}
    for key, option in options.items():
        try:
            values[key] = option.read(found[key]) if key in found else option.default
        except (TypeError, ValueError):
            raise UserError(f'config.{field}={text!r}: {key} must be {option.expected}.') from None
    changed = [
        f'{key}={value!r}' for key, value in values.items() if value != options[key].default and not options[key].place
    ]
    return Recipe(name, values, f'{name}({", ".join(changed)})' if changed else name, w)


def _read_call(text: str, field: str) -> tuple[str, dict[str, Any]]:
    """'name' or 'name(key=value, ...)' with literal values."""
    try:
        node = ast.parse(text.strip(), mode='eval').body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or call.args or any(word.arg is None for word in call.keywords):
            raise ValueError
        found = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
        if len(found) < len(call.keywords):
            raise ValueError
        return call.func.id, found
    except (AttributeError, SyntaxError, TypeError, ValueError, RecursionError):
        raise UserError(
            f"config.{field}={text!r} must be a name with or without options, each once, such as 'ddim(eta=0.5)'."
        ) from None


def _read_w(value: Any, text: str, field: str) -> tuple[float, ...]:
    values = value if isinstance(value, tuple) else (value,)
    if not values or not all(map(is_finite, values)):
        raise UserError(f'config.{field}={text!r}: w must be a number or several, such as (0.5, 1.0).')
    return tuple(map(float, values))


def check_fit(guidance_recipe: Recipe, sampler: Recipe) -> None:
    """Whether a rule means something with a sampler.

    Raises:
      UserError: when it changes nothing there.
    """
    if not fits(guidance_recipe, sampler):
        raise UserError(
            f"The guidance 'temperature' scales the noise of the steps, and the sampler {sampler.text!r} adds none "
            "that it could scale: use 'ancestral', 'ddim' with eta, or 'dpm_solver_2m(stochastic=True)'."
        )


def fits(guidance_recipe: Recipe, sampler: Recipe) -> bool:
    """Whether a rule means something with a sampler; `check_fit` says why not."""
    return guidance_recipe.name != 'temperature' or _adds_noise(sampler)


def _adds_noise(sampler: Recipe) -> bool:
    options = sampler.options
    stochastic = sampler.name == 'ancestral' or bool(options.get('eta')) or bool(options.get('stochastic'))
    return stochastic and options['temperature'] > 0.0


def uses_null_label(recipe: Recipe) -> bool:
    """Whether a rule asks for an unconditional prediction, at some w at least."""
    return compares_with_null(recipe) or recipe.options.get('model') == 'unconditional'


def compares_with_null(recipe: Recipe) -> bool:
    """Whether a rule compares with an unconditional prediction, which a second model may give."""
    return recipe.options.get('against') == 'null'


def needs_companion(recipe: Recipe) -> bool:
    """Whether a rule needs another network than the model that it guides."""
    return recipe.name in ('autoguidance', 'classifier')


def is_conditional(recipe: Recipe, ws: Sequence[float]) -> bool:
    """Whether a rule that uses the null label asks for conditional predictions alone at these w."""
    return recipe.name in ('cfg', 'rescale', 'apg') and all(w == 0 for w in ws)


def is_unconditional(recipe: Recipe, ws: Sequence[float]) -> bool:
    """Whether a rule asks the model for unconditional predictions alone at these w."""
    if recipe.options.get('model') == 'unconditional':
        return True
    constant = recipe.options.get('interval') is None and recipe.options.get('schedule', 'constant') == 'constant'
    named = recipe.name in ('cfg', 'cfg_plus_plus') and compares_with_null(recipe)
    return named and constant and all(w == -1 for w in ws)


class Parts(NamedTuple):
    """What guidance is made of.

    Attributes:
      eps_fn: of the model.
      null_label: of its unconditional prediction.
      num_classes: labels are 0..num_classes - 1.
      both_fn: (z, logsnr, labels, other labels) -> (eps, other eps), where that is cheaper than a batch of 2N; or None.
      uncond_eps_fn, uncond_null_label: of a second model, that gives the unconditional eps in its place; or None.
      weaker_eps_fn: of the model that autoguidance compares with, or None.
      logits_fn: (z, logsnr) -> logits of the classifier of noisy images, or None.
    """

    eps_fn: EpsFn
    null_label: int
    num_classes: int
    both_fn: pairs.BothFn | None = None
    uncond_eps_fn: EpsFn | None = None
    uncond_null_label: int | None = None
    weaker_eps_fn: EpsFn | None = None
    logits_fn: Callable[[Array, Array], Array] | None = None


def build_guidance(
    recipe: Recipe, parts: Parts, w: Array, *, logsnr_min: float, logsnr_max: float
) -> tuple[EpsFn | Rule, Array | float]:
    """The guided model of a recipe.

    Args:
      recipe: from `parse_guidance`.
      parts: with those that it needs.
      w: the paper's guidance strength, [] or [N]; may be traced.
      logsnr_min, logsnr_max: of the model, the ends of the schedules of w.

    Returns:
      (what a sampler takes in the place of a network, the temperature of its noise [] or [N]).
    """
    options = recipe.options
    if recipe.name == 'temperature':
        return parts.eps_fn, 1.0 / (1.0 + w)
    now = _strength(w, options, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    if recipe.name == 'classifier':
        null_label = parts.null_label if options['model'] == 'unconditional' else None
        guided = guidance.classifier_eps_fn(parts.eps_fn, parts.logits_fn, now, null_label=null_label)
    elif recipe.name == 'scaled_score':
        guided = _scaled_score(parts.eps_fn, now)
    elif recipe.name == 'autoguidance':
        guided = rules.classifier_free(pairs.autoguidance_pair(parts.eps_fn, parts.weaker_eps_fn), now)
    else:
        guided = _PAIRED[recipe.name](_pair(options, parts), now, options)
    if options['threshold'] is not None:
        guided = rules.thresholded(rules.as_rule(guided), quantile=options['threshold'])
    return guided, 1.0


_PAIRED: dict[str, Callable[[PairFn, Strength, Mapping[str, Any]], Rule]] = {
    'cfg': lambda pair, w, options: rules.classifier_free(pair, w),
    'cfg_plus_plus': lambda pair, w, options: rules.cfg_plus_plus(pair, w),
    'rescale': lambda pair, w, options: rules.rescaled(pair, w, phi=options['phi'], prediction=options['prediction']),
    'apg': lambda pair, w, options: rules.projected(
        pair,
        w,
        eta=options['eta'],
        norm_threshold=_end(options['norm_threshold'], 1),
        momentum=options['momentum'],
    ),
}


def _pair(options: Mapping[str, Any], parts: Parts) -> PairFn:
    if options['against'] == 'random':
        return pairs.independent_pair(parts.eps_fn, num_classes=parts.num_classes, both_fn=parts.both_fn)
    if parts.uncond_eps_fn is not None:
        return pairs.two_model_pair(parts.eps_fn, parts.uncond_eps_fn, null_label=parts.uncond_null_label)
    return pairs.null_label_pair(parts.eps_fn, null_label=parts.null_label, both_fn=parts.both_fn)


def _strength(w: Strength, options: Mapping[str, Any], **ends: float) -> Strength:
    if options.get('schedule', 'constant') != 'constant':
        w = {'linear': strength.linear, 'cosine': strength.cosine}[options['schedule']](w, **ends)
    if options.get('interval') is not None:
        low, high = options['interval']
        w = strength.interval(w, logsnr_lo=_end(low, -1), logsnr_hi=_end(high, 1))
    return w


def _scaled_score(eps_fn: EpsFn, w: Strength) -> EpsFn:
    def scaled(z, logsnr, labels):
        return guidance.scaled_eps_fn(eps_fn, 1.0 + strength.strength_at(w, logsnr))(z, logsnr, labels)

    return scaled


def grid_ends(recipe: Recipe, **ends: float) -> dict[str, float]:
    """{'logsnr_min', 'logsnr_max'} of a grid: those of the model, given by these names, or the recipe's own."""
    return {name: end if recipe.options[name] is None else recipe.options[name] for name, end in ends.items()}


def build_grid(recipe: Recipe, num_steps: int, *, logsnr_min: float, logsnr_max: float) -> Array:
    """The levels [T] of a recipe, increasing, between its `grid_ends`."""
    ends = grid_ends(recipe, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    if recipe.name == 'rho':
        return schedule.rho_grid(num_steps, rho=recipe.options['rho'], **ends)
    return {'paper': schedule.sampling_grid, 'uniform': schedule.uniform_grid}[recipe.name](num_steps, **ends)


def build_sampler(recipe: Recipe, *, logvar_interp: float) -> Callable[..., Array]:
    """The sampler of a recipe: (model, keys, labels, logsnrs, *, shape, clip_x, temperature) -> samples.

    Args:
      recipe: from `parse_sampler`.
      logvar_interp: the paper's v, which only the ancestral sampler has.
    """
    options = dict(recipe.options)

    def draw(model, keys, labels, logsnrs, *, shape, clip_x, temperature):
        common = {'shape': shape, 'clip_x': clip_x}
        if recipe.name == 'heun':
            own = options | {'s_max': _end(options['s_max'], 1)}
            return solvers.heun(model, keys, labels, logsnrs, **common, **own)
        common['temperature'] = temperature * options['temperature']
        if recipe.name == 'ancestral':
            return sampling.ancestral(model, keys, labels, logsnrs, logvar_interp=logvar_interp, **common)
        if recipe.name == 'ddim':
            return solvers.ddim(model, keys, labels, logsnrs, eta=options['eta'], **common)
        return solvers.dpm_solver_2m(model, keys, labels, logsnrs, stochastic=options['stochastic'], **common)

    return draw


def sample(
    parts: Parts,
    keys: Array,
    labels: Array,
    w: Array,
    *,
    guidance_recipe: Recipe,
    sampler: Recipe,
    grid: Recipe,
    num_steps: int,
    logvar_interp: float,
    clip_x: bool,
    logsnr_min: float,
    logsnr_max: float,
    shape: tuple[int, ...],
) -> Array:
    """Samples [N, *shape] of a rule with a sampler on a grid.

    Args:
      parts: with those that the rule needs.
      keys: [N] typed PRNG keys, one a sample; a sample depends on nothing else.
      labels: int32 [N].
      w: the paper's guidance strength, [N]; may be traced.
      guidance_recipe, sampler, grid: from the parsers above.
      num_steps: T.
      logvar_interp: the paper's v.
      clip_x: whether the estimate of x is clipped to [-1, 1] at every step.
      logsnr_min, logsnr_max: of the model.
      shape: of one sample.
    """
    ends = {'logsnr_min': logsnr_min, 'logsnr_max': logsnr_max}
    model, temperature = build_guidance(guidance_recipe, parts, w, **ends)
    draw = build_sampler(sampler, logvar_interp=logvar_interp)
    logsnrs = build_grid(grid, num_steps, **ends)
    return draw(model, keys, labels, logsnrs, shape=shape, clip_x=clip_x, temperature=temperature)


class Passes(NamedTuple):
    """How often each network runs for one sample.

    Attributes:
      single: evaluations of the model for one prediction.
      both: those for two predictions at once, in one batch of 2N or by `Parts.both_fn`.
      second: of the second model, the unconditional or the weaker one.
      classifier: of the classifier, each forth and back.
    """

    single: int
    both: int
    second: int
    classifier: int

    @property
    def total(self) -> int:
        """Network evaluations, where two predictions at once are two."""
        return self.single + 2 * self.both + self.second + self.classifier


def count_passes(
    guidance_recipe: Recipe,
    sampler: Recipe,
    grid: Recipe,
    w: float,
    *,
    num_steps: int,
    logsnr_min: float,
    logsnr_max: float,
    second_uncond: bool = False,
) -> Passes:
    """The cost of a sample whose whole batch has the same w.

    Args:
      second_uncond: whether a second model gives the unconditional eps.
    """
    ends = {'logsnr_min': logsnr_min, 'logsnr_max': logsnr_max}
    visited = visits(sampler, np.asarray(build_grid(grid, num_steps, **ends)))
    options, count = guidance_recipe.options, len(visited)
    if guidance_recipe.name in ('temperature', 'scaled_score'):
        return Passes(count, 0, 0, 0)
    now = np.broadcast_to(np.asarray(strength.strength_at(_strength(w, options, **ends), jnp.asarray(visited))), count)
    if guidance_recipe.name == 'classifier':
        unguided = -1.0 if options['model'] == 'unconditional' else 0.0
        return Passes(count, 0, 0, int(np.sum(now != unguided)))
    cond, other = (np.broadcast_to(np.asarray(x), count) for x in _NEEDS[guidance_recipe.name](now))
    if guidance_recipe.name == 'autoguidance' or (second_uncond and options['against'] == 'null'):
        return Passes(int(cond.sum()), 0, int(other.sum()), 0)
    both = int(np.sum(cond & other))
    return Passes(count - both, both, 0, 0)


_NEEDS = {
    'cfg': rules.needs_of_classifier_free,
    'autoguidance': rules.needs_of_classifier_free,
    'cfg_plus_plus': rules.needs_of_cfg_plus_plus,
    'rescale': rules.needs_of_correction,
    'apg': rules.needs_of_correction,
}


def visits(sampler: Recipe, logsnrs: np.ndarray) -> np.ndarray:
    """The level of every evaluation of a sampler on a grid [T], in order: [T], or [2T - 1] for Heun's method."""
    if sampler.name != 'heun':
        return logsnrs
    options = sampler.options
    sigma = np.exp(-0.5 * logsnrs)
    churned = (sigma >= options['s_min']) & (sigma <= _end(options['s_max'], 1))
    gamma = np.where(churned, solvers.churn_factor(options['s_churn'], len(logsnrs)), 0.0)
    found = np.empty(2 * len(logsnrs) - 1, logsnrs.dtype)
    found[::2] = logsnrs - 2.0 * np.log1p(gamma)
    found[1::2] = logsnrs[1:]
    return found
