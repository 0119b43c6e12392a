"""What an engine's worker opens for episodes of several turns: environments or programs, and their player."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.config.judge import FrozenConfig
from hybridrl.config.program import ProgramConfig
from hybridrl.config.schema import Config, DataConfig
from hybridrl.data.pictures import PictureFormat
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.dialogue.base import Dialogue
from hybridrl.dialogue.opened import Opening, open_dialogue, open_episode_dialogue, opening_of
from hybridrl.dialogue.pictures import PictureMessages
from hybridrl.environments.hosting import Environments, open_environments
from hybridrl.gateway.boxed import PORT, BoxedPrograms
from hybridrl.gateway.conversation import Limits
from hybridrl.gateway.player import ProgramPlayer
from hybridrl.gateway.program import Programs, ProgramSetup, ProgramSource
from hybridrl.gateway.server import Gateway, ServerSetup
from hybridrl.hosts.variables import child_environment
from hybridrl.rollout.turns import FrozenPlayer, Player, TurnPlayer
from hybridrl.sandbox import limits as sandbox_limits
from hybridrl.sandbox.local import LocalSandbox
from hybridrl.sandbox.start import Shared
from hybridrl.workers.environment_hosts import RemoteEnvironments
from hybridrl.workers.frozen import AskFrozen

_BOX_FILES = 512
"""Open files of a program in a box: a client keeps connections."""

_BOX_OUTPUT_BYTES = 32 << 20
"""What a program in a box may print."""


class Opened(Protocol):
    """What has to be closed once no episode is played any more."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TurnSetup:
    """Arguments with which a worker opens what its episodes need."""

    environment: EnvironmentConfig | None
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

    program: ProgramConfig | None = None

    marks_observations: bool = False
    """Whether column observed is filled."""

    frozen_model: FrozenConfig | None = None
    frozen: Sequence[Any] = ()
    """Handles of the ServedWorkers of that model."""

    max_response_tokens: int = 0

    @classmethod
    def of(cls, cfg: Config, *, engines_of_node: int = 1) -> "TurnSetup | None":
        """The setup of a run; None if it has neither an environment nor a program."""
        if not cfg.has_episodes:
            return None
        return cls(
            cfg.environment,
            cfg.data,
            cfg.model.path,
            cfg.rollout.max_context_tokens or cfg.rollout.longest_tokens,
            cfg.evaluate.max_turns,
            engines_of_node,
            program=cfg.program,
            marks_observations=cfg.algorithm.observations.coefficient > 0,
            frozen_model=cfg.frozen,
            max_response_tokens=cfg.rollout.max_response_tokens,
        )

    async def open(self, pictures: PictureFormat | None = None) -> tuple[Opened, Player]:
        """Start environments, or the endpoint of programs.

        Args:
            pictures: how pictures are given to the model; None: the run has none.

        Raises:
            HybridRLError: they cannot be started, or the chat template cannot be used for several turns.
        """
        tokenizer = load_tokenizer(self.model_folder)
        opening = opening_of(tokenizer, self.data)
        if self.program is not None:
            tools = self.program.tools
            dialogue = open_dialogue(tokenizer, self.model_folder, self.data, with_tools=tools)
            return await self._open_program(self.program, dialogue, opening)
        environments = self._environments()
        await environments.start()
        with_tools = environments.calls_by_template
        try:
            dialogue = open_episode_dialogue(tokenizer, self.model_folder, self.data, with_tools=with_tools)
            frozen = self._frozen_players(with_tools=with_tools)
            shown = None if pictures is None else PictureMessages(pictures, dialogue)
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
            frozen=frozen,
            pictures=shown,
        )
        return environments, player

    def _frozen_players(self, *, with_tools: bool) -> Mapping[int, FrozenPlayer]:
        """
        Raises:
            ConfigError: the chat template of the frozen model cannot be used.
        """
        model = self.frozen_model
        if model is None:
            return {}
        tokenizer = load_tokenizer(model.path)
        data = self.data.model_copy(update={"chat_template": model.chat_template or self.data.chat_template})
        dialogue = open_episode_dialogue(tokenizer, model.path, data, with_tools=with_tools)
        most, stops = self.max_response_tokens, tokenizer.stop_token_ids
        return dict.fromkeys(model.agents, FrozenPlayer(dialogue, AskFrozen(self.frozen, model, most, stops)))

    def _environments(self) -> Environments | RemoteEnvironments:
        assert self.environment is not None, "no program plays the episodes"
        if self.hosts:
            return RemoteEnvironments(self.environment, self.hosts, engine=self.engine)
        return open_environments(self.environment, sharers=self.engines_of_node)

    async def _open_program(
        self, program: ProgramConfig, dialogue: Dialogue, opening: Opening
    ) -> tuple[Opened, Player]:
        gateway = Gateway(server_setup(program))
        await gateway.start()
        try:
            programs = await open_programs(program, gateway)
        except BaseException:
            await gateway.close()
            raise
        player = ProgramPlayer(
            gateway,
            programs,
            dialogue,
            opening,
            Limits(self.max_context_tokens, program.max_requests, program.branches == "train"),
            timeout_s=program.timeout_s,
            max_sessions=program.max_sessions,
            heldout_requests=self.heldout_turns,
        )
        return _Endpoint(gateway, programs), player


@dataclass(frozen=True, slots=True)
class _Endpoint:
    gateway: Gateway
    programs: ProgramSource

    async def close(self) -> None:
        await self.programs.close()
        await self.gateway.close()


async def open_programs(program: ProgramConfig, gateway: Gateway) -> ProgramSource:
    """
    Raises:
        ConfigError: a variable that is listed is not set.
        ResourceError: the program asks for a box, and there can be none.
    """
    variables = child_environment(program.variables, key="program.variables")
    setup = ProgramSetup(
        program.command,
        variables,
        program.folder,
        program.episodes_per_process,
        program.processes_per_engine,
    )
    box = program.box
    if box is None:
        return Programs(setup)
    limits = sandbox_limits.Limits(
        memory_mb=box.memory_mb,
        disk_mb=box.disk_mb,
        processes=box.processes,
        cpu_s=box.cpu_s,
        open_files=_BOX_FILES,
        output_bytes=_BOX_OUTPUT_BYTES,
    )
    sandbox = LocalSandbox(limits, ahead=box.ahead, shared=Shared(program.folder, PORT))
    await sandbox.start()
    own = {name: variables[name] for name in program.variables}  # the box says where its folders are
    return BoxedPrograms(replace(setup, environment=own), sandbox, gateway, timeout_s=program.timeout_s)


def server_setup(program: ProgramConfig) -> ServerSetup:
    tls = program.tls
    return ServerSetup(
        host=program.host,
        max_body_bytes=program.max_body_kb * 1024,
        max_running=program.max_running_requests,
        certificate=(tls.certificate, tls.key) if tls else None,
    )
