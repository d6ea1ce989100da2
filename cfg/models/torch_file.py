"""Reads the state dict in a PyTorch .pt file, without PyTorch and without running what the file's pickle names.

A .pt file is a pickle of names, shapes and strides beside raw storages. Unpickling calls whatever the pickle
names, so only the few names that a state dict needs are admitted, and each stands for an object of this file
that does nothing but hold numbers. The objects have no attributes that a pickle could set.

Layouts, from torch/serialization.py: since PyTorch 1.6 a zip archive with `data.pkl` and one record `data/<key>`
a storage; before that, four pickles, a list of keys, and the storages one after the other.
"""

import logging
import math
import struct
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from cfg.runtime.errors import UserError
from cfg.runtime.pickles import RefusedError, Restricted

log = logging.getLogger('cfg')

_ZIP_MAGIC = b'PK\x03\x04'
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# Names of torch's storage types to what is in them; NumPy has no bfloat16, its 16 bits are read as whole numbers.
_BFLOAT16 = 'BFloat16Storage'
_STORAGE_DTYPES = {
    'FloatStorage': '<f4',
    'HalfStorage': '<f2',
    _BFLOAT16: '<u2',
    'DoubleStorage': '<f8',
    'LongStorage': '<i8',
    'IntStorage': '<i4',
    'ShortStorage': '<i2',
    'CharStorage': 'i1',
    'ByteStorage': 'u1',
    'BoolStorage': '?',
}


class _StorageType(NamedTuple):
    name: str


class _Storage(NamedTuple):
    type_name: str
    key: str
    numel: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(_STORAGE_DTYPES[self.type_name])

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class _Tensor(NamedTuple):
    """A strided view of a storage that is read later; offset and strides count elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Names(dict):
    """An OrderedDict of the file; the attributes that torch gives it (`_metadata`) are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError('not a tensor')
        if len(size) != len(stride):
            raise ValueError('as many strides as dimensions are needed')
        return _Tensor(storage, offset, tuple(size), tuple(stride))


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: Any, *rest: Any) -> Any:
        return data


_ADMITTED = {
    ('collections', 'OrderedDict'): _Names,
    ('torch._utils', '_rebuild_tensor_v2'): _RebuildTensor(),
    ('torch._utils', '_rebuild_parameter'): _RebuildParameter(),
} | {('torch', name): _StorageType(name) for name in _STORAGE_DTYPES}


