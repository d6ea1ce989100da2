"""Reads files of samples and of references in ADM's layout as a stream: no pickle is opened, nothing is held whole.

A sample file holds `arr_0`, uint8 [N, H, W, C], and maybe `arr_1`, labels [N]. A reference file holds any of `arr_0`,
`mu` [2048] and `sigma` of the pool features, `mu_s` [2023] and `sigma_s` of the spatial ones; ours also say in
`features_sha256` which network they are of, a string that other readers pass over.
"""

import contextlib
import functools
import lzma
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from cfg.metrics.moments import Moments
from cfg.runtime.errors import UserError
from cfg.runtime.files import replacing, sha256_of_file

Array = np.ndarray

MOMENTS = (('mu', 'sigma'), ('mu_s', 'sigma_s'))
_NEGATIVE = 1e-6  # of the largest eigenvalue of a covariance: what rounding may leave below 0
# Of a turned bit zipfile says also that a method or a version is not supported, that a password or a member is missing.
_BROKEN = (zipfile.BadZipFile, EOFError, ValueError, OSError, KeyError, RuntimeError, zlib.error, lzma.LZMAError)


def check(path: Path, what: str) -> None:
    """Checks that an npz or npy can be opened.

    Args:
      path: of the file.
      what: the field that names it, for the user.

    Raises:
      UserError: when it is missing or no such file.
    """
    with _opened(path, what):
        pass


def has_images(path: Path, what: str) -> bool:
    """Returns whether an npz holds `arr_0`, of at least one image.

    Raises:
      UserError: as in `check`.
    """
    with _opened(path, what) as archive:
        if isinstance(archive, zipfile.ZipFile) and 'arr_0.npy' not in archive.namelist():
            return False
        return _shape(archive, path, what)[0][:1] != (0,)


@dataclass(frozen=True)
class ImageFile:
    """An image file gives the images of an npz or npy.

    Attributes:
      path: of the file.
      what: the field that names it, for the user.
      count: number of images.
      image_shape: (H, W, C).
    """

    path: Path
    what: str
    count: int
    image_shape: tuple[int, int, int]

    @functools.cached_property
    def sha256(self) -> str:
        """Returns the SHA-256 of the file."""
        return sha256_of_file(self.path)

    def labels(self) -> Array | None:
        """Returns int32 [N]; None if the file holds none.

        Raises:
          UserError: when they are not one whole number an image.
        """
        with _opened(self.path, self.what) as archive:
            if not isinstance(archive, zipfile.ZipFile) or 'arr_1.npy' not in archive.namelist():
                return None
            labels = _array(archive, 'arr_1', self.path, self.what)
        if labels.shape != (self.count,) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f'{self.what}={self.path}: its labels (arr_1) are {labels.dtype} {labels.shape}, not one whole number '
                f'for each of {self.count} images: write them so, or leave them out.'
            )
        return labels.astype(np.int32)

    def batches(self, batch_size: int) -> Iterator[Array]:
        """Yields uint8 [n, H, W, C] in order, n = batch_size but for the last.

        Raises:
          UserError: when the file ends too early.
        """
        size = math.prod(self.image_shape)
        with _opened(self.path, self.what) as archive, _member(archive, 'arr_0') as file:
            _header(file)
            for start in range(0, self.count, batch_size):
                wanted = min(batch_size, self.count - start) * size
                try:
                    content = file.read(wanted)
                except _BROKEN as error:
                    raise _damaged(self.path, self.what, error) from error
                if len(content) < wanted:
                    raise _damaged(self.path, self.what, EOFError(f'it ends before image {self.count}'))
                yield np.frombuffer(content, np.uint8).reshape(-1, *self.image_shape)


def open_images(path: Path, what: str) -> ImageFile:
    """Opens the images of an npz (`arr_0`) or npy; only the header is read.

    Args:
      path: of the file.
      what: the field that names it, for the user.

    Raises:
      UserError: when the file is missing or damaged, or what it holds are not uint8 images.
    """
    path, named = Path(path), f'{what}={path}'
    with _opened(path, what) as archive:
        if isinstance(archive, zipfile.ZipFile) and 'arr_0.npy' not in archive.namelist():
            names = ', '.join(name.removesuffix('.npy') for name in archive.namelist()) or 'nothing'
            raise UserError(f'{named} holds no images (arr_0) but {names}: write uint8 images [N, H, W, C] as arr_0.')
        shape, fortran, dtype = _shape(archive, path, what)
    if dtype.hasobject:
        raise UserError(f'{named} holds pickled objects, which are not opened: write uint8 images [N, H, W, C].')
    if dtype != np.uint8:
        raise UserError(
            f'{named} holds {dtype}, not uint8 images: convert them before writing, from [-1, 1] as '
            'np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8).'
        )
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise UserError(
            f'{named} holds images {shape}, with the channels first: write x.transpose(0, 2, 3, 1), [N, H, W, C].'
        )
    if len(shape) != 4 or fortran or 0 in shape:
        raise UserError(f'{named} holds an array of shape {shape}, not images [N, H, W, C] in C order: write it so.')
    return ImageFile(path, what, shape[0], tuple(shape[1:]))


