"""Gives the whole suite four CPU devices, and the small run that many tests share."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.command_line import XLA_FLAGS

# Before JAX starts. Tests of one device take the first of the four.
FLAGS = f'--xla_force_host_platform_device_count=4 {XLA_FLAGS}'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS}'.strip()
os.environ['JAX_PLATFORMS'] = 'cpu'
# Many tests, and the processes that they start, compile the same programs.
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(Path(__file__).parents[1] / '.pytest_cache' / 'jax')
os.environ['JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# All workers, and what they start, share one cache of feature networks and of what is measured of real images.
os.environ['MPLCONFIGDIR'] = str(Path(__file__).parents[1] / '.pytest_cache' / 'matplotlib')
if 'CFG_TESTS_CACHE' not in os.environ:  # which workers inherit
    os.environ['CFG_TESTS_CACHE'] = tempfile.mkdtemp(prefix='cfg_tests_')
    atexit.register(shutil.rmtree, os.environ['CFG_TESTS_CACHE'], ignore_errors=True)
os.environ['XDG_CACHE_HOME'] = os.environ['CFG_TESTS_CACHE']
# The torch of PyPI brings triton, for GPUs. It and TensorFlow each have an LLVM, and the process that loads both dies.
sys.modules['triton'] = None

import hypothesis
import jax
import pytest

from cfg.data import digits as source
from cfg.features.network import default_cache
from cfg.features.small_classifier import small_classifier
from cfg.metrics import distances
from configs import digits

# Properties are held to the same examples at every run, by no clock. A body that is dear asks for fewer.
hypothesis.settings.register_profile('suite', deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile('suite')


@pytest.fixture(scope='module', autouse=True)
def programs_of_one_file():
    """Drops what a file has compiled. Every program on the CPU is mapped into memory a few times, and a process that
    exceeds the kernel's limit of mappings (vm.max_map_count, 65530 mostly) dies of a segmentation fault."""
    yield
    jax.clear_caches()
    gc.collect()


# The longest first, so that the workers end at about the same time.
LONGEST = (
    'test_sweep.py',
    'test_pod.py',
    'test_unet.py',
    'test_main.py',
    'test_benchmarks.py',
    'test_loop.py',
    'test_measurement.py',
    'test_tune.py',
    'test_describe_target.py',
    'test_describe.py',
    'test_guidance_rules.py',
    'test_classifier.py',
    'test_import_adm.py',
    'test_npz_modes.py',
    'test_step.py',
    'test_generate.py',
    'test_extending.py',
)


def pytest_collection_modifyitems(items):
    """Puts the longest files first; xdist hands the next file to the worker that is done."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_collection_finish():
    """Takes what is imported out of the garbage collector's sight: it is much, and stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', name='digits_classifier')
def digits_classifier_fixture():
    """Returns a function that puts the digits' feature network, from the session's cache, into another cache."""
    cache = default_cache('')
    small_classifier(cache, source.digits('train'), batch_size=100)  # the first worker trains it
    (file,) = cache.glob('digits_classifier_*.npz')

    def give(other):
        other.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, other)

    return give


def small_config():
    """Returns the digits config with a network that compiles in seconds and a run of a few steps."""
    config = digits.get_config()
    config.model.channels = 8
    config.model.channel_mult = (1,)
    config.model.num_res_blocks = 1
    config.model.head_channels = 8
    config.model.norm_groups = 4
    config.model.attention_resolutions = ()
    config.train.num_steps = 6
    config.train.batch_size = 16
    config.train.log_every = 2
    config.train.sample_every = 0
    config.train.checkpoint_every = 2
    config.train.keep_every = 2
    config.sampling.num_steps = 4
    config.sampling.batch_size = 20
    config.sampling.num_samples = 20
    config.eval.steps = ()
    config.eval.w = (0.0, 1.0)
    config.eval.num_samples = 80
    return config


def score_few(config, *, samples, of_split, subsets, of_subset):
    """Lets a sweep score few samples: of a split of the inception score, and of subsets for KID."""
    config.eval.num_samples, config.eval.is_split_size = samples, of_split
    config.eval.kid_subsets, config.eval.kid_subset_size = subsets, of_subset


def guided_config(**evaluated):
    """Returns `small_config` with a network that soon is far from its zero-initialised layers, and few scored samples.

    Args:
      evaluated: fields of `config.eval`.
    """
    config = small_config()
    config.train.learning_rate, config.train.warmup_steps = 0.02, 0
    config.sampling.ema, config.eval.keep_samples = False, 0
    score_few(config, samples=20, of_split=20, subsets=1, of_subset=20)
    with config.unlocked():
        config.eval.update(evaluated)
    return config


@pytest.fixture(name='narrow')
def narrow_fixture(monkeypatch):
    """Lets the Frechet distance see the first 64 features: of 2048, which test_measurement.py has, it takes seconds."""
    distance = distances.frechet_distance

    def of_the_first(*moments, width=64):
        return distance(*(x[(slice(width),) * x.ndim] for x in moments))

    monkeypatch.setattr(distances, 'frechet_distance', of_the_first)


@pytest.fixture(name='small_config')
def small_config_fixture():
    return small_config()


@pytest.fixture(scope='session', name='small_run')
def small_run_fixture(tmp_path_factory):
    """The workdir of a finished run of the small config, for tests that write nothing into it."""
    from cfg.training import loop  # most tests need none of it

    workdir = tmp_path_factory.mktemp('small_run')
    loop.train(small_config(), workdir)
    return workdir
