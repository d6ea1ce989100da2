"""What rules and samplers draw from exact scores, against closed forms; the files of the study; its config."""

import csv
import dataclasses
import json

import matplotlib.image
import numpy as np
import pytest

from cfg.diffusion.sampler import parse_rule, parse_solver
from cfg.mixture import plots, settings, study
from cfg.mixture.distances import NUM_BINS
from cfg.mixture.settings import Settings
from cfg.modes import report
from cfg.runtime.errors import UserError
from cfg.settings.checks import check_config
from configs import mixture as mixture_config

THREE = Settings(
    means=((0.0, 0.8), (-0.693, -0.4), (0.693, -0.4)),
    stddev=0.5,
    weaker_stddev=0.75,
    w=(0.0, 2.0),
    guidance=('cfg', 'temperature'),
    rule_samplers=('dpm_solver_2m', 'ancestral'),
    num_steps=6,
    samplers=('ddim',),
    steps=(4, 6),
    steps_w=(1.0,),
    tilted=(('feynman_kac(particles=2)', 6), ('gibbs', 8)),
    grid='uniform',
    logvar_interp=0.3,
    logsnr_min=-20.0,
    logsnr_max=20.0,
    extent=2.5,
    num_samples=1000,
    num_seeds=1,
    seed=0,
)
ONE = dataclasses.replace(THREE, means=((0.3, -0.2),))


def draw(settings, guidance, w, *, sampler='dpm_solver_2m', num_steps=48):
    made = settings.sampler_of(parse_rule(guidance), parse_solver(sampler), num_steps)
    return study.draw(settings, made, w, seed=3)


def test_an_exact_classifier_is_guidance_without_one():
    """log p(c | z) = log p(z | c) - log p(z) + log p(c): equal samples, up to rounding."""
    guided = draw(THREE, 'cfg', 1.5)
    assert guided.shape == (3, 1000, 2)
    for text in ('classifier', "classifier(model='unconditional')"):
        np.testing.assert_allclose(draw(THREE, text, 1.5), guided, atol=2e-3)


def test_a_single_class_has_nothing_to_be_guided_to():
    """p(c | z) = 1, so the density is p(z | c) at every w."""
    np.testing.assert_allclose(draw(ONE, 'cfg', 3.0), draw(ONE, 'cfg', 0.0), atol=2e-3)


def test_autoguidance_of_a_gaussian():
    """The flow of s and S with weights 1 + w and -w ends in the deviation s (s / S)^w, not in its own aim."""
    drawn = draw(ONE, 'autoguidance', 1.0, num_steps=96)[0]
    np.testing.assert_allclose(drawn.std(axis=0), 0.5 * 0.5 / 0.75, rtol=0.06)
    aim = (2.0 / 0.5**2 - 1.0 / 0.75**2) ** -0.5
    assert drawn.std(axis=0).max() < 0.9 * aim
    np.testing.assert_allclose(drawn.mean(axis=0), ONE.means[0], atol=0.03)


def test_a_random_class_in_place_of_the_null_label_moves_the_class():
    """The mean of eps(z, c') over c' is that of one Gaussian about the mean of means: w moves each class away from it.

    The draws of c' add noise, the less the more steps there are.
    """
    drawn = draw(THREE, "cfg(against='random')", 1.0, num_steps=96)
    means = np.array(THREE.means)
    moved = means + 1.0 * (means - means.mean(axis=0))
    np.testing.assert_allclose(drawn.mean(axis=1), moved, atol=0.06)
    assert (np.abs(drawn.std(axis=1) - 0.52) < 0.05).all()
    # Eq. 6 stops where p(c | z) = 1, well before.
    pushed = draw(THREE, 'cfg', 1.0, num_steps=96).mean(axis=1)
    assert (np.linalg.norm(pushed, axis=1) < 0.9 * np.linalg.norm(moved, axis=1)).all()


def test_the_twin_of_a_rule_that_is_guidance_is_that_rule():
    """A classifier is Eq. 6 here, which its text does not tell; APG is weaker, and more than that."""
    one, solver = study.Study(dataclasses.replace(THREE, num_samples=400)), parse_solver('dpm_solver_2m')
    assert set(one.twin(parse_rule('cfg'), solver, 2.0, num_steps=12).values()) == {None}
    rule = parse_rule('classifier')
    row, _ = one.measure(rule, solver, 2.0, num_steps=12)
    twin = one.twin(rule, solver, 2.0, num_steps=12)
    assert twin['twin_sliced_w2'] == pytest.approx(row['sliced_w2'], rel=1e-2)
    assert twin['remainder'] < 1e-4
    assert one.twin(parse_rule('apg'), solver, 2.0, num_steps=12)['remainder'] > 0.1