class _Unpickler(Restricted):
    """An unpickler that admits what a state dict needs; `storages` holds what the pickle referred to, by key."""

    admitted = _ADMITTED
    holds = 'state dict'
    remedy = ': if you trust the file, load it in PyTorch and write torch.save(model.state_dict(), path)'

    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding='utf-8')
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, numel, *view = pid
        if kind != 'storage' or not isinstance(storage_type, _StorageType) or any(part is not None for part in view):
            raise ValueError('not a storage')
        if not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise ValueError('not a storage')
        storage = _Storage(storage_type.name, key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError('one storage with two types or sizes')
        return storage


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict by name, in the file's order.

    Floating-point tensors of any width become float32; whole numbers and booleans keep their type. The arrays are
    read-only, may be strided, and may share memory where the file's tensors did.

    Raises:
      UserError: when the file is missing, is no .pt file, is damaged or cut short, is anything but a flat dict of
        tensors, or names code to be run.
    """
    path = Path(path)
    try:
        file = path.open('rb')
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}): give the path of a .pt file.') from error
    with file:
        try:
            is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
            file.seek(0)
            tensors, raw = _read_zip(file) if is_zip else _read_legacy(file)
            values = {storage: _decode(storage, content) for storage, content in raw.items()}
            return {name: _view(name, tensor, values[tensor.storage]) for name, tensor in tensors.items()}
        except RefusedError as error:
            raise UserError(f'{path} {error}.') from error
        except Exception as error:
            # Arbitrary bytes make pickle, zipfile and NumPy raise nearly anything.
            raise UserError(
                f'{path} is damaged, cut short, or not a .pt file of PyTorch ({type(error).__name__}): download it '
                'again, or give the path of a state dict that torch.save wrote.'
            ) from error


def unwrapped(state: Mapping[str, np.ndarray], names: Collection[str]) -> Mapping[str, np.ndarray]:
    """Returns the tensors of a network by its own names, without what a wrapper put before all of them.

    DistributedDataParallel puts 'module.' there, torch.compile '_orig_mod.', and others the name of their attribute.
    What lies beside the wrapped network is left out. A line of the log says so.

    Args:
      state: what `read_state_dict` returned.
      names: of the network's tensors; some may be missing.

    Raises:
      UserError: when it holds several such networks.
    """
    names, found = frozenset(names), Counter()
    for name in state:
        dots = [place + 1 for place, letter in enumerate(name) if letter == '.']
        found.update(name[:place] for place in (0, *dots) if name[place:] in names)
    if '' in found or max(found.values(), default=0) < len(names) / 2:
        return state
    best = [prefix for prefix, count in found.items() if count == max(found.values())]
    if len(best) > 1:
        raise UserError(
            f'The state dict holds {len(best)} networks, whose names begin with {" and ".join(map(repr, best))}: load '
            'it in PyTorch and save one of them, for samples the averaged one.'
        )
    (prefix,) = best
    log.info(
        'The names in the state dict begin with %r, which a wrapper such as DistributedDataParallel put there: it is '
        'left out, and so are %d tensors without it.',
        prefix,
        sum(not name.startswith(prefix) for name in state),
    )
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _read_zip(file: IO[bytes]) -> tuple[dict[str, _Tensor], dict[_Storage, bytes]]:
    with zipfile.ZipFile(file) as archive:
        # torch never compresses; a record that is may unpack to any size.
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise RefusedError('is a compressed zip file: give the .pt file itself, as torch.save wrote it')
        names = set(archive.namelist())
        pickles = [name for name in names if name.endswith('/data.pkl') and name.count('/') == 1]
        if len(pickles) != 1:
            raise RefusedError('is a zip file but not one of PyTorch: give the path of a .pt file')
        root = pickles[0].removesuffix('/data.pkl')
        # Files older than the record `byteorder` come from little-endian machines.
        if f'{root}/byteorder' in names:
            _require_little(archive.read(f'{root}/byteorder') == b'little')
        with archive.open(pickles[0]) as pickled:
            unpickler = _Unpickler(pickled)
            tensors = _flat(unpickler.load())
            pickled.read()  # to the end, where zipfile compares the checksum
        return tensors, {s: archive.read(f'{root}/data/{s.key}') for s in unpickler.storages.values()}


def _read_legacy(file: IO[bytes]) -> tuple[dict[str, _Tensor], dict[_Storage, bytes]]:
    if _Unpickler(file).load() != _LEGACY_MAGIC or _Unpickler(file).load() != _LEGACY_PROTOCOL:
        raise ValueError('another kind of file')
    _require_little(_Unpickler(file).load()['little_endian'] is True)
    unpickler = _Unpickler(file)
    tensors = _flat(unpickler.load())
    raw = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        (numel,) = struct.unpack('<q', file.read(8))
        if numel != storage.numel:
            raise ValueError('a storage of another size')
        raw[storage] = file.read(storage.nbytes)
    return tensors, raw


def _require_little(little: bool) -> None:
    if not little:
        raise RefusedError('was written by a big-endian machine: load and save it again on a little-endian one')


def _flat(state: Any) -> dict[str, _Tensor]:
    """Returns the unpickled object, where it is a dict from names to tensors.

    Raises:
      RefusedError: when it is not.
    """
    if not isinstance(state, dict):
        raise RefusedError('holds no state dict: save model.state_dict() in PyTorch')
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            what = 'another dict' if isinstance(value, dict) else 'not a tensor'
            raise RefusedError(
                f'is not a flat state dict, as its {str(name)[:100]!r} is {what}: load it in PyTorch and save the dict '
                'of the network alone'
            )
    return state


def _decode(storage: _Storage, content: bytes) -> np.ndarray:
    """Decodes a storage's bytes as [numel]; floats as float32."""
    if len(content) < storage.nbytes:
        raise ValueError('a storage is cut short')
    values = np.ndarray((storage.numel,), storage.dtype, content)
    if storage.type_name == _BFLOAT16:  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False) if values.dtype.kind == 'f' else values


def _view(name: str, tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    """Returns the tensor as a view of its storage's values.

    Raises:
      RefusedError: when it reaches outside its storage.
    """
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
    if math.prod(tensor.size) == 0:
        return np.empty(tensor.size, values.dtype)
    if last >= len(values):
        raise RefusedError(
            f'is damaged: its tensor {name[:100]!r} reaches outside the {len(values)} numbers that it is stored in; '
            'download it again'
        )
    strides = tuple(step * values.itemsize for step in tensor.stride)
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.size, strides, writeable=False)
