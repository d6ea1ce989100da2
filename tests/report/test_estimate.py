"""The estimate of a program that was written by hand, number by number."""

import pytest

from cfg.report.estimate import PREFETCHES, estimate, table
from cfg.runtime.targets import Compiled, Target

PROGRAM = """HloModule by_hand, is_scheduled=true

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %z = f32[] add(%x, %y)
}

ENTRY %main (a: bf16[1000,1000], b: bf16[1000,1000], c: f32[1000]) -> f32[1000] {
  %a = bf16[1000,1000]{1,0} parameter(0)
  %b = bf16[1000,1000]{1,0} parameter(1)
  %c = f32[1000]{0} parameter(2)
  %qkv = bf16[1000,1000]{1,0} dot(%a, %b), rhs_contracting_dims={0}, lhs_contracting_dims={1}, QKV
  %scores = f32[1000,1000]{1,0} dot(%qkv, %b), rhs_contracting_dims={1}, lhs_contracting_dims={1}, SCORES
  %norm = f32[1000]{0} negate(%c), NORM
  %start = (f32[1000]{0:S(1)}, f32[1000]{0}, u32[]) copy-start(%c)
  %done = f32[1000]{0:S(1)} copy-done(%start)
  %copy = f32[1000]{0} copy(%c)
  ROOT %all = f32[1000]{0} all-reduce(%c), to_apply=%sum
}
"""
for _name, _place in {
    'QKV': 'jit(f)/jvp(UNet)/down_0_0_attention/qkv/dot_general',
    'SCORES': 'jit(f)/transpose(jvp(UNet))/down_0_0_attention/dot_general',
    'NORM': 'jit(f)/jvp(UNet)/down_0_0/norm_in/mul',
}.items():
    PROGRAM = PROGRAM.replace(_name, f'metadata={{op_name="{_place}"}}')
BUFFERS = """BufferAssignment:
allocation 0: size 2000000, parameter 0, shape |bf16[1000,1000]| at ShapeIndex {}:
allocation 1: size 2000128, parameter 1, shape |bf16[1000,1000]| at ShapeIndex {}:
allocation 2: size 4000, parameter 2, shape |f32[1000]| at ShapeIndex {}, maybe-live-out:
allocation 3: size 512, thread-local:
allocation 4: size 64, constant:
allocation 5: size 9000, color 1, preallocated-temp:
allocation 6: size 6000000, preallocated-temp:
"""
LIVE = """HloLiveRange (max 9):
  Live ranges at 5 (peak):
    qkv{}: 2000000 bytes (cumulative: 2000000 bytes)
    scores{}: 4000000 bytes (cumulative: 6000000 bytes)
  Stack trace breakdown for peak usage: 6000000 bytes
    norm{}: 4000 bytes
"""


@pytest.fixture(name='found')
def found_fixture():
    return estimate(Compiled(PROGRAM, BUFFERS, LIVE, 3.0), Target('tpu', 'v5e', (2, 4)))


def test_memory_is_told_by_kind(found):
    assert found.arguments == {0: 2_000_000, 1: 2_000_128, 2: 4000}
    assert (found.temporary, found.kept, found.other) == (6_000_000, 2_000_000, 64)
    assert found.memory == 2_000_000 + 2_000_128 + 4000 + 6_000_000 + 64


def test_each_part_takes_what_its_operations_take(found):
    assert {name: (part.flops, part.moved) for name, part in found.parts.items()} == {
        'dense layers': (2e9, 6e6),
        'attention': (2e9, 8e6),
        'norms': (0, 8000),
        'copies': (0, 8000),
        'all-reduces': (0, 8000),
        PREFETCHES: (0, 4000),
    }
    assert found.parts['dense layers'].seconds == pytest.approx(2e9 / 197e12)
    assert found.parts['norms'].seconds == pytest.approx(8000 / 819e9)
    assert found.arithmetic_seconds == pytest.approx(4e9 / 197e12)
    assert found.memory_seconds == pytest.approx(14_028_000 / 819e9)
    by_operation = 2 * 2e9 / 197e12 + 3 * 8000 / 819e9
    assert found.bound_seconds == pytest.approx(max(by_operation, found.memory_seconds))


def test_what_is_wasted_and_reduced(found):
    assert found.float32_written == 4_000_000 + 3 * 4000
    assert (found.padding, found.reduced, found.overlapped) == (0, 4000, 0)


def test_the_table_says_whether_it_fits(found):
    kinds = {'weights': (0, 1), 'bias': (2,)}
    text = '\n'.join(table(found, images=4, kinds=kinds))
    assert 'memory of a device: 0.01 GiB of 15.75 GiB\n' in text
    assert 'not overlapped with other work' in text
    large = estimate(Compiled(PROGRAM, BUFFERS.replace('6000000', '60000000000'), LIVE, 3.0), found.target)
    assert 'GiB: it does not fit' in table(large, images=4, kinds=kinds)[0]