def test_a_scaled_score_draws_the_mean():
    """A flow with the score times 1 + w shrinks by (s / sigma)^(1 + w) from sigma = e^10, so w > 0 leaves a point."""
    drawn = draw(ONE, 'scaled_score', 1.0, sampler='ddim', num_steps=96)[0]
    np.testing.assert_allclose(drawn, np.broadcast_to(ONE.means[0], drawn.shape), atol=2e-3)


def test_more_steps_do_not_lead_to_the_guided_density():
    """Without guidance samplers reach what exact draws show; with it they converge elsewhere."""
    found = study.Study(THREE)
    rows = {
        (w, num_steps): found.measure(parse_rule('cfg'), parse_solver('dpm_solver_2m'), w, num_steps=num_steps)[0]
        for num_steps in (32, 96)
        for w in (0.0, 2.0)
    }
    for name in ('sliced_w2', 'total_variation', 'kl'):
        assert rows[0.0, 96][name] < rows[0.0, 96][f'floor_{name}'] + 4.0 * rows[0.0, 96][f'floor_{name}_spread']
    for num_steps in (32, 96):
        assert rows[2.0, num_steps]['sliced_w2'] > 5.0 * rows[2.0, num_steps]['floor_sliced_w2']
    assert rows[2.0, 96]['sliced_w2'] > 0.95 * rows[2.0, 32]['sliced_w2']
    # Without guidance the nearest density is the right one; one pass does for it.
    assert rows[0.0, 96]['nearest_w'] == pytest.approx(0.0, abs=0.1)
    assert (rows[0.0, 96]['passes'], rows[2.0, 96]['passes']) == (96, 192)


def small_config():
    config = mixture_config.get_config()
    config.mixture.num_samples = config.mixture.seed_samples = 100
    config.mixture.w = (0.0, 2.0)
    config.mixture.num_steps = config.sampling.num_steps = 6
    config.mixture.guidance = ('cfg', 'cfg_plus_plus(w=-0.5)', 'temperature')
    config.mixture.rule_samplers = THREE.rule_samplers
    config.mixture.samplers = THREE.samplers
    config.mixture.steps = THREE.steps
    config.mixture.tilted = THREE.tilted
    config.mixture.num_seeds = 2
    return config


def test_the_report_of_a_mixture(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, 'NEAREST_COUNT', 4)
    config = small_config()
    check_config(config)
    path = report.run(config, tmp_path)
    assert path == tmp_path / 'report' / 'distances.md'

    def refuse(constant):
        raise AssertionError(constant)

    written = json.loads((path.parent / 'distances.json').read_text(), parse_constant=refuse)
    found = [(row['guidance'], row['sampler'], row['w']) for row in written['rules']]
    assert found == [
        *(('cfg', sampler, w) for sampler in THREE.rule_samplers for w in (0.0, 2.0)),
        *(('cfg_plus_plus', sampler, -0.5) for sampler in THREE.rule_samplers),
        # The other sampler adds no noise that a temperature could scale.
        *(('temperature', 'ancestral', w) for w in (0.0, 2.0)),
    ]
    assert [(row['num_steps'], row['w']) for row in written['samplers']] == [(4, 0.0), (4, 2.0), (6, 0.0), (6, 2.0)]
    for row in written['rules']:
        assert len(row['kl_by_class']) == len(row['floor_kl_by_class']) == 3
        assert row['kl'] == pytest.approx(np.mean(row['kl_by_class']))
        assert row['sliced_w2_spread'] >= 0.0
    lines = list(csv.DictReader((path.parent / 'distances.csv').open()))
    assert [line['table'] for line in lines] == ['rules'] * 8 + ['samplers'] * 4 + ['tilted'] * 2
    # One seed, w > 0, T evaluations of two predictions for each particle, and 2T - 1 in each run.
    found = [(row['sampler'], row['num_steps'], row['w'], row['passes']) for row in written['tilted']]
    assert found == [('feynman_kac(particles=2)', 6, 2.0, 24), ('gibbs', 8, 2.0, 7 + 2 * (3 + 3))]
    assert all(row['sliced_w2_spread'] is None for row in written['tilted'])
    assert float(lines[1]['sliced_w2']) == written['rules'][1]['sliced_w2']
    text = path.read_text()
    for name in ('rules.png', 'rule_distances.png', 'sampler_distances.png', 'tilted.png'):
        assert f'({name})' in text
        assert matplotlib.image.imread(path.parent / name)[..., :3].std() > 0.05
    assert text.count('| cfg_plus_plus |') == 2


