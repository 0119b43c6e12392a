"""Which weights an engine holds, and whether it may serve them.

    SERVING(v)  -- quiesce(v+1) -->  QUIESCING       -- begin_write() -->  DIRTY
                -- commit(v+1) -->   COMMITTED(v+1)  -- serve() -->        SERVING(v+1)

A swap writes absolute values, so one that failed is repeated from the start: DIRTY -- quiesce --> QUIESCING.
A delta writes some tensors only: it starts from the base version that it was made for, never from DIRTY.
An engine whose weights belong to no version yet starts DIRTY. Only SERVING answers a request.
"""

from enum import Enum

from hybridrl.errors import EngineError, VersionError
from hybridrl.types import PolicyVersion


class State(Enum):
    SERVING = "serving"
    QUIESCING = "quiescing"
    DIRTY = "dirty"
    COMMITTED = "committed"


class EngineSession:
    """The state of one engine. Every call either makes its step or raises and changes nothing."""

    def __init__(self, version: PolicyVersion | None = 0, *, name: str = "engine") -> None:
        """
        Args:
            version: of the weights that the engine was started with; None: of no version, so that it
                serves only after its first swap, which may lead to any version.
            name: tells engines apart in errors.
        """
        self.name = name
        self.state = State.DIRTY if version is None else State.SERVING
        self._version = version
        self._target: PolicyVersion | None = None

    @property
    def version(self) -> PolicyVersion | None:
        """The last committed version; None before the first."""
        return self._version

    @property
    def _next(self) -> PolicyVersion | None:
        """The only version a swap may lead to; None: any."""
        if self._target is not None:
            return self._target
        return None if self._version is None else self._version + 1

    def require_serving(self) -> PolicyVersion:
        """The version that answers carry.

        Raises:
            EngineError: the engine is in the middle of a swap, or a swap failed.
        """
        if self.state is not State.SERVING or self._version is None:
            target = "" if self._target is None else f" on the way to version {self._target}"
            raise EngineError(
                f"{self.name} is {self.state.value}{target} and must not serve",
                fix="commit a swap, then serve() again",
            )
        return self._version

    def quiesce(self, target: PolicyVersion, *, base: PolicyVersion | None = None) -> None:
        """Announce a swap: from here on no request is taken. The caller lets running ones end.

        Args:
            base: of a delta: the version that the tensors it does not write must be of.

        Raises:
            VersionError: `target` is not the next version, or `base` is not what the engine serves.
        """
        self._expect("quiesce", State.SERVING, State.DIRTY)
        if base is not None and (self.state is State.DIRTY or base != self._version):
            raise VersionError(
                f"{self.name} is {self.state.value} at version {self._version}; the delta is to {base}",
                fix="swap all weights",
            )
        if self._next is not None and target != self._next:
            raise VersionError(f"{self.name} goes to version {self._next} next, not to {target}")
        self.state, self._target = State.QUIESCING, target

    def begin_write(self) -> None:
        """Nothing runs any more: parameters may change now."""
        self._expect("begin_write", State.QUIESCING)
        self.state = State.DIRTY

    def commit(self, target: PolicyVersion) -> None:
        """Every tensor was written and its checksum compared.

        Raises:
            VersionError: `target` is not what the swap was begun for.
        """
        self._expect("commit", State.DIRTY)
        if target != self._target:
            raise VersionError(f"{self.name} is being brought to version {self._target}, not to {target}")
        self.state, self._version, self._target = State.COMMITTED, target, None

    def serve(self) -> None:
        """Caches of the old weights are gone: take requests again."""
        self._expect("serve", State.COMMITTED)
        self.state = State.SERVING

    def _expect(self, call: str, *states: State) -> None:
        if self.state not in states:
            wanted = " or ".join(state.value for state in states)
            raise EngineError(f"{self.name} is {self.state.value}; {call} needs it {wanted}")
