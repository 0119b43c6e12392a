"""Sizes of published models by their hub name, so that a plan needs no download.

published.json has the config.json keys that the models of a kind share, and the keys of each model. Of
Gemma 3 it has the text model; for models published in FP8 it has only the sizes.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from hybridrl.models.spec import ModelSpec, from_config

_TABLE = Path(__file__).with_suffix(".json")


def read_published(name: str) -> ModelSpec | None:
    """The spec of a hub name such as Qwen/Qwen2.5-72B-Instruct; None: it is not in the table."""
    config = published_config(name)
    return None if config is None else from_config(config, where=name)


def published_config(name: str) -> dict[str, Any] | None:
    """The config.json keys that define the architecture; None: the model is not in the table."""
    table = _table()
    model = dict(table["models"].get(name) or {})
    return table["kinds"][model.pop("kind")] | model if model else None


def published_names() -> tuple[str, ...]:
    """The names of all models in the table."""
    return tuple(_table()["models"])


@cache
def _table() -> dict[str, Any]:
    return json.loads(_TABLE.read_text("utf-8"))
