"""Reads files of samples and of references in ADM's layout as a stream: no pickle is opened, nothing is held whole.

A sample file holds `arr_0`, uint8 [N, H, W, C], and maybe `arr_1`, labels [N]. A reference file holds any of `arr_0`,
`mu` [2048] and `sigma` of the pool features, `mu_s` [2023] and `sigma_s` of the spatial ones. Ours also say in
`features_sha256` which network they are of, and may hold `mu_dinov2` [1024], `sigma_dinov2` and `dinov2_sha256` of
DINOv2's. Other readers pass over these.
"""

import contextlib
import functools
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from cfg.metrics.moments import Moments
from cfg.runtime.errors import UserError
from cfg.runtime.files import BROKEN_NPZ, replacing, sha256_of_file

Array = np.ndarray

MOMENTS = (('mu', 'sigma'), ('mu_s', 'sigma_s'), ('mu_dinov2', 'sigma_dinov2'))
_LOOKED_AT = 1 << 22  # values of an array of another type, at most
# What values in [low, high] most likely are, some beyond these limits included, and how they become uint8.
_RECIPES = (
    ('[0, 1]', -0.1, 1.1, 'np.clip(np.round(x * 255), 0, 255)'),
    ('[-1, 1]', -2.0, 2.0, 'np.clip(np.round((x + 1) * 127.5), 0, 255)'),
    ('[0, 255]', -25.0, 280.0, 'np.clip(np.round(x), 0, 255)'),
    ('[0, 65535]', 0.0, 65535.0, 'np.round(x / 257)'),
)
_NEGATIVE = 1e-6  # of the largest eigenvalue of a covariance: what rounding may leave below 0


class File:
    """A file is an npz, or an npy, whose array counts as `arr_0`; `what` is the field that names it, for the user.

    Raises:
      UserError: when it is missing or damaged; so does what reads on, also where it finds other than it should.
    """

    def __init__(self, path: Path, what: str):
        self.path, self._named = Path(path), f'{what}={path}'
        if self.path.is_dir():
            raise UserError(f'{self._named} is a folder: write its images as an npz (docs/evaluation.md).')
        if not self.path.is_file():
            raise UserError(f'{self._named} does not exist: give the path of an npz file.')
        with self._reading(), self.path.open('rb') as file:
            self._is_npy = file.read(6) == np.lib.format.MAGIC_PREFIX
            members = ['arr_0'] if self._is_npy else zipfile.ZipFile(file).namelist()
        self.names = [name.removesuffix('.npy') for name in members]

    @property
    def has_images(self) -> bool:
        """Tells whether it holds `arr_0`, of at least one image."""
        return 'arr_0' in self.names and self._header()[0][:1] != (0,)

    def made_with(self, name: str) -> str | None:
        """Returns the SHA-256, by the `name` of an array, that says what moments were made with; None without."""
        return str(self._array(name)) if name in self.names else None

    @functools.cached_property
    def sha256(self) -> str:
        """Returns the SHA-256 of the file."""
        return sha256_of_file(self.path)

    def moments(self) -> dict[str, Array] | None:
        """Returns `mu`, `sigma`, and where present the other `MOMENTS`, float64; None if there is no `mu`."""
        moments = {}
        for mean, cov in MOMENTS:
            if mean in self.names:
                if cov not in self.names:
                    raise UserError(f'{self._named} holds {mean} but no {cov}: make it again.')
                moments |= {name: self._array(name) for name in (mean, cov)}
                check_moments(moments, mean, cov, self._named)
        if 'mu' not in moments:
            return None
        return {name: np.asarray(value, np.float64) for name, value in moments.items()}

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except BROKEN_NPZ as error:
            raise UserError(
                f'{self._named} cannot be read as an npz ({type(error).__name__}: {error}): make or download it again.'
            ) from error

    @contextlib.contextmanager
    def _member(self, name: str) -> Iterator[IO[bytes]]:
        """Opens an array; what goes wrong in the block is damage."""
        with self._reading(), contextlib.ExitStack() as stack:
            if self._is_npy:
                yield stack.enter_context(self.path.open('rb'))
            else:
                yield stack.enter_context(stack.enter_context(zipfile.ZipFile(self.path)).open(f'{name}.npy'))

    def _header(self) -> tuple[tuple[int, ...], bool, np.dtype]:
        """Returns (shape, whether in Fortran order, type) of `arr_0`."""
        with self._member('arr_0') as file:
            return _read_header(file)

    def _array(self, name: str) -> Array:
        with self._member(name) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


