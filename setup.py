"""Tells setuptools what pyproject.toml cannot: what the files of requirements hold, and where the configs go."""

from pathlib import Path

from setuptools import find_packages, setup


def required(*parts):
    """Returns the lines of requirements-*.txt that are no comments."""
    lines = [line for part in parts for line in Path(f'requirements-{part}.txt').read_text().splitlines()]
    return [line for line in lines if line and not line.startswith('#')]


setup(
    # The configs stand beside the package, and are installed within it.
    packages=[*find_packages(include=['cfg', 'cfg.*']), 'cfg.configs'],
    package_dir={'cfg.configs': 'configs'},
    install_requires=required('core'),
    extras_require={
        'train': required('train'),
        'dev': required('train', 'dev'),
        'wandb': ['wandb>=0.31,<1'],
        'tpu': ['jax[tpu]'],
        'cuda': ['jax[cuda13]'],
    },
)
