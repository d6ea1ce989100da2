"""The metrics of any images against any others: `evaluate`."""

import dataclasses
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfg.api.configs import defaults
from cfg.runtime.errors import UserError


def evaluate(
    images: np.ndarray | str | Path,
    reference: np.ndarray | str | Path,
    *,
    features: str | Sequence[str] = 'inception',
    **options: Any,
) -> dict[str, float]:
    """Computes FID, inception score, precision, recall, density, coverage, KID and what else can be, with its errors.

    It is what `--mode=evaluate_npz` measures. It needs what `".[train]"` installs, and the weights of Inception
    (`--mode=fetch_weights`).

    Args:
      images: uint8 [N, H, W, C], or a file of such in ADM's layout (npz).
      reference: likewise, or a file of statistics.
      features: 'inception', and 'dinov2' for FD-DINOv2 beside it; or 'small_classifier', that of the digits.
      options: other fields of `config.eval`, such as cache_dir, weights or batch_size; `data` for `config.data.name`.

    Returns:
      The scores by name, as a row of results has them, without those that could not be measured.

    Raises:
      UserError: when images do not fit the features, or weights are missing.
    """
    from cfg.data.built_in import BUILT_IN  # they ask for more than sampling does
    from cfg.evaluation.files import score_file
    from cfg.settings.checks import check_config

    config = defaults()
    config.data.name = name = options.pop('data', 'digits')
    if name in BUILT_IN:
        config.data.image_size = BUILT_IN[name].image_shape[0]
    names = features if isinstance(features, str) else ', '.join(features)
    with tempfile.TemporaryDirectory() as folder:
        given = {'samples': _as_file(images, 'images', folder), 'reference': _as_file(reference, 'reference', folder)}
        try:
            for field, value in {**given, 'features': names, **options}.items():
                if field not in config.eval:
                    raise UserError(f'{field} is no field of config.eval: see configs/default.py.')
                config.eval[field] = value
            check_config(config)
            scores = dataclasses.asdict(score_file(config).scores)
        except (UserError, TypeError) as error:  # here they are arguments
            if isinstance(error, TypeError) and 'override field' not in str(error):
                raise
            words = re.sub(rf'={re.escape(folder)}/\w+[.]npz', '', str(error)).replace('config.eval.samples', 'images')
            raise UserError(words.replace('config.eval.', '')) from None
    return {name: value for name, value in scores.items() if value is not None}


def _as_file(images: np.ndarray | str | Path, name: str, folder: str) -> str:
    """Returns the path of a file with these images, by which they are checked."""
    if isinstance(images, str | Path):
        return str(images)
    path = Path(folder) / f'{name}.npz'
    np.savez(path, np.ascontiguousarray(images))
    return str(path)
