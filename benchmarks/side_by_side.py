"""Alternates two implementations that live in two processes, and leaves out rounds that something else disturbed.

Each child reads one command a line and answers with one line of JSON, and waits in a read while the other runs.
"""

import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from benchmarks import common
from cfg.runtime.errors import UserError

Handler = Callable[[list[str]], dict[str, Any]]


# The side of a child.


def take_stdout():
    """Returns the pipe to the parent; whatever else is printed goes to stderr from here on."""
    pipe = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    return pipe


def serve(handle: Handler, hello: dict[str, Any], pipe: Any, commands: Iterable[str]) -> None:
    """Says hello, then answers commands until there are no more."""
    print(json.dumps(hello), file=pipe, flush=True)
    for line in commands:
        print(json.dumps(handle(line.split())), file=pipe, flush=True)


def serve_work(prepare: Callable[[], common.Work], *, warmup: int) -> None:
    """Serves as our child: prepares, compiles, and answers `go N` with the seconds of N units."""
    import jax

    pipe = take_stdout()
    try:
        work = prepare()
        times = common.measure(work, units=2, warmup=warmup)
    except UserError as error:
        print(json.dumps({'error': str(error)}), file=pipe, flush=True)
        return
    kind = 'cpu' if jax.default_backend() == 'cpu' else jax.local_devices()[0].device_kind
    hello = {'device': kind, 'network': work.network, 'images': work.images, 'seconds': min(times.units)}
    serve(lambda words: {'seconds': common.seconds_of(work, int(words[1]))}, hello, pipe, sys.stdin)


# The side of the parent.


class Child:
    """A child is a process that answers commands.

    Args:
      name: for messages.
      command: that starts it.
      environ: set besides the environment of this process.
    """

    def __init__(self, name: str, command: list[str], environ: dict[str, str]):
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environ
        )
        self.pid = self._process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def answer(self) -> dict[str, Any]:
        """Returns the next answer.

        Raises:
          UserError: when there is none, or it is an error.
        """
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f'The process of {self.name} ended with status {self._process.wait()}; see its output above.'
            )
        answer = json.loads(line)
        if 'error' in answer:
            raise UserError(answer['error'])
        return answer

    def ask(self, command: str) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        with contextlib.suppress(BrokenPipeError):  # there will be no answer, which says so
            print(command, file=self._process.stdin, flush=True)
        return self.answer()


class Run(NamedTuple):
    """A run is one side of a round: its seconds, and how many cores all else used meanwhile (None: not known)."""

    seconds: float
    others: float | None


class Round(NamedTuple):
    """A round has both sides, a number of units each."""

    ours: Run
    theirs: Run

    @property
    def others(self) -> float | None:
        """Returns the worse of both."""
        known = [run.others for run in self if run.others is not None]
        return max(known, default=None)


def busy_ticks(stat: str) -> int:
    """Returns the ticks that all cores were in use, from /proc/stat; time that the host took away counts too."""
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.split('\n', 1)[0].split()[1:9])
    return user + nice + system + irq + softirq + steal


def process_ticks(stat: str) -> int:
    """Returns the ticks of a process with all its threads, from /proc/PID/stat."""
    # The name may hold spaces and parentheses; user and system time are the 14th and 15th field.
    fields = stat.rpartition(')')[2].split()
    return int(fields[11]) + int(fields[12])


def run_measured(child: Child, units: int) -> Run:
    """Lets one child run, and watches the machine: the other child counts as everything else."""

    def ticks():
        machine, process = Path('/proc/stat'), Path(f'/proc/{child.pid}/stat')
        if not (machine.exists() and process.exists()):
            return None
        return busy_ticks(machine.read_text()) - process_ticks(process.read_text())

    before, start = ticks(), time.perf_counter()
    seconds = child.ask(f'go {units}')['seconds']
    after, elapsed = ticks(), time.perf_counter() - start
    if before is None or after is None:
        return Run(seconds, None)
    return Run(seconds, (after - before) / os.sysconf('SC_CLK_TCK') / elapsed)


def alternate(
    ours: Child, theirs: Child, units: tuple[int, int], *, rounds: int, limit: float
) -> tuple[list[Round], list[Round]]:
    """Runs rounds of both, the order changing, until enough were undisturbed or three times as many were run.

    Returns:
      (rounds that count, discarded rounds).
    """
    kept, discarded = [], []
    while len(kept) < rounds and len(kept) + len(discarded) < 3 * rounds:
        if (len(kept) + len(discarded)) % 2:
            second = run_measured(theirs, units[1])
            first = run_measured(ours, units[0])
        else:
            first = run_measured(ours, units[0])
            second = run_measured(theirs, units[1])
        done = Round(first, second)
        (discarded if done.others is not None and done.others > limit else kept).append(done)
    return kept, discarded


