"""Training and a sweep, killed and damaged at random, and what is there in the end: what an undisturbed run leaves."""

import contextlib
import functools
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import time

import pytest

from cfg.modes.status import run as describe
from cfg.report.results import Results
from tests.command_line import ROOT, command
from tests.forked import Run, finish, group, ok, wait_until

# Many processes, one after the other, on a machine that may be busy.
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

STEPS = 36
TRAIN = (
    '--mode=train',
    f'--config.train.num_steps={STEPS}',
    '--config.train.checkpoint_every=2',
    '--config.train.log_every=12',
    '--config.train.keep_every=0',
    '--config.train.keep_last=3',
)
# A step of two processes takes longer, and there are fewer disturbances to live through.
RARELY = '--config.train.checkpoint_every=4'
SWEEP = (
    '--mode=eval',
    '--config.eval.num_samples=200',
    '--config.eval.keep_samples=50',
    '--config.eval.is_split_size=150',
    '--config.eval.kid_subset_size=100',
    '--config.eval.kid_subsets=5',
    '--config.eval.save_seconds=0',
)
# What may end a process, and what happens to the newest checkpoint while none runs.
ALONE = ['kill'] * 6 + ['write'] * 5 + ['term'] * 4
PAIR = ['kill0', 'kill1', 'write', 'term1', 'both']


def digests(workdir):
    return [line for line in describe(workdir).splitlines() if 'sha256' in line]


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit())


def being_written(workdir):
    return [path for path in (workdir / 'checkpoints').glob('*') if not path.name.isdigit()]


def damage(workdir, chance):
    """Cuts a file of the newest checkpoint short, or turns one of its bits, if there is one before it."""
    if len(steps(workdir)) < 2:
        return None
    newest = workdir / 'checkpoints' / str(steps(workdir)[-1])
    files = sorted(path for path in newest.rglob('*') if path.is_file() and path.stat().st_size > 1)
    # Those that hold what is restored: a checkpoint without its times, say, is whole.
    files = [
        path for path in files if path.relative_to(newest).parts[0] in ('params', 'ema_params', 'opt_state', 'meta')
    ]
    file = max(chance.sample(files, 3), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    if chance.random() < 0.5:
        del content[chance.randrange(len(content)) :]
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return newest


def disturb(runs, event, workdir, chance):
    """Ends the processes in the way of `event`, at a random moment; True if they were not already done."""
    before = max(steps(workdir), default=0)
    wait_until(lambda: max(steps(workdir), default=0) > before or not runs[0].process.is_alive())
    if event == 'write':
        wait_until(lambda: being_written(workdir) or not runs[0].process.is_alive(), pause=0.0005)
        time.sleep(chance.uniform(0, 0.02))
    else:
        time.sleep(chance.uniform(0, 0.4))
    victims = {'0': runs[:1], '1': runs[1:]}.get(event[-1], runs)
    alive = all(run.process.is_alive() for run in runs)
    for run in victims:
        run.signal(signal.SIGTERM if event.startswith('term') else signal.SIGKILL)
    statuses = finish(runs)
    # After the last step a signal may come to a process that no longer listens, and find the others already done.
    if not alive or STEPS in steps(workdir):
        return False
    if event.startswith('term'):
        assert statuses == [128 + signal.SIGTERM] * len(runs), '\n'.join(run.text for run in runs)
    else:
        assert all(run.process.exitcode == -signal.SIGKILL for run in victims)
        # 75 by our watch, or JAX's own end when its coordinator is gone.
        assert all(run.process.exitcode in (75, -signal.SIGABRT) for run in runs if run not in victims), statuses
    return True


def chaos(start, events, workdir, expected, chance):
    """Disturbs runs until all events have been, then lets one end; how often the newest checkpoint was damaged."""
    named, damaged = 0, None
    while events:
        runs = start()
        disturbed = disturb(runs, events[-1], workdir, chance)
        if damaged and re.search(f'{damaged} (cannot be read|is damaged)', runs[0].text):
            assert 'goes on from the one before it' in runs[0].text
            named += 1
        damaged = None
        if disturbed:
            events.pop()
            damaged = damage(workdir, chance) if named < 2 or chance.random() < 0.4 else None
        else:  # it was done before we came: once more from the start
            assert digests(workdir) == expected
            shutil.rmtree(workdir)
    ok(start())
    assert digests(workdir) == expected
    return named


def alone(workdir, logs):
    return Run(f'--workdir={workdir}', *TRAIN, output=logs)


def test_training_disturbed_fifteen_times_is_the_undisturbed_one(tmp_path):
    workdir, logs = tmp_path / 'run', tmp_path / 'log'
    ok([alone(tmp_path / 'undisturbed', logs)])
    chance = random.Random(0)
    events = list(ALONE)
    chance.shuffle(events)
    expected = digests(tmp_path / 'undisturbed')
    named = chaos(lambda: [alone(workdir, logs)], events, workdir, expected, chance)
    assert named >= 2
    lines = [json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert lines == sorted(set(lines))
    assert lines[-1] == STEPS


def test_a_ladder_of_students_killed_on_every_rung_is_the_undisturbed_one(tmp_path):
    """Each rung goes on from its own checkpoints, and learns from those of the rung before."""
    grid = ('--config.sampling.sampler=ddim', '--config.sampling.grid=nested', '--config.sampling.num_steps=2')
    student = ('--config.train.kind=student', '--config.train.weighting=v', '--config.sampling.guidance=one_pass')
    halving = ('--config.train.student_steps=2', '--config.train.teacher_guidance=one_pass')
    rungs = {'teacher': (), 'guided': student, 'two': (*student, *halving)}
    chance, logs, taught = random.Random(2), tmp_path / 'log', {'undisturbed': (), 'killed': ()}

    def start(workdir, *flags):
        return [Run(f'--workdir={workdir}', '--config.diffusion.prediction=v', *TRAIN, *grid, *flags, output=logs)]

    for name, flags in rungs.items():
        undisturbed, killed = (tmp_path / place / name for place in taught)
        ok(start(undisturbed, *flags, *taught['undisturbed']))
        again = functools.partial(start, killed, *flags, *taught['killed'])
        chaos(again, ['kill', 'write', 'kill'], killed, digests(undisturbed), chance)
        taught = {place: (f'--config.train.teacher_workdir={tmp_path / place / name}',) for place in taught}


def test_training_of_two_processes_disturbed_five_times(tmp_path):
    workdir, folder = tmp_path / 'run', tmp_path / 'logs'
    ok(group(f'--workdir={tmp_path / "undisturbed"}', *TRAIN, RARELY, folder=folder))
    chance = random.Random(1)
    chaos(
        lambda: group(f'--workdir={workdir}', *TRAIN, RARELY, folder=folder),
        list(PAIR),
        workdir,
        digests(tmp_path / 'undisturbed'),
        chance,
    )


def test_a_full_disk_stops_training_with_the_last_good_checkpoint_intact(tmp_path):
    """A limit on the size of its files, set while it runs, refuses the process what a full disk would."""
    workdir = tmp_path / 'run'
    arguments = (f'--workdir={workdir}', *TRAIN, '--config.train.num_steps=100000', '--config.train.log_every=1000')
    # Through a pipe, which has no size, as orbax and tensorstore complain at length.
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: steps(workdir))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (40_000, 40_000))
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 2, text
    (error,) = (line for line in text.splitlines() if line.startswith('error: '))
    assert error.startswith(f'error: A checkpoint could not be written to {workdir}/checkpoints (File too large; ')
    (last,) = map(int, re.findall(r'the last good one is of step (\d+)', error))
    assert steps(workdir)[-1] == last
    run = Run(*arguments[:-2], f'--config.train.num_steps={last + 2}', output=tmp_path / 'log')
    assert run.wait() == 0, run.text
    assert f'Resuming from step {last}.' in run.text
    assert steps(workdir)[-1] == last + 2


