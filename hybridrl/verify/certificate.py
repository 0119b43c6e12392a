"""`hybridrl verify`: one batch on many parallel layouts, compared with one rank, one sequence at a time."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from hybridrl.algorithms.objective import Objective
from hybridrl.config.load import LoadedConfig
from hybridrl.config.schema import Config
from hybridrl.config.training import MoEConfig, TrainParallel
from hybridrl.controller.advantage import load_credit
from hybridrl.errors import ConfigError, HybridRLError, LayoutError, ModelError, WorkerError
from hybridrl.layout.trainers import layout_of
from hybridrl.models import spec as models
from hybridrl.trainer.setup import PolicySetup, make_layout
from hybridrl.verify import report
from hybridrl.verify.compare import Reference
from hybridrl.verify.findings import Certificate, Finding
from hybridrl.verify.layouts import REFERENCE, Row, default_layouts, name_of, rows
from hybridrl.verify.measure import Measured, measure, policy_logp
from hybridrl.verify.model import choose
from hybridrl.verify.ranks import RankGroup
from hybridrl.verify.recorded import LONGEST_RESPONSE, RecordedBatch, make_tokens, record
from hybridrl.wording import counted

TOLERANCE = 2e-6
TOLERANCE_OF_POST_NORMS = 1e-5
"""Larger tolerance for models with post norms: such a norm divides by the output of a layer, and if that is
small, rounding errors grow."""

MOST_RANKS = 8
"""Largest number of processes that are started at the same time."""

_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Request:
    """The options of one verification."""

    layouts: Sequence[str] = ()
    """Names of layouts, such as tp2pp2. If empty, default_layouts and the layout of the config are used."""

    tolerance: float | None = None
    """Largest relative difference that counts as equal. None: TOLERANCE, or TOLERANCE_OF_POST_NORMS."""

    full: bool = False
    """Use the config's model with its weights instead of a small model of the same family."""


def certify(loaded: LoadedConfig, request: Request, say: Callable[[str], object]) -> Certificate:
    """Measure all rows. This takes a minute or two, and as many processes as the largest row has ranks.

    Args:
        say: called with each line of the table when it is known.

    Raises:
        UserError: the config, model, loss or a layout is refused before any row is measured.
        WorkerError: the reference itself failed, for example because the loss raised an error.
    """
    actor = loaded.config.actor
    usual = (*default_layouts(actor.backend), name_of(actor.parallel))
    wanted = rows(request.layouts or [name for name in usual if name])
    _refuse_plugins(loaded)
    with tempfile.TemporaryDirectory(prefix="hybridrl-verify-") as folder:
        return _Session(loaded, request, Path(folder), say).run(wanted)


def _refuse_plugins(loaded: LoadedConfig) -> None:
    algorithm = loaded.config.algorithm
    try:
        load_credit(algorithm)
        Objective(algorithm, max_response_tokens=LONGEST_RESPONSE)
    except HybridRLError as error:
        raise loaded.locate(error) from error


