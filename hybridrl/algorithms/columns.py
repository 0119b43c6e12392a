"""Names of the columns of a batch that a plug-in may need. The module imports no torch."""

from collections.abc import Set

from hybridrl.columns import COLUMNS, Names

Column = str

SCALAR_COLUMNS: Set[Column] = Names("trajectory")
"""Columns of one value per trajectory."""

TOKEN_COLUMNS: Set[Column] = Names("token", "turn")
"""Columns of one value per token, 0 where the loss mask is 0. A column per turn is passed in this form too:
each token has the value of its turn."""

PROMPT_COLUMNS: Set[Column] = Names("prompt")
"""Columns of one array per prompt; a plug-in gets a list with one array per trajectory, that of its
prompt."""


def on_ranks(needs: Set[Column]) -> bool:
    """Whether an estimator with these needs runs on trainer ranks: the controller has scalar columns only."""
    return not SCALAR_COLUMNS >= needs


def argument(column: Column) -> str:
    """The parameter that receives a column: "length" -> "length_N", "old_logp" -> "old_logp_T"."""
    spec = COLUMNS.get(column)
    return f"{column}_{spec.shape if spec else 'T'}"
