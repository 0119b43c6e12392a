"""Loads a YAML file and overrides into a checked `Config` that knows where each of its values came from.

The order of precedence: command line, file, preset, default. All mistakes are found before any is reported.
"""

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar

from hybridrl.config import keys, presets, renamed, strict_yaml, texts
from hybridrl.config.files import file_kind, is_there
from hybridrl.config.meanings import WITHHELD
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigError, HybridRLError, refuse

COMMAND_LINE = "command line"
DEFAULT = "default"

KeyPath = tuple[str, ...]

Root = TypeVar("Root", bound=BaseModel, default=Config)
"""What a file describes: a run of reinforcement learning, or another kind of training."""


@dataclass(frozen=True, slots=True)
class LoadedConfig(Generic[Root]):
    """A config and the origin of its values."""

    config: Root
    origins: Mapping[str, str]
    """Dotted key of every value -> "my.yaml:14", "command line", "preset dapo" or "default"."""

    file: str

    def where(self, *dotted: str) -> str:
        """The place of the first of these keys that is set anywhere, else a text that says the value is a
        default.

        The place of a section is that of the first of its keys.
        """
        found = [
            origin
            for key in dotted
            for name, origin in self.origins.items()
            if origin != DEFAULT and (name == key or name.startswith(f"{key}."))
        ]
        return found[0] if found else f"default of {dotted[0]}, {self.file} does not set it"

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Errors raised inside name the place in the config that they are about."""
        try:
            yield
        except HybridRLError as error:
            if (found := self.locate(error)) is error:
                raise
            raise found from error

    def locate(self, error: HybridRLError) -> HybridRLError:
        """The error, with the config key in its `where` replaced by the place that sets the key. A key inside
        an option has the place of the option."""
        key = error.where
        while key.count(".") > 1 and key not in self.origins and not self._is_section(key):
            key = key.rpartition(".")[0]
        known = key in self.origins or self._is_section(key)
        return type(error)(error.what, where=self.where(key), fix=error.fix) if known else error

    def _is_section(self, key: str) -> bool:
        return any(name.startswith(f"{key}.") for name in self.origins)


def load(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig[Config]:
    """Read the config of a run of reinforcement learning.

    Args:
        overrides: "a.b=c", c read as YAML; later ones win.

    Raises:
        ConfigError: the file is missing or not YAML.
        ConfigErrors: everything that the schema finds wrong with its keys and values.
    """
    return load_as(Config, path, overrides)


def load_as(root: type[Root], path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig[Root]:
    """Read a config of any kind; otherwise as `load`."""
    return parse_as(root, read(Path(path)), str(path), overrides)


def parse_as(root: type[Root], text: str, file: str, overrides: Sequence[str] = ()) -> LoadedConfig[Root]:
    """A config from the text of a file, which need not exist yet; otherwise as `load`."""
    return of_document(root, strict_yaml.parse(text, file), file, overrides)


def of_document(
    root: type[Root], document: strict_yaml.Document, file: str, overrides: Sequence[str] = ()
) -> LoadedConfig[Root]:
    """A config from a file that was parsed already; otherwise as `load`."""
    origins = {key: f"{file}:{line}" for key, line in document.line.items()}
    tree = _whole_sections(document.tree, root, (), origins)
    for override in overrides:
        _apply(tree, override, origins, root)
    unreadable = texts.unreadable(tree)
    refuse([ConfigError(what, where=_place(path, origins) or file) for path, what in unreadable])
    tree, errors = _respelled(tree, file, origins)
    errors += _unknown_keys(tree, root, (), origins, root)
    errors += _merge_preset(tree, origins)
    config, invalid = _validate(tree, origins, file, root)
    errors += _not_filled_in(config, origins) if config else invalid
    refuse(sorted(errors, key=_line))
    assert config is not None
    return LoadedConfig(config, _all_origins(config, origins), file)


def values(section: BaseModel, prefix: str = "") -> list[tuple[str, Any]]:
    """Every value of a config under its dotted key, in the order of the schema; options come last in a
    section.
    """
    found: list[tuple[str, Any]] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        dotted = f"{prefix}{field.alias or name}"
        found += values(value, f"{dotted}.") if isinstance(value, BaseModel) else [(dotted, value)]
    return found + [(f"{prefix}{name}", value) for name, value in (section.model_extra or {}).items()]


def read(path: Path) -> str:
    """The text of a config file.

    Raises:
        ConfigError: there is no such file, or it is no text; names the nearest.
    """
    if not is_there(path):
        raise ConfigError(f"no config at {path}", fix=_near_config(path))
    if not path.is_file():
        raise ConfigError(f"{path} is {file_kind(path)}, not a file", fix="name a YAML file")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", where=f"byte {error.start + 1}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", fix="name a YAML file") from error


def _near_config(path: Path) -> str:
    if os.path.islink(path):  # False for a name that the file system does not take
        return f"it is a link to {path.readlink()}, where no file is"
    folder = path.parent if path.parent.is_dir() else Path("configs")
    known = [str(p) for p in sorted(folder.glob("*.y*ml"))]
    near = difflib.get_close_matches(str(path), known, n=1, cutoff=0.5) or known[:3]
    return f"there is {', '.join(near)}" if near else "check the path"


def _whole_sections(tree: Any, section: type[BaseModel], path: KeyPath, origins: dict[KeyPath, str]) -> Any:
    """The tree with short forms written out and empty sections as {}; validation reports what else is
    wrong."""
    if not isinstance(tree, dict):
        name = keys.short_form(section)
        listed = isinstance(tree, list) and not keys.takes_list(section)
        if tree is None or name is None or listed or isinstance(tree, bool):
            return {} if tree is None else tree
        if path in origins:
            origins[*path, name] = origins[path]
        return {name: tree}
    found = dict(tree)
    for name, field in keys.fields_of(section).items():
        inner = keys.section_of(field.annotation)
        optional = inner is not None and inner is not field.annotation
        if inner is not None and name in tree and not (optional and tree[name] is None):
            found[name] = _whole_sections(tree[name], inner, (*path, name), origins)
    return found


def _apply(tree: dict[str, Any], override: str, origins: dict[KeyPath, str], root: type[BaseModel]) -> None:
    dotted, equals, text = override.partition("=")
    path = tuple(dotted.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(
            f"{override!r} is not an override", where=COMMAND_LINE, fix="write key=value, as in run.steps=20"
        )
    value = strict_yaml.parse_value(text, COMMAND_LINE)
    key = keys.find(dotted, root)
    _forget(origins, path)
    _mark(value, path, origins)
    if key is not None and key.section is not None and value is not None:
        value = _whole_sections(value, key.section, path, origins)
    _put(tree, path, value)


def _put(tree: dict[str, Any], path: KeyPath, value: Any) -> None:
    for i, name in enumerate(path[:-1]):
        inner = tree.setdefault(name, {})
        if inner is None:
            inner = tree[name] = {}
        if not isinstance(inner, dict):
            at = ".".join(path[: i + 1])
            raise ConfigError(
                f"{at} = {strict_yaml.inline(inner)} has no keys",
                where=COMMAND_LINE,
                fix=f"cannot set {'.'.join(path)}",
            )
        tree = inner
    tree[path[-1]] = value


def _forget(origins: dict[KeyPath, str], path: KeyPath) -> None:
    for known in [key for key in origins if key[: len(path)] == path]:
        del origins[known]


def _mark(value: Any, path: KeyPath, origins: dict[KeyPath, str]) -> None:
    origins[path] = COMMAND_LINE
    for name, inner in value.items() if isinstance(value, dict) else ():
        _mark(inner, (*path, name), origins)


def _respelled(
    tree: dict[str, Any], file: str, origins: Mapping[KeyPath, str]
) -> tuple[dict[str, Any], list[ConfigError]]:
    """The tree with renamed keys in their new spelling, and an error for each; further mistakes are found in
    the same pass.
    """
    errors = renamed.old_spellings(tree, file, lambda path: _place(path, origins), command_line=COMMAND_LINE)
    return (renamed.respelled(tree) if errors else tree), errors


def _unknown_keys(
    tree: Any,
    section: type[BaseModel],
    path: KeyPath,
    origins: Mapping[KeyPath, str],
    root: type[BaseModel],
) -> list[ConfigError]:
    errors: list[ConfigError] = []
    fields = keys.fields_of(section)
    for name, value in tree.items() if isinstance(tree, dict) else ():
        inner = keys.section_in(section, name, tree) if name in fields else None
        if inner is not None:
            errors += _unknown_keys(value, inner, (*path, name), origins, root)
        elif name not in fields and not keys.takes_options(section):
            errors += [_unknown(leaf, section, origins, root) for leaf in _leaves(value, (*path, name))]
        elif name not in fields and not name.isidentifier():
            place = _place((*path, name), origins)
            errors.append(
                ConfigError(f"{'.'.join(path)} has an option {name!r}", where=place, fix="options are names")
            )
    return errors


def _leaves(value: Any, path: KeyPath) -> list[KeyPath]:
    if not isinstance(value, dict) or not value:
        return [path]
    return [leaf for name, inner in value.items() for leaf in _leaves(inner, (*path, name))]


def _unknown(
    path: KeyPath, section: type[BaseModel], origins: Mapping[KeyPath, str], root: type[BaseModel]
) -> ConfigError:
    dotted = ".".join(path)
    if nested := [name for name in path if "." in name]:
        return ConfigError(
            f"the key {nested[0]!r} has a dot in it",
            where=_place(path, origins),
            fix="write one level for each dot",
        )
    if (why := WITHHELD.get(dotted)) is not None:
        return ConfigError(f"there is no {dotted}: {why[0]}", where=_place(path, origins), fix=why[1])
    # A key of another backend or engine is among the keys, and unknown here.
    near = [one for one in keys.meant(dotted, root) if one != dotted]
    fix = (
        f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(keys.fields_of(section))}"
    )
    return ConfigError(f"unknown key {dotted}", where=_place(path, origins), fix=fix)


def _line(error: ConfigError) -> int:
    """Sort key of the errors: by line of the file, then those of the command line."""
    line = error.where.rpartition(":")[2]
    return int(line) if line.isdecimal() else sys.maxsize


def _place(path: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    """The place of a key, or of the nearest section above it; "" if neither was written."""
    return next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), "")


def _merge_preset(tree: dict[str, Any], origins: dict[KeyPath, str]) -> list[ConfigError]:
    algorithm = tree.get("algorithm")
    if not isinstance(algorithm, dict) or not isinstance(algorithm.get("preset"), str):
        return []
    name = algorithm["preset"]
    if name not in presets.PRESETS:
        place = _place(("algorithm", "preset"), origins)
        return [ConfigError(f"there is no preset {name!r}", where=place, fix=presets.instead_of(name))]
    _fill(algorithm, presets.PRESETS[name].algorithm, ("algorithm",), f"preset {name}", origins)
    return []


def _fill(
    tree: dict[str, Any], row: Mapping[str, Any], path: KeyPath, origin: str, origins: dict[KeyPath, str]
) -> None:
    """Put the preset's values where nothing was written; its options only under its own plug-in."""
    for name, value in row.items():
        here, written = (*path, name), tree.get(name)
        if isinstance(value, Mapping):
            inner = tree.setdefault(name, {})
            own = not isinstance(inner, dict) or inner.get("name", value.get("name")) != value.get("name")
            if not own:
                _fill(inner, value, here, origin, origins)
        elif name not in tree or written is None:
            tree[name], origins[here] = value, origin


