"""`--mode=compare`: rules, samplers, T and w on one model, as FID against IS, FID against cost, and a table.

Written from the rows of a sweep: `frontier.png`, `cost.png`, `points.csv`, `best_at_cost.csv` and `index.html`.
"""

import csv
import html
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from cfg import processes
from cfg.errors import UserError
from cfg.evaluation import frontier, plots, sweep
from cfg.evaluation.frontier import Point, Setting
from cfg.evaluation.loading import config_of_run
from cfg.evaluation.results import read_results
from cfg.files import lock

FOLDER = 'compare'
_FIELDS = ('guidance', 'sampler', 'grid', 'num_steps', 'logvar_interp', 'networks')
_ALL = ('step', *_FIELDS)


def run(config: ConfigDict, workdir: Path) -> None:
    """The sweep of a config, and the comparison of its rows; prints the page to open.

    Raises:
        UserError: as those do. Rows that cannot be measured are named after the comparison of the others is written.
    """
    others = tuple(config.report.workdirs)
    processes.on_first(lambda: check(workdir, others))
    failure, note = None, ''
    try:
        missing = sweep.evaluate(config, workdir)
        if missing:
            note = f'{missing} rows of this sweep are not measured yet: run this again when its other jobs have ended.'
    except UserError as error:
        failure, note = error, str(error)
    if failure is None or read_results(workdir):
        processes.on_first(lambda: print(_write_alone(workdir, others, note)))
    if failure is not None:
        raise failure


def _write_alone(workdir: Path, others: Sequence[str], note: str) -> Path:
    """`write`, while no other job of the sweep does."""
    with lock(workdir, 'compare', wait=True):
        return write(workdir, others, note=note)


def write(workdir: Path, others: Sequence[str] = (), *, note: str = '') -> Path:
    """Writes the comparison of the rows of a workdir; returns the page to open.

    Args:
        others: workdirs of the same sweep on other training seeds; what is drawn is the mean over all runs.
        note: what the reader must know of the rows, if not all are there.

    Raises:
        UserError: when there are no rows, or they cannot be compared.
    """
    folders = check(workdir, others)
    found = frontier.points([read_results(folder) for folder in folders])
    if not found:
        raise UserError(f'{workdir} holds no rows with a cost to compare: run --mode=compare or --mode=eval first.')
    out = workdir / FOLDER
    out.mkdir(exist_ok=True)
    name = _namer([point.setting for point in found])
    plots.save(figure_frontier(found, name), out / 'frontier.png')
    plots.save(figure_cost(found), out / 'cost.png')
    _write_points(out / 'points.csv', found)
    table = best_table(found)
    with (out / 'best_at_cost.csv').open('w', newline='') as file:
        csv.writer(file).writerows(table)
    page = out / 'index.html'
    page.write_text(_page(found, table, note), encoding='utf-8')
    return page


# What must be equal in the configs of repetitions: nothing of it is told by their rows.
_EQUAL = {
    'model': (),
    'diffusion': (),
    'data': ('name', 'image_size', 'crop', 'split', 'random_flip'),
    'train': ('batch_size', 'stratified', 'learning_rate', 'warmup_steps', 'weight_decay', 'grad_clip', 'ema_decay'),
}
_TOLD = ('label_in',)


def check(workdir: Path, others: Sequence[str] = ()) -> list[Path]:
    """The workdirs of a comparison, which must differ in nothing but their seed and what their rows tell.

    Raises:
        UserError: names the first field in which two differ, or a folder that does not exist.
    """
    folders = list(dict.fromkeys([workdir, *map(Path, others)]))
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f'config.report.workdirs holds {folder}, which does not exist: give the workdirs of runs.')
    configs = [(folder, config) for folder in folders if (config := config_of_run(folder)) is not None]
    for folder, config in configs[1:]:
        first, other = configs[0]
        for part, names in _EQUAL.items():
            for name in sorted(set(names or config[part]) & other[part].keys() & config[part].keys()):
                if config[part][name] != other[part][name] and name not in _TOLD:
                    raise UserError(
                        f'{first} and {folder} are not two seeds of one run: config.{part}.{name} is '
                        f'{other[part][name]!r} there and {config[part][name]!r} here; leave one of them out of '
                        'config.report.workdirs.'
                    )
    return folders


