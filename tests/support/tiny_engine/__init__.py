"""An engine outside of the project, in its owner's process: rollout.engine=tiny_engine:Tiny.

tiny_engine:TinyTransformer is the same with another model.

This file says what there is to know of it without starting it, and imports no torch.

engine.py   requests, pauses and swaps
models.py   what it computes with
"""

from importlib.metadata import version

from hybridrl.config.rollout import EngineParallel
from hybridrl.errors import ConfigError, LayoutError
from hybridrl.layout.hf import HFLayout


class Tiny:
    """EngineKind."""

    name = "tiny_engine:Tiny"
    parallel = EngineParallel
    model = "Recurrent"

    def layout(self, model, parallel):
        if parallel.tp > 1:
            raise LayoutError(f"tp = {parallel.tp}, a tiny engine has one rank", fix="tp = 1")
        return HFLayout(model)

    def sizes(self, model, most):
        yield EngineParallel()

    def refuse(self, cfg, model):
        if cfg.actor.moe.router_replay == "rollout":
            yield ConfigError(
                "actor.moe.router_replay = rollout: a tiny engine has no experts",
                where="actor.moe.router_replay",
                fix="none",
            )

    def missing(self, cfg):
        yield from ()

    def versions(self, cfg):
        return {"torch": version("torch")}

    def open(self, setup):
        from tiny_engine import engine, models

        return engine.TinyEngine(setup, getattr(models, self.model))


class TinyTransformer(Tiny):
    """It answers as a trainer of the same weights computes."""

    name = "tiny_engine:TinyTransformer"
    model = "Transformer"
