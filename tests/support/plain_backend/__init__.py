"""A trainer backend outside of the project: actor.backend=plain_backend:Plain.

layout.py    who holds which part of a model, without torch
backend.py   what computes: transformers' own model on one rank, in plain torch
"""

from typing import TYPE_CHECKING

from hybridrl.trainer.setup import RankSetup
from plain_backend.layout import PlainLayout

if TYPE_CHECKING:
    from hybridrl.trainer.base import Backend

NAME = "plain_backend:Plain"


class Plain:
    """BackendKind."""

    layout = PlainLayout

    def open(self, setup: RankSetup) -> "Backend":
        from plain_backend import backend

        return backend.open(setup)