VARYING = ('seconds', 'finished')


def rows(workdir):
    lines = (workdir / 'results.jsonl').read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in VARYING} for line in lines]


@pytest.mark.parametrize('kills', [3])
def test_a_sweep_of_two_processes_killed_at_random_is_the_undisturbed_one(tmp_path, kills, digits_classifier):
    base, workdir, folder = tmp_path / 'undisturbed', tmp_path / 'run', tmp_path / 'logs'
    ok([Run(f'--workdir={base}', '--mode=train', output=tmp_path / 'log')])
    ok(group(f'--workdir={base}', *SWEEP, folder=folder))
    expected, chance = rows(base), random.Random(2)
    assert len(expected) == 6

    def fresh():
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(base, workdir, ignore=shutil.ignore_patterns('results*', 'samples', 'unfinished'))

    def progress():
        found = set()
        for path in (*workdir.glob('results/*'), *workdir.glob('unfinished/*/state.npz')):
            with contextlib.suppress(FileNotFoundError):  # a row that was finished meanwhile
                found.add((path.name, path.stat().st_mtime_ns))
        return found

    def wait_for_change(before, runs):
        wait_until(lambda: progress() != before or not runs[0].process.is_alive())

    fresh()
    while kills:
        before = progress()
        runs = group(f'--workdir={workdir}', *SWEEP, folder=folder)
        wait_for_change(before, runs)
        time.sleep(chance.uniform(0, 0.3))
        number = signal.SIGTERM if kills == 2 else signal.SIGKILL
        runs[kills % 2].signal(number)
        statuses = finish(runs)
        if len(Results(workdir).read()) == len(expected):  # it was done before we came
            assert rows(workdir) == expected
            fresh()
            continue
        if number == signal.SIGTERM:
            assert statuses == [128 + signal.SIGTERM] * 2, runs[0].text + runs[1].text
        kills -= 1
    ok(group(f'--workdir={workdir}', *SWEEP, folder=folder))
    assert rows(workdir) == expected
