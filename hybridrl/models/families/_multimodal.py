"""What text models have that belong to a model with a vision tower."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hybridrl.models.config_json import rope_options
from hybridrl.models.table import Row


def three_axes(
    config: Mapping[str, Any], *, default: tuple[int, int, int], interleaved: bool
) -> dict[str, Any]:
    """The fields of ModelSpec about rotary angles along time, height and width.

    Args:
        default: pairs of dims for each axis, where config.json does not say.
    """
    section = rope_options(config).get("mrope_section") or default
    return {"rope_sections": tuple(section), "rope_interleaved": interleaved}


def in_language_model(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows of a text model whose checkpoint has its layers under model.language_model."""
    return tuple(replace(row, hf=tuple(map(_moved, row.hf))) for row in rows)


def _moved(name: str) -> str:
    return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name
