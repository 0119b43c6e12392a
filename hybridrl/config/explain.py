"""What a key means, from the schema: the text under the key, what it takes, its default."""

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hybridrl.config import keys
from hybridrl.config.presets import PRESETS
from hybridrl.config.readers import readers
from hybridrl.config.schema import Config
from hybridrl.config.strict_yaml import inline
from hybridrl.errors import ConfigError


def explain(dotted: str, root: type[BaseModel] | None = None) -> Iterator[tuple[str, str]]:
    """Lines about a key, or about what a section is for and its keys, as (heading, text).

    Args:
        root: the kind of config; None: the first that has the key.

    Raises:
        ConfigError: there is no such key; names the nearest.
    """
    root = root or keys.root_of(dotted) or Config
    key = keys.find(dotted, root)
    if key is None:
        near = keys.meant(dotted, root)
        fix = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"sections are {', '.join(keys.fields_of(root))}"
        )
        raise ConfigError(f"no key {dotted}", fix=fix)
    return _section(key, key.section) if key.section else _value(key)


def sections(root: type[BaseModel] | None = None) -> Iterator[tuple[str, str]]:
    """The sections of a kind of config and what they are for; None: of all kinds, each section once."""
    found: dict[str, FieldInfo] = {}
    for kind in [root] if root else keys.ROOTS:
        found |= {name: field for name, field in keys.fields_of(kind).items() if name not in found}
    for name, field in found.items():
        yield name, about(keys.Key(name, field))


def _value(key: keys.Key) -> Iterator[tuple[str, str]]:
    yield key.name, about(key)
    yield "takes", keys.expected(key)
    yield "default", default(key)
    if key.name == "algorithm.preset":
        yield from ((name, preset.about) for name, preset in PRESETS.items())
    yield "read in", ", ".join(readers(key.name)) or "nowhere"


def _section(key: keys.Key, section: type[BaseModel]) -> Iterator[tuple[str, str]]:
    yield key.name, about(key)
    for name, field in key.fields.items():
        inner = keys.Key(f"{key.name}.{name}", field)
        text = about(inner) if inner.section is None else f"{about(inner)} -> {', '.join(inner.fields)}"
        yield inner.name, f"{text}  [{default(inner)}]" if inner.section is None else text
    if keys.takes_options(section):
        yield f"{key.name}.*", "options of the plug-in"


def default(key: keys.Key) -> str:
    """The default as YAML, or a text that says there is none."""
    value = key.field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "must be set"
    value = value.model_dump(by_alias=True) if isinstance(value, BaseModel) else value
    return inline(list(value) if isinstance(value, tuple) else value)


def about(key: keys.Key) -> str:
    """The text under a key; of a section without one, what its class says."""
    text = key.field.description or (key.section.__doc__ if key.section else "") or ""
    return " ".join(text.split())
