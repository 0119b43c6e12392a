"""What a key means, from the schema: the text under the key, what it takes, its default."""

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hybridrl.config import keys
from hybridrl.config.presets import PRESETS
from hybridrl.config.readers import readers
from hybridrl.config.schema import Config
from hybridrl.config.strict_yaml import inline
from hybridrl.errors import ConfigError


def explain(dotted: str) -> Iterator[tuple[str, str]]:
    """Lines about a key, or about the keys of a section, as (heading, text).

    Raises:
        ConfigError: there is no such key; names the nearest.
    """
    root = keys.root_of(dotted)
    key = keys.find(dotted, root) if root else None
    if key is None:
        near = keys.meant(dotted)
        fix = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"sections are {', '.join(keys.fields_of(Config))}"
        )
        raise ConfigError(f"no key {dotted}", fix=fix)
    return _section(key, key.section) if key.section else _value(key)


def _value(key: keys.Key) -> Iterator[tuple[str, str]]:
    yield key.name, _about(key)
    yield "takes", keys.expected(key)
    yield "default", default(key)
    if key.name == "algorithm.preset":
        yield from ((name, preset.about) for name, preset in PRESETS.items())
    yield "read in", ", ".join(readers(key.name)) or "nowhere"


def _section(key: keys.Key, section: type[BaseModel]) -> Iterator[tuple[str, str]]:
    yield key.name, _about(key)
    for name, field in key.fields.items():
        inner = keys.Key(f"{key.name}.{name}", field)
        text = _about(inner) if inner.section is None else f"{_about(inner)} -> {', '.join(inner.fields)}"
        yield inner.name, f"{text}  [{default(inner)}]" if inner.section is None else text
    if keys.takes_options(section):
        yield f"{key.name}.*", "options of the plug-in"


def default(key: keys.Key) -> str:
    """The default as YAML, or that there is none."""
    value = key.field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "must be set"
    value = value.model_dump(by_alias=True) if isinstance(value, BaseModel) else value
    return inline(list(value) if isinstance(value, tuple) else value)


def _about(key: keys.Key) -> str:
    text = key.field.description or (key.section.__doc__ if key.section else "") or ""
    return " ".join(text.split())
