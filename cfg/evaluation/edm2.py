"""Reads reference statistics as EDM2 publishes them (`img512.pkl`), without running what the pickle names.

Such a file is a dict of {'fid': {'mu', 'sigma'}, 'fd_dinov2': {'mu', 'sigma'}, ...}, NumPy arrays of the features of
Inception and of DINOv2 (calculate_metrics.py of NVlabs/edm2). The few names that arrays need stand for objects of this
file that hold numbers; no other is admitted.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cfg.evaluation import npz
from cfg.runtime.errors import UserError, first_line
from cfg.runtime.pickles import RefusedError, Restricted

Array = np.ndarray

_FLOATS = {'f4': '<f4', 'f8': '<f8'}


class _Type:
    """A type of floating-point numbers."""

    __slots__ = ('code',)

    def __setstate__(self, state: Any) -> None:
        if state[1] != '<':
            raise ValueError('numbers of another machine')


class _Array:
    """An array that the pickle fills in one step."""

    __slots__ = ('value',)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        self.value = _filled(content, kind, shape, 'F' if fortran is True else 'C')


def _filled(content: Any, kind: Any, shape: Any, order: str) -> Array:
    if not isinstance(kind, _Type) or not isinstance(content, bytes | bytearray):
        raise ValueError('not an array')
    return np.frombuffer(content, kind.code).reshape(shape, order=order)


class _MakeType:
    __slots__ = ()

    def __call__(self, code: Any, *flags: Any) -> _Type:
        made = _Type()
        made.code = _FLOATS[code]
        return made


class _MakeArray:
    __slots__ = ()

    def __call__(self, *_: Any) -> _Array:
        return _Array()


class _FromBuffer:
    __slots__ = ()

    def __call__(self, content: Any, kind: Any, shape: Any, order: Any) -> _Array:
        made = _Array()
        made.value = _filled(content, kind, shape, order)
        return made


# NumPy 1 and 2, and pickle's protocols 3 to 5.
_ADMITTED = {('numpy', 'dtype'): _MakeType(), ('numpy', 'ndarray'): 'ndarray'}
for _core in ('numpy.core', 'numpy._core'):
    _ADMITTED |= {(f'{_core}.multiarray', '_reconstruct'): _MakeArray()}
    _ADMITTED |= {(f'{_core}.numeric', '_frombuffer'): _FromBuffer()}


class _Unpickler(Restricted):
    admitted = _ADMITTED
    holds = 'array'


class Statistics(npz.File):
    """A file of EDM2's statistics stands in the place of an npz that holds moments and no images."""

    def __init__(self, path: Path, what: str):
        self.path, self._named, self.names = Path(path), f'{what}={path}', []
        try:
            with self.path.open('rb') as file:
                found = _Unpickler(file).load()
            # npz's names for the same moments.
            arrays = {'mu': found['fid']['mu'], 'sigma': found['fid']['sigma']}
            if 'fd_dinov2' in found:
                arrays |= {f'{name}_dinov2': found['fd_dinov2'][name] for name in ('mu', 'sigma')}
            self._moments = {name: np.asarray(array.value, np.float64) for name, array in arrays.items()}
        except RefusedError as error:
            raise UserError(f'{self._named} {error}: give an npz that --mode=stats wrote.') from error
        except Exception as error:  # arbitrary bytes make pickle and NumPy raise nearly anything
            raise UserError(
                f'{self._named} cannot be read as statistics of EDM2 ({type(error).__name__}: {first_line(error)}): '
                'download it again, or give an npz that --mode=stats wrote.'
            ) from error
        for mean, cov in npz.MOMENTS:
            if mean in self._moments:
                npz.check_moments(self._moments, mean, cov, self._named)

    def moments(self) -> dict[str, Array]:
        """Returns `mu`, `sigma`, and where present `mu_dinov2` and `sigma_dinov2`, float64."""
        return self._moments


def reference_file(path: Path, what: str) -> npz.File:
    """Opens a reference, which is told apart by its content; `what` is the field that names it, for the user.

    Raises:
      UserError: when it is missing, damaged, or neither an npz nor EDM2's statistics.
    """
    if path.is_file():
        with path.open('rb') as file:
            if file.read(1) == pickle.PROTO:
                return Statistics(path, what)
    return npz.File(path, what)
