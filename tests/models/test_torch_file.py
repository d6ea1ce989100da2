import collections
import io
import os
import pickle
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfg.models import torch_file
from cfg.models.torch_file import read_state_dict, unwrapped
from cfg.runtime.errors import UserError

FORMATS = pytest.mark.parametrize('is_zip', [True, False], ids=['zip', 'legacy'])


def save(state, path, is_zip=True):
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    return path


def refusal(path):
    with pytest.raises(UserError) as error:
        read_state_dict(path)
    message = str(error.value)
    assert message.startswith(f'{path} ')
    assert message.endswith('.')
    assert '\n' not in message
    return message


def module_state():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()


@FORMATS
def test_a_modules_state_dict(is_zip, tmp_path):
    """An OrderedDict with the attribute `_metadata`, and a whole number among the tensors."""
    state = module_state()
    read = read_state_dict(save(state, tmp_path / 'x.pt', is_zip))
    assert list(read) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(read[name], value.numpy())
        assert read[name].dtype == value.numpy().dtype
    assert type(read) is dict


@FORMATS
def test_every_type(is_zip, tmp_path):
    floats = torch.tensor([0.0, -0.0, 1.5, -3.140625, 1e-3, 6e4, float('inf'), float('-inf'), float('nan')])
    state = {str(t): floats.to(t) for t in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    state |= {str(t): torch.tensor([0, 1, 100]).to(t) for t in whole}
    read = read_state_dict(save(state, tmp_path / 'x.pt', is_zip))
    for name, value in state.items():
        expected = value.float() if value.is_floating_point() else value
        np.testing.assert_array_equal(read[name], expected.numpy())
        assert read[name].dtype == expected.numpy().dtype


@FORMATS
def test_views_that_share_a_storage(is_zip, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        'base': base,
        'transposed': base.T,
        'offset': base[1:, 2:5],
        'steps': base[::2, ::3],
        'expanded': base[0, :1].expand(5),
        'scalar': base[3, 4],
        'empty': base[4:],
        'parameter': torch.nn.Parameter(base[2]),
    }
    read = read_state_dict(save(state, tmp_path / 'x.pt', is_zip))
    for name, value in state.items():
        np.testing.assert_array_equal(read[name], value.detach().numpy())
    assert np.shares_memory(read['base'], read['offset'])


@st.composite
def views(draw):
    """A strided view somewhere in a storage: (values in it, offset, size, stride)."""
    size = draw(st.lists(st.integers(0, 4), max_size=4))
    stride = draw(st.lists(st.integers(0, 9), min_size=len(size), max_size=len(size)))
    offset = draw(st.integers(0, 5))
    last = offset + sum(max(n - 1, 0) * step for n, step in zip(size, stride, strict=True))
    return last + 1 + draw(st.integers(0, 3)), offset, size, stride


@given(view=views(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int16]), is_zip=st.booleans())
def test_any_strided_view(tmp_path_factory, view, dtype, is_zip):
    count, offset, size, stride = view
    value = torch.arange(count).to(dtype).as_strided(size, stride, offset)
    path = save({'x': value}, tmp_path_factory.getbasetemp() / 'view.pt', is_zip)
    read = read_state_dict(path)['x']
    np.testing.assert_array_equal(read, (value.float() if dtype.is_floating_point else value).numpy())


def test_nothing_of_torch_is_needed(tmp_path):
    save(module_state(), tmp_path / 'x.pt')
    code = (
        'import sys; sys.modules["torch"] = None\n'
        'from cfg.models.torch_file import read_state_dict\n'
        'print(len(read_state_dict(sys.argv[1])))'
    )
    command = [sys.executable, '-c', code, tmp_path / 'x.pt']
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == '7\n'


# What must not run.


class Runs:
    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


