"""Opens pytorch-fid, torch-fidelity and transformers, whatever build of torchvision is installed, which all import.

Beside a CPU build of torch a CUDA build of torchvision cannot load its compiled operators, and then fails to describe
two of them. None of them is used here.
"""

import importlib.util
from pathlib import Path

import torch


def _operators_load() -> bool:
    spec = importlib.util.find_spec('torchvision')
    (folder,) = spec.submodule_search_locations
    try:
        for path in Path(folder).glob('_C*.so'):
            torch.ops.load_library(str(path))
    except OSError:
        return False
    return True


if not _operators_load():
    # Kept: the operator is gone with the object.
    LIBRARY = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
        LIBRARY.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

import pytorch_fid.inception as pytorch_fid_inception  # noqa: E402 (after the above)
import torch_fidelity.feature_extractor_inceptionv3 as torch_fidelity_inception  # noqa: E402
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc  # noqa: E402

__all__ = [
    'dinov2',
    'metric_fid',
    'metric_isc',
    'metric_kid',
    'metric_prc',
    'pytorch_fid_inception',
    'torch_fidelity_inception',
]


def dinov2():
    """Returns transformers' (Dinov2Config, Dinov2Model), whose import takes seconds."""
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Config, Dinov2Model
