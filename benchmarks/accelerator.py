"""Measures everything that asks for a TPU or a GPU, part by part, and prints one table last (benchmarks/README.md).

python benchmarks/accelerator.py --out=runs/accelerator [--parts=unet,train64] [--peer=guided-diffusion]

Each part runs in a process of its own that is ended at its limit, and the rows that it had written by then are kept.
This process imports no JAX, so that nothing else holds the device.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MODULE = 'benchmarks.accelerator_parts'
FILE = 'accelerator.json'
TABLE = 'table.txt'


class Part(NamedTuple):
    """A part is a function of `benchmarks/accelerator_parts.py`, its arguments, and the seconds that it may take."""

    function: str
    arguments: tuple[str, ...]
    seconds: float


# In the order of their worth: a part that finds less than its limit left of TOTAL gets what is left.
PARTS = {
    'device': Part('device', (), 15),
    'unet': Part('unet', (), 70),
    'attention': Part('attention_kernels', (), 25),
    'ancestral': Part('ancestral', (), 15),
    'inception': Part('inception', (), 40),
    'train64': Part('training', ('imagenet64',), 110),
    'sample64': Part('sampling_rates', ('imagenet64',), 70),
    'train128': Part('training', ('imagenet128',), 90),
    'sample128': Part('sampling_rates', ('imagenet128',), 50),
    'statistics': Part('statistics', (), 30),
    'digits': Part('digits', (), 25),
    'peer': Part('peer', (), 70),
    'train64_remat': Part('training', ('imagenet64', 'remat'), 90),
    'train128_remat': Part('training', ('imagenet128', 'remat'), 90),
    'predicted': Part('predicted', (), 500),
    'hours': Part('hours', (), 10),
}
TOTAL = 520.0  # seconds of all parts
LEAST = 10.0  # seconds that every part gets

# Compiles quickly what is slow then.
QUICK = {
    'xla_backend_optimization_level': 0,
    'xla_cpu_use_fusion_emitters': 'false',
    'xla_cpu_parallel_codegen_split_count': 1,
}

TINY = {
    'model.channels': 32,
    'model.channel_mult': (1,),
    'model.num_res_blocks': 1,
    'model.attention_resolutions': (),
    'model.num_heads': 0,
    'model.head_channels': 32,
    'model.norm_groups': 32,
    'model.dropout': 0.0,
    'model.dtype': 'float32',
    'train.learning_rate': 1e-4,
    'sampling.batch_size': 4,
    'sampling.num_steps': 16,
    'sampling.logvar_interp': 0.3,
    'data.image_size': 8,
    'eval.num_samples': 40,
    'eval.kid_subsets': 2,
    'eval.kid_subset_size': 10,
}
Row = dict[str, Any]  # what `row` makes, and its 'part'


@dataclass(frozen=True)
class Run:
    """A run is what a part is told: the flags, when it will be ended (time.monotonic()), and the rows before it."""

    tiny: bool
    peer: str
    end: float
    rows: list[Row]

    def config(self, name: str, **changes: Any) -> Any:
        """Returns a config of configs/, made tiny if the run is."""
        config = importlib.import_module(f'configs.{name}').get_config()
        config.update_from_flattened_dict((TINY if self.tiny else {}) | changes)
        return config

    def found(self, part: str) -> dict[str, dict[str, Any]]:
        """Returns {what: figures} of the rows of a part before; {} if it measured nothing."""
        return {row['what']: row['figures'] for row in self.rows if row['part'] == part and row['figures']}


def row(what: str, figures: dict[str, Any], note: str = '') -> Row:
    """Makes a row: what was measured, {name: number or None}, and how."""
    return {'what': what, 'figures': figures, 'note': note}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help=f'folder of {FILE}, {TABLE} and rows as they come')
    parser.add_argument('--parts', default='', help='names, with commas; the rows of others in the folder stay')
    parser.add_argument('--tiny', action='store_true', help='a tiny network at 8x8, to try the script itself')
    parser.add_argument('--peer', default='', help='a clone of openai/guided-diffusion')
    parser.add_argument('--wheels', type=Path, help='a folder of pure Python wheels to import from')
    parser.add_argument('--patience', type=float, default=1.0, help='factor of all limits')
    parser.add_argument('--part', default='', help=argparse.SUPPRESS)  # MODULE FUNCTION ARGUMENTS, set by itself
    parser.add_argument('--seconds', type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.parts.split(',') if name not in PARTS]
    if options.parts and unknown:
        parser.error(f'--parts={unknown[0]} is none of {", ".join(PARTS)}')
    return options


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Returns the environment of the parts: the first GPU, nearly all of its memory, and the host's CPU beside it."""
    from cfg.runtime import xla_flags

    environ = dict(os.environ)
    paths = [str(ROOT), *sorted(map(str, options.wheels.resolve().glob('*.whl')) if options.wheels else [])]
    environ['PYTHONPATH'] = os.pathsep.join([*paths, *filter(None, [environ.get('PYTHONPATH')])])
    environ['CUDA_VISIBLE_DEVICES'] = environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]
    environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.92')
    platforms = environ.get('JAX_PLATFORMS', '')
    if platforms and 'cpu' not in platforms.split(','):
        environ['JAX_PLATFORMS'] = f'{platforms},cpu'
    xla_flags.choose(environ)
    if options.tiny:  # compilation is nearly all of it
        flags = [f'--{name}={value}' for name, value in QUICK.items() if xla_flags.jaxlib_knows(name)]
        environ['XLA_FLAGS'] = ' '.join([environ.get('XLA_FLAGS', ''), *flags])
        environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(options.out.resolve() / 'programs'))
        environ.setdefault('JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS', '0')
    return environ


