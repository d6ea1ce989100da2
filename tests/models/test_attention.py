import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from cfg.models import attention as kernels
from cfg.runtime.errors import UserError


def queries(n=2, m=256, heads=3, c=64, dtype=jnp.float32):
    return [jax.random.normal(jax.random.key(i), (n, m, heads, c), dtype) for i in range(3)]


def exact(q, k, v):
    """The definition, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum('nmhc,nkhc->nhmk', q, k) / np.sqrt(q.shape[-1])
    return np.einsum('nhmk,nkhc->nmhc', special.softmax(scores, axis=-1), v)


SPLASH = functools.partial(kernels.by_splash, interpret=True)


@pytest.mark.parametrize('kernel', [kernels.by_xla, SPLASH])
def test_a_kernel_is_the_softmax_of_scores_times_values(kernel):
    q, k, v = queries()
    np.testing.assert_allclose(kernel(q, k, v), exact(q, k, v), atol=2e-6)


def test_the_gradients_of_the_kernel_for_tpus_are_those_of_the_products():
    inputs = queries(m=128, heads=2)
    weights = jnp.cos(jnp.arange(64.0))

    def gradients(kernel):
        return jax.grad(lambda *inputs: jnp.sum(kernel(*inputs) * weights), (0, 1, 2))(*inputs)

    for ours, theirs in zip(gradients(SPLASH), gradients(kernels.by_xla), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-6)
        assert np.abs(theirs).max() > 0.1


@pytest.mark.parametrize(
    ('kernel', 'size', 'dtype', 'taken'),
    [
        ('splash', (1, 1024, 6, 64), jnp.bfloat16, True),
        ('splash', (1, 64, 6, 64), jnp.bfloat16, False),
        ('splash', (1, 128, 6, 64), jnp.float32, True),
        ('cudnn', (1, 64, 6, 64), jnp.bfloat16, True),
        ('cudnn', (1, 1024, 4, 192), jnp.bfloat16, False),
        ('cudnn', (1, 1024, 6, 64), jnp.float32, False),
        ('xla', (1, 3, 1, 200), jnp.float32, True),
    ],
)
def test_where_a_kernel_does_not_take_a_size_xla_does_it(kernel, size, dtype, taken, monkeypatch):
    called = []
    for name in kernels.KERNELS:
        monkeypatch.setitem(kernels.KERNELS, name, lambda q, k, v, name=name: called.append(name))
    kernels.attention(*(jax.ShapeDtypeStruct(size, dtype),) * 3, kernel=kernel)
    assert called == [kernel if taken else 'xla']


@pytest.mark.parametrize(
    ('platform', 'serves', 'kernel'),
    [('cpu', True, 'xla'), ('tpu', True, 'splash'), ('gpu', True, 'cudnn'), ('gpu', False, 'xla')],
)
def test_auto_is_what_the_platform_has(platform, serves, kernel, monkeypatch):
    def asked(*inputs):
        if not serves:
            raise RuntimeError('cuDNN is not detected.')
        return inputs[0]

    monkeypatch.setattr(jax, 'default_backend', lambda: platform)
    monkeypatch.setattr(kernels, 'by_cudnn', asked)
    assert kernels.kernel_of('auto') == kernel
    assert kernels.kernel_of('xla') == 'xla'
    assert kernels.kernel_of(kernel) == kernel
    for other in {'cudnn', 'splash'} - {kernel}:
        with pytest.raises(UserError, match=f"attention='{other}' is not a kernel of this machine.*'{platform}'"):
            kernels.kernel_of(other)