class ImageFile(File):
    """An image file gives the `count` uint8 images of `image_shape` (H, W, C) of a file."""

    def __init__(self, path: Path, what: str):
        super().__init__(path, what)
        named = self._named
        if 'arr_0' not in self.names:
            names = ', '.join(self.names) or 'nothing'
            raise UserError(f'{named} holds no images (arr_0) but {names}: write uint8 images [N, H, W, C] as arr_0.')
        shape, fortran, dtype = self._header()
        if dtype.hasobject:
            raise UserError(f'{named} holds pickled objects, which are not opened: write uint8 images [N, H, W, C].')
        if dtype != np.uint8:
            with self._member('arr_0') as file:
                _read_header(file)
                content = file.read(_LOOKED_AT * dtype.itemsize)
            values = np.frombuffer(content[: len(content) // dtype.itemsize * dtype.itemsize], dtype)
            raise UserError(f'{named} holds {dtype}, not uint8 images: convert them before writing{_recipe(values)}.')
        if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
            raise UserError(
                f'{named} holds images {shape}, with the channels first: write x.transpose(0, 2, 3, 1), [N, H, W, C].'
            )
        if len(shape) != 4 or fortran or 0 in shape:
            raise UserError(
                f'{named} holds an array of shape {shape}, not images [N, H, W, C] in C order: write it so.'
            )
        self.count, *rest = shape
        self.image_shape: tuple[int, int, int] = tuple(rest)

    def labels(self, num_classes: int | None = None) -> Array | None:
        """Returns int32 [N]; None if the file holds none. Those outside 0..num_classes - 1, if given, are refused."""
        if 'arr_1' not in self.names:
            return None
        labels = self._array('arr_1')
        if labels.shape != (self.count,) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f'{self._named}: its labels (arr_1) are {labels.dtype} {labels.shape}, not one whole number for each '
                f'of {self.count} images: write them so, or leave them out.'
            )
        low, high = labels.min(), labels.max()
        if num_classes is not None and (low < 0 or high >= num_classes):
            raise UserError(
                f'{self._named}: its labels (arr_1) are {low} to {high}, and the classes 0 to {num_classes - 1}: '
                'number them so, in the order of the class names of the data set, or leave them out.'
            )
        return labels.astype(np.int32)

    def batches(self, batch_size: int) -> Iterator[Array]:
        """Yields uint8 [n, H, W, C] in order, n = batch_size but for the last."""
        size = math.prod(self.image_shape)
        with self._member('arr_0') as file:
            _read_header(file)
            for start in range(0, self.count, batch_size):
                wanted = min(batch_size, self.count - start) * size
                content = file.read(wanted)
                if len(content) < wanted:
                    raise EOFError(f'it ends before image {self.count}')
                yield np.frombuffer(content, np.uint8).reshape(-1, *self.image_shape)


def write_reference(
    path: Path,
    *,
    moments: Moments,
    spatial: Moments | None,
    shape: tuple[int, ...],
    batches: Iterable[Array],
    hashes: dict[str, str],
    second: Moments | None = None,
) -> None:
    """Writes a reference file in ADM's layout, whole or not at all.

    Args:
      moments: of the pool features.
      spatial: of the spatial features; None without.
      shape: [M, H, W, C] of the images beside them, some of those that the moments are of; M = 0 leaves them out.
      batches: uint8 [n, H, W, C], all M in order; one is held at a time.
      hashes: `features_sha256`, of the network that the features are of, and `dinov2_sha256`.
      second: of DINOv2's features; None without.
    """
    arrays = {name: np.array(value) for name, value in hashes.items()}
    for (mean, cov), it in zip(MOMENTS, (moments, spatial, second), strict=True):
        if it is not None:
            arrays |= {mean: it.mean, cov: it.covariance()}
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


def check_moments(moments: dict[str, Array], mean_name: str, cov_name: str, named: str) -> None:
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


def _recipe(values: Array) -> str:
    """Returns how values of another type become uint8, by the range that they are in; '' where nothing fits."""
    if values.dtype.kind not in 'biuf' or not values.size or not np.isfinite(values).all():
        return ''
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in 'iu' and low >= 0 and high <= 255:
        return f', whose values here are {low:g} to {high:g}, as x.astype(np.uint8)'
    fits = next(((name, how) for name, least, most, how in _RECIPES if least <= low and high <= most), None)
    if fits is None:
        return f', whose values here are {low:g} to {high:g}, to grey levels 0 to 255'
    name, how = fits
    return f', whose values here are {low:g} to {high:g}, from {name} as {how}.astype(np.uint8)'


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns (shape, whether in Fortran order, type); the file then stands where the values begin."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f'npy version {version}')
    return read[version](file)