def _validate(
    tree: dict, origins: Mapping[KeyPath, str], file: str, root: type[Root]
) -> tuple[Root | None, list[ConfigError]]:
    try:
        # JSON mode: strict about types, and a list may still become a tuple
        return root.model_validate_json(json.dumps(tree), strict=True), []
    except ValidationError as error:
        wrong = [problem for problem in error.errors() if problem["type"] != "extra_forbidden"]
        errors = [_explain(problem, tree, origins, file, root) for problem in wrong]
        return None, list({str(error): error for error in errors}.values())  # one for each type of a union


def _not_filled_in(config: BaseModel, origins: Mapping[KeyPath, str]) -> list[ConfigError]:
    """Errors about values of the schema's own keys, except prose, that only a shell would understand."""
    errors = []
    for dotted, value in values(config):
        written = [one for one in (value if isinstance(value, tuple) else [value]) if texts.is_variable(one)]
        if written and keys.find(dotted, type(config)) and not dotted.endswith("_prompt"):
            what, fix = texts.not_filled_in(dotted, written[0])
            errors.append(ConfigError(what, where=_place(tuple(dotted.split(".")), origins), fix=fix))
    return errors


def _explain(
    problem: Any, tree: dict, origins: Mapping[KeyPath, str], file: str, root: type[BaseModel]
) -> ConfigError:
    path = tuple(map(str, problem["loc"]))
    inside = False  # whether the problem is an item of a list, which has no key of its own
    while len(path) > 1 and keys.find(".".join(path), root) is None:
        path, inside = path[:-1], True
    dotted, key, place = ".".join(path), keys.find(".".join(path), root), _place(path, origins) or file
    if problem["type"] == "missing" and not inside:
        about = f": {key.field.description}" if key and key.field.description else ""
        return ConfigError(f"missing key {dotted}", where=file, fix=f"add it{about}")
    if problem["type"] == "value_error" or key is None:
        return ConfigError(f"{dotted}: {problem['msg'].removeprefix('Value error, ')}", where=place)
    if problem["type"] == "string_pattern_mismatch":
        written = f"{key.name} = {strict_yaml.inline(problem['input'])}"
        what = f"{written} is not of the form that it needs: {key.field.description}"
        return ConfigError(what, where=place, fix=f"see hybridrl config explain {key.name}")
    return _wrong_value(key, _at(tree, path) if inside else problem["input"], place)


def _at(tree: Any, path: KeyPath) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _wrong_value(key: keys.Key, value: Any, place: str) -> ConfigError:
    written = f"{key.name} = {strict_yaml.inline(value)}"
    if key.section is not None:
        return ConfigError(
            f"{written} is not a section",
            where=place,
            fix=f"its keys are {', '.join(key.fields)}",
        )
    if texts.is_variable(value):
        what, fix = texts.not_filled_in(key.name, value)
        return ConfigError(what, where=place, fix=fix)
    expected = keys.expected(key)
    near = difflib.get_close_matches(
        str(value), expected.removeprefix("one of ").split(", "), n=1, cutoff=0.5
    )
    fix = f"did you mean {near[0]}?" if near else f"see hybridrl config explain {key.name}"
    return ConfigError(f"{written} is not {expected}", where=place, fix=fix)


def _all_origins(config: BaseModel, origins: Mapping[KeyPath, str]) -> dict[str, str]:
    written = {".".join(path): origin for path, origin in origins.items()}
    return {dotted: written.get(dotted, DEFAULT) for dotted, _ in values(config)}