@FORMATS
def test_code_in_a_file_is_named_and_not_run(is_zip, tmp_path):
    proof = tmp_path / 'ran'
    state = {'x': torch.ones(2), 'y': Runs(os.system, f'touch {proof}')}
    message = refusal(save(state, tmp_path / 'x.pt', is_zip))
    assert f"'{os.system.__module__}.system'" in message
    assert 'was not run' in message
    # A plain pickle is read as far as its first name.
    (tmp_path / 'plain.pt').write_bytes(pickle.dumps(state['y']))
    assert f"'{os.system.__module__}.system'" in refusal(tmp_path / 'plain.pt')
    assert not proof.exists()


@pytest.mark.parametrize('function', [eval, exec, __import__, getattr, collections.Counter, torch.load, np.dtype])
def test_no_other_name_is_admitted(function, tmp_path):
    name = f'{function.__module__}.{function.__qualname__}'
    assert repr(name) in refusal(save({'x': Runs(function, 'x')}, tmp_path / 'x.pt')).replace('__builtin__', 'builtins')


def test_a_whole_model_is_refused_by_the_name_of_its_class(tmp_path):
    message = refusal(save(torch.nn.Linear(2, 3), tmp_path / 'x.pt'))
    assert "'torch.nn.modules.linear.Linear'" in message
    assert 'torch.save(model.state_dict(), path)' in message


def with_pickle(path, pickled, storage=b''):
    """A .pt file in the zip format with a pickle of the test's own and one storage."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickled)
        archive.writestr('archive/data/0', storage)
    return path


@pytest.mark.parametrize(
    'name',
    ['collections\nOrderedDict', 'torch._utils\n_rebuild_tensor_v2', 'torch\nFloatStorage'],
)
@pytest.mark.parametrize('attribute', ['__call__', '__class__', 'dtype', 'key'])
def test_a_pickle_cannot_change_what_it_is_given(name, attribute, tmp_path):
    """Opcode BUILD sets attributes; here on the reader's own objects, by the two ways that it has."""
    before = [repr(value) for value in torch_file._ADMITTED.values()]
    one = pickle.dumps({attribute: 1}, 2)[2:-1]
    for state in (one, b'N' + one + b'\x86'):
        pickled = b'\x80\x02c' + name.encode() + b'\n' + state + b'b.'
        assert 'BUILD' in [opcode.name for opcode, _, _ in pickletools.genops(pickled)]
        assert 'damaged' in refusal(with_pickle(tmp_path / 'x.pt', pickled))
    assert [repr(value) for value in torch_file._ADMITTED.values()] == before


@pytest.mark.parametrize(
    ('size', 'stride', 'offset'), [((5,), (1,), 0), ((2, 3), (2, 1), 0), ((1,), (1,), 4), ((2,), (2**62,), 0)]
)
def test_a_tensor_cannot_reach_outside_its_storage(size, stride, offset, tmp_path):
    path = with_pickle(tmp_path / 'x.pt', tensor_pickle(size, stride, offset), np.arange(4, dtype='<f4').tobytes())
    assert "'wide' reaches outside the 4 numbers" in refusal(path)


def test_a_storage_shorter_than_the_pickle_says_is_damage(tmp_path):
    numbers = np.arange(4, dtype='<f4').tobytes()
    pickled = tensor_pickle((2,), (1,), 1)
    np.testing.assert_array_equal(read_state_dict(with_pickle(tmp_path / 'x.pt', pickled, numbers))['wide'], [1, 2])
    assert 'damaged' in refusal(with_pickle(tmp_path / 'x.pt', pickled, numbers[:-1]))