def _namer(settings: Sequence[Setting], fields: Sequence[str] = _ALL, lone: bool = True) -> Callable[[Setting], str]:
    """Settings in words: only what differs between them; `lone`: the rule, if nothing does, and the rest."""
    # Of samplers without v it says nothing that the sampler does not.
    values = {name: {getattr(setting, name) for setting in settings} - {None} for name in fields}
    differing = [name for name in fields if len(values[name]) > 1]
    forms = {
        'step': 'step {:,}',
        'num_steps': 'T = {}',
        'grid': '{} grid',
        'logvar_interp': 'v = {}',
        'networks': 'networks {}',
    }
    rests = [json.loads(setting.rest) for setting in settings]
    keys = [
        key for key in dict.fromkeys(k for rest in rests for k in rest) if len({str(r.get(key)) for r in rests}) > 1
    ]

    def name(setting: Setting) -> str:
        found = [(field, getattr(setting, field)) for field in differing or ['guidance'] * lone]
        words = [forms.get(field, '{}').format(value) for field, value in found if value is not None]
        rest = json.loads(setting.rest)
        return ', '.join([*words, *(f'{key} = {rest.get(key)}' for key in keys)])

    return name


def figure_frontier(found: Sequence[Point], name: Callable[[Setting], str]) -> Figure:
    """FID against the inception score, a line a setting through its w, with the spread over repetitions as bars."""
    figure = Figure(figsize=(9, 7), layout='constrained')
    axes = figure.subplots()
    limit = _limit(found)
    shown = [point for point in found if point.fid <= limit]
    lines = frontier.curves(found)
    for (setting, line), style in zip(lines.items(), _styles(lines), strict=True):
        axes.errorbar(
            [point.inception_score for point in line],
            [point.fid for point in line],
            xerr=[_bar(point.inception_score_spread) for point in line],
            yerr=[_bar(point.fid_spread) for point in line],
            label=name(setting),
            elinewidth=0.8,
            **style,
        )
    plots.tidy(axes)
    scores = [point.inception_score for point in shown]
    margin = 0.05 * (max(scores) - min(scores)) or 0.1
    axes.set_xlim(min(scores) - margin, max(scores) + margin)
    axes.set_xlabel('inception score (higher is better)', color=plots.INK)
    axes.set_ylabel('FID (lower is better)', color=plots.INK)
    _finish(figure, axes, found, limit)
    return figure


def figure_cost(found: Sequence[Point]) -> Figure:
    """The lowest FID over w against the cost of a sample, a line for each rule and sampler through its T."""
    figure = Figure(figsize=(9, 7), layout='constrained')
    axes = figure.subplots()
    name = _namer([point.setting for point in found], tuple(field for field in _ALL if field != 'num_steps'))
    families: dict[tuple, list[Point]] = {}
    for point in found:
        families.setdefault(_key(point.setting, ('num_steps',)), []).append(point)
    lines = {}
    for members in families.values():
        groups: dict[int, list[Point]] = {}
        for point in members:
            groups.setdefault(point.setting.num_steps, []).append(point)
        line = sorted(filter(None, map(frontier.best, groups.values())), key=lambda point: point.cost)
        if line:
            lines[members[0].setting] = line
    for line, style in zip(lines.values(), _styles(lines), strict=True):
        axes.errorbar(
            [point.cost for point in line],
            [point.fid for point in line],
            yerr=[_bar(point.fid_spread) for point in line],
            label=name(line[0].setting),
            elinewidth=0.8,
            **style,
        )
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter(plots.PLAIN)
    plots.tidy(axes)
    axes.set_xlabel('network evaluations for one sample', color=plots.INK)
    axes.set_ylabel('lowest FID over w', color=plots.INK)
    best = [point for line in lines.values() for point in line]
    _finish(figure, axes, best, _limit(found))
    return figure


_RULE = ('step', 'guidance', 'networks', 'rest')


def _rule(setting: Setting) -> tuple:
    return tuple(getattr(setting, name) for name in _RULE)


def _key(setting: Setting, without: Sequence[str]) -> tuple:
    return tuple(getattr(setting, name) for name in (*_ALL, 'rest') if name not in without)


def _styles(settings: Iterable[Setting]) -> list[dict]:
    """A colour for each rule, a kind of line for each way to sample it."""
    rules, ways, found = [], [], []
    for setting in settings:
        rule, way = _rule(setting), _key(setting, _RULE)
        rules += [rule] * (rule not in rules)
        ways += [way] * (way not in ways)
        found.append(plots.styles_of(rules.index(rule), ways.index(way)))
    return found


def _limit(found: Sequence[Point]) -> float:
    """The largest FID that is drawn, so that what has failed does not hide what is compared."""
    return 12.0 * min((point.fid for point in found if point.fid > 0), default=math.inf)


def _bar(spread: float) -> float:
    return 0.0 if math.isnan(spread) else spread


