"""Golden vectors: the numbers of every estimator, loss and KL form on one small batch, written down.

A change of numbers is a decision: run this file (python tests/unit/algorithms/test_golden.py) and show the
difference.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridrl import registry
from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import Advantage, Known, OneRank
from hybridrl.algorithms.columns import TOKEN_COLUMNS, argument
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.algorithms.plugins import build
from hybridrl.algorithms.samples import RaggedBatch, ragged_batch
from hybridrl.config.schema import AlgorithmConfig

FILE = Path(__file__).with_name("golden.json")


def advantage(name: str, batch: RaggedBatch) -> list[float]:
    made = load_estimator(AlgorithmConfig(estimator=name))
    arguments = batch.arguments(*made.needs)
    if made.needs & TOKEN_COLUMNS:
        arguments |= {"tokens": batch.tokens, "reduce": OneRank()}
    out = made(reward_N=batch.reward_N, group_N=batch.group_N, **arguments)
    return (out.advantage_T if isinstance(out, Advantage) else out).tolist()


def loss_and_gradient(name: str, batch: RaggedBatch) -> list[float]:
    """The loss, then its gradient."""
    allowed = getattr(registry.find(PACKAGES["policy_loss"], name), "aggregates", {"token_mean"})
    options = {"dro": {"beta": 0.5}, "flash_reinforce": {"delta": 0.03}}
    plugin = {"name": name, **options.get(name, {})}
    objective = Objective(AlgorithmConfig(loss=plugin, aggregate=sorted(allowed)[0]), max_response_tokens=16)
    columns = {n: batch.columns[n] for n in objective.columns}
    advantage_T, logp_T = batch.columns["advantage"], batch.columns["logp"].clone().requires_grad_()
    if objective.prepares:
        known = Known(0, batch.reward_N, batch.group_N, advantage_T, batch.tokens, columns)
        columns |= objective.prepare(known, OneRank()).columns
    scalar, _ = objective(logp_T, None, columns, advantage_T, batch.tokens, batch.totals)
    (scalar if scalar.requires_grad else scalar + 0 * logp_T.sum()).backward()  # of heads alone: 0
    return [scalar.item(), *logp_T.grad.tolist()]


def divergence(name: str, batch: RaggedBatch) -> list[float]:
    made = build("kl", name, {}, where="algorithm.kl.estimator")
    columns = {argument(c): batch.columns[c] for c in made.needs}
    return made(logp_T=batch.columns["logp"], ref_logp_T=batch.columns["ref_logp"], **columns).tolist()


KINDS = {"estimator": advantage, "policy_loss": loss_and_gradient, "kl": divergence}


def batch_of(stored: dict[str, Any]) -> RaggedBatch:
    def tensor(values: list) -> torch.Tensor:
        made = torch.tensor(values)
        return made.double() if made.is_floating_point() else made

    columns = {n: tensor(c) for n, c in stored["columns"].items()}
    return RaggedBatch(*(tensor(stored[n]) for n in ("reward_N", "group_N", "seq_T", "mask_T")), columns)


STORED = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
CASES = [(kind, name) for kind in KINDS for name in STORED.get(kind, ())]


@pytest.mark.parametrize("kind,name", CASES)
def test_numbers_are_those_written_down(kind, name):
    batch = batch_of(STORED["batch"])
    if name == "max_rl":
        batch.reward_N = batch.reward_N.abs()
    assert KINDS[kind](name, batch) == pytest.approx(STORED[kind][name], rel=1e-12, abs=1e-12)


def write() -> None:
    batch = ragged_batch(0, sizes=(3, 2, 1))
    stored = {n: getattr(batch, n).tolist() for n in ("reward_N", "group_N", "seq_T", "mask_T")}
    out: dict[str, Any] = {"batch": {**stored, "columns": {n: c.tolist() for n, c in batch.columns.items()}}}
    for kind, name in ((k, n) for k in KINDS for n in registry.names(PACKAGES[k])):
        own = batch_of(out["batch"])
        if name == "max_rl":
            own.reward_N = own.reward_N.abs()
        out.setdefault(kind, {})[name] = KINDS[kind](name, own)
    FILE.write_text(_text(out) + "\n")


def _text(value: Any) -> str:
    """JSON with one vector a line."""
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {_text(v)}" for k, v in value.items()) + "\n}"


if __name__ == "__main__":
    write()
