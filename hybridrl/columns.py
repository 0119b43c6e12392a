"""The table of columns: what a batch may carry beside its tokens, each declared once. Imports no torch.

Whoever touches a column asks this table: token blocks refuse one that it does not hold, plug-ins name what
they need by it, ranks unpack by it and the documentation lists it. So a new column takes a row here, or a
call of `declare` in the module that makes it, and whoever gives its values.
Shape letters: N trajectories, T tokens, L layers of the model, K as a column says.
"""

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any, Literal

from hybridrl.errors import ColumnError

Per = Literal["trajectory", "token", "turn", "prompt"]
Source = Literal["controller", "block", "ranks"]

TURN_START = "turn_start"
"""The column that says where turns begin; a block with another column per turn has it."""


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """A row of the table."""

    per: Per
    """What has one value each. Per turn: of all trajectories end to end, beside `turn_start`. Per prompt: one
    array of any size, to which all samples of the prompt refer."""

    dtype: str
    """NumPy's name; of two, as in uint8|uint16, the smaller one that holds the values."""

    source: Source | None
    """Who gives it in a run: the controller for every trajectory, token blocks as they come from the engine,
    or trainer ranks, which compute it. None: no part of a run gives it yet."""

    meaning: str
    outside: float | None = None
    """Its value at tokens that are not trained on. None: they have values of their own."""

    axes: str = ""
    """Letters of the axes after the first; per prompt those of its array."""

    tells_with: str | None = None
    """Another column: as long as nobody gives that one, this one is the same everywhere and tells nothing."""

    @property
    def shape(self) -> str:
        """Shape letters of what a plug-in receives, and the ending of the parameter that receives it."""
        return {"trajectory": "N", "token": "T", "turn": "T", "prompt": "N"}[self.per] + self.axes

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types that an array of it may have."""
        return tuple(self.dtype.split("|"))


def _trajectory(
    dtype: str, source: Source | None, meaning: str, axes: str = "", *, tells_with: str | None = None
) -> ColumnSpec:
    return ColumnSpec("trajectory", dtype, source, meaning, axes=axes, tells_with=tells_with)


def _token(dtype: str, source: Source | None, meaning: str, outside: float | None = 0) -> ColumnSpec:
    return ColumnSpec("token", dtype, source, meaning, outside)


COLUMNS: dict[str, ColumnSpec] = {
    "length": _trajectory("int64", "controller", "trained tokens"),
    "prompt_length": _trajectory("int64", "controller", "tokens of the prompt"),
    "turns": _trajectory(
        "int64",
        "controller",
        "answers of the policy in a conversation, 1 without tools",
        tells_with=TURN_START,
    ),
    "truncated": _trajectory("bool", "controller", "True where the answer was cut at the token limit"),
    "reward_parts": _trajectory(
        "float32", "controller", "the named parts of the reward in alphabetical order of their names", "K"
    ),
    "greedy_reward": _trajectory("float32", "controller", "reward of the greedy answer to the same prompt"),
    "v_star": _trajectory("float32", "controller", "soft value of the prompt under the reference policy"),
    "agent": _trajectory("int64", None, "role of the trajectory in its episode"),
    "episode": _trajectory("int64", None, "which trajectories were played together"),
    "rollout_logp": _token(
        "float32", "block", "by the engine as it sampled the token, at the sampling temperature"
    ),
    "version": _token(
        "int32",
        "block",
        "policy version that generated the token, also where it is not trained on; -1 where none did",
        outside=None,
    ),
    "experts": ColumnSpec(
        "token",
        "uint8|uint16",
        "block",
        "experts that the engine sent the token to, on each layer; the largest number of the type where it "
        "did not run the token, as the last one of a trajectory. Only with router_replay: rollout",
        axes="LK",
    ),
    "old_logp": _token("float32", "ranks", "by the trainer, before the update"),
    "ref_logp": _token("float32", "ranks", "by the reference policy"),
    "teacher_logp": _token("float32", "ranks", "by the teacher of a distillation"),
    "process_logp": _token("float32", "ranks", "by the implicit process reward model"),
    "old_entropy": _token(
        "float32", "ranks", "by the trainer before the update, of the whole distribution, in nats"
    ),
    "old_collision": _token(
        "float32",
        "ranks",
        "by the trainer before the update: sum of the squared probabilities of all tokens",
    ),
    "value": _token("float32", "ranks", "of the answer up to and without this token"),
    "token_reward": _token(
        "float32",
        None,
        "outcome reward on the last trained token, less KL penalties; made by load_estimator",
    ),
    "lag": _token(
        "float32",
        "ranks",
        "policy updates between the version that sampled the token and the one of the trainer",
    ),
    "turn": _token(
        "int64", None, "which answer of the policy in a conversation the token belongs to, from 0"
    ),
    "anchor": _token("int64", None, "same number for turns that began in the same environment state"),
    "turn_reward": _token(
        "float32", None, "reward of the environment on the last token of a turn, 0 elsewhere"
    ),
    TURN_START: ColumnSpec("turn", "int64", None, "token of the block that the turn begins with, ascending"),
}
"""Every column by its one name."""


def declare(name: str, spec: ColumnSpec) -> None:
    """Add a row, from a module that makes or needs the column: each process that imports it then knows it.

    Repeating a row is free.

    Raises:
        ColumnError: the name stands for another column already.
    """
    known = COLUMNS.setdefault(name, spec)
    if known != spec:
        raise ColumnError(
            f"column {name} is declared twice: {known}, and {spec}",
            where="hybridrl/columns.py",
            fix="give one of them another name",
        )


def spec_of(name: str) -> ColumnSpec:
    """
    Raises:
        ColumnError: nobody declared the column.
    """
    if name not in COLUMNS:
        raise ColumnError(
            f"column {name!r} is not declared",
            where=f"hybridrl/columns.py declares {', '.join(COLUMNS)}",
            fix=f"hybridrl.columns.declare({name!r}, ColumnSpec(...)) in the module that makes it",
        )
    return COLUMNS[name]


class Names(Set[str]):
    """Names of columns of some kinds, those included that are declared later."""

    def __init__(self, *per: Per) -> None:
        self._per = per

    def __contains__(self, name: object) -> bool:
        return name in COLUMNS and COLUMNS[str(name)].per in self._per

    def __iter__(self) -> Iterator[str]:
        return (name for name, spec in COLUMNS.items() if spec.per in self._per)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> frozenset[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What & and | make: names as they are at that moment."""
        return frozenset(it)


def given_by(*sources: Source) -> frozenset[str]:
    """Columns that a part of a run gives."""
    return frozenset(name for name, spec in COLUMNS.items() if spec.source in sources)


def not_computed(names: Iterable[str]) -> list[str]:
    """Those that no part of a run gives yet, or that tell nothing yet; sorted."""

    def is_given(name: str) -> bool:
        spec = spec_of(name)
        return spec.source is not None and (spec.tells_with is None or is_given(spec.tells_with))

    return sorted(name for name in names if not is_given(name))