def _finish(figure: Figure, axes: Axes, drawn: Sequence[Point], limit: float) -> None:
    positive = [point.fid for point in drawn if 0 < point.fid <= limit]
    if positive and max(positive) > plots.LOG_RATIO * min(positive):
        axes.set_yscale('log')
        axes.yaxis.set_major_formatter(plots.PLAIN)
        axes.yaxis.set_minor_formatter(plots.PLAIN)
        axes.set_ylim(0.8 * min(positive), 1.1 * max(positive))
    elif positive:
        axes.set_ylim(0.0, 1.1 * max(positive))
    outside = sum(point.fid > limit for point in drawn)
    if outside:
        axes.set_title(f'{outside} points of FID above {limit:.3g} are not shown', fontsize=9, color=plots.MUTED)
    figure.legend(loc='outside lower center', ncols=3, frameon=False, fontsize=8)


def best_table(found: Sequence[Point]) -> list[list[str]]:
    """The best FID of each rule at each cost or less, with what reaches it; the first line is the heading.

    A cell is the mean, the spread over repetitions if there are several, how many standard errors it is from plain
    `cfg` at the same cost (paired by repetition), and the w of the point, with sampler, grid and T where these differ.
    """
    costs = frontier.budgets(found)
    where = _namer([point.setting for point in found], ('sampler', 'grid', 'num_steps', 'logvar_interp'), lone=False)
    rules: dict[tuple, list[Point]] = {}
    for point in found:
        rules.setdefault(_rule(point.setting), []).append(point)
    name = _namer([point.setting for point in found], ('step', 'guidance', 'networks'))
    lines = [['guidance', *(f'{cost:g} evaluations' for cost in costs)]]
    for (step, guidance, _, rest), members in rules.items():
        plain = next((them for key, them in rules.items() if key == (step, 'cfg', 0, rest)), [])
        plain = [] if guidance == 'cfg' else plain
        cells = [_cell(frontier.best(members, cost), frontier.best(plain, cost), where) for cost in costs]
        lines.append([name(members[0].setting), *cells])
    return lines


def _cell(point: Point | None, plain: Point | None, where: Callable[[Setting], str]) -> str:
    if point is None:
        return ''
    spread = '' if math.isnan(point.fid_spread) else f' ± {point.fid_spread:.3f}'
    errors = math.nan if plain is None else frontier.differs(point, plain)
    beside = '' if math.isnan(errors) else f', {errors:+.1f} standard errors from cfg'
    how = ', '.join(filter(None, [f'w = {point.w:g}', where(point.setting)]))
    return f'{point.fid:.3f}{spread}{beside} ({how})'


def _write_points(path: Path, found: Sequence[Point]) -> None:
    numbers = ('w', 'cost', 'fid', 'fid_spread', 'inception_score', 'inception_score_spread', 'count')
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow((*_ALL, 'rest', *numbers))
        for point in found:
            of_setting = (getattr(point.setting, name) for name in (*_ALL, 'rest'))
            writer.writerow((*of_setting, *(getattr(point, name) for name in numbers)))


def _page(found: Sequence[Point], table: Sequence[Sequence[str]], note: str) -> str:
    counts = sorted({point.count for point in found})
    if counts == [1]:
        repeated = 'Every point is one run and one seed: no spread is known, and small differences mean nothing.'
    else:
        repeated = (
            f'Means over {" or ".join(map(str, counts))} repetitions (training seeds where there are several runs, '
            'else sampling seeds); bars and ± are standard deviations over them.'
        )
    head, *lines = ([html.escape(cell) for cell in line] for line in table)
    rows = [f'<tr>{"".join(f"<th>{cell}</th>" for cell in head)}</tr>']
    rows += [f'<tr><th>{line[0]}</th>{"".join(f"<td>{cell}</td>" for cell in line[1:])}</tr>' for line in lines]
    if note:
        repeated = f'<strong>{html.escape(note)}</strong><br>\n{html.escape(repeated)}'
    else:
        repeated = html.escape(repeated)
    return _HTML.format(repeated=repeated, table='\n'.join(rows))


_HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Guidance compared</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }}
img {{ width: 100%; height: auto }}
div {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 13px }}
th, td {{ border-bottom: 1px solid #e3e6ea; padding: .35rem .6rem; text-align: left; vertical-align: top }}
</style>
<h1>Guidance compared</h1>
<p>{repeated} The w, sampler and T of a best point are picked by the
same FID that is shown. Standard errors from cfg are Student's t of the differences within each repetition: with three
repetitions 4.3 is what chance alone exceeds in a twentieth of the cases.</p>
<h2>FID against IS</h2>
<img src="frontier.png" alt="FID against inception score, a line for each rule">
<h2>Cost</h2>
<img src="cost.png" alt="Lowest FID against network evaluations">
<h2>Best FID at equal cost</h2>
<div><table>
{table}
</table></div>
<p>All points: <a href="points.csv">points.csv</a>. The table: <a href="best_at_cost.csv">best_at_cost.csv</a>.</p>
</html>
"""
