"""The default config, and configs of runs that are older than some of its fields."""

import runpy
from typing import Any

from ml_collections import ConfigDict

from cfg.runtime.paths import configs_folder


def defaults() -> ConfigDict:
    """Returns the default config."""
    return runpy.run_path(str(configs_folder() / 'default.py'))['get_config']()


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
