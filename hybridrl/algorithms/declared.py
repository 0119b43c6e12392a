"""Reads what a plug-in declares in its class body from its file, without importing the file, which imports
torch.

Declarations are options, class attributes, and properties and `__post_init__` that use options only:

    discount: float = 1.0
    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    @property
    def per_token(self) -> bool:
        return self.discount != 1
"""

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hybridrl import registry
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.algorithms.plugins import build, made

_TORCH_FREE = {"dataclasses", "typing", "collections.abc", "hybridrl.algorithms.bounds"}
"""Modules that annotations of options and `__post_init__` of plug-ins may use."""


def declared(kind: str, name: str, options: Mapping[str, Any], *, where: str) -> Any:
    """A stand-in for the plug-in that a config names, for code that does not compute with it: it has the
    options, the declarations and the method names of the plug-in. A method that uses torch cannot be called.

    A plug-in from outside the project ("module:Name"), or one whose declarations use other names of its file,
    is imported and returned itself.

    Raises:
        ConfigError, UserCodeError: as `plugins.build`, and in the same words.
    """
    if ":" in name:
        return build(kind, name, options, where=where)
    registry.check_name(PACKAGES[kind], name, where=where)
    try:
        return made(kind, _plugin(kind, name), name, options, where=where)
    except NameError:
        return build(kind, name, options, where=where)


def by_default(kind: str, name: str) -> Any:
    """The project's plug-in as by `declared`, with its defaults only: an option without a default is
    absent."""
    return object.__new__(_plugin(kind, name))


def folder(kind: str) -> Path:
    """The folder of the project's plug-ins of a kind."""
    return Path(__file__).parent / PACKAGES[kind].rpartition(".")[2]


def plugin_class(tree: ast.Module, path: Path) -> ast.ClassDef:
    """The class that is registered under the file's name."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(
            f"({path.stem!r})" in ast.unparse(d) for d in node.decorator_list
        ):
            return node
    raise AssertionError(f"{path} registers nothing under its own name")


def parents(plugin: ast.ClassDef, path: Path) -> Iterator[tuple[ast.ClassDef, Path]]:
    """The plug-ins of the same folder that a plug-in inherits from, with their files."""
    names = {ast.unparse(base) for base in plugin.bases}
    if not names:
        return
    for sibling in sorted(path.parent.glob("*.py")):
        for node in ast.parse(sibling.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name in names:
                yield node, sibling


@cache
def _plugin(kind: str, name: str) -> Any:
    path = folder(kind) / f"{name}.py"
    try:
        return _class(plugin_class(ast.parse(path.read_text("utf-8")), path), path)
    except NameError:
        return registry.find(PACKAGES[kind], name)


def _class(node: ast.ClassDef, path: Path) -> type:
    """A class with the declarations of a plug-in's class, and of those that it inherits from."""
    bases = tuple(_class(parent, sibling) for parent, sibling in parents(node, path))
    body = ast.Module([_declaration(statement) for statement in node.body], [])
    module, attributes = _without_torch(path), {}
    exec(compile(ast.fix_missing_locations(body), str(path), "exec"), module, attributes)
    made = type(node.name, bases, attributes)
    options = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return dataclasses.dataclass(kw_only=True)(made) if options else made


def _without_torch(path: Path) -> dict[str, Any]:
    """The names that a plug-in's file imports from modules that import no torch."""
    imports = [
        node
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module in _TORCH_FREE
    ]
    names: dict[str, Any] = {"__name__": f"declared.{path.stem}"}
    exec(compile(ast.Module(list(imports), []), str(path), "exec"), names)
    return names


def _declaration(node: ast.stmt) -> ast.stmt:
    """The statement without what needs torch: class attributes and methods lose their annotations."""
    if isinstance(node, ast.AnnAssign) and "ClassVar" in ast.unparse(node.annotation):
        assert node.value is not None, "a class attribute has a value"
        return ast.copy_location(ast.Assign([node.target], node.value), node)
    if isinstance(node, ast.FunctionDef):
        node.returns = None
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in [*arguments, node.args.vararg, node.args.kwarg]:
            if argument is not None:
                argument.annotation = None
    return node