class _Session:
    def __init__(
        self, loaded: LoadedConfig, request: Request, folder: Path, say: Callable[[str], object]
    ) -> None:
        self._request, self._folder, self._say = request, folder, say
        self._setup = _setup(loaded, request, folder)
        usual = TOLERANCE_OF_POST_NORMS if self._setup.model.post_norms else TOLERANCE
        self._tolerance = usual if request.tolerance is None else request.tolerance
        self._timeout_s = loaded.config.cluster.step_timeout_s

    def run(self, wanted: Sequence[Row]) -> Certificate:
        """Measure all rows and print the table."""
        model = _describe_model(self._setup, full=self._request.full)
        self._say(f"model: {model}")
        recorded, measured = self._reference()
        batch = _describe_batch(recorded)
        self._say(f"batch: {batch}")
        self._say(report.COLUMNS)
        reference = Reference(measured, self._setup.model)
        refused = [finding for row in wanted if (finding := self._refusal(row))]
        out = {finding.row for finding in refused}
        findings = list(self._rows([row for row in wanted if row not in out], recorded, reference))
        for line in report.left_out(refused):
            self._say(line)
        findings += refused
        return Certificate(model, batch, self._tolerance, measured, findings)

    def _reference(self) -> tuple[RecordedBatch, Measured]:
        """The batch, and the loss and gradients that one rank computes from it."""
        setup, seed = self._setup, self._setup.seed
        with RankGroup(1, self._timeout_s, self._setup.actor.backend) as one:
            block = make_tokens(setup.model.vocab_size, _SAMPLES, seed)
            recorded = record(setup.algorithm, block, one(policy_logp, setup, block), seed)
            return recorded, self._measure(one, REFERENCE, recorded)

    def _rows(
        self, wanted: Sequence[Row], recorded: RecordedBatch, reference: Reference
    ) -> Iterator[Finding]:
        """Measure the rows, with one group of processes for all rows that have the same number of ranks and
        the same backend."""

        def kind(row: Row) -> tuple[int, str]:
            return _num_ranks(row), self._backend(row)

        for (num_ranks, backend), same in groupby(sorted(wanted, key=kind), key=kind):
            with RankGroup(num_ranks, self._timeout_s, backend) as group:
                for row in same:
                    finding = self._row(group, row, recorded, reference)
                    self._say(report.line(finding))
                    yield finding

    def _refusal(self, row: Row) -> Finding | None:
        """The finding of a row that the model or this machine does not support; None if both support it."""
        if (num_ranks := _num_ranks(row)) > MOST_RANKS:
            return Finding(row, None, f"{counted(num_ranks, 'rank')}, at most {MOST_RANKS} are started here")
        try:
            make_layout(self._setup_of(row))
        except (LayoutError, ModelError, ConfigError) as error:
            return Finding(row, None, error.what)
        return None

    def _backend(self, row: Row) -> str:
        return row.backend or self._setup.actor.backend

    def _setup_of(self, row: Row) -> PolicySetup:
        """The setup of rank 0 on the row's parallel layout and backend."""
        changed = {"parallel": row.parallel, "recompute": row.recompute, "backend": self._backend(row)}
        if row.backend is not None:
            changed["gather"] = "each_pass"  # another backend may have no such choice
        return replace(self._setup, parallel=row.parallel, actor=self._setup.actor.model_copy(update=changed))

    def _row(self, group: RankGroup, row: Row, recorded: RecordedBatch, reference: Reference) -> Finding:
        try:
            difference = reference.compare(self._measure(group, row, recorded))
        except HybridRLError as error:
            return Finding(row, None, error.what, failed=isinstance(error, WorkerError))
        return Finding(row, difference, failed=difference.largest > self._tolerance)

    def _measure(self, group: RankGroup, row: Row, recorded: RecordedBatch) -> Measured:
        out = Path(tempfile.mkdtemp(dir=self._folder))
        return group(measure, self._setup_of(row), row, recorded, out)


def _num_ranks(row: Row) -> int:
    return row.parallel.num_ranks


def _setup(loaded: LoadedConfig, request: Request, folder: Path) -> PolicySetup:
    """The setup of one rank, in fp32."""
    cfg, chosen = loaded.config, choose(loaded, folder, full=request.full)
    model = models.read(chosen.folder)
    layout_of(cfg.actor.backend).refuse_unbuildable(model, where=loaded.where("model.path"))
    return PolicySetup(
        rank=0,
        rendezvous="",
        parallel=TrainParallel(dp=1),
        model=model,
        model_folder=chosen.folder,
        actor=cfg.actor.model_copy(
            update={
                "precision": "fp32",
                "lora": None,
                "fp8": "none",
                "bf16_layers": 0,
                "moe": _routed(cfg),
                "keep_on_host": "none",  # `measure` moves the weights in place
            }
        ),
        algorithm=cfg.algorithm.model_copy(update={"guards": "off", "teacher": chosen.teacher}),
        critic=cfg.critic,
        temperature=cfg.rollout.temperature,
        max_response_tokens=LONGEST_RESPONSE,
        seed=cfg.run.seed,
        num_optimizer_steps=cfg.run.steps,
        timeout_s=cfg.cluster.step_timeout_s,
    )


def _routed(cfg: Config) -> MoEConfig:
    """The config of experts without replay of an engine's choices, because there is no engine here."""
    moe = cfg.actor.moe
    return moe.model_copy(update={"router_replay": "none"}) if moe.router_replay == "rollout" else moe


def _describe_model(setup: PolicySetup, *, full: bool) -> str:
    spec = setup.model
    kind = "with its weights" if full else "of small sizes with random weights"
    return (
        f"{spec.family} {kind}: {counted(spec.num_layers, 'layer')}, "
        f"{counted(models.count(spec), 'parameter', form=',')}, fp32"
    )


def _describe_batch(recorded: RecordedBatch) -> str:
    lengths = recorded.lengths
    return (
        f"{counted(len(lengths), 'sequence')} of {min(lengths)} to {counted(max(lengths), 'token')}, "
        f"{int(recorded.batch.trained_N.sum())} of {counted(sum(lengths), 'token')} trained on"
    )
