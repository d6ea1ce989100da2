"""The default config, and configs of runs that are older than some of its fields."""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


def defaults() -> ConfigDict:
    """Returns the default config, whose file is beside the package or, where it is installed, within it."""
    folders = Path(__file__).parents[2], Path(__file__).parents[1]
    file = next(path for folder in folders if (path := folder / 'configs' / 'default.py').exists())
    return runpy.run_path(str(file))['get_config']()


def completed(config: dict[str, Any]) -> ConfigDict:
    """Returns the config of a run with the fields that are newer, at their defaults, which change nothing of it."""
    found = ConfigDict(config)
    _complete(found, defaults())
    return found


def _complete(config: ConfigDict, newer: ConfigDict) -> None:
    for name, value in newer.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, ConfigDict):
            _complete(config[name], value)
