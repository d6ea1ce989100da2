"""What is read of a compiled program, against XLA's own count of its FLOP and against programs written by hand."""

import jax
import jax.numpy as jnp
import pytest

from cfg.runtime.hlo import Program, Shape


def compiled(fn, *shapes):
    done = jax.jit(fn).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    return done, Program(done.as_text())


def convolution(x, kernel, *, strides=(1, 1), padding='SAME', dilation=(1, 1), inner=(1, 1)):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dilation, inner, dimension_numbers=numbers)


def gradient(x, kernel):
    return jax.grad(lambda kernel: jnp.sum(convolution(x, kernel) ** 2))(kernel)


PROGRAMS = {
    'a product': (jnp.matmul, (64, 32), (32, 48)),
    'products of a batch': (lambda x, y: jnp.einsum('btc,bsc->bts', x, y), (3, 16, 8), (3, 24, 8)),
    'a convolution with padding': (convolution, (2, 8, 8, 3), (3, 3, 3, 5)),
    'with strides': (lambda x, k: convolution(x, k, strides=(2, 2), padding='VALID'), (2, 9, 7, 3), (3, 3, 3, 5)),
    'dilated': (
        lambda x, k: convolution(x, k, padding=((2, 1), (0, 3)), dilation=(2, 2), inner=(1, 2)),
        (1, 5, 6, 2),
        (3, 3, 2, 4),
    ),
    'the gradient of a kernel': (gradient, (2, 8, 6, 3), (3, 3, 3, 4)),
}


@pytest.mark.parametrize('name', PROGRAMS)
def test_flop_of_products_are_those_that_xla_counts(name):
    """XLA counts elementwise work too, at most one an element of what is read and written."""
    fn, *shapes = PROGRAMS[name]
    done, program = compiled(fn, *shapes)
    theirs, ours = done.cost_analysis()['flops'], sum(cost.flops for cost in program.costs())
    assert 0 <= theirs - ours <= 0.1 * theirs
    assert ours > 0


@pytest.mark.parametrize('steps', [3, 7])
def test_a_loop_counts_as_often_as_it_runs(steps):
    def fn(x, y):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ y), None), x, None, length=steps)[0]

    _, program = compiled(fn, (16, 16), (16, 16))
    assert sum(cost.flops for cost in program.costs()) == steps * 2 * 16**3


def test_bytes_moved_are_those_of_operands_and_results():
    _, program = compiled(lambda x, y: x @ y, (64, 32), (32, 48))
    assert sum(cost.moved for cost in program.costs()) == 4 * (64 * 32 + 32 * 48 + 64 * 48)


@pytest.mark.parametrize(
    ('dims', 'layout', 'padded'),
    [
        ((32, 64), '1,0:T(8,128)', 32 * 128),
        ((3, 200), '1,0:T(8,128)', 8 * 256),
        ((200, 3), '0,1:T(8,128)', 8 * 256),
        ((5, 3, 200), '2,1,0:T(8,128)', 5 * 8 * 256),
        ((100,), '0:T(128)', 128),
        ((7, 9), '1,0', 63),
    ],
)
def test_tiles_pad_the_fastest_sides(dims, layout, padded):
    assert Shape('f32', dims, layout).padded_bytes == 4 * padded
    assert Shape('bf16', dims, layout).padded_bytes == 2 * padded


BY_HAND = """HloModule by_hand, is_scheduled=true

%fused (p: f32[64,64], q: s32[]) -> f32[8,64] {
  %p = f32[64,64]{1,0:T(8,128)} parameter(0)
  %q = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[8,64]{1,0:T(8,128)} dynamic-slice(%p, %q, %zero), dynamic_slice_sizes={8,64}
}

%less (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]) parameter(0)
  %limit = s32[] constant(5)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.1 = (s32[], f32[8]{0}) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  %x = f32[8]{0} get-tuple-element(%state.1), index=1
  %y = f32[8]{0} negate(%x)
  ROOT %next = (s32[], f32[8]{0}) tuple(%j, %y)
}

ENTRY %main (a: f32[64,64], b: s32[], c: f32[8]) -> f32[64,64] {
  %a = f32[64,64]{1,0:T(8,128)} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[8]{0} parameter(2)
  %start = (f32[64,64]{1,0:T(8,128)S(1)}, f32[64,64]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %slice = f32[8,64]{1,0:T(8,128)} fusion(%a, %b), kind=kLoop, calls=%fused
  %near = f32[64,64]{1,0:T(8,128)S(1)} copy-done(%start)
  %reduced = f32[64,64]{1,0:T(8,128)} all-reduce-start(%a), to_apply=%less
  %all = f32[64,64]{1,0:T(8,128)} all-reduce-done(%reduced)
  %init = (s32[], f32[8]{0}) tuple(%b, %c)
  %loop = (s32[], f32[8]{0}) while(%init), condition=%less, body=%body
  ROOT %out = f32[64,64]{1,0:T(8,128)} negate(%near)
}
"""


def test_a_program_written_by_hand():
    """On-chip memory costs nothing, a slice only itself, padding counts, and a loop runs to its limit."""
    program = Program(BY_HAND)
    costs = {cost.instruction.name: cost for cost in program.costs()}
    whole = 4 * 64 * 128
    assert (costs['start'].read, costs['start'].written) == (whole, 0)
    assert (costs['slice'].read, costs['slice'].written) == (whole // 8 + 4, whole // 8)
    assert (costs['out'].read, costs['out'].written) == (0, whole)
    assert costs['out'].unpadded == whole // 2
    assert (costs['y'].times, costs['y'].moved) == (5, 5 * 2 * 32)
    assert 'near' not in costs
    assert (costs['reduced'].read, costs['reduced'].written) == (whole, whole)
    assert program.is_overlapped(costs['start'].instruction)
    assert not program.is_overlapped(costs['reduced'].instruction)


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match='no ENTRY'):
        Program('HloModule empty')
