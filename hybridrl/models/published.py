"""Sizes of models by their name on the Hugging Face hub: a plan needs no download.

published.json has, of their config.json, what the models of a kind share and each model's own keys. Of models
that see images it has the part that reads text; of those published in FP8 the sizes, not the format.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from hybridrl.models.spec import ModelSpec, from_config

_TABLE = Path(__file__).with_suffix(".json")


def read_published(name: str) -> ModelSpec | None:
    """The spec of a model as the hub names it, Qwen/Qwen2.5-72B-Instruct; None: it is not in the table."""
    config = published_config(name)
    return None if config is None else from_config(config, where=name)


def published_config(name: str) -> dict[str, Any] | None:
    """The keys of its config.json that say how the model is built; None: it is not in the table."""
    table = _table()
    model = dict(table["models"].get(name) or {})
    return table["kinds"][model.pop("kind")] | model if model else None


def published_names() -> tuple[str, ...]:
    """Every model of the table."""
    return tuple(_table()["models"])


@cache
def _table() -> dict[str, Any]:
    return json.loads(_TABLE.read_text("utf-8"))