def ratios(rounds: list[Round], units: tuple[int, int]) -> list[float]:
    """Returns the throughput of ours in that of theirs, of each round."""
    return [(r.theirs.seconds / units[1]) / (r.ours.seconds / units[0]) for r in rounds]


def table(kept: list[Round], discarded: list[Round], units: tuple[int, int], variant: str, limit: float) -> str:
    """Returns what came out, as a table with a line on the rounds below.

    Raises:
      UserError: when no round counts.
    """
    if not kept:
        raise UserError(
            f'Something else used more than {limit:g} cores in each of {len(discarded)} rounds: '
            'end it, or allow more with --other_cores.'
        )
    ours = [r.ours.seconds / units[0] for r in kept]
    theirs = [r.theirs.seconds / units[1] for r in kept]
    ratio = ratios(kept, units)
    low, high = common.quartiles(ratio)
    known = [r.others for r in kept if r.others is not None]
    worst = f'at most {max(known):.3f} cores' if known else 'not known here'
    return '\n'.join(
        [
            '| their variant | ours s | theirs s | throughput ours/theirs | quartiles | min..max |',
            '|---|---|---|---|---|---|',
            f'| {variant} | {statistics.median(ours):.4g} | {statistics.median(theirs):.4g} '
            f'| {statistics.median(ratio):.3f} | {low:.3f}..{high:.3f} | {min(ratio):.3f}..{max(ratio):.3f} |',
            f'{len(kept)} rounds of {units[0]} (ours) and {units[1]} (theirs) units, medians; '
            f'{len(discarded)} discarded. Use by anything else: {worst}.',
        ]
    )


def compare(request: dict[str, Any], unit: str) -> str:
    """Runs this script's work in a child beside PyTorch's in another.

    Args:
      request: from `common.peer_request`.
      unit: what the seconds are of, for the user.

    Raises:
      UserError: when a child cannot do its work.
    """
    peer = flags.FLAGS.peer
    if not Path(peer, 'guided_diffusion', 'unet.py').is_file():
        raise UserError(f'--peer={peer} is not a clone of openai/guided-diffusion.')
    return compare_with([str(Path(__file__).with_name('peer.py')), peer, json.dumps(request)], unit)


def compare_with(peer_script: list[str], unit: str) -> str:
    """Runs this script's work in a child beside another script's in another.

    Args:
      peer_script: path and arguments of a script that says hello with its variants and answers try, use and go.
      unit: what the seconds are of, for the user.

    Raises:
      UserError: when a child cannot do its work.
    """
    options = flags.FLAGS
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # takes the children along
    # A comparison is of one device. Neither side may take all of its memory.
    one = {'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]}
    half = {'XLA_PYTHON_CLIENT_MEM_FRACTION': os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.45')}
    # The same flags: the child reads the same config and does the same work.
    our_command = [sys.executable, *sys.argv, '--child']
    with (
        Child('ours', our_command, one | half) as ours,
        Child('PyTorch', [sys.executable, *peer_script], one) as theirs,
    ):
        # Theirs does nothing before it is asked, and ours is idle after its answer.
        our_hello, their_hello = ours.answer(), theirs.answer()
        print(f'{our_hello["network"]}, batch {our_hello["images"]}')
        print(f'ours: JAX on {our_hello["device"]}; theirs: PyTorch on {their_hello["device"]}', flush=True)
        on_cpu = our_hello['device'] == 'cpu'
        if on_cpu != (their_hello['device'] == 'cpu'):
            raise UserError(
                f'JAX runs on {our_hello["device"]} and PyTorch on {their_hello["device"]}: install both for the same '
                'device, or set JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES= for the CPU.'
            )
        best, their_seconds = _choose(theirs, their_hello['variants'], options.variant)
        units = tuple(max(1, math.ceil(options.round_seconds / s)) for s in (our_hello['seconds'], their_seconds))
        limit = options.other_cores if on_cpu else math.inf
        kept, discarded = alternate(ours, theirs, units, rounds=options.rounds, limit=limit)
    return f'Seconds of one {unit}:\n{table(kept, discarded, units, best, limit)}'


def _choose(theirs: Child, variants: list[str], wanted: str) -> tuple[str, float]:
    """Returns the fastest variant, or the wanted one, ready to run, and its seconds of a unit."""
    if wanted and wanted not in variants:
        raise UserError(f'--variant={wanted} is not one of {" ".join(variants)}.')
    best, seconds = '', math.inf
    for variant in [wanted] if wanted else variants:
        tried = theirs.ask(f'try {variant}')
        if 'failed' in tried:
            print(f'  {variant}: {tried["failed"]}', flush=True)
            continue
        print(f'  {variant}: {tried["seconds"]:.4g} s', flush=True)
        if tried['seconds'] < seconds:
            best, seconds = variant, tried['seconds']
    if not best:
        raise UserError('No variant of PyTorch ran; the reasons are above.')
    theirs.ask(f'use {best}')
    return best, seconds
