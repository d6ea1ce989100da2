"""A config as plain values."""

import json
from typing import Any

from ml_collections import ConfigDict


def config_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values."""
    return json.loads(config.to_json_best_effort())
