"""A Python interpreter in a box, which keeps its state between calls.

It reads commands from a pipe and writes a result for each to another one:

    {"do": "exec"} and code           -> {"done": {"ok": bool}}; the value of a last expression is printed
    {"do": "call", path, args, ...}   -> {"done": {"ok", "value" or "error", "args"}}: values.py
    ...meanwhile {"ask": ...} may come out, and {"answer": ...} goes in: remote.py

Everything here can be changed by the program that runs in the session, so nobody relies on its results: who
compares a value does so in another process.
"""

import ast
import linecache
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from hybridrl.sandbox.inside import frames, values
from hybridrl.sandbox.inside.remote import Remote

FRAME_BYTES = 8 << 20
"""Bytes of a command or result."""


def serve(commands: int, results: int) -> None:
    """Obey commands until there are no more."""
    session = Session(commands, results)
    while (command := frames.receive(commands, session.reader)) is not None:
        if command.header["do"] == "exec":
            done = session.execute(command.parts[0].decode(errors="replace"), command.header)
        else:
            done = session.call(command.header)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        frames.send(results, {"done": done})


class Session:
    def __init__(self, commands: int, results: int) -> None:
        self.reader = frames.FrameReader(FRAME_BYTES)
        self._commands, self._results = commands, results
        self._count = 0
        self._objects: dict[int, Any] = {}
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        self._names = main.__dict__

    def execute(self, code: str, header: Mapping[str, Any]) -> dict[str, Any]:
        """Run code; `ok` says whether it ended without an exception, which goes to stderr."""
        self._count += 1
        if header.get("remote"):
            self._names.update(self._remote(header["remote"]))
        return {"ok": run_code(code, self._names, f"<call {self._count}>", echo=bool(header.get("echoes")))}

    def call(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """Call what a path leads to, read an attribute, or take an item.

        The path begins with the name of a global or the number of an object, and goes on with attributes.
        """
        try:
            args = values.decode(header["args"], self._object)
            kwargs = values.decode(header["kwargs"], self._object)
            target = self._find(header["path"])
            value = (
                target(*args, **kwargs)
                if header["how"] == "call"
                else _OPERATIONS[header["how"]](target, *args)
            )
            found = {"ok": True, "value": self._encode(value), "args": self._changed(args, header["args"])}
        except BaseException as error:  # a process edge: the other side raises it
            traceback.print_exc()
            found = {"ok": False, "error": type(error).__name__, "text": _text(error)}
        return found

    def ask(self, question: Mapping[str, Any]) -> Any:
        """Send a question out of the box, and wait for the answer."""
        frames.send(self._results, {"ask": question})
        answer = frames.receive(self._commands, self.reader)
        if answer is None:
            raise SystemExit
        return answer.header["answer"]

    def _find(self, path: list[Any]) -> Any:
        first, *attributes = path
        value = self._objects[first] if isinstance(first, int) else self._names[first]
        for name in attributes:
            value = getattr(value, name)
        return value

    def _encode(self, value: Any) -> Any:
        return values.encode(value, self._reference)

    def _reference(self, value: Any) -> dict[str, Any]:
        number = id(value)
        self._objects[number] = value
        return {"number": number, "type": type(value).__name__}

    def _object(self, found: Mapping[str, Any]) -> Any:
        return self._objects[found["number"]]

    def _changed(self, args: list[Any], sent: list[Any]) -> list[Any]:
        """Lists, dicts and sets that a function was given, as it left them; None where it changed nothing."""
        now = [self._encode(a) if isinstance(a, list | dict | set) else None for a in args]
        return [found if found != before else None for found, before in zip(now, sent, strict=True)]

    def _remote(self, names: list[str]) -> dict[str, Any]:
        return {name: Remote(self, [name]) for name in names}


_OPERATIONS = {
    "get": lambda value: value,
    "item": lambda value, key: value[key],
    "length": lambda value: len(value),
    "list": lambda value: [item for _, item in zip(range(1 << 20), value, strict=False)],
    "text": lambda value: str(value),
}


def run_code(code: str, names: dict[str, Any], place: str, *, echo: bool) -> bool:
    """Execute code; returns whether it ended without an exception, which is printed with its lines.

    Args:
        echo: print the value of a last expression, unless it is None.
    """
    linecache.cache[place] = (len(code), None, code.splitlines(keepends=True), place)
    try:
        tree = ast.parse(code, place)
        last = tree.body.pop() if echo and tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, place, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), place, "eval"), names)
            if value is not None:
                print(repr(value))
    except SystemExit as error:
        return error.code in (None, 0)
    except BaseException as error:  # a process edge: the program's own error is its result
        _show(error)
        return False
    return True


def _show(error: BaseException) -> None:
    """Print a traceback without the frames of this file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:2000]
    except Exception:  # a class of the program may fail to write itself
        return ""
