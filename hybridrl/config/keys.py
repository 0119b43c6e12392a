"""The schema seen as dotted keys: what exists, what each key takes, and which key the user meant.

A dotted key is what stands in a YAML: actor.parallel.tp, algorithm.kl.in.
"""

import contextlib
import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hybridrl.config.judge import FrozenConfig, JudgeConfig
from hybridrl.config.meanings import MEANINGS
from hybridrl.config.schema import Config, ModelConfig, RewardModelConfig, SourceConfig
from hybridrl.config.section import PluginConfig, SectionOf
from hybridrl.config.sft_rm import RMConfig, SFTConfig
from hybridrl.errors import HybridRLError
from hybridrl.wording import counted

ROOTS: tuple[type[BaseModel], ...] = (Config, SFTConfig, RMConfig)
"""What a file may describe: a run of reinforcement learning, fine-tuning, a reward model."""

SHORT_FORM: dict[type[BaseModel], str] = {
    ModelConfig: "path",
    RewardModelConfig: "path",
    JudgeConfig: "path",
    FrozenConfig: "path",
    SourceConfig: "path",
    PluginConfig: "name",
}
"""Sections that may be written as one text, and the key that the text is the value of."""

_BY_MEANING = {name: key for key, names in MEANINGS.items() for name in names.split()}


@dataclass(frozen=True, slots=True)
class Key:
    """One place of the schema."""

    name: str
    """The dotted key."""

    field: FieldInfo

    @property
    def section(self) -> type[BaseModel] | None:
        """The section that stands here; None for a value."""
        return section_of(self.field.annotation)

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """Fields of the section, with those that only some plug-ins give it. {} for a value."""
        return {
            n: field for kind in reversed(sections_of(self.field)) for n, field in fields_of(kind).items()
        }


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class in an annotation, which is `Section` or `Section | None`."""
    found = [
        a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
    ]
    return found[0] if found else None


def sections_of(field: FieldInfo) -> list[type[BaseModel]]:
    """Section classes that a field may hold: their common base, then those of plug-ins; [] for a value."""
    common = section_of(field.annotation)
    given = [kind for mark in field.metadata if isinstance(mark, SectionOf) for kind in mark.all()]
    return [common, *given] if common else []


def section_in(section: type[BaseModel], name: str, tree: Mapping[str, Any]) -> type[BaseModel] | None:
    """The section class of a field, given what the config writes in the same section; None for a value.

    Args:
        tree: the section, as the config writes it.
    """
    fields = fields_of(section)
    kinds = sections_of(fields[name])
    for mark in fields[name].metadata:
        if isinstance(mark, SectionOf):
            with contextlib.suppress(HybridRLError):  # the key that names the plug-in reports it
                return mark.named(tree.get(mark.key, fields[mark.key].default))
    # The one with the most keys, so that a wrong name of the plug-in does not make its keys mistakes too.
    return max(kinds, key=lambda kind: len(fields_of(kind)), default=None)


def takes_options(section: type[BaseModel]) -> bool:
    """Whether further keys of the section belong to its plug-in."""
    return section.model_config.get("extra") == "allow"


def short_form(section: type[BaseModel]) -> str | None:
    """The key whose value a text in place of the section gives."""
    return next((key for kind, key in SHORT_FORM.items() if issubclass(section, kind)), None)


def fields_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by the name that stands in a YAML."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def takes_list(section: type[BaseModel]) -> bool:
    """Whether a list may stand in place of the section, as the value of the key of its short form."""
    name = short_form(section)
    kinds = _members(fields_of(section)[name].annotation) if name else ()
    return any(get_origin(kind) is tuple for kind in kinds)


def all_keys(section: type[BaseModel] = Config) -> Iterator[Key]:
    """Every key of the schema, sections before what they hold."""
    for name, field in fields_of(section).items():
        yield from _keys_from(Key(name, field))


def _keys_from(key: Key) -> Iterator[Key]:
    yield key
    for name, field in key.fields.items():
        yield from _keys_from(Key(f"{key.name}.{name}", field))


def find(dotted: str, root: type[BaseModel] = Config) -> Key | None:
    """The key with this name; None: there is none, or it is an option of a plug-in."""
    return next((key for key in all_keys(root) if key.name == dotted), None)


def root_of(dotted: str) -> type[BaseModel] | None:
    """The first of ROOTS that has a key of this name."""
    return next((root for root in ROOTS if find(dotted, root)), None)


def meant(dotted: str, root: type[BaseModel] = Config) -> list[str]:
    """Known keys that the writer of an unknown one may have meant, best first; [] when no guess is fair."""
    known = [key.name for key in all_keys(root)]
    parent, _, word = dotted.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    if typo := difflib.get_close_matches(word, siblings, n=1, cutoff=0.75):
        return [siblings[typo[0]]]
    if (key := _meaning(dotted)) in known:
        return [siblings.get(key.rpartition(".")[2], key)]
    if same := [name for name in known if name.rpartition(".")[2] == word]:
        return sorted(same, key=lambda name: -_shared(name, dotted))[:2]
    words = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.75)
    near = [words[w] for w in near] or difflib.get_close_matches(dotted, known, n=1, cutoff=0.75)
    return near or [siblings[w] for w in difflib.get_close_matches(word, siblings, n=1, cutoff=0.5)]


def expected(key: Key) -> str:
    """What the key takes, in words: "a positive integer", "one of none, full"."""
    if key.section is not None:
        return f"keys of {key.name}: {', '.join(key.fields)}"
    kinds = [a for a in _members(key.field.annotation) if a is not type(None)]
    words = " or ".join(_kind(kind, key.field) for kind in kinds)
    optional = type(None) in _members(key.field.annotation)
    return f"{words} or null" if optional else words


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in {Union, types.UnionType} else (annotation,)


def _kind(annotation: Any, field: FieldInfo) -> str:
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) is tuple:
        return (
            "a list"
            if ... in get_args(annotation)
            else f"a list of {counted(len(get_args(annotation)), 'number')}"
        )
    bounds = [*field.metadata, *getattr(annotation, "__metadata__", ())]
    base = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    noun = {int: "integer", float: "number", bool: "true or false", str: "text"}[base]
    if base in {bool, str}:
        return noun
    low = next(
        (
            f"{word} {getattr(b, at):g}"
            for b in bounds
            for at, word in _LOW
            if getattr(b, at, None) is not None
        ),
        "",
    )
    high = next((f"at most {b.le:g}" for b in bounds if getattr(b, "le", None) is not None), "")
    article = "an" if noun == "integer" else "a"
    return " ".join(filter(None, [article, noun, " and ".join(filter(None, [low, high]))]))


_LOW = (("gt", "above"), ("ge", "of at least"))


def _meaning(dotted: str) -> str | None:
    parts = dotted.split(".")
    tails = (".".join(parts[i:]) for i in range(len(parts)))  # the longest first: rollout.tp before tp
    return next((_BY_MEANING[tail] for tail in tails if tail in _BY_MEANING), None)


def _shared(one: str, other: str) -> int:
    """How many leading parts two dotted keys share."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(one.count("."), other.count(".")))
