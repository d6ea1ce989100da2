"""Reads a compiled program: what each of its operations multiplies and moves.

XLA prints a program after its own optimisations, in the order in which it will run, with the memory that each array
lives in. That text is all that is read here; nothing of JAX is needed.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'c64': 64, 'c128': 128}
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](?:\{([^}]*)\})?')
_NAME = re.compile(r'%([\w.\-]+(?:#\d+)?)')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_OPCODE = re.compile(r'([\w\-]+)\(')

# Operations that neither compute nor move.
_FREE = {'parameter', 'get-tuple-element', 'tuple', 'bitcast', 'constant', 'after-all', 'partition-id', 'replica-id'}


_SLICES = {'slice', 'dynamic-slice', 'gather'}


@dataclass(frozen=True)
class Shape:
    """An array of a program.

    Attributes:
      dtype: 'f32', 'bf16', ...
      dims: its sides.
      layout: the order of the sides in memory, the fastest first; tiles and memory space as XLA prints them.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ''

    @property
    def bits(self) -> int:
        """Returns the bits of an element; 0 of what is no array (a token)."""
        known = _BITS.get(self.dtype)
        return known if known is not None else int(re.sub(r'^\D+', '', self.dtype.split('e')[0]) or 0)

    @property
    def on_chip(self) -> bool:
        """Tells whether it lives in the small memory of a TPU's core, whose traffic is not the device memory's."""
        return bool(re.search(r'S\([1-4]\)', self.layout))

    @property
    def bytes(self) -> int:
        """Returns its bytes without padding."""
        return math.prod(self.dims) * self.bits // 8

    @property
    def padded_bytes(self) -> int:
        """Returns its bytes with the padding that the tiles of its layout bring."""
        order, _, rest = self.layout.partition(':')
        tile = re.match(r'T\(([\d,]+)\)', rest)
        if not tile or not order:
            return self.bytes
        dims = [self.dims[int(i)] for i in reversed(order.split(','))]  # the fastest last
        sides = [int(side) for side in tile[1].split(',')]
        dims = [1] * (len(sides) - len(dims)) + dims
        for i, side in enumerate(reversed(sides), 1):
            dims[-i] = -(-dims[-i] // side) * side
        return math.prod(dims) * self.bits // 8


@dataclass
class Instruction:
    """One operation of a program.

    Attributes:
      name, opcode: as XLA prints them.
      shapes: of the result; several of a tuple.
      operands: names of instructions of the same computation, with '#i' behind it where it is one of several results.
      attributes: what stands behind the operands.
      is_root: whether the computation returns it.
    """

    name: str
    opcode: str
    shapes: list[Shape]
    operands: list[str]
    attributes: str
    is_root: bool

    @functools.cached_property
    def scope(self) -> str:
        """Returns the place in the traced program that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ''

    @property
    def results(self) -> list[Shape]:
        """Returns the arrays that it makes; where it only starts, the operands and a context may stand beside them."""
        if self.opcode == 'copy-start':
            return self.shapes[:1]
        if self.opcode.endswith('-start') and self.opcode != 'all-reduce-start':
            return self.shapes[len(self.operands) :]
        return self.shapes

    def called(self, kind: str) -> list[str]:
        """Returns the names of the computations that it calls as `kind`: 'calls', 'body', 'branch_computations'."""
        found = re.search(rf'\b{kind}=(\{{[^}}]*\}}|%?[\w.\-]+)', self.attributes)
        return re.findall(r'[\w.\-]+', found[1].replace('%', '')) if found else []


@dataclass
class Computation:
    """A function of a program: its instructions in the order in which they run."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Returns {name: the instructions that take it}."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for name in instruction.operands:
                users.setdefault(name.partition('#')[0], []).append(instruction)
        return users

    def shapes(self, operand: str) -> list[Shape]:
        """Returns the arrays that an operand of one of its instructions stands for."""
        name, _, place = operand.partition('#')
        found = self.instructions[name].shapes if name in self.instructions else []
        return found[int(place) :][:1] if place else found


@dataclass(frozen=True)
class Cost:
    """Says what an operation of the program takes, times the number of times that it runs.

    Attributes:
      instruction: the operation, of the entry or of a loop's body.
      scope: its place in the traced program; of a fusion with a product, that of the product.
      inside: opcodes of what it consists of.
      flops: 2 x multiply-adds of convolutions and matrix products.
      read, written: bytes of the device's memory, with padding.
      float32_written: of these, those of float32 arrays.
      unpadded: what `read` + `written` would be without padding.
      times: how often it runs.
    """

    instruction: Instruction
    scope: str
    inside: frozenset[str]
    flops: float
    read: int
    written: int
    float32_written: int
    unpadded: int
    times: int

    @property
    def moved(self) -> int:
        """Returns the bytes read and written."""
        return self.read + self.written


class Program:
    """A program as XLA prints it after its optimisations.

    Args:
      text: what XLA prints.

    Attributes:
      computations: by name.
      entry: the one that runs.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry: Computation | None = None
        current = None
        for line in text.splitlines():
            if found := _INSTRUCTION.match(line):
                if current is not None:
                    instruction = _instruction(found[2], found[3], is_root=bool(found[1]))
                    current.instructions[instruction.name] = instruction
            elif found := _HEADER.match(line):
                current = self.computations[found[2]] = Computation(found[2])
                if found[1]:
                    self.entry = current
        if self.entry is None:
            raise ValueError('the text has no ENTRY computation')

    def is_overlapped(self, start: Instruction) -> bool:
        """Tells whether other operations run between the start of an operation and its end."""
        if not start.opcode.endswith('-start'):
            return False
        place = next(c for c in self.computations.values() if c.instructions.get(start.name) is start)
        between = itertools.dropwhile(lambda i: i is not start, place.instructions.values())
        ends = {user.name for user in place.users.get(start.name, [])}
        between = itertools.takewhile(lambda i: i.name not in ends, itertools.islice(between, 1, None))
        return any(i.opcode not in _FREE and not i.opcode.endswith(('-start', '-done')) for i in between)

    def costs(self) -> list[Cost]:
        """Returns the cost of each operation that runs on its own, in order; loops' bodies are counted as often as
        they run, and of branches the dearest."""
        return list(self._costs(self.entry, 1))

    def _costs(self, computation: Computation, times: int) -> Iterator[Cost]:
        for instruction in computation.instructions.values():
            if instruction.opcode == 'while':
                (body,) = instruction.called('body')
                yield from self._costs(self.computations[body], times * self._trips(instruction))
            elif instruction.opcode == 'conditional':
                branches = instruction.called('branch_computations') or [
                    *instruction.called('true_computation'),
                    *instruction.called('false_computation'),
                ]
                costs = [list(self._costs(self.computations[branch], times)) for branch in branches]
                yield from max(costs, key=lambda costs: sum(cost.moved + cost.flops for cost in costs), default=[])
            elif instruction.opcode == 'call':
                (callee,) = instruction.called('to_apply')
                yield from self._costs(self.computations[callee], times)
            elif instruction.opcode not in _FREE and not instruction.opcode.endswith('-done'):
                yield self._cost(instruction, computation, times)

    def _trips(self, loop: Instruction) -> int:
        """Returns how often a loop runs: what XLA says, or what its counter is compared with."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition = self.computations[loop.called('condition')[0]]
        (root,) = (i for i in condition.instructions.values() if i.is_root)
        limits = [condition.instructions.get(name) for name in root.operands]
        limits = [int(i.operands[0]) for i in limits if i is not None and i.opcode == 'constant']
        return limits[0] if root.opcode == 'compare' and 'direction=LT' in root.attributes and limits else 1

    def _cost(self, instruction: Instruction, computation: Computation, times: int) -> Cost:
        inner = [self.computations[name] for name in instruction.called('calls') if name in self.computations]
        parts = [(instruction, computation)]
        parts += [(part, place) for place in self._reached(inner) for part in place.instructions.values()]
        products = [(_flops(part, place), part) for part, place in parts]
        products = [(flops, part) for flops, part in products if flops]
        flops = sum(flops for flops, _ in products)
        dearest = max(products, key=lambda product: product[0], default=(0, instruction))[1]
        read = self._read(instruction, computation, inner)
        written = [(shape, share) for shape, share in self._written(instruction, inner) if not shape.on_chip]
        return Cost(
            instruction=instruction,
            scope=dearest.scope or instruction.scope,
            inside=frozenset(part.opcode for part, _ in parts),
            flops=flops * times,
            read=sum(int(shape.padded_bytes * share) for shape, share in read) * times,
            written=sum(int(shape.padded_bytes * share) for shape, share in written) * times,
            float32_written=sum(int(s.padded_bytes * share) for s, share in written if s.dtype == 'f32') * times,
            unpadded=sum(int(shape.bytes * share) for shape, share in (*read, *written)) * times,
            times=times,
        )

    def _reached(self, computations: list[Computation]) -> Iterator[Computation]:
        for computation in computations:
            yield computation
            for instruction in computation.instructions.values():
                names = instruction.called('calls')
                yield from self._reached([self.computations[name] for name in names if name in self.computations])

    def _read(
        self, instruction: Instruction, computation: Computation, inner: list[Computation]
    ) -> list[tuple[Shape, float]]:
        """Returns the arrays of the device's memory that are read, with the share of each."""
        read = []
        parameters = [i for i in inner[0].instructions.values() if i.opcode == 'parameter'] if inner else []
        numbers = {int(i.operands[0]): i for i in parameters}
        for number, name in enumerate(instruction.operands):
            arrays, operand = computation.shapes(name), computation.instructions.get(name)
            if not arrays or (operand is not None and operand.opcode == 'constant'):
                continue
            share = 1.0
            if number in numbers:
                share = _share_read(numbers[number], inner[0])
            elif instruction.opcode in _SLICES and number == 0:
                share = min(1.0, instruction.shapes[0].bytes / max(1, arrays[0].bytes))
            elif instruction.opcode == 'dynamic-update-slice' and number == 0:
                share = 0.0
            read += [(shape, share) for shape in arrays if not shape.on_chip]
        return read

    def _written(self, instruction: Instruction, inner: list[Computation]) -> list[tuple[Shape, float]]:
        if instruction.opcode.endswith('-start'):
            return [(shape, 1.0) for shape in instruction.results]
        if inner:
            root = next((i for i in inner[0].instructions.values() if i.is_root), None)
            if root is not None and root.opcode == 'dynamic-update-slice':
                (update,) = inner[0].shapes(root.operands[1])
                return [(shape, update.bytes / max(1, shape.bytes)) for shape in instruction.shapes]
        if instruction.opcode == 'dynamic-update-slice':
            return []
        return [(shape, 1.0) for shape in instruction.shapes]


def _share_read(parameter: Instruction, computation: Computation) -> float:
    """Returns the share of a fusion's operand that it reads: all, unless only slices of it are taken."""
    users, total = computation.users.get(parameter.name, []), parameter.shapes[0].bytes
    if not users or not total:
        return 1.0
    read = 0
    for user in users:
        if user.opcode in _SLICES and user.operands[0] == parameter.name:
            read += user.shapes[0].bytes
        elif user.opcode == 'dynamic-update-slice' and user.operands[0] == parameter.name:
            continue
        else:
            return 1.0
    return min(1.0, read / total)


def _instruction(name: str, text: str, *, is_root: bool) -> Instruction:
    end = _closing(text, 0) if text.startswith('(') else text.index(' ')
    shapes = [
        Shape(d, tuple(int(n) for n in dims.split(',') if n), at or '') for d, dims, at in _ARRAY.findall(text[:end])
    ]
    found = _OPCODE.search(text, end)
    close = _closing(text, found.end() - 1)
    inside = text[found.end() : close - 1]
    operands = _NAME.findall(inside) or [part.strip() for part in inside.split(',') if part.strip()]
    return Instruction(name, found[1], shapes, operands, text[close:], is_root)


def _closing(text: str, start: int) -> int:
    """Returns the place behind the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {'(': 1, ')': -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    raise ValueError(f'a bracket is not closed in {text[:80]!r}')


def _flops(part: Instruction, computation: Computation) -> float:
    """Returns the FLOP of an operation that multiplies matrices, 0 of any other."""
    if part.opcode in ('convolution', 'dot'):
        return _product_flops(part, computation)
    if part.opcode != 'custom-call':
        return 0.0
    if is_attention(part):
        return _kernel_flops(part, computation)
    if '"__cudnn$conv' in part.attributes:
        return _cudnn_flops(part, computation)
    return _cublas_flops(part, computation) if '"__cublas$' in part.attributes else 0.0


def _cudnn_flops(call: Instruction, computation: Computation) -> float:
    """Returns the FLOP of a convolution that cuDNN does, or of one of its gradients; the padding counts."""
    first, second = (computation.shapes(name)[0] for name in call.operands[:2])
    if 'convBackwardFilter' in call.attributes:
        kernel, outputs = call.shapes[0], second
    elif 'convBackwardInput' in call.attributes:
        kernel, outputs = second, first
    else:
        kernel, outputs = second, call.shapes[0]
    out = re.search(r'dim_labels=\w+->(\w+)', call.attributes)[1]
    return 2.0 * math.prod(kernel.dims) * math.prod(outputs.dims) / outputs.dims[out.index('f')]


def _cublas_flops(call: Instruction, computation: Computation) -> float:
    left = computation.shapes(call.operands[0])[0]
    found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', call.attributes)
    contracted = [int(i) for i in re.findall(r'\d+', found[1])] if found else []
    return 2.0 * math.prod(call.shapes[0].dims) * math.prod(left.dims[i] for i in contracted)


def is_attention(call: Instruction) -> bool:
    """Tells whether an operation is one of the flash kernels of `cfg.models.attention`."""
    return any(name in call.attributes for name in ('"tpu_custom_call"', '"__cudnn$fmha'))


def _kernel_flops(kernel: Instruction, computation: Computation) -> float:
    """Returns the FLOP of a flash attention kernel, which XLA does not see into: two products, or five in a backward
    pass, of [M, C] matrices for each example and head.

    Its operands of four sides hold N, heads, M and C, of which M is the largest.
    """
    shapes = [shape for name in kernel.operands for shape in computation.shapes(name) if len(shape.dims) == 4]
    if len(shapes) < 3:  # sums that the backward pass begins with
        return 0.0
    return (5 if len(shapes) > 3 else 2) * 2.0 * math.prod(shapes[0].dims) * max(shapes[0].dims[1:])


def _product_flops(product: Instruction, computation: Computation) -> float:
    """Returns 2 x multiply-adds of a convolution or matrix product; positions in the padding do not count."""
    shapes = [computation.shapes(name)[0] for name in product.operands[:2]]
    outputs = math.prod(product.shapes[0].dims)
    if product.opcode == 'dot':
        contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', product.attributes)
        return 2.0 * outputs * math.prod(shapes[0].dims[int(i)] for i in contracted[1].split(',') if i)
    left, right, out = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', product.attributes).groups()
    flops = 2.0 * shapes[1].dims[right.index('i')]
    flops *= product.shapes[0].dims[out.index('b')] * product.shapes[0].dims[out.index('f')]
    window = re.search(r'window=\{([^}]*)\}', product.attributes)
    options = dict(part.split('=') for part in window[1].split()) if window else {}
    spatial = sorted(character for character in right if character.isdigit())
    for i, label in enumerate(spatial):

        def option(name, default, i=i):
            return options[name].split('x')[i] if name in options else default

        low = int(option('pad', '0_0').split('_')[0])
        flops *= _positions(
            inputs=shapes[0].dims[left.index(label)],
            outputs=product.shapes[0].dims[out.index(label)],
            size=int(option('size', 1)),
            stride=int(option('stride', 1)),
            low=low,
            input_dilation=int(option('lhs_dilate', 1)),
            window_dilation=int(option('rhs_dilate', 1)),
        )
    return flops


@functools.lru_cache(maxsize=4096)
def _positions(
    *, inputs: int, outputs: int, size: int, stride: int, low: int, input_dilation: int, window_dilation: int
) -> int:
    """Counts the pairs (output, place in the window) along one axis that meet an element of the input."""
    last = (inputs - 1) * input_dilation
    count = 0
    for output, k in itertools.product(range(outputs), range(size)):
        place = output * stride + k * window_dilation - low
        count += 0 <= place <= last and place % input_dilation == 0
    return count
