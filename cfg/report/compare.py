"""Rules, samplers, T and w on one model beside each other: FID against IS, FID against cost, and a table.

Written from the rows of a sweep: `frontier.png`, `cost.png`, `points.csv`, `best_at_cost.csv` and `index.html`.
"""

import csv
import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from cfg.report import frontier, frontier_plots, plots
from cfg.report.frontier import Point, Setting
from cfg.report.results import read_results
from cfg.runtime.errors import UserError

FOLDER = 'compare'


def write(folders: Sequence[Path], *, note: str = '') -> Path:
    """Writes the comparison of the rows of runs into the first of them; returns the page to open.

    Args:
        folders: workdirs of the same sweep on different training seeds; what is drawn is the mean over all of them.
        note: what the reader must know of the rows, if not all are there.

    Raises:
        UserError: when there are no rows, or they cannot be compared.
    """
    workdir = folders[0]
    runs = [read_results(folder) for folder in folders]
    found = frontier.points(runs)
    if not found:
        raise UserError(f'{workdir} holds no rows with a cost to compare: run --mode=compare or --mode=eval first.')
    out = workdir / FOLDER
    out.mkdir(exist_ok=True)
    title = plots.features_of(next(run for run in runs if run)[-1:])
    plots.save(frontier_plots.figure_frontier(found, title), out / 'frontier.png')
    plots.save(frontier_plots.figure_cost(found, title), out / 'cost.png')
    _write_points(out / 'points.csv', found)
    table = best_table(found)
    with (out / 'best_at_cost.csv').open('w', newline='') as file:
        csv.writer(file).writerows(table)
    page = out / 'index.html'
    page.write_text(_page(found, table, title, note), encoding='utf-8')
    return page


def best_table(found: Sequence[Point]) -> list[list[str]]:
    """The best FID of each rule at each cost or less, with what reaches it; the first line is the heading.

    A cell is the mean, the spread over repetitions if there are several, how many standard errors it is from plain
    `cfg` at the same cost (paired by repetition), and the w of the point, with sampler, grid and T where these differ.
    """
    costs = frontier.budgets(found)
    where = frontier_plots.way_namer([point.setting for point in found])
    rules: dict[tuple, list[Point]] = {}
    for point in found:
        rules.setdefault(frontier_plots.rule_of(point.setting), []).append(point)
    name = frontier_plots.rule_namer([point.setting for point in found])
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
        writer.writerow((*frontier_plots.FIELDS, 'rest', *numbers))
        for point in found:
            of_setting = (getattr(point.setting, name) for name in (*frontier_plots.FIELDS, 'rest'))
            writer.writerow((*of_setting, *(getattr(point, name) for name in numbers)))


def _page(found: Sequence[Point], table: Sequence[Sequence[str]], title: str, note: str) -> str:
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
    notes = [f'<strong>{html.escape(note)}</strong><br>'] if note else []
    notes += [html.escape(f'{title}. {repeated}')]
    return _HTML.format(notes='\n'.join(notes), table='\n'.join(rows))


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
<p>{notes} The w, sampler and T of a best point are picked by the
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