def read_moments(path: Path, what: str) -> dict[str, Array] | None:
    """Returns the moments of a reference file, float64: `mu`, `sigma`, and where present `mu_s` and `sigma_s`.

    Returns:
      None if there is no `mu`.

    Raises:
      UserError: when the file is missing or damaged, or its moments are not a mean and a covariance.
    """
    with _opened(path, what) as archive:
        if not isinstance(archive, zipfile.ZipFile):
            return None
        names = {name.removesuffix('.npy') for name in archive.namelist()}
        wanted = [name for pair in MOMENTS if pair[0] in names for name in pair]
        for name in wanted:
            if name not in names:
                raise UserError(f'{what}={path} holds {name.replace("sigma", "mu")} but no {name}: make it again.')
        moments = {name: _array(archive, name, path, what) for name in wanted}
    for mean_name, cov_name in MOMENTS:
        if mean_name in moments:
            _check_moments(moments, mean_name, cov_name, f'{what}={path}')
    if 'mu' not in moments:
        return None
    return {name: np.asarray(value, np.float64) for name, value in moments.items()}


def features_of(path: Path, what: str) -> str | None:
    """Returns the SHA-256 of the weights that the moments of a file were made with; None if it does not say.

    Raises:
      UserError: when the file is missing or damaged.
    """
    with _opened(path, what) as archive:
        if not isinstance(archive, zipfile.ZipFile) or 'features_sha256.npy' not in archive.namelist():
            return None
        return str(_array(archive, 'features_sha256', path, what))


def write_reference(
    path: Path,
    *,
    moments: Moments,
    spatial: Moments | None,
    shape: tuple[int, ...],
    batches: Iterable[Array],
    features_sha256: str,
) -> None:
    """Writes a reference file in ADM's layout, whole or not at all.

    Args:
      path: ends in .npz.
      moments: of the pool features.
      spatial: of the spatial features; None without.
      shape: [M, H, W, C] of the images beside them, some of those that the moments are of; M = 0 leaves them out.
      batches: uint8 [n, H, W, C], all M in order; one is held at a time.
      features_sha256: of the weights that the features are of.
    """
    arrays = {'mu': moments.mean, 'sigma': moments.covariance(), 'features_sha256': np.array(features_sha256)}
    if spatial is not None:
        arrays |= {'mu_s': spatial.mean, 'sigma_s': spatial.covariance()}
    with replacing(path) as file, zipfile.ZipFile(file, 'w') as archive:
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        if shape[0]:
            header = {'descr': '|u1', 'fortran_order': False, 'shape': tuple(shape)}
            with archive.open('arr_0.npy', 'w', force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for images in batches:
                    member.write(np.ascontiguousarray(images))


def _check_moments(moments: dict[str, Array], mean_name: str, cov_name: str, named: str) -> None:
    mean, cov = moments[mean_name], moments[cov_name]
    right = mean.ndim == 1 and cov.shape == (len(mean), len(mean))
    right = right and all(np.issubdtype(x.dtype, np.floating) and np.isfinite(x).all() for x in (mean, cov))
    right = right and np.abs(cov - cov.T).max(initial=0.0) <= 1e-6 * np.abs(cov).max(initial=0.0)
    if not right:
        raise UserError(
            f'{named}: {mean_name} {mean.dtype} {mean.shape} and {cov_name} {cov.dtype} {cov.shape} are not the mean '
            'and the symmetric covariance of features, all finite: make the file again, as --mode=stats does.'
        )
    eigenvalues = np.linalg.eigvalsh(cov.astype(np.float64))  # ascending; those of float32 values are below 0 by 1e-7
    if len(cov) and eigenvalues[0] < -_NEGATIVE * abs(eigenvalues[-1]):
        raise UserError(
            f'{named}: {cov_name} is no covariance, as its smallest eigenvalue is {eigenvalues[0]:.3g} and the largest '
            f'{eigenvalues[-1]:.3g}: make the file again, as --mode=stats does.'
        )


@contextlib.contextmanager
def _opened(path: Path, what: str) -> Iterator[zipfile.ZipFile | Path]:
    """Opens the archive; of a plain npy it gives the path."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{what}={path} does not exist: give the path of an npz file.')
    try:
        with path.open('rb') as file:
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                yield path
                return
        archive = zipfile.ZipFile(path)
    except _BROKEN as error:
        raise _damaged(path, what, error) from error
    with archive:
        yield archive


def _member(archive: zipfile.ZipFile | Path, name: str) -> IO[bytes]:
    return archive.open(f'{name}.npy') if isinstance(archive, zipfile.ZipFile) else archive.open('rb')


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns (shape, whether in Fortran order, type); the file then stands where the values begin."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f'npy version {version}')
    return read[version](file)


def _shape(archive: zipfile.ZipFile | Path, path: Path, what: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns what `_header` says of `arr_0`."""
    try:
        with _member(archive, 'arr_0') as file:
            return _header(file)
    except _BROKEN as error:
        raise _damaged(path, what, error) from error


def _array(archive: zipfile.ZipFile, name: str, path: Path, what: str) -> Array:
    try:
        with _member(archive, name) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except _BROKEN as error:
        raise _damaged(path, what, error) from error


def _damaged(path: Path, what: str, error: Exception) -> UserError:
    return UserError(
        f'{what}={path} cannot be read as an npz ({type(error).__name__}: {error}): make or download it again.'
    )