def test_pictures_say_what_they_cannot_show():
    assert [plots.distance_text(value) for value in (0.0123, 99.9, 100.0, 1e7)] == [
        '0.012',
        '99.900',
        '> 100',
        '> 100',
    ]
    names = {'sampler': 'ddim', 'num_steps': 6, 'w': 0.0, 'floor_sliced_w2': 0.01, 'floor_sliced_w2_spread': 0.001}
    near, far = (
        {'guidance': rule, 'sliced_w2': distance, 'sliced_w2_spread': None, **names}
        for rule, distance in (('cfg', 0.1), ('scaled_score', 1e5))
    )
    size = NUM_BINS
    shown = [(near, np.full((1, size, size), 0.5)), (far, np.zeros((1, size, size)))]
    figure = plots.rules_figure(
        [(0.0, np.ones((1, size, size)))], [plots.Panels('cfg', 'ddim', False, shown)], extent=2.5
    )
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert texts[-2:] == [[], ['(outside)']]
    assert figure.axes[-1].get_title() == '> 100 (0.010)'
    for rows, labels in (([near], {'cfg'}), ([near, far], {'cfg', 'scaled_score', 'above the axis'})):
        (legend,) = plots.rule_distances(rows, extent=2.5).legends
        assert {text.get_text() for text in legend.get_texts()} == {'exact draws', *labels}


def test_without_rules_the_report_is_fig_2(tmp_path):
    config = small_config()
    config.mixture.guidance = ()
    check_config(config)
    assert report.run(config, tmp_path).name == 'fig2.png'
    assert {path.name for path in (tmp_path / 'report').iterdir()} == {'fig2.png', 'fig2.json'}


@pytest.mark.parametrize(
    ('field', 'value', 'expected'),
    [
        ('guidance', ('cfg', 3), 'a tuple of texts'),
        ('guidance', ('cfg', 'guess'), 'must be one of cfg, '),
        ('guidance', ('cfg', 'cfg()'), 'different from each other'),
        ('guidance', ("autoguidance(workdir='runs/x')",), 'without workdir'),
        ('guidance', ('autoguidance(step=3)',), 'without step'),
        ('guidance', ('temperature(w=-1)',), "above -1 for the guidance 'temperature'"),
        ('rule_samplers', ('ddim',), "the sampler 'ddim' adds none"),
        ('rule_samplers', (), 'at least one sampler'),
        ('samplers', ('euler',), 'must be one of ancestral, '),
        ('samplers', ('gibbs(logsnr=20.0)',), 'between the ends of the grid, -20 and 20'),
        ('tilted', (('gibbs', 5),), 'enough for at least 2 in each run of'),
        ('tilted', (('gibbs(logsnr=20.0)', 64),), 'between the ends of the grid, -20 and 20'),
        ('tilted', ('gibbs', 5), 'pairs of a sampler and its number of steps'),
        ('tilted', (('euler', 5),), 'must be one of ancestral, '),
        ('grid', 'rho(rho=-1)', 'rho must be'),
        ('steps', (), 'whole numbers of at least 2'),
        ('steps_w', (), 'one or more finite numbers'),
        ('steps_w', (10**400,), 'one or more finite numbers'),
        ('num_steps', 1, 'at least 2'),
        ('seed_samples', 0, 'at least 1'),
        ('num_seeds', 0, 'at least 1'),
        ('means', ((0.0, 1.0, 2.0),), 'up to 6 points'),
        ('means', ((0.0, 1.0),) * 7, 'up to 6 points'),
        ('w', (), 'one or more finite numbers'),
        ('stddev', 0.0, 'positive'),
        ('weaker_stddev', 0.0, 'positive'),
        ('extent', 1.0, 'from 1.9 to 20'),
        ('extent', 30.0, 'from 1.9 to 20'),
    ],
)
def test_a_wrong_field_is_refused_before_any_work(field, value, expected):
    config = mixture_config.get_config()
    config.mixture[field] = value
    with pytest.raises(UserError) as caught:
        check_config(config)
    assert f'config.mixture.{field}' in str(caught.value) or field == 'rule_samplers' or value == ('temperature(w=-1)',)
    assert expected in str(caught.value)
