"""Rows that reproduce the numerics of other frameworks: eps, degrees of freedom, groups of one, aggregation.

What they compute in addition (length penalties, filters, the denominators of a microbatch) is not part of a
row; `not_kept` names it. Formulas and defaults are of the versions that the file of a framework names.
"""

from collections.abc import Mapping

from hybridrl.config.frameworks import areal, nemo_rl, openrlhf, prime_rl, skyrl, slime, trl, verl
from hybridrl.config.frameworks.row import Row

_FRAMEWORKS: Mapping[str, Mapping[str, Row]] = {
    "verl": verl.ROWS,
    "slime": slime.ROWS,
    "openrlhf": openrlhf.ROWS,
    "nemo_rl": nemo_rl.ROWS,
    "trl": trl.ROWS,
    "prime_rl": prime_rl.ROWS,
    "areal": areal.ROWS,
    "skyrl": skyrl.ROWS,
}

COMPATIBILITY: Mapping[str, Mapping[str, Row]] = {
    algorithm: {name: rows[algorithm] for name, rows in _FRAMEWORKS.items() if algorithm in rows}
    for algorithm in dict.fromkeys(algorithm for rows in _FRAMEWORKS.values() for algorithm in rows)
}
"""Algorithm -> framework -> row; `preset: verl/grpo` in a config."""
