"""What an engine's worker opens for episodes of several turns: environments, dialogue and player."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.config.schema import Config, DataConfig
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.dialogue.opened import open_episode_dialogue, opening_of
from hybridrl.environments.base import EnvironmentSource
from hybridrl.environments.hosting import Environments, open_environments
from hybridrl.rollout.turns import TurnPlayer
from hybridrl.workers.environment_hosts import RemoteEnvironments


@dataclass(frozen=True, slots=True)
class TurnSetup:
    """Arguments with which a worker opens its environments."""

    environment: EnvironmentConfig
    data: DataConfig
    model_folder: str
    """Folder with the policy's tokenizer."""

    max_context_tokens: int
    heldout_turns: int | None = None
    """Most turns of a held-out episode. None: as many as its environment says."""

    engines_of_node: int = 1
    """Engines that share the processes of a node."""

    hosts: Sequence[Any] = ()
    """Handles of the EnvironmentHost actors that play for all engines; empty: processes beside the engine."""

    engine: int = 0
    """Number of the engine that this is for."""

    @classmethod
    def of(cls, cfg: Config, *, engines_of_node: int = 1) -> "TurnSetup | None":
        """The setup of a run; None if it has no environment."""
        if cfg.environment is None:
            return None
        return cls(
            cfg.environment,
            cfg.data,
            cfg.model.path,
            cfg.rollout.max_context_tokens or cfg.rollout.longest_tokens,
            cfg.evaluate.max_turns,
            engines_of_node,
        )

    async def open(self) -> tuple[EnvironmentSource, TurnPlayer]:
        """Start the environments.

        Raises:
            HybridRLError: they cannot be started, or the chat template cannot be used for several turns.
        """
        tokenizer = load_tokenizer(self.model_folder)
        opening = opening_of(tokenizer, self.data)
        environments = self._environments()
        await environments.start()
        try:
            dialogue = open_episode_dialogue(
                tokenizer, self.model_folder, self.data, with_tools=environments.calls_by_template
            )
        except BaseException:
            await environments.close()
            raise
        player = TurnPlayer(
            environments,
            dialogue,
            opening,
            max_context_tokens=self.max_context_tokens,
            heldout_turns=self.heldout_turns,
        )
        return environments, player

    def _environments(self) -> Environments | RemoteEnvironments:
        if self.hosts:
            return RemoteEnvironments(self.environment, self.hosts, engine=self.engine)
        return open_environments(self.environment, sharers=self.engines_of_node)
