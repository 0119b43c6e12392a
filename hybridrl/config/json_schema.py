"""The schema of a config for editors: JSON Schema, as the YAML language server reads it.

It is pydantic's, in which every key has the text that stands under it in the code, with what a file may write
besides: a section in its short form, or empty.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from hybridrl.config import keys
from hybridrl.config.explain import about
from hybridrl.config.presets import PRESETS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(root: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of one kind of config.

    Args:
        root: of keys.ROOTS.
    """
    return {"$schema": DIALECT, **_object([root], ""), "type": "object"}


def _object(kinds: Sequence[type[BaseModel]], prefix: str) -> dict[str, Any]:
    """A section that may have the keys of several classes, its own sections written in place: a reference
    could not have a text of its own beside it.
    """
    properties: dict[str, Any] = {}
    required: list[str] = []
    for kind in kinds:
        own = kind.model_json_schema()
        required += [name for name in own.get("required", ()) if name not in required]
        for name, field in keys.fields_of(kind).items():
            properties[name] = _key(keys.Key(f"{prefix}{name}", field), own["properties"][name])
    options = any(keys.takes_options(kind) for kind in kinds)
    found = {"properties": properties, "additionalProperties": options}
    return found | ({"required": required} if required else {})


def _key(key: keys.Key, own: Mapping[str, Any]) -> dict[str, Any]:
    described = {"description": about(key)}
    if key.section is None:
        named = {"enum": [*PRESETS, None]} if key.name == "algorithm.preset" else {}
        return {name: value for name, value in own.items() if name != "title"} | described | named
    short = ["string"] if keys.short_form(key.section) else []
    short += ["array"] if keys.takes_list(key.section) else []
    section = _object(keys.sections_of(key.field)[::-1], f"{key.name}.")
    return described | {"type": ["object", *short, "null"]} | section
