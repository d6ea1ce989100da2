"""Estimates from a compiled program what a run takes of a device, and says it.

The times are bounds: an operation takes at least what its products take at the device's peak, and at least what it
moves takes at its memory's. Neither launch nor waiting is in them, and no device reaches both peaks.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cfg.runtime.hlo import Cost, Program, is_attention
from cfg.runtime.targets import Compiled, Target

GIB = 2.0**30

# What an operation is for, by where it comes from in the traced program; the first that fits.
_PARTS = (
    ('attention', r'_attention/(?!qkv|proj|norm)'),
    ('norms', r'/norm(_in|_out)?(/|$)'),
    ('convolutions', r'/(conv_in|conv_out|skip)(/|$)|Conv2d|branch'),
    ('dense layers', r'/(qkv|proj|emb|time_0|time_1)(/|$)'),
    ('random numbers', r'threefry|random_bits|bernoulli|dropout'),
)
_COLLECTIVES = ('all-reduce', 'reduce-scatter', 'all-gather', 'collective-permute', 'all-to-all')
_COPIES = {'copy', 'transpose'}
PREFETCHES = 'to and from the chip'


@dataclass(frozen=True)
class Share:
    """Says what one part of a program takes on one device.

    Attributes:
      flops: of its products.
      moved: bytes read from and written to the device's memory.
      seconds: at least, operation by operation.
    """

    flops: float
    moved: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Says what a program takes on one device of a target.

    Attributes:
      target: the devices.
      arguments: bytes of each of the program's arguments, in their order.
      temporary: bytes of everything in between, at the moment of the most.
      kept: of these, what the forward pass has left for the backward pass.
      other: bytes of results that take the place of no argument, and of constants.
      parts: by name.
      float32_written, padding: bytes of what is moved that are float32 results, and that tiles add.
      reduced, overlapped: bytes of collectives, and of those between whose start and end other operations run.
      seconds: that compiling took.
    """

    target: Target
    arguments: dict[int, int]
    temporary: int
    kept: int
    other: int
    parts: dict[str, Share]
    float32_written: float
    padding: float
    reduced: float
    overlapped: float
    seconds: float

    @property
    def memory(self) -> int:
        """Returns the bytes of a device's memory that the program takes, without its code."""
        return sum(self.arguments.values()) + self.temporary + self.other

    @property
    def flops(self) -> float:
        """Returns the FLOP of its products."""
        return sum(part.flops for part in self.parts.values())

    @property
    def moved(self) -> float:
        """Returns the bytes that it reads and writes."""
        return sum(part.moved for part in self.parts.values())

    @property
    def arithmetic_seconds(self) -> float:
        """Returns the seconds that all products take at the device's peak."""
        return self.flops / self.target.flops

    @property
    def memory_seconds(self) -> float:
        """Returns the seconds that all that is moved takes at its memory's peak."""
        return self.moved / self.target.bandwidth

    @property
    def bound_seconds(self) -> float:
        """Returns the seconds that it takes at least: the sum over operations, or what all that is moved takes.

        Copies to and from on-chip memory run beside other operations, so they count in the second alone.
        """
        return max(sum(part.seconds for part in self.parts.values()), self.memory_seconds)


def estimate(compiled: Compiled, target: Target) -> Estimate:
    """Estimates from what a compiler printed."""
    program = Program(compiled.program)
    costs = program.costs()
    arguments, temporary, other = _memory(compiled.buffers)
    collectives = [cost for cost in costs if _is_collective(cost)]
    return Estimate(
        target=target,
        arguments=arguments,
        temporary=temporary,
        kept=_kept(compiled.live, program),
        other=other,
        parts=_parts(costs, target),
        float32_written=sum(cost.float32_written for cost in costs),
        padding=sum(cost.moved - cost.unpadded for cost in costs),
        reduced=sum(_bytes(cost) for cost in collectives),
        overlapped=sum(_bytes(cost) for cost in collectives if program.is_overlapped(cost.instruction)),
        seconds=compiled.seconds,
    )


def _is_collective(cost: Cost) -> bool:
    return any(opcode.startswith(_COLLECTIVES) for opcode in cost.inside)


def _bytes(cost: Cost) -> int:
    return sum(shape.bytes for shape in cost.instruction.results) * cost.times


def part_of(cost: Cost) -> str:
    """Names what an operation is for."""
    opcode = cost.instruction.opcode
    if _is_collective(cost):
        return 'all-reduces'
    if opcode.endswith('-start'):
        return PREFETCHES
    if not cost.flops and opcode in _COPIES:
        return 'copies'
    if is_attention(cost.instruction):
        return 'attention'
    return next((name for name, pattern in _PARTS if re.search(pattern, cost.scope)), 'everything else')


