"""Digests of trees of arrays."""

import hashlib
from typing import Any

import jax
import numpy as np


def sha256(tree: Any) -> str:
    """Digests the names, types, shapes and bytes of all arrays of a tree: equal for equal parameters only."""
    digest = hashlib.sha256()
    for path, leaf in sorted(
        ((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)),
        key=lambda item: item[0],
    ):
        digest.update(f'{path} {leaf.dtype} {leaf.shape}\n'.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
