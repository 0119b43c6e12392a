"""What an engine's worker opens for episodes of several turns: environments, dialogue and player."""

from dataclasses import dataclass

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.config.schema import Config, DataConfig
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.dialogue.opened import open_episode_dialogue, opening_of
from hybridrl.environments.base import EnvironmentSource
from hybridrl.environments.hosting import open_environments
from hybridrl.rollout.turns import TurnPlayer


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

    marks_observations: bool = False
    """Whether column observed is filled."""

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
            cfg.algorithm.observations.coefficient > 0,
        )

    async def open(self) -> tuple[EnvironmentSource, TurnPlayer]:
        """Start the environments.

        Raises:
            HybridRLError: they cannot be started, or the chat template cannot be used for several turns.
        """
        tokenizer = load_tokenizer(self.model_folder)
        opening = opening_of(tokenizer, self.data)
        environments = open_environments(self.environment, sharers=self.engines_of_node)
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
            marks_observations=self.marks_observations,
        )
        return environments, player
