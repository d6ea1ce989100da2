"""Rules, solvers and grids as dataclasses: what a text means, what is refused and in which words."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from cfg.diffusion import options
from cfg.diffusion.grids import GRIDS, Paper, Rho, Uniform
from cfg.diffusion.process import PREDICTIONS
from cfg.diffusion.rules import RULES, Apg, Autoguidance, Cfg, Classifier, Rescale, ScaledScore, Temperature
from cfg.diffusion.sampler import Sampler, parse_grid, parse_rule, parse_solver
from cfg.diffusion.solvers import SOLVERS, Ancestral, Ddim, DpmSolver2M, Heun
from cfg.runtime.errors import UserError

ENDS = {'logsnr_min': -20.0, 'logsnr_max': 20.0}
PARSERS = {
    **dict.fromkeys(RULES, parse_rule),
    **dict.fromkeys(SOLVERS, parse_solver),
    **dict.fromkeys(GRIDS, parse_grid),
}


@pytest.mark.parametrize(
    ('text', 'canonical'),
    [
        (' cfg ', 'cfg'),
        ('cfg()', 'cfg'),
        ('cfg(interval=None, schedule="constant")', 'cfg'),
        ('cfg(interval=(None, None))', 'cfg'),
        ('cfg(interval=[-3, 5])', 'cfg(interval=(-3.0, 5.0))'),
        ('cfg(interval=(None, 5))', 'cfg(interval=(None, 5.0))'),
        ('apg(momentum=-0.5,eta=1)', 'apg(eta=1.0, momentum=-0.5)'),
        ('rescale(phi=0.7)', 'rescale'),
        ('autoguidance(workdir="runs/small", step=300)', 'autoguidance(step=300)'),
        ('cfg(w=(0.5, 1))', 'cfg'),
    ],
)
def test_texts_that_mean_the_same_are_one(text, canonical):
    assert parse_rule(text).text == canonical


def test_a_text_is_the_object_that_it_names():
    for parse, text, expected in (
        (parse_rule, 'cfg', Cfg()),
        (parse_rule, "cfg(schedule='linear', interval=(-2, None))", Cfg(schedule='linear', interval=(-2.0, None))),
        (parse_rule, "cfg(against='random', threshold=0.5)", Cfg(against='random', threshold=0.5)),
        (parse_rule, "rescale(phi=0.4, prediction='x')", Rescale(phi=0.4, prediction='x')),
        (parse_rule, 'apg(eta=0.2, norm_threshold=2, momentum=-0.5)', Apg(eta=0.2, norm_threshold=2, momentum=-0.5)),
        (parse_rule, "autoguidance(step=3, workdir='a')", Autoguidance(step=3, workdir='a')),
        (parse_rule, "classifier(model='unconditional')", Classifier(model='unconditional')),
        (parse_rule, 'scaled_score', ScaledScore()),
        (parse_solver, 'ancestral(temperature=0.5)', Ancestral(temperature=0.5)),
        (parse_solver, 'ddim(eta=0.5)', Ddim(eta=0.5)),
        (parse_solver, 'dpm_solver_2m(stochastic=True)', DpmSolver2M(stochastic=True)),
        (parse_solver, 'heun(s_churn=4, s_max=50.0)', Heun(s_churn=4.0, s_max=50.0)),
        (parse_grid, 'uniform(logsnr_min=-8, logsnr_max=12)', Uniform(logsnr_min=-8.0, logsnr_max=12.0)),
        (parse_grid, 'rho(rho=5)', Rho(rho=5.0)),
    ):
        assert parse(text) == expected
        assert hash(parse(text)) == hash(expected)
    # What the paper does is the default.
    usual = (parse_rule('cfg'), parse_solver('ancestral'), parse_grid('paper'))
    assert usual == (Sampler().rule, Sampler().solver, Sampler().grid) == (Cfg(), Ancestral(), Paper())


def test_a_rule_may_bring_its_own_w():
    assert parse_rule('cfg').w is None
    assert parse_rule('cfg_plus_plus(w=(-0.5, 0))').w == (-0.5, 0.0)
    assert parse_rule('cfg(w=2)').w == (2.0,)


@pytest.mark.parametrize(
    ('parse', 'text', 'expected'),
    [
        (parse_rule, 'cgf', 'must be one of cfg, cfg_plus_plus, rescale'),
        (parse_rule, 'cfg(phi=0.5)', "an option 'phi' that cfg does not have: it has against, anneal_label, interval"),
        (parse_rule, 'cfg_plus_plus(interval=(-3, 3))', "'interval' that cfg_plus_plus does not have"),
        (parse_rule, 'cfg_plus_plus(schedule="cosine")', "'schedule' that cfg_plus_plus does not have"),
        (parse_rule, 'rescale(phi=1.5)', r'phi must be a number from 0 to 1'),
        (parse_rule, 'rescale(phi=True)', r'phi must be a number from 0 to 1'),
        (parse_rule, 'rescale(phi="a")', r'phi must be'),
        (parse_rule, 'apg(eta=1e999)', 'eta must be a finite number'),
        (parse_rule, 'apg(norm_threshold=0)', 'norm_threshold must be a number above 0, or None'),
        (parse_rule, 'cfg(interval=(5, -3))', r'interval must be \(lowest, highest\) logsnr'),
        (parse_rule, 'cfg(interval=3)', 'interval must be'),
        (parse_rule, 'cfg(schedule="sine")', "schedule must be one of 'constant', 'linear', 'cosine'"),
        (parse_rule, 'cfg(w="a")', r'w must be a number or several'),
        (parse_rule, 'cfg(w=())', r'w must be a number or several'),
        (parse_rule, 'cfg(w=1, w=2)', 'each once'),
        (parse_rule, 'cfg(3)', 'must be a name with or without options'),
        (parse_rule, 'cfg(', 'must be a name with or without options'),
        (parse_rule, '', 'must be a name with or without options'),
        (parse_rule, '__import__("os")', 'must be a name with or without options'),
        (parse_rule, 'cfg(interval=print(1))', 'must be a name with or without options'),
        (parse_rule, 'temperature(w=1, a=2)', "'a' that temperature does not have: it has none"),
        (parse_rule, 'autoguidance(step=1.5)', 'step must be a step, or -1 for the newest'),
        (parse_solver, 'ddim(eta=2)', r'config\.sampling\.sampler=.* eta must be a number from 0 to 1'),
        (parse_solver, 'dpm_solver_2m(stochastic=1)', 'stochastic must be one of False, True'),
        (parse_solver, 'ddim(w=1)', "an option 'w'"),
        (
            parse_solver,
            'ancestral(logvar_interp=0.5)',
            "an option 'logvar_interp' that ancestral does not have",
        ),
        (parse_solver, 'ddim(temperature=0.5)', 'temperature changes nothing without eta: give eta, or leave'),
        (parse_solver, 'dpm_solver_2m(temperature=0)', 'temperature changes nothing without stochastic=True'),
        (parse_solver, 'heun(s_max=9)', 's_max changes nothing without s_churn'),
        (parse_solver, 'heun(s_min=1, s_churn=0)', 's_min changes nothing without s_churn'),
        (parse_solver, 'heun(s_noise=1.003)', 's_noise changes nothing without s_churn'),
        (parse_solver, 'heun(s_churn=3, s_min=2, s_max=1)', r's_min must be at most s_max, or s_churn changes'),
        (parse_grid, 'rho(rho=0.01)', r'config\.sampling\.grid=.* rho must be a number from 0.1 to 1000'),
        (parse_grid, 'rho(rho=1e300)', 'rho must be a number from 0.1 to 1000'),
        (parse_rule, f'cfg(w={10**400})', 'w must be a number or several'),
        (parse_rule, 'cfg(w=1e39)', 'w must be a number or several'),
        (parse_rule, f'apg(eta={10**400})', 'eta must be a finite number'),
        (parse_rule, f'cfg(interval=(0, {10**400}))', 'interval must be'),
        (parse_grid, 'paper(logsnr_max=25)', 'logsnr_max must be a number from -20 to 20, or None'),
    ],
)
def test_a_text_that_means_nothing_is_refused(parse, text, expected):
    with pytest.raises(UserError, match=expected):
        parse(text)


def test_options_that_would_change_nothing_may_have_their_defaults():
    for text, canonical in (
        ('ddim(eta=0, temperature=1)', 'ddim'),
        ('heun(s_churn=0, s_max=None, s_noise=1.0)', 'heun'),
        ('heun(s_churn=3, s_min=1, s_max=1)', 'heun(s_churn=3.0, s_min=1.0, s_max=1.0)'),
    ):
        assert parse_solver(text).text == canonical


# --- in Python ---

NAN = float('nan')


@pytest.mark.parametrize(
    ('kind', 'values', 'expected'),
    [
        (Apg, {'eta': NAN}, 'eta must be a finite number'),
        (Apg, {'momentum': 1.5}, 'momentum must be a number from -1 to 1'),
        (Apg, {'norm_threshold': 0.0}, 'norm_threshold must be a number above 0, or None'),
        (Cfg, {'against': 'nul'}, "against must be one of 'null', 'random'"),
        (Cfg, {'interval': (5, -3)}, r'interval must be \(lowest, highest\) logsnr'),
        (Cfg, {'interval': (NAN, 5)}, 'interval must be'),
        (Cfg, {'w': (0.5, NAN)}, 'w must be a number or several'),
        (Cfg, {'threshold': 1.5}, 'threshold must be a number from 0 to 1, or None'),
        (Rescale, {'prediction': 'score'}, "prediction must be one of 'v', 'eps', 'x'"),
        (Autoguidance, {'step': -2}, 'step must be a step, or -1'),
        (Classifier, {'workdir': None}, 'workdir must be the workdir of a run'),
        (ScaledScore, {'schedule': 'sine'}, "schedule must be one of 'constant'"),
        (Temperature, {'w': ()}, 'w must be'),
        (Ancestral, {'logvar_interp': 1.1}, 'logvar_interp must be a number from 0 to 1'),
        (Ancestral, {'temperature': -1.0}, 'temperature must be a number at least 0'),
        (Ddim, {'temperature': 0.5}, 'temperature changes nothing without eta'),
        (DpmSolver2M, {'stochastic': 1}, 'stochastic must be one of False, True'),
        (Heun, {'s_churn': NAN}, 's_churn must be a number at least 0'),
        (Heun, {'s_noise': 1.003}, 's_noise changes nothing without s_churn'),
        (Rho, {'rho': 0.0}, 'rho must be a number from 0.1 to 1000'),
        (Uniform, {'logsnr_min': -30.0}, 'logsnr_min must be a number from -20 to 20, or None'),
    ],
)
def test_python_is_refused_what_a_text_is(kind, values, expected):
    with pytest.raises(ValueError, match=f'^{expected}'):
        kind(**values)
    with pytest.raises(ValueError, match=f'^{expected}'):
        dataclasses.replace(kind(), **values)


# --- of every option ---

_LIMIT = st.none() | st.floats(-20, 20)
_SHARE = st.floats(0, 1)
VALUES = {
    'w': st.none() | st.lists(st.floats(-1, 8), min_size=1).map(tuple),
    'interval': st.none() | st.tuples(st.none() | st.floats(-20, -1), st.none() | st.floats(1, 20)),
    'schedule': st.sampled_from(['constant', 'linear', 'cosine']),
    'threshold': st.none() | _SHARE,
    'against': st.sampled_from(['null', 'random']),
    'anneal_label': st.none() | st.tuples(_SHARE, st.floats(1.5, 2), st.floats(0, 3), _SHARE),
    'phi': _SHARE,
    'prediction': st.sampled_from(PREDICTIONS),
    'eta': _SHARE,
    'norm_threshold': st.none() | st.floats(1e-3, 1e6),
    'momentum': st.floats(-1, 1),
    'step': st.integers(-1, 10**6),
    'workdir': st.text(max_size=5),
    'model': st.sampled_from(['conditional', 'unconditional']),
    'logvar_interp': _SHARE,
    'temperature': st.floats(0, 2),
    'stochastic': st.booleans(),
    's_churn': st.floats(0, 100),
    's_min': _SHARE,
    's_max': st.none() | st.floats(1, 80),
    's_noise': st.floats(0, 2),
    'logsnr_min': _LIMIT,
    'logsnr_max': _LIMIT,
    'rho': st.floats(0.1, 1000),
}
SWITCHES = {Ddim: {'eta': 0.5}, DpmSolver2M: {'stochastic': True}, Heun: {'s_churn': 1.0}}


@pytest.mark.parametrize('kind', PARSERS, ids=lambda kind: kind.name)
@hypothesis.given(data=st.data())
def test_a_text_says_every_option_that_is_not_where_something_lies(kind, data):
    fields = dataclasses.fields(kind)
    values = {field.name: data.draw(VALUES.get(field.name, st.just(field.default))) for field in fields}
    for name, on in SWITCHES.get(kind, {}).items():
        values[name] = values[name] or on
    made = kind(**values)
    read = PARSERS[kind](made.text)
    unsaid = ('w', 'workdir', 'logvar_interp')
    assert read == dataclasses.replace(made, **{name: getattr(kind(), name) for name in unsaid if name in values})
    assert read.text == made.text
    assert options.parse(f'{kind.name}()', (kind,), 'x') == kind()


@hypothesis.given(rho=st.floats(0.1, 1000.0), num_steps=st.integers(2, 1024))
def test_every_rho_that_is_allowed_gives_a_grid(rho, num_steps):
    levels = np.asarray(parse_grid(f'rho(rho={rho!r})').levels(num_steps, **ENDS))
    assert np.isfinite(levels).all()
    assert (np.diff(levels) > 0).all()


def test_a_field_that_is_no_option_is_named():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Plain(Cfg):
        r: float = 1.0

    with pytest.raises(TypeError, match='r must be declared as an option'):
        Plain()
