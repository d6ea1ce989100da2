"""Sets rules, samplers, T and w beside each other: FID against IS, FID against cost, and a table.

Written from the rows of a sweep: `frontier.png`, `cost.png`, `points.csv`, `best_at_cost.csv` and `index.html`.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from cfg.report import frontier, frontier_plots, html, plots, twins
from cfg.report.curves import grouped
from cfg.report.frontier import Point, Run, Setting
from cfg.report.results import Results
from cfg.report.rows import Row
from cfg.report.tables import write_lines
from cfg.runtime.errors import UserError

FOLDER = 'compare'


def write(origins: Sequence[Run], *, note: str = '') -> Path:
    """Writes the comparison of the rows of runs into the first of them; returns the page to open.

    Args:
        origins: runs of the same or other networks; what is drawn is the mean over the seeds of each network.
        note: what the reader must know of the rows, if not all are there.

    Raises:
        UserError: when there are no rows, or they cannot be compared.
    """
    workdir = origins[0].folder
    runs = [Results(origin.folder).swept() for origin in origins]
    found = frontier.points(runs, origins)
    if not found:
        raise UserError(f'{workdir} holds no rows to compare: run --mode=compare or --mode=eval first.')
    if all(math.isnan(point.fid) for point in found):
        raise UserError(
            f'No row of {workdir} has a FID, by which rules are compared: delete its folder {Row.FOLDER}/, and '
            '--mode=compare measures the rows again.'
        )
    out = workdir / FOLDER
    out.mkdir(exist_ok=True)
    title = plots.features_of([frontier.newest(runs)])
    plots.save(frontier_plots.figure_frontier(found, title), out / 'frontier.png')
    plots.save(frontier_plots.figure_cost(found, title), out / 'cost.png')
    _write_points(out / 'points.csv', found)
    table = best_table(found)
    write_lines(out / 'best_at_cost.csv', table)
    counts = sorted({point.count for point in found})
    beside = twins.twinned(origins)
    of_twins = twins.table(beside)
    if len(of_twins) > 1:
        write_lines(out / 'twins.csv', of_twins)
        twins.save_figure(beside, out / 'strength.png')
    return html.write(
        *(out / 'index.html', 'compare.html'), note=note, title=title, counts=counts, table=table, twins=of_twins
    )


def best_table(found: Sequence[Point]) -> list[list[str]]:
    """Returns the best FID of each rule at each cost or less, with what reaches it, below a line of headings.

    A cell is the mean, the spread over repetitions if there are several, how many standard errors it is from plain
    `cfg` at the same cost (paired by repetition), and the w of the point, with sampler, grid and T where these differ.
    """
    costs = frontier.budgets(found)
    rules = grouped(found, lambda point: point.setting.rule)
    settings = [point.setting for point in found]
    name = frontier_plots.namer(settings, frontier_plots.RULE)
    where = frontier_plots.namer(settings, frontier_plots.WAY, lone=False)
    lines = [['guidance', *(f'{cost:g} evaluation{"s" * (cost != 1)}' for cost in costs)]]
    first = settings[0].network
    for (network, step, guidance, _, rest), members in rules.items():
        plain = [] if guidance == 'cfg' else rules.get((network, step, 'cfg', 0, rest), [])
        if network != first and not plain:
            plain = next((rules[rule] for rule in rules if rule[0] == first and rule[2:] == ('cfg', 0, rest)), [])
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
    lines = [[*frontier_plots.FIELDS, 'rest', *numbers]]
    for point in found:
        of_setting = [getattr(point.setting, name) for name in frontier_plots.FIELDS]
        rest = json.dumps(dict(point.setting.rest), sort_keys=True)
        lines.append([*of_setting, rest, *(getattr(point, name) for name in numbers)])
    write_lines(path, lines)
