"""A trained network as one file for other programs and machines, which says itself what it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from cfg.runtime.digest import sha256
from cfg.runtime.errors import UserError, first_line
from cfg.runtime.files import replacing

FILE = 'model.safetensors'
_ENTRY = 'cfg'  # of the file's metadata: what a checkpoint says of itself, as JSON
KEPT = ('kind', 'config', 'data')  # of what a checkpoint says of itself


def write_exported(folder: Path, params: Any, meta: dict[str, Any]) -> Path:
    """Writes parameters, float32 by their path 'down_0_0/conv_in/kernel'; returns the file.

    Args:
      meta: what the checkpoint says of itself; `KEPT` goes with them, and the digest of the parameters.
    """
    flat = {name: np.ascontiguousarray(x) for name, x in traverse_util.flatten_dict(params, sep='/').items()}
    said = {name: meta[name] for name in KEPT if name in meta} | {'sha256': sha256(params)}
    with replacing(folder / FILE) as file:
        file.write(safetensors.numpy.save(flat, metadata={_ENTRY: json.dumps(said, sort_keys=True)}))
    return folder / FILE


def read_exported(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Reads what `write_exported` wrote: the parameters, and what they say of themselves.

    Raises:
      UserError: when there is no such file, or it is another program's, or damaged.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f'{path} does not exist: give the folder that --mode=export wrote.')
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            said = json.loads((file.metadata() or {}).get(_ENTRY, 'null'))
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read ({first_line(error)}): copy it again.') from error
    if said is None:
        raise UserError(f'{path} does not say what it holds: it was not written by --mode=export.')
    params = traverse_util.unflatten_dict(flat, sep='/')
    if sha256(params) != said.pop('sha256'):
        raise UserError(f'{path} is damaged: its parameters are not those that were written. Copy it again.')
    return params, said
