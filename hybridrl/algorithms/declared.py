"""What a plug-in declares in its class body, read from its file without importing it, and torch with it.

Its declarations are class attributes, or properties of one expression, over options and `frozenset` alone:

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp"})

    @property
    def per_token(self) -> bool:
        return self.discount != 1
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hybridrl import registry
from hybridrl.algorithms.packages import PACKAGES


def declared(kind: str, name: str, options: Mapping[str, Any], *, where: str) -> Any:
    """What stands for the plug-in that a config names where nobody calls it: it has the options and the
    declarations of the plug-in, and no methods.

    A plug-in from outside the project ("module:Name") is itself the answer: its module is imported.

    Args:
        options: they are not checked; `plugins.build` does that.

    Raises:
        ConfigError, UserCodeError: as `plugins.build`.
    """
    if ":" in name:
        # Imported here: it takes torch, which the plug-in takes too.
        from hybridrl.algorithms.plugins import build

        return build(kind, name, options, where=where)
    registry.check_name(PACKAGES[kind], name, where=where)
    made = _plugin(folder(kind) / f"{name}.py")()
    vars(made).update(options)
    return made


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
def _plugin(path: Path) -> type:
    return _class(plugin_class(ast.parse(path.read_text("utf-8")), path), path)


def _class(node: ast.ClassDef, path: Path) -> type:
    """A class with the declarations of a plug-in's class, and of those that it inherits from."""
    bases = tuple(_class(parent, sibling) for parent, sibling in parents(node, path))
    body = ast.Module([kept for statement in node.body if (kept := _declaration(statement))], [])
    names = {"__builtins__": {}, "frozenset": frozenset, "property": property}
    attributes: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(body), str(path), "exec"), names, attributes)
    return type(node.name, bases, attributes)


def _declaration(node: ast.stmt) -> ast.stmt | None:
    """The statement without annotations; None: it is no declaration."""
    if isinstance(node, ast.AnnAssign) and node.value is not None and _is_data(node.value):
        return ast.copy_location(ast.Assign([node.target], node.value), node)
    if isinstance(node, ast.FunctionDef) and [ast.unparse(d) for d in node.decorator_list] == ["property"]:
        node.returns = None
        return node
    return None


def _is_data(value: ast.expr) -> bool:
    return {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} <= {"frozenset"}
