"""The weight files of the networks, which are recognised, converted once, and downloaded where there is a network."""

import http.client
import logging
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from cfg.features import dinov2_weights
from cfg.features.dinov2 import VIT_L14, Sizes
from cfg.features.inception_weights import params_from_graph, params_from_torch
from cfg.models.torch_file import read_state_dict
from cfg.runtime.digest import sha256
from cfg.runtime.errors import UserError, first_line
from cfg.runtime.files import BROKEN_NPZ, check_writable, lock, replacing, sha256_of_file
from cfg.runtime.progress import Progress

log = logging.getLogger('cfg')

GRAPH = 'classify_image_graph_def.pb'
PYTORCH_FID = 'pt_inception-2015-12-05-6726825d.pth'
TORCH_FIDELITY = 'weights-inception-2015-12-05-6726825d.pth'
_TIMEOUT = 30  # seconds without an answer
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Public:
    """These are the public files of a network, which hold the same numbers: any of them will do."""

    network: str  # for the user
    field: str  # of the config, that names a file
    names: tuple[str, ...]  # under which they are looked for in the cache
    url: str  # of one of them
    sha256_prefix: str  # how its hash begins; '' where that is not known
    convert: Callable[[Path], Any]  # to the parameters of the network; raises a UserError


@dataclass(frozen=True)
class Weights:
    """Holds the weights of a network."""

    params: Any  # numpy
    file: str  # name of the file that they came in
    file_sha256: str  # of that file
    params_sha256: str  # of the parameters; the same from each of the public files


def load_weights(public: Public, path: str, cache: Path) -> Weights:
    """Loads the weights from any of the public files, which is told apart by its content.

    A file is converted once; what comes of it is kept in `cache` under the hash of the file. Without a path the file is
    the one in `cache`.

    Raises:
      UserError: when there is no such file, or it is damaged or something else.
    """
    source = _find(public, path, cache)
    digest = sha256_of_file(source)
    converted = cache / f'{public.network.lower()}_{digest[:16]}.npz'
    params = _read(converted, digest)
    if params is None:
        log.info('Converting %s.', source)
        params = public.convert(source)
        check_writable(cache, f'config.eval.cache_dir={cache}')
        with replacing(converted) as file:
            np.savez(file, file_sha256=np.array(digest), **traverse_util.flatten_dict(params, sep='/'))
    return Weights(params, source.name, digest, sha256(params))


def _find(public: Public, path: str, cache: Path) -> Path:
    for file in [Path(path)] if path else [cache / name for name in public.names]:
        if file.is_file():
            return file
    what = f'{public.field}={path} does not exist' if path else f'The weights of {public.network} are not in {cache}'
    raise UserError(
        f'{what}: run --mode=fetch_weights, or put one of {", ".join(public.names)} into {cache} or anywhere and say '
        f'--{public.field}=PATH.'
    )


def _read(path: Path, digest: str) -> Any | None:
    """Reads the parameters that were converted before; None if they were not, or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            flat = {name: file[name] for name in file.files}
        if str(flat.pop('file_sha256')) == digest:
            return traverse_util.unflatten_dict(flat, sep='/')
    except FileNotFoundError:
        return None
    except BROKEN_NPZ as error:
        log.warning('%s is damaged (%s) and is made again.', path, type(error).__name__)
    return None


def _inception_params(path: Path) -> Any:
    with path.open('rb') as file:
        start = file.read(2)
    from_torch = start == b'PK' or start[:1] == pickle.PROTO
    tensors = read_state_dict(path) if from_torch else _constants(path)
    try:
        return params_from_torch(tensors) if from_torch else params_from_graph(tensors)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def _constants(path: Path) -> dict[str, np.ndarray]:
    """Reads the constants of a TensorFlow graph."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(path.read_bytes())
        return {node.name: tf.make_ndarray(node.attr['value'].tensor) for node in graph.node if node.op == 'Const'}
    except (DecodeError, ValueError, TypeError) as error:
        raise UserError(
            f'{path} cannot be read as weights of Inception ({first_line(error)}): it is damaged or none of '
            f'{", ".join(INCEPTION_FILES.names)}; download one again.'
        ) from error


INCEPTION_FILES = Public(
    network='Inception',
    field='config.eval.weights',
    names=(GRAPH, PYTORCH_FID, TORCH_FIDELITY),
    url=f'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{PYTORCH_FID}',
    sha256_prefix='6726825d',  # of both PyTorch files, as their names say
    convert=_inception_params,
)


def dinov2_files(sizes: Sizes = VIT_L14) -> Public:
    """Returns the public files of DINOv2, for a network of these sizes."""
    return Public(
        network='DINOv2',
        field='config.eval.dinov2_weights',
        names=(dinov2_weights.META, dinov2_weights.HUGGING_FACE),
        url=f'https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{dinov2_weights.META}',
        sha256_prefix='',
        convert=lambda path: dinov2_weights.convert(path, sizes),
    )


def fetch_weights(cache: Path, public: Public = INCEPTION_FILES) -> Path:
    """Downloads a weight file into `cache`, or goes on with it, checks how its hash begins, and returns its path.

    Where it is not known how its hash begins, the log says what the hash is, and so do all rows of results.

    Raises:
      UserError: when there is no network or the file is a wrong one; it says which file to put where.
    """
    url, expected, names = public.url, public.sha256_prefix, ', '.join(public.names)
    path = cache / url.rpartition('/')[2]
    if path.is_file():
        if sha256_of_file(path).startswith(expected):
            log.info('%s is there.', path)
            return path
        log.warning('%s is damaged and is downloaded again.', path)
    check_writable(cache, f'config.eval.cache_dir={cache}')
    part = path.with_name(f'{path.name}.part')
    with lock(cache, 'fetch_weights'):
        try:
            _download(url, part)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f'{url} cannot be downloaded ({first_line(error)}): try again, which goes on where it broke off, or '
                f'put one of {names} into {cache}.'
            ) from error
        found = sha256_of_file(part)
        if not found.startswith(expected):
            part.unlink()
            raise UserError(
                f'{url} gave a file with SHA-256 {found[:16]}..., not {expected}...: try again, or put one of {names} '
                f'into {cache}.'
            )
        if not expected:
            log.info('%s has the SHA-256 %s, with which nothing is compared.', path, found)
        part.replace(path)
    return path


def _download(url: str, part: Path) -> None:
    """Appends what is missing of a file; starts over where the server cannot send a part of it."""
    there = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={there}-'} if there else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return  # all of it is there
    with response, part.open('ab') as file:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            file.truncate(0)
            there = 0
        total = there + int(response.headers.get('Content-Length') or 0)
        progress = Progress(url.rpartition('/')[2], total, start=there, unit='byte')
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            there += len(chunk)
            progress.update(there)
        if there < total:
            raise ConnectionError(f'it broke off after {there} of {total} bytes')
