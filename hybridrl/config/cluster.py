"""Keys about the machines of a run: how many, how long to wait for them, and how Slurm and Ray are asked."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hybridrl.config.section import Section


class ContainerConfig(Section):
    """The image that a Slurm job runs in."""

    runtime: Literal["pyxis", "apptainer"]
    """pyxis: srun --container-image, by enroot; apptainer: apptainer exec --nv."""

    image: str
    """Name of the image. pyxis: registry#name:tag, or a .sqsh file; apptainer: a .sif file."""

    mounts: tuple[str, ...] = ()
    """Folders to mount, as /outside or /outside:/inside. The folder that the launch was typed in is always
    mounted."""


class SlurmConfig(Section):
    """What a job of `launch --on slurm` asks for, besides cluster.nodes and cluster.gpus_per_node."""

    account: str | None = None
    """Account that is charged. None: the user's default."""

    partition: str | None = None
    """Partition, or several with commas. None: the default one."""

    time: str | None = Field(default=None, pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")
    """Time limit, as 24:00:00 or 2-00:00:00. None: the partition's."""

    exclusive: bool = True
    """The job takes whole nodes, with all their cores and memory. false: it takes what the partition gives,
    or what `sbatch` asks for."""

    container: ContainerConfig | None = None
    """Container that the job runs in. None: it runs in the environment of the launch, at the same path on
    every node."""

    setup: tuple[str, ...] = ()
    """Shell lines that run before anything else on every node, inside the container, as module load cuda."""

    sbatch: tuple[str, ...] = ()
    """Further options of sbatch: --qos=high, --constraint=h100."""

    interface: str | None = None
    """Network interface of the nodes that Ray talks over, as ib0. None: that of a node's first address. A job
    of one node uses loopback only."""

    drain_s: PositiveInt = 600
    """Seconds before the end of its time at which a job is told to stop: a step and a checkpoint must fit."""

    max_requeues: NonNegativeInt = 50
    """How often a job that was told to stop goes back into the queue; 0: never."""


class RayConfig(Section):
    """The running Ray that `launch --on ray` uses."""

    address: str | None = None
    """host:port of its head. None: RAY_ADDRESS."""

    dashboard: str | None = None
    """Dashboard that --submit hands a run to, as http://host:8265. None: RAY_API_SERVER_ADDRESS."""

    working_dir: str | None = None
    """Folder that --submit uploads for the job to run in. None: the current folder, which the cluster must
    see at the same path."""


class DeadlinesConfig(Section):
    """Most seconds of each part of a step, after which the run ends, or an engine is replaced. None:
    step_timeout_s."""

    dispatch_s: PositiveFloat | None = None
    """A call that only hands something over, as groups to an engine."""

    generate_s: PositiveFloat | None = None
    """An engine with groups may finish none for so long, and its running requests may take so long to end or
    pause before a swap."""

    reward_s: PositiveFloat | None = None
    """Scoring the answers that end together; reward.timeout_s is the deadline of one answer."""

    train_s: PositiveFloat | None = None
    """Log-probabilities and columns of a batch, or one optimizer step."""

    collective_s: PositiveFloat | None = None
    """A collective between trainer ranks, and the wait of rank 0 for the files of a checkpoint."""

    swap_s: PositiveFloat | None = None
    """Writing weights into engines, comparing checksums, or committing."""

    save_s: PositiveFloat | None = None
    """Writing a checkpoint or an export."""


class ClusterConfig(Section):
    """The machines of the run: nodes and GPUs, deadlines, and how Slurm or Ray is asked for them."""

    nodes: PositiveInt = 1
    """Machines."""

    min_nodes: PositiveInt | None = None
    """Machines with which a run may begin. Those that come later have engines only, which join between two
    policy updates: it needs placement: separate, and a Ray that runs already. None: all machines."""

    gpus_per_node: NonNegativeInt | None = None
    """GPUs of a node. None: as many as this machine has; a Slurm job asks for none."""

    gpu: Literal["a100-40", "a100", "h100", "h200", "b200"] | None = None
    """Kind of the GPUs, whose memory and speed `plan` counts with. None: the kind of this machine's GPUs."""

    placement: Literal["colocated", "separate"] = "colocated"
    """colocated: trainer and engines share the devices and take turns. separate: engines have dedicated
    devices: the last rollout.num_engines x rollout.parallel.tp GPUs, or without GPUs processes and, if there
    are several nodes, the last ones. It is for batch.max_lag above 0."""

    start_timeout_s: PositiveFloat = 600.0
    """Seconds within which nodes, workers and engines must be up."""

    step_timeout_s: PositiveFloat = 3600.0
    """Most seconds that a phase of a step may take, unless `deadlines` has its own."""

    deadlines: DeadlinesConfig = DeadlinesConfig()

    slurm: SlurmConfig = SlurmConfig()

    ray: RayConfig = RayConfig()

    @property
    def nodes_at_start(self) -> int:
        """Machines that a run waits for before it begins."""
        return self.min_nodes or self.nodes

    @model_validator(mode="after")
    def _late_nodes_are_nodes(self) -> "ClusterConfig":
        if self.nodes_at_start > self.nodes:
            raise ValueError(
                f"min_nodes = {self.min_nodes}, and nodes = {self.nodes}: a run may begin with fewer than all"
            )
        return self

    @model_validator(mode="after")
    def _named_gpus_are_counted(self) -> "ClusterConfig":
        if self.gpu is not None and not self.gpus_per_node:
            raise ValueError(
                f"gpu = {self.gpu}, but gpus_per_node = {self.gpus_per_node}: set it to the GPUs of a node"
            )
        return self
