"""Compiles for a TPU or a GPU that is not here, by that device's own compiler.

Both compilers run on any machine. They print the optimised program with its memory long before they are done with
machine code, which takes a TPU's compiler most of an hour for a large network: so they run in a process of their own,
which is stopped when both texts are there.
"""

import contextlib
import importlib
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfg.runtime.errors import UserError, first_line

CHIPS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / 'chips.json').read_text())
PACKAGES = {
    'tpu': {'libtpu': 'libtpu'},
    'gpu': {'jax_cuda13_plugin': 'jax-cuda13-plugin', 'jax_plugins.xla_cuda13': 'jax-cuda13-pjrt'},
}
# Where make install-dev puts them: where JAX looks for its plugins they would make it look for their devices.
FOLDER = Path(__file__).parents[2] / '.compilers'
_ENVIRONMENT = {
    # Of the host there is only a CPU; libtpu must not ask the network for the machine that it is on. A flag that the
    # host's compiler knows can end the other one.
    'tpu': {
        'XLA_FLAGS': '',
        'TPU_ACCELERATOR_TYPE': 'v4-8',  # anything that it knows; the topology says what counts
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    },
    'gpu': {'XLA_FLAGS': '--xla_gpu_autotune_level=0', 'CUDA_VISIBLE_DEVICES': '-1'},
}


@dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      kind: 'tpu' or 'gpu'.
      chip: one of `CHIPS`.
      sides: of the topology, such as (2, 4); a product of the number of devices.
    """

    kind: str
    chip: str
    sides: tuple[int, ...]

    @property
    def count(self) -> int:
        """Returns the number of devices."""
        return math.prod(self.sides)

    @property
    def facts(self) -> dict[str, Any]:
        """Returns what the chip's data sheet says."""
        return CHIPS[self.chip]

    @property
    def flops(self) -> float:
        """Returns a device's bfloat16 FLOP a second."""
        return self.facts['tflops'] * 1e12

    @property
    def bandwidth(self) -> float:
        """Returns the bytes a second between a device and its memory."""
        return self.facts['gb_per_s'] * 1e9

    @property
    def memory(self) -> float:
        """Returns the bytes of a device's memory."""
        return self.facts['gib'] * 2**30

    def __str__(self) -> str:
        return f'{self.kind}:{self.chip}:{"x".join(map(str, self.sides))}'


def parse_target(text: str) -> Target:
    """Reads 'tpu:v5e:2x4' or 'gpu:h100:8'; without the last part the devices of one machine.

    Raises:
      UserError: when it is none of those.
    """
    kind, _, rest = text.partition(':')
    chip, _, sides = rest.partition(':')
    names = [name for name, facts in CHIPS.items() if facts['kind'] == kind]
    if chip not in names:
        known = ', '.join(f'{facts["kind"]}:{name}' for name, facts in CHIPS.items())
        raise UserError(f'--target={text} is not known: give one of {known}, with a topology, as tpu:v5e:2x4.')
    sides = sides or CHIPS[chip]['topology']
    dimensions = len(CHIPS[chip]['topology'].split('x'))
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', sides) or len(sides.split('x')) != dimensions:
        example = CHIPS[chip]['topology']
        raise UserError(f'--target={text} has no topology of {kind}:{chip}: give it as {kind}:{chip}:{example}.')
    return Target(kind, chip, tuple(map(int, sides.split('x'))))


def check_compiler(target: Target) -> None:
    """Checks that the target's compiler is installed.

    Raises:
      UserError: with the command that installs it.
    """
    missing = [name for module, name in PACKAGES[target.kind].items() if not _is_installed(module)]
    if missing:
        raise UserError(
            f'Compiling for {target} needs {" and ".join(missing)}, which no such device is needed for: python -m pip '
            f'install --no-deps --target {FOLDER.name} {" ".join(requirements(target.kind))}'
        )


def requirements(kind: str) -> list[str]:
    """Returns what pip is asked for, in the versions that belong to the installed JAX."""
    from importlib.metadata import requires, version

    if kind == 'gpu':
        return [f'{name}=={version("jax")}' for name in PACKAGES[kind].values()]
    found = [line.partition(';')[0].strip() for line in requires('jax') or [] if line.startswith('libtpu')]
    return [f"'{line}'" for line in found[:1]] or ['libtpu']


def _is_installed(module: str) -> bool:
    place = module.replace('.', '/')
    return any((Path(folder) / place).is_dir() for folder in (FOLDER, *sys.path))


