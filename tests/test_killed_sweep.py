"""kill -9 at random moments of a sweep, twenty times, and what it has measured in the end."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.forked import Run, ok

# Several times what the longest needs on a machine that does nothing else.
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

KILLS = 20
SWEEP = (
    '--mode=eval',
    '--config.eval.num_samples=400',
    '--config.eval.w=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0, 2.0)',
    '--config.eval.keep_samples=50',
    '--config.eval.is_split_size=150',
    '--config.eval.kid_subset_size=100',
    '--config.eval.kid_subsets=5',
    '--config.eval.save_seconds=0',
)
VARYING = ('seconds', 'finished')


def rows_of(workdir):
    """Every row, without what may differ between two runs."""
    rows = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
    assert len(rows) == len(list((workdir / 'results').glob('*.json')))
    return sorted(json.dumps({k: v for k, v in row.items() if k not in VARYING}, sort_keys=True) for row in rows)


def state_of(workdir: Path) -> set:
    """Changes whenever the sweep has put something on disk."""
    found = set()
    for pattern in ('results/*', 'unfinished/*/state.npz', 'samples/*'):
        for path in workdir.glob(pattern):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            found.add((str(path), stat.st_size, stat.st_mtime_ns))
    return found


@pytest.fixture(scope='module', name='undisturbed')
def undisturbed_fixture(tmp_path_factory, digits_classifier):
    workdir = tmp_path_factory.mktemp('sweep') / 'undisturbed'
    for arguments in (('--mode=train',), SWEEP):
        ok([Run(f'--workdir={workdir}', *arguments, output=workdir.with_name('log'))])
    return workdir


def fresh(undisturbed, workdir):
    """The run without its sweep; the real images need not be measured again."""
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(undisturbed, workdir, ignore=shutil.ignore_patterns('results*', 'samples', 'unfinished'))


def test_a_sweep_killed_twenty_times_is_the_undisturbed_one(undisturbed, tmp_path):
    workdir, chance = tmp_path / 'killed', random.Random(0)
    expected = rows_of(undisturbed)
    assert len(expected) == len(set(expected)) == 16
    fresh(undisturbed, workdir)
    kills = in_a_row = 0
    while kills < KILLS or in_a_row < 2:  # some in the middle of a row, as most are
        before = state_of(workdir)
        run = Run(f'--workdir={workdir}', *SWEEP, output=tmp_path / 'log')
        while state_of(workdir) == before and run.process.is_alive():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.9))
        run.signal(signal.SIGKILL)
        if run.wait() == 0:  # too fast for us: compare, and begin another sweep
            assert rows_of(workdir) == expected
            fresh(undisturbed, workdir)
            continue
        assert run.process.exitcode == -signal.SIGKILL
        kills += 1
        in_a_row += any((workdir / 'unfinished').glob('[!.]*/state.npz'))
    ok([Run(f'--workdir={workdir}', *SWEEP, output=tmp_path / 'log')])
    assert rows_of(workdir) == expected
    names = {path.name for path in (workdir / 'samples').iterdir()}
    assert names == {path.name for path in (undisturbed / 'samples').iterdir()}
    for name in names:
        assert (workdir / 'samples' / name).read_bytes() == (undisturbed / 'samples' / name).read_bytes()
