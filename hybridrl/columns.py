"""The table of columns: everything that a batch may carry in addition to its tokens. It imports no torch.

Every column is declared once, here or with `declare` in the module that makes it. Token blocks refuse other
columns, plug-ins name the columns they need, ranks unpack columns by this table, and the documentation lists
it. A new column needs a row and code that provides its values.
Shape letters: N trajectories, T tokens, L layers of the model; each column says what its K is.
"""

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any, Literal

from hybridrl.errors import ColumnError

Per = Literal["trajectory", "token", "turn", "prompt"]
Source = Literal["controller", "block", "ranks"]

TURN_START = "turn_start"
"""Name of the column that says where turns begin; a block with a column per turn must have it."""

PIXELS, SIZES = "pixels", "picture_size"
"""Names of the columns with the pictures of a trajectory; a block has both or neither."""


TURN_COLUMNS = frozenset({"turn", "anchor", "turn_reward", "turns", "agent", "episode", "observed"})
"""Columns that say something only if trajectories have several turns or several roles: in a run with an
environment."""


HEAD_COLUMNS = ("engine_head", "engine_head_logp")
"""Columns that an engine provides only if the loss asks for its K likeliest tokens."""


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """A row of the table."""

    per: Per
    """What the column has one value for. Turns are those of all trajectories, concatenated. A column per
    prompt has one array of any size, which all samples of the prompt share."""

    dtype: str
    """NumPy's name of the dtype; of two, as in uint8|uint16, the smaller one that holds the values."""

    source: Source | None
    """What provides the column in a run: the controller for every trajectory, the engine in token blocks, or
    trainer ranks, which compute it. None: nothing provides it yet."""

    meaning: str
    """Description for the documentation."""

    outside: float | None = None
    """Value at tokens that are not trained on. None: they have ordinary values."""

    axes: str = ""
    """Letters of the axes after the first; for a column per prompt, of the axes of its array."""

    tells_with: str | None = None
    """Another column without which this one is the same everywhere and carries no information."""

    @property
    def shape(self) -> str:
        """Shape letters of the array that a plug-in receives, which are also the suffix of its parameter."""
        return {"trajectory": "N", "token": "T", "turn": "T", "prompt": "N"}[self.per] + self.axes

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes that its array may have."""
        return tuple(self.dtype.split("|"))


def _trajectory(
    dtype: str, source: Source | None, meaning: str, axes: str = "", *, tells_with: str | None = None
) -> ColumnSpec:
    return ColumnSpec("trajectory", dtype, source, meaning, axes=axes, tells_with=tells_with)


def _token(dtype: str, source: Source | None, meaning: str, outside: float | None = 0) -> ColumnSpec:
    return ColumnSpec("token", dtype, source, meaning, outside)


def _turn(meaning: str) -> ColumnSpec:
    return ColumnSpec("turn", "int64", "block", meaning)


COLUMNS: dict[str, ColumnSpec] = {
    "length": _trajectory("int64", "controller", "trained tokens"),
    "prompt_length": _trajectory("int64", "controller", "tokens of the prompt"),
    "turns": _trajectory(
        "int64",
        "controller",
        "answers of the policy in a conversation, 1 without tools",
        tells_with=TURN_START,
    ),
    "truncated": _trajectory("bool", "controller", "whether the answer ended at the token limit"),
    "reward_parts": _trajectory(
        "float32", "controller", "the named parts of the reward in alphabetical order of their names", "K"
    ),
    "greedy_reward": _trajectory("float32", "controller", "reward of the greedy answer to the same prompt"),
    "v_star": _trajectory("float32", "controller", "soft value of the prompt under the reference policy"),
    "agent": _trajectory("int64", "controller", "role of the trajectory in its episode, from 0"),
    "episode": _trajectory(
        "int64", "controller", "number of the episode in its group; its roles were played together"
    ),
    "rollout_logp": _token(
        "float32", "block", "log-probability by the engine when it sampled the token, at its temperature"
    ),
    "version": _token(
        "int32",
        "block",
        "policy version that generated the token, even if it is not trained on; -1 if none did",
        outside=None,
    ),
    "experts": ColumnSpec(
        "token",
        "uint8|uint16",
        "block",
        "experts to which the engine routed the token, on each layer; the largest number of the dtype if it "
        "did not run the token, as the last one of a trajectory. Only with router_replay: rollout",
        axes="LK",
    ),
    "observed": _token(
        "bool", "block", "whether an environment wrote the token, between two answers", outside=None
    ),
    "engine_head": ColumnSpec(
        "token",
        "int32",
        "block",
        "ids of the K tokens that the engine held likeliest at this place. Only for a loss with head_logp",
        outside=0,
        axes="K",
    ),
    "engine_head_logp": ColumnSpec(
        "token",
        "float32",
        "block",
        "log-probability by the engine of the tokens of engine_head, at its temperature",
        outside=0,
        axes="K",
    ),
    "head_logp": ColumnSpec(
        "token",
        "float32",
        "ranks",
        "log-probability by the policy of the tokens of engine_head or teacher_head, with its gradient, in "
        "every pass",
        outside=0,
        axes="K",
    ),
    "old_logp": _token("float32", "ranks", "log-probability by the trainer before the update"),
    "ref_logp": _token("float32", "ranks", "log-probability by the reference policy"),
    "teacher_logp": _token("float32", "ranks", "log-probability by the teacher of a distillation"),
    "teacher_head": ColumnSpec(
        "token",
        "int32",
        "ranks",
        "ids of the K tokens that the teacher holds likeliest at this place. Only for a loss with "
        "teacher_head_logp",
        outside=0,
        axes="K",
    ),
    "teacher_head_logp": ColumnSpec(
        "token",
        "float32",
        "ranks",
        "log-probability by the teacher of the tokens of teacher_head",
        outside=0,
        axes="K",
    ),
    "process_logp": _token("float32", "ranks", "log-probability by the implicit process reward model"),
    "old_entropy": _token(
        "float32", "ranks", "entropy of the trainer's distribution before the update, in nats"
    ),
    "old_collision": _token(
        "float32",
        "ranks",
        "sum of the squared probabilities of all tokens by the trainer before the update",
    ),
    "value": _token("float32", "ranks", "value of the answer up to, and without, this token"),
    "token_reward": _token(
        "float32",
        None,
        "outcome reward on the last trained token, minus KL penalties; made by load_estimator",
    ),
    "lag": _token(
        "float32",
        "ranks",
        "policy updates between the version that sampled the token and the one of the trainer",
    ),
    "turn": _turn("number, from 0, of the policy's answer in the conversation that the token belongs to"),
    "anchor": _turn("same number for turns that began in the same environment state"),
    "turn_reward": _token(
        "float32",
        "block",
        "reward of the environment on the last token of a turn, 0 elsewhere; part of the trajectory's reward",
    ),
    PIXELS: ColumnSpec(
        "prompt",
        "uint8",
        "block",
        "red, green and blue of the pixels of all pictures that its tokens show, end to end, resized",
        axes="B",
    ),
    SIZES: ColumnSpec(
        "prompt",
        "int64",
        "block",
        "height and width in pixels of each of the I pictures that its tokens show",
        axes="IS",
    ),
    TURN_START: _turn("index in the block of the turn's first token, ascending"),
}
"""Every column by its name."""


def declare(name: str, spec: ColumnSpec) -> None:
    """Add a column to the table, in every process that imports the calling module.

    Declaring the same column again does nothing.

    Raises:
        ColumnError: another column has this name already.
    """
    known = COLUMNS.setdefault(name, spec)
    if known != spec:
        raise ColumnError(
            f"column {name} is declared twice: {known}, and {spec}",
            where="hybridrl/columns.py",
            fix="give one of them another name",
        )


def spec_of(name: str) -> ColumnSpec:
    """The row of a column.

    Raises:
        ColumnError: the column is not declared.
    """
    if name not in COLUMNS:
        raise ColumnError(
            f"column {name!r} is not declared",
            where=f"hybridrl/columns.py declares {', '.join(COLUMNS)}",
            fix=f"hybridrl.columns.declare({name!r}, ColumnSpec(...)) in the module that makes it",
        )
    return COLUMNS[name]


class Names(Set[str]):
    """The names of all columns of some kinds. The set is live: it includes columns declared later."""

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
        """The result of & and |, which is not live."""
        return frozenset(it)


def given_by(*sources: Source) -> frozenset[str]:
    """Names of the columns that the given sources provide."""
    return frozenset(name for name, spec in COLUMNS.items() if spec.source in sources)


def not_computed(names: Iterable[str]) -> list[str]:
    """The given columns that nothing in a run provides yet, or that carry no information yet; sorted."""

    def is_given(name: str) -> bool:
        spec = spec_of(name)
        return spec.source is not None and (spec.tells_with is None or is_given(spec.tells_with))

    return sorted(name for name in names if not is_given(name))