def devices(target: Target) -> list[Any]:
    """Returns the devices of a target, in a process whose environment is that of `compiled`."""
    from jax.experimental import topologies

    if target.kind == 'gpu':
        arguments = {'topology': f'1x1x{target.count}', 'target_config': _gpu_config(target)}
        return topologies.get_topology_desc(platform='cuda', topology_name=target.chip, **arguments).devices
    # As one machine, whatever their number: pmap takes the devices of this process alone.
    bounds = (*target.sides, 1)[:3]
    arguments = {'topology_name': f'{target.chip}:{"x".join(map(str, target.sides))}', 'chips_per_host_bounds': bounds}
    if len(target.sides) == 3:
        arguments['chip_config_name'] = 'megacore'  # both cores of a chip as one device, as JAX has them
    return topologies.get_topology_desc(platform='tpu', **arguments).devices


def _gpu_config(target: Target) -> str:
    """Describes a GPU to XLA, as a GpuTargetConfigProto in its text form."""
    facts = target.facts
    major, minor = facts['capability']
    return f"""gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {facts['shared_core']}
  shared_memory_per_block_optin: {facts['shared_block']}
  core_count: {facts['cores']} fpus_per_core: {facts['fpus']} clock_rate_ghz: {facts['ghz']}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {int(target.bandwidth)} l2_cache_size: {facts['l2']} device_memory_size: {int(target.memory)}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{facts['description']}"
"""


@dataclass(frozen=True)
class Compiled:
    """Holds what a compiler printed.

    Attributes:
      program: the optimised program, in the order in which it runs.
      buffers: the memory that its arrays live in.
      live: which arrays live at the moment of the most memory.
      seconds: that it took.
    """

    program: str
    buffers: str
    live: str
    seconds: float


class TooLargeError(UserError):
    """Says that a compiler found the memory of a device too small."""


def compiled(target: Target, lower: Callable[..., Any], *args: Any, waiting: Callable[[float], None]) -> Compiled:
    """Compiles for a target, in a process of its own.

    Args:
      lower: (devices, *args) -> a lowered program of JAX; importable by its name, as it runs in the other process.
      waiting: is called about every second with the seconds so far.

    Raises:
      TooLargeError: when the memory does not suffice.
      UserError: when the compiler is missing or refuses for another reason.
    """
    check_compiler(target)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = (target, f'{lower.__module__}:{lower.__qualname__}', args, folder)
        process = multiprocessing.get_context('spawn').Process(target=_compile, args=work, daemon=True)
        with _environment(target):
            process.start()
        try:
            while process.is_alive() and not (found := _printed(folder)):
                process.join(1.0)
                waiting(time.monotonic() - begun)
            found = _printed(folder)
        finally:
            process.kill()
            process.join()
        if not found:
            error = folder / 'error'
            words = error.read_text() if error.exists() else f'it ended with status {process.exitcode}'
            kind = TooLargeError if 'RESOURCE_EXHAUSTED' in words else UserError
            raise kind(f'{target} cannot run this program: {words}')
        return Compiled(*(path.read_text() for path in found), time.monotonic() - begun)


# What the compilers print, by the ends of the files' names; the report of memory comes after the other two.
_PROGRAM, _BUFFERS, _LIVE, _LAST = (
    f'after_optimizations{end}.txt' for end in ('', '-buffer-assignment', '-live-range', '-memory-usage-report')
)


def _printed(folder: Path) -> list[Path] | None:
    """Returns the program, its buffers and its live ranges once all are whole."""
    if not list(folder.glob(f'*{_LAST}')):
        return None
    # The largest is the step; a compiler may print small programs beside it.
    newest = max(folder.glob(f'*{_PROGRAM}'), key=lambda path: path.stat().st_size)
    stem = newest.name.removesuffix(_PROGRAM)
    found = [folder / f'{stem}{end}' for end in (_PROGRAM, _BUFFERS, _LIVE)]
    return found if all(path.exists() for path in (*found, folder / f'{stem}{_LAST}')) else None


@contextlib.contextmanager
def _environment(target: Target) -> Iterator[None]:
    """Sets the variables of a target for the process that is started while this is entered."""
    values = {'JAX_PLATFORMS': 'cpu', **_ENVIRONMENT[target.kind]}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _compile(target: Target, lower: str, args: tuple[Any, ...], folder: Path) -> None:
    """Runs in the process of `compiled`; JAX looks for plugins when it is imported, so `lower` is imported late."""
    sys.path.insert(0, str(FOLDER))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # both compilers talk to stderr about the device that is not here
    try:
        module, _, name = lower.partition(':')
        lowered = getattr(importlib.import_module(module), name)(devices(target), *args)
        lowered.compile(compiler_options={'xla_dump_to': str(folder), 'xla_dump_hlo_as_text': True})
    except Exception as error:  # a compiler has kinds of its own
        (folder / 'error').write_text(f'{type(error).__name__}: {first_line(error)}')
        raise SystemExit(1) from error
