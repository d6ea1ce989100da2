"""Gives a config as plain values, and refuses one of them."""

import json
from typing import Any

from ml_collections import ConfigDict

from cfg.runtime.errors import UserError


def config_dict(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as plain JSON values."""
    return json.loads(config.to_json_best_effort())


def require(condition: bool, field: str, value: Any, expected: str) -> None:
    """Raises a UserError that names the field unless the condition holds."""
    if not condition:
        raise UserError(f'config.{field}={value!r} must be {expected}.')