def _parts(costs: Sequence[Cost], target: Target) -> dict[str, Share]:
    sums = defaultdict(lambda: [0.0, 0.0, 0.0])
    for cost in costs:
        part = sums[name := part_of(cost)]
        part[0] += cost.flops
        part[1] += cost.moved
        if name != PREFETCHES:
            part[2] += max(cost.flops / target.flops, cost.moved / target.bandwidth)
    return {name: Share(*sums[name]) for name in sorted(sums, key=lambda name: -sums[name][2])}


def _memory(buffers: str) -> tuple[dict[int, int], int, int]:
    """Returns the bytes of each argument, of what is temporary, and of the rest, from XLA's list of allocations."""
    arguments, temporary, other = {}, 0, 0
    for line in buffers.splitlines():
        found = re.match(r'allocation \d+: size (\d+), (.*)', line)
        if not found or 'thread-local' in found[2] or re.search(r'\bcolor [1-9]', found[2]):
            continue
        size, kind = int(found[1]), found[2]
        if number := re.match(r'(?:page \d+, )?parameter (\d+)', kind):
            # A program of very many arguments takes them as one tuple.
            place = re.search(r'at ShapeIndex \{(\d+)\}', kind)
            arguments[int(place[1] if place else number[1])] = size
        elif 'preallocated-temp' in kind:
            temporary += size
        else:
            other += size
    return arguments, temporary, other


def _kept(live: str, program: Program) -> int:
    """Returns the bytes of a gradient's forward pass among those that live at the moment of the most memory."""
    _, _, peak = live.partition('(peak):')
    total = 0
    for line in peak.splitlines()[1:]:
        found = re.match(r'\s+([\w.\-]+)\{[\d,]*\}: (\d+) bytes', line)
        if not found:
            break
        instruction = program.entry.instructions.get(found[1])
        if instruction and 'jvp(' in instruction.scope and 'transpose(' not in instruction.scope:
            total += int(found[2])
    return total


def table(found: Estimate, *, images: int, kinds: dict[str, Sequence[int]]) -> list[str]:
    """Says an estimate in lines.

    Args:
      images: that the program makes or takes on a device.
      kinds: of arguments, {name: their numbers}.
    """
    target, parts = found.target, found.parts
    lines = [
        f'memory of a device: {found.memory / GIB:.2f} GiB of {target.memory / GIB:.4g} GiB'
        + ('' if found.memory <= target.memory else ': it does not fit')
    ]
    rate = images / found.bound_seconds
    sizes = {name: sum(found.arguments.get(i, 0) for i in numbers) for name, numbers in kinds.items()}
    sizes |= {'from the forward pass': found.kept} if found.kept else {}
    sizes |= {'other temporaries': found.temporary - found.kept, 'results, constants': found.other}
    lines += [f'  {name:28}{size / GIB:8.3f} GiB' for name, size in sizes.items()]
    lines += [
        f'arithmetic: {found.flops / 1e12:.4g} TFLOP, {found.flops / images / 1e9:.4g} GFLOP an image: at least '
        f'{found.arithmetic_seconds * 1e3:.4g} ms',
        f'moved: {found.moved / 1e9:.4g} GB, {found.moved / images / 1e9:.3g} GB an image: at least '
        f'{found.memory_seconds * 1e3:.4g} ms; {found.float32_written / 1e9:.3g} GB of it are float32 results, '
        f'{found.padding / 1e9:.3g} GB padding',
        f'operation by operation: at least {found.bound_seconds * 1e3:.4g} ms, at most '
        f'{rate:.4g} images/s of a device, {rate * target.count:.4g} of {target.count}',
    ]
    if found.reduced:
        beside = 'beside other work' if found.overlapped > 0.5 * found.reduced else 'not overlapped with other work'
        lines.append(
            f'all-reduces: {found.reduced / 1e9:.3g} GB, {found.overlapped / 1e9:.3g} GB in the schedule {beside}'
        )
    lines.append(f'{"part":20}{"TFLOP":>9}{"GB":>9}{"ms":>9}{"share":>8}')
    for name, part in parts.items():
        share = part.seconds / found.bound_seconds
        lines.append(
            f'{name:20}{part.flops / 1e12:9.3f}{part.moved / 1e9:9.2f}{part.seconds * 1e3:9.2f}{100 * share:7.1f}%'
        )
    return lines