def tensor_pickle(size, stride, offset):
    """{'wide': tensor of these numbers in storage 0 of four floats}."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ('storage', torch.FloatStorage, '0', 'cpu', 4) if value is storage else None

    storage = object()
    tensor = Runs(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, collections.OrderedDict())
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({'wide': tensor})
    return buffer.getvalue()


# What is damaged, or another thing.


@FORMATS
def test_a_file_cut_short_anywhere_is_one_sentence(is_zip, tmp_path):
    content = save(module_state(), tmp_path / 'x.pt', is_zip).read_bytes()
    path = tmp_path / 'short.pt'
    for length in sorted({*range(40), *range(0, len(content), 97), len(content) - 1}):
        path.write_bytes(content[:length])
        assert 'cut short' in refusal(path)


def test_a_changed_byte_is_noticed_by_the_checksum(tmp_path):
    state = {'x': torch.full((100,), 7.25)}
    path = save(state, tmp_path / 'x.pt')
    content = bytearray(path.read_bytes())
    content[content.index(state['x'].numpy().tobytes()) + 50] ^= 1
    path.write_bytes(content)
    assert 'damaged' in refusal(path)


@pytest.mark.parametrize('content', [b'', b'hello', b'\x93NUMPY', pickle.dumps({'x': 1}), b'PK\x03\x04 and no more'])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / 'x.pt').write_bytes(content)
    assert 'not a .pt file' in refusal(tmp_path / 'x.pt')


def test_other_zip_files_are_refused(tmp_path):
    path = tmp_path / 'x.npz'
    np.savez(path, x=np.ones(3))
    assert 'not one of PyTorch' in refusal(path)
    np.savez_compressed(path, x=np.ones(3))
    assert 'compressed' in refusal(path)


def test_missing_files_and_folders(tmp_path):
    assert 'No such file' in refusal(tmp_path / 'missing.pt')
    assert 'directory' in refusal(tmp_path)


@FORMATS
def test_what_is_not_a_flat_dict_of_tensors_is_told(is_zip, tmp_path):
    path = tmp_path / 'x.pt'
    assert "'ema' is another dict" in refusal(save({'ema': {'x': torch.ones(1)}}, path, is_zip))
    assert "'step' is not a tensor" in refusal(save({'x': torch.ones(1), 'step': 3}, path, is_zip))
    assert "'3' is not a tensor" in refusal(save({3: 'x'}, path, is_zip))
    assert 'holds no state dict' in refusal(save([torch.ones(1)], path, is_zip))
    assert 'holds no state dict' in refusal(save(torch.ones(1), path, is_zip))


NAMES = ('in.weight', 'in.bias', 'out.0.weight')


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.', 'model.', 'ema_model.module.'])
def test_what_a_wrapper_puts_before_the_names_is_left_out_and_told(prefix, caplog):
    caplog.set_level('INFO', logger='cfg')
    state = {f'{prefix}{name}': np.array(i) for i, name in enumerate(NAMES)} | {'n_averaged': np.array(7)}
    assert unwrapped(state, [*NAMES, 'missing.weight']) == {name: np.array(i) for i, name in enumerate(NAMES)}
    (record,) = caplog.records
    assert f'begin with {prefix!r}' in record.getMessage()
    assert 'so are 1 tensors' in record.getMessage()


@pytest.mark.parametrize(
    'state',
    [
        dict.fromkeys(NAMES),
        dict.fromkeys([*NAMES, *(f'ema.{name}' for name in NAMES)]),  # the second is left over, which is an error
        {'other.out.0.weight': None, 'x': None},  # another network
        {},
    ],
)
def test_names_without_a_wrapper_stay(state, caplog):
    assert unwrapped(state, NAMES) == state
    assert not caplog.records


def test_several_networks_in_a_file_are_named():
    state = {f'{prefix}{name}': None for prefix in ('model.', 'ema.') for name in NAMES}
    with pytest.raises(UserError, match=r"2 networks, whose names begin with 'model\.' and 'ema\.': load it"):
        unwrapped(state, NAMES)


def test_big_endian_files_are_refused(tmp_path):
    path = save({'x': torch.ones(2)}, tmp_path / 'x.pt')
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in records.items():
            archive.writestr(name, b'big' if name.endswith('/byteorder') else content)
    assert 'big-endian' in refusal(path)

    path = save({'x': torch.ones(2)}, path, is_zip=False)
    content = path.read_bytes()
    key = content.index(b'little_endian')
    path.write_bytes(content[:key] + content[key:].replace(b'\x88', b'\x89', 1))  # NEWTRUE, NEWFALSE
    assert 'big-endian' in refusal(path)
