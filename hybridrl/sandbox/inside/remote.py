"""Stand-ins, in the box that holds the tests, for the functions of an answer that runs in another box.

A call goes out as an ask, is answered by the other box, and comes back as plain values; what is not plain
comes back as a stand-in again. So a test sees values of Python's own types, and the answer sees arguments.
"""

import builtins
from collections.abc import Iterator
from typing import Any, Protocol

from hybridrl.sandbox.inside import values


class Asks(Protocol):
    def ask(self, question: dict[str, Any]) -> Any: ...


class Remote:
    """A function, class or object of the other box. It equals itself alone."""

    def __init__(self, session: Asks, path: list[Any]) -> None:
        self.__dict__["_session"], self.__dict__["_path"] = session, path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _ask(self, "call", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _ask(Remote(self._session, [*self._path, name]), "get")

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "item", (key,))

    def __len__(self) -> int:
        return _ask(self, "length")

    def __iter__(self) -> Iterator[Any]:
        return iter(_ask(self, "list"))

    def __str__(self) -> str:
        return str(_ask(self, "text"))

    def __bool__(self) -> bool:
        return True


def _ask(remote: Remote, how: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
    session, path = remote._session, remote._path
    question = {
        "how": how,
        "path": path,
        "args": values.encode(list(args), _number),
        "kwargs": values.encode(kwargs or {}, _number),
    }
    answer = session.ask(question)
    if not answer["ok"]:
        raise _error(answer)
    for given, changed in zip(args, answer["args"], strict=True):
        if changed is not None:
            _update(given, values.decode(changed))
    return values.decode(answer["value"], lambda found: Remote(session, [found["number"]]))


def _number(value: Any) -> dict[str, Any]:
    if isinstance(value, Remote) and len(value._path) == 1 and isinstance(value._path[0], int):
        return {"number": value._path[0], "type": "object"}
    raise values.NotPlain(f"a test gives the answer a value of type {type(value).__name__}")


def _update(given: Any, value: Any) -> None:
    """Give a list, dict or set the content that the function left in it."""
    if isinstance(given, list):
        given[:] = value
    else:
        given.clear()
        given.update(value)


def _error(answer: dict[str, Any]) -> BaseException:
    """An exception of the same name if it is one of Python's own, else a RuntimeError."""
    kind = getattr(builtins, answer["error"], None)
    text = answer["text"]
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # UnicodeDecodeError and others take more
            pass
    return RuntimeError(f"{answer['error']}: {text}")
