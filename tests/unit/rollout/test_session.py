"""The states of an engine: every call in every state, by a table."""

import pytest

from hybridrl.errors import EngineError, VersionError
from hybridrl.rollout.session import EngineSession, State

CALLS = {
    "require_serving": lambda session: session.require_serving(),
    "quiesce": lambda session: session.quiesce(4),
    "begin_write": lambda session: session.begin_write(),
    "commit": lambda session: session.commit(4),
    "serve": lambda session: session.serve(),
}
PATH = ["quiesce", "begin_write", "commit", "serve"]
STATES = [State.SERVING, State.QUIESCING, State.DIRTY, State.COMMITTED]
ALLOWED = {
    (State.SERVING, "require_serving"): State.SERVING,
    (State.SERVING, "quiesce"): State.QUIESCING,
    (State.QUIESCING, "begin_write"): State.DIRTY,
    (State.DIRTY, "quiesce"): State.QUIESCING,
    (State.DIRTY, "commit"): State.COMMITTED,
    (State.COMMITTED, "serve"): State.SERVING,
}


def session_in(state):
    """On its way from version 3 to 4."""
    session = EngineSession(3)
    for call in PATH[: STATES.index(state)]:
        CALLS[call](session)
    return session


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", STATES)
def test_a_call_makes_its_step_or_raises_and_changes_nothing(state, call):
    session = session_in(state)
    version = session.version
    if (state, call) in ALLOWED:
        CALLS[call](session)
        assert session.state is ALLOWED[state, call]
    else:
        with pytest.raises(EngineError, match=state.value):
            CALLS[call](session)
        assert (session.state, session.version) == (state, version)


def test_the_version_changes_at_the_commit():
    session = EngineSession(3)
    versions = [session.version]
    for call in PATH:
        CALLS[call](session)
        versions.append(session.version)
    assert versions == [3, 3, 3, 4, 4]
    assert session.require_serving() == 4


@pytest.mark.parametrize("target", [2, 3, 5])
def test_a_lost_or_repeated_swap_is_refused(target):
    session = EngineSession(3)
    with pytest.raises(VersionError, match=f"goes to version 4 next, not to {target}"):
        session.quiesce(target)
    assert session.require_serving() == 3


def test_a_commit_of_another_version_is_refused():
    session = session_in(State.DIRTY)
    with pytest.raises(VersionError, match="version 4, not to 5"):
        session.commit(5)
    assert session.state is State.DIRTY


def test_a_swap_that_failed_is_repeated_to_the_same_version():
    session = session_in(State.DIRTY)
    with pytest.raises(VersionError):
        session.quiesce(5)
    for call in PATH:
        CALLS[call](session)
    assert session.require_serving() == 4


def test_a_delta_starts_from_the_version_that_it_was_made_for():
    session = EngineSession(3)
    with pytest.raises(VersionError, match="serving at version 3; the delta is to 2"):
        session.quiesce(4, base=2)
    assert session.require_serving() == 3
    session.quiesce(4, base=3)
    assert session.state is State.QUIESCING


@pytest.mark.parametrize("session", [EngineSession(None), session_in(State.DIRTY)])
def test_a_delta_does_not_repair_what_another_swap_left(session):
    with pytest.raises(VersionError, match="dirty.*swap all weights"):
        session.quiesce(4, base=3)
    assert session.state is State.DIRTY


def test_an_engine_without_a_version_serves_after_its_first_swap_to_any():
    session = EngineSession(None)
    with pytest.raises(EngineError, match="dirty"):
        session.require_serving()
    with pytest.raises(VersionError):
        session.commit(17)
    session.quiesce(17)
    session.begin_write()
    session.commit(17)
    session.serve()
    assert session.require_serving() == 17


def test_errors_name_the_engine():
    session = EngineSession(None, name="engine 5")
    with pytest.raises(EngineError, match="engine 5 is dirty"):
        session.require_serving()


@pytest.mark.parametrize("state", STATES)
def test_an_engine_that_forgets_its_weights_takes_any_version_next(state):
    session = session_in(state)
    session.forget()
    assert (session.state, session.version) == (State.DIRTY, None)
    session.quiesce(1)
    session.begin_write()
    session.commit(1)
    session.serve()
    assert session.require_serving() == 1
