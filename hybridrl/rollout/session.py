"""The state machine of an engine: which weights it holds, and whether it may serve them.

    SERVING(v)  -- quiesce(v+1) -->  QUIESCING       -- begin_write() -->  DIRTY
                -- commit(v+1) -->   COMMITTED(v+1)  -- serve() -->        SERVING(v+1)

A swap writes absolute values, so a failed one can be repeated from the start: DIRTY -- quiesce --> QUIESCING.
A delta writes only some tensors. It must start from its base version, never from DIRTY.
An engine whose weights have no version yet starts DIRTY. Requests are answered in state SERVING only.
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
    """The state of one engine. Every call either changes the state, or raises and changes nothing."""

    def __init__(self, version: PolicyVersion | None = 0, *, name: str = "engine") -> None:
        """
        Args:
            version: version of the initial weights. None: they have no version, and the engine serves only
                after its first swap, which may have any version.
            name: name of the engine in errors.
        """
        self.name = name
        self.state = State.DIRTY if version is None else State.SERVING
        self._version = version
        self._target: PolicyVersion | None = None

    @property
    def version(self) -> PolicyVersion | None:
        """The last committed version; None if there is none yet."""
        return self._version

    @property
    def _next(self) -> PolicyVersion | None:
        """The only version that the next swap may have; None allows any."""
        if self._target is not None:
            return self._target
        return None if self._version is None else self._version + 1

    def require_serving(self) -> PolicyVersion:
        """The version of answers that are generated now.

        Raises:
            EngineError: a swap is in progress or failed.
        """
        if self.state is not State.SERVING or self._version is None:
            target = "" if self._target is None else f" on the way to version {self._target}"
            raise EngineError(
                f"{self.name} is {self.state.value}{target} and must not serve",
                fix="commit a swap, then serve() again",
            )
        return self._version

    def quiesce(self, target: PolicyVersion, *, base: PolicyVersion | None = None) -> None:
        """Announce a swap: new requests are refused from now on. The caller waits for running ones.

        Args:
            base: base version of a delta, which the engine must serve; None if the swap writes all weights.

        Raises:
            VersionError: `target` is not the next version, or the engine does not serve `base`.
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
        """Declare that no request runs any more, so that parameters may be written."""
        self._expect("begin_write", State.QUIESCING)
        self.state = State.DIRTY

    def commit(self, target: PolicyVersion) -> None:
        """Declare that every tensor was written and its checksum compared.

        Raises:
            VersionError: the swap was begun for another version than `target`.
        """
        self._expect("commit", State.DIRTY)
        if target != self._target:
            raise VersionError(f"{self.name} is being brought to version {self._target}, not to {target}")
        self.state, self._version, self._target = State.COMMITTED, target, None

    def serve(self) -> None:
        """Declare that caches of the old weights are gone, and accept requests again."""
        self._expect("serve", State.COMMITTED)
        self.state = State.SERVING

    def forget(self) -> None:
        """Declare that the weights have no version, as those of an engine that starts: it serves after its
        next swap, which may have any version."""
        self.state, self._version, self._target = State.DIRTY, None, None

    def _expect(self, call: str, *states: State) -> None:
        if self.state not in states:
            wanted = " or ".join(state.value for state in states)
            raise EngineError(f"{self.name} is {self.state.value}; {call} needs it {wanted}")