def measure(parts: Mapping[str, Part], options: argparse.Namespace, *, module: str = MODULE) -> dict[str, Any]:
    """Runs parts one after the other, and writes the JSON file and the table after each.

    Args:
      parts: by name.
      module: of their functions.

    Returns:
      what the JSON file holds: {'command', 'environment', 'parts': {name: {'seconds', 'limit', 'ended'}}, 'rows'}.
    """
    environ, begun = environment(options), time.monotonic()
    kept = {name: environ[name] for name in sorted(environ) if name.startswith(('JAX_', 'XLA_', 'CUDA_VIS', 'TPU_'))}
    result: dict[str, Any] = {'parts': {}, 'rows': []}
    if options.parts and (options.out / FILE).exists():  # what other parts found stays
        result = json.loads((options.out / FILE).read_text())
        result['rows'] = [row for row in result['rows'] if row['part'] not in parts]
    result |= {'command': sys.argv, 'environment': kept}
    options.out.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        left = options.patience * TOTAL - (time.monotonic() - begun)
        limit = max(LEAST, min(options.patience * part.seconds, left))
        print(f'{name}: at most {limit:.0f} s', file=sys.stderr, flush=True)
        _write(result, options.out)  # the part reads what came before it
        start = time.monotonic()
        (options.out / f'{name}.jsonl').unlink(missing_ok=True)  # of an earlier run
        ended = _run(name, f'{module} {part.function} {" ".join(part.arguments)}', limit, options, environ)
        rows = _rows(options.out / f'{name}.jsonl')
        failed = [row.pop('failed') for row in rows if 'failed' in row]
        result['rows'] += [{'part': name, **row} for row in rows if row]
        seconds = time.monotonic() - start
        result['parts'][name] = {'seconds': seconds, 'limit': limit, 'ended': failed[0] if failed else ended}
    _write(result, options.out)
    return result


def _run(name: str, part: str, limit: float, options: argparse.Namespace, environ: dict[str, str]) -> str:
    """Runs one part, and ends it with all that it started at its limit; tells how it ended."""
    command = [sys.executable, str(Path(__file__).resolve()), f'--part={part}', f'--seconds={limit}']
    command += [f'--out={options.out / name}', f'--peer={options.peer}', *(['--tiny'] if options.tiny else [])]
    process = subprocess.Popen(command, env=environ, stdout=2, start_new_session=True)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f'stopped at its limit of {limit:.0f} s'
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return 'done' if status == 0 else f'ended with status {status}'


def _rows(path: Path) -> list[Row]:
    """Reads the rows of a part; the last one may have been cut off."""
    rows = []
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        for line in path.read_text().splitlines():
            rows.append(json.loads(line))
    return rows


def _write(result: dict[str, Any], out: Path) -> None:
    (out / FILE).write_text(json.dumps(result, indent=1) + '\n')
    (out / TABLE).write_text(table(result) + '\n')


def table(result: dict[str, Any]) -> str:
    """Returns a line a row: the part, what was measured, figures, and how; and a line a part that did not end well."""
    lines = []
    for name, part in result['parts'].items():
        for row in result['rows']:
            if row['part'] == name:
                figures = ', '.join(f'{key} {_number(value)}' for key, value in row['figures'].items())
                lines.append((name, row['what'], figures, row['note']))
        if part['ended'] != 'done':
            lines.append((name, 'NOT FINISHED', part['ended'], ''))
    lines.insert(0, ('part', 'what', 'figures', 'note'))
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return '\n'.join(
        '  '.join(f'{cell:{width}}' for cell, width in zip(line, [*widths, 0], strict=True)) for line in lines
    )


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.4g}' if isinstance(value, float) else str(value)


def serve(options: argparse.Namespace) -> None:
    """Runs one part as the child of `measure`; each row goes to the file at once."""
    module, function, *arguments = options.part.split()
    before = json.loads((options.out.parent / FILE).read_text())['rows']
    run = Run(options.tiny, options.peer, time.monotonic() + options.seconds, before)
    with options.out.with_suffix('.jsonl').open('w', buffering=1) as file:
        try:
            for row in getattr(importlib.import_module(module), function)(run, *arguments):
                file.write(json.dumps(row) + '\n')
        except Exception as error:
            file.write(
                json.dumps({'failed': ' '.join(f'failed: {type(error).__name__}: {error}'.split())[:300]}) + '\n'
            )
            raise


def main() -> int:
    """Runs what the flags ask for; the exit status tells whether every part ended well."""
    sys.path.insert(0, str(ROOT))
    options = parse(sys.argv[1:])
    if options.part:
        serve(options)
        return 0
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # takes the part along
    chosen = options.parts.split(',') if options.parts else PARTS
    result = measure({name: part for name, part in PARTS.items() if name in chosen}, options)
    print(table(result))
    return int(any(part['ended'] != 'done' for part in result['parts'].values()))


if __name__ == '__main__':
    sys.exit(main())
