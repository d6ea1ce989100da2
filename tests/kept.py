"""Keeps what functions made, mostly compiled programs, for all tests of a file that ask for the same."""


def keep(patch, module, **keys):
    """Lets functions of a module be called once for each key.

    Args:
      patch: a `pytest.MonkeyPatch`.
      keys: {name of a function: its arguments -> everything that its result depends on}.
    """
    for name, key in keys.items():
        patch.setattr(module, name, _Kept(getattr(module, name), key))


def of_generator(config, networks, sampler):
    """Returns all that a generator of samples depends on."""
    bound = [(name, run.network, run.kind, run.config['diffusion']['prediction']) for name, run in networks.items()]
    shape, options = networks['model'].spec.image_shape, config.sampling
    return sampler, tuple(shape), options.batch_size, options.rounding, *bound


class _Kept:
    def __init__(self, make, key):
        self._make, self._key, self._made = make, key, {}

    def __call__(self, *args, **kwargs):
        key = self._key(*args, **kwargs)
        if key not in self._made:
            self._made[key] = self._make(*args, **kwargs)
        return self._made[key]
