"""Writes random weights of the FID Inception in the formats of its public files."""

from pathlib import Path

import numpy as np
import torch

from cfg.features.inception_weights import graph_name
from tests.peers import torch_fidelity_inception


def random_state(seed=0):
    """Returns a state dict under which activations neither die nor explode."""
    torch.manual_seed(seed)

    class Shapes(torch_fidelity_inception.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            """Keeps what it was made with."""

    url = torch_fidelity_inception.load_state_dict_from_url
    torch_fidelity_inception.load_state_dict_from_url = lambda *_, **__: {}
    try:
        network = Shapes('shapes', ['2048'])
    finally:
        torch_fidelity_inception.load_state_dict_from_url = url
    rng = np.random.default_rng(seed)

    def uniform(shape, low, high):
        return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))

    state = {}
    for name, value in network.state_dict().items():
        shape, last = tuple(value.shape), name.rpartition('.')[2]
        if name.startswith('fc.'):
            state[name] = torch.from_numpy(rng.normal(0, 0.05, shape).astype(np.float32))
        elif name.endswith('conv.weight'):
            fan_in = int(np.prod(shape[1:]))
            state[name] = torch.from_numpy(rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32))
        elif last == 'running_var':
            state[name] = uniform(shape, 0.5, 1.5)
        elif last == 'running_mean':
            state[name] = uniform(shape, -0.2, 0.2)
        elif last == 'weight':
            state[name] = uniform(shape, 0.7, 1.3)
        elif last == 'bias':
            state[name] = uniform(shape, -0.1, 0.3)
        else:
            state[name] = value
    return state


def write_torch(path: Path, seed=0, state=None) -> Path:
    """Writes weights as torch-fidelity's and pytorch-fid's files have them."""
    torch.save(state or random_state(seed), path)
    return path


def write_graph(path: Path, seed=0, state=None) -> Path:
    """Writes weights as TensorFlow's file has them: constants of a GraphDef, and a node that is none."""
    import tensorflow as tf

    state = {name: value.numpy() for name, value in (state or random_state(seed)).items()}
    graph = tf.compat.v1.GraphDef()

    def constant(name, value):
        node = graph.node.add(name=name, op='Const')
        node.attr['value'].tensor.CopyFrom(tf.make_tensor_proto(value))

    graph.node.add(name='DecodeJpeg', op='DecodeJpeg')
    constant('ResizeBilinear/size', np.array([299, 299], np.int32))
    for name, value in state.items():
        if name.endswith('.conv.weight'):
            layer = name.removesuffix('.conv.weight')
            scope = graph_name(layer)
            constant(f'{scope}/conv2d_params', np.ascontiguousarray(value.transpose(2, 3, 1, 0)))
            for ours, theirs in (
                ('weight', 'gamma'),
                ('bias', 'beta'),
                ('running_mean', 'moving_mean'),
                ('running_var', 'moving_variance'),
            ):
                constant(f'{scope}/batchnorm/{theirs}', state[f'{layer}.bn.{ours}'])
    constant('softmax/weights', np.ascontiguousarray(state['fc.weight'].T))
    constant('softmax/biases', state['fc.bias'])
    path.write_bytes(graph.SerializeToString())
    return path
