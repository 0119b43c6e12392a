"""The layout interface of trainer backends: everything that is known about a backend without torch.

A backend of this project has a file of its name in this folder, whose `LAYOUT` is its layout class. A backend
outside of the project has the class as attribute `layout` of its kind.
"""

import importlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from hybridrl import registry
from hybridrl.errors import ConfigError
from hybridrl.layout.base import Holding, Layout
from hybridrl.models.spec import ModelSpec, parameters
from hybridrl.models.table import Parameter, Row, Site
from hybridrl.outside import Guarded, called


@dataclass(frozen=True)
class TrainerLayout(Layout):
    """A layout with the sizes of a config's `parallel`. A backend refuses sizes that it does not support."""

    PACKAGES: ClassVar[tuple[str, ...]] = ()
    """Python distributions whose versions a checkpoint records."""

    CERTIFIED: ClassVar[tuple[str, ...]] = tuple(
        "tp2 tp2sp pp2 pp2vpp2 cp2 ep2 dp2 tp2pp2 tp2cp2 pp2cp2 pp2dp2 cp2dp2 tp2ep2 pp2ep2 ep2etp2".split()
    )
    """Parallel layouts that a certificate has rows of, as verify/layouts.py names them. A certificate says
    which of them the backend refuses."""

    shards_weights: ClassVar[bool] = False
    """Data-parallel ranks hold different parts of the model, and gather it layer by layer to compute."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    """Replicas of the weights that are not experts; the world size is tp * cp * dp * pp."""

    cp: int = 1
    ep: int = 1
    etp: int = 1
    """Tensor-parallel size of the experts."""

    vpp: int = 1
    """Model chunks per pipeline stage; chunk v of stage p is number v * pp + p in the model."""

    stage_layers: tuple[int, ...] = ()
    """Number of layers of each chunk, in model order; (): all chunks are equal."""

    shard: int = 0
    """Number of the cp * dp ranks that share one copy of the weights; 0: all of them. It has a meaning only
    where `shards_weights`."""

    @classmethod
    @abstractmethod
    def of(cls, spec: ModelSpec, *, on_gpu: bool, **sizes: Any) -> Self:
        """The layout on GPUs or on CPUs, with `sizes` as in TrainParallel.sizes.

        Raises:
            LayoutError: the model does not divide over the ranks.
        """

    @classmethod
    @abstractmethod
    def refuse_unbuildable(cls, model: ModelSpec, *, where: str) -> None:
        """
        Args:
            where: the config key that names the model, for the error.

        Raises:
            ModelError: the model has a feature that the backend's layers lack.
        """

    @classmethod
    def refuse_options(cls, actor: Any) -> None:
        """Called before any work starts; a backend that has further options, or lacks some, replaces it.
        Prompts are shared by backends whose attention reads Packing.shared.

        Args:
            actor: config.training.ActorConfig.

        Raises:
            ConfigError: the backend lacks what a key asks for; names the key.
        """
        if actor.share_prompts:
            raise ConfigError(
                f"actor.share_prompts: attention of actor.backend = {actor.backend} reads whole sequences",
                where="actor.share_prompts",
                fix="remove actor.share_prompts",
            )

    @classmethod
    def refuse_keys(cls, model: ModelSpec, parallel: Any) -> None:
        """Refuse what a config's `parallel` has besides the sizes of a layout.

        Args:
            parallel: config.training.TrainParallel.

        Raises:
            LayoutError: a key has no meaning for the backend, or does not fit the model.
        """

    @property
    def world_size(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    @abstractmethod
    def chunks(self, stage: int) -> list[range]:
        """The layers of a pipeline stage, as one range per chunk."""

    @abstractmethod
    def sites(self, row: Row) -> tuple[Site, ...]:
        """The tensors that hold the parameter of a model-table row."""

    @abstractmethod
    def at(self, row: Row, name: str, *sites: Site) -> Row:
        """A row like `row`, for a parameter called `name` that is held in `sites`, in the order of its row
        blocks."""

    @abstractmethod
    def num_parts(self, row: Row, site: Site) -> int:
        """Number of ranks of a stage that a row's parameter, or its experts, are split over in a site."""

    @abstractmethod
    def place(self, parameters: Iterable[Parameter]) -> Iterator[Holding]:
        """The holdings of these parameters."""

    def _holdings(self) -> Iterator[Holding]:
        return self.place(parameters(self.spec))

    @property
    def shape(self) -> str:
        """The sizes as text, such as "tp2 pp1 dp4"."""
        sizes = {axis: getattr(self, axis) for axis in ("tp", "pp", "vpp", "cp", "ep", "etp", "dp")}
        shown = {axis: size for axis, size in sizes.items() if size > 1 or axis in ("tp", "pp", "dp")}
        return " ".join(f"{axis}{size}" for axis, size in shown.items())


@dataclass(frozen=True)
class CheckpointTensors(TrainerLayout):
    """A layout without pipeline stages, of the tensors of the Hugging Face checkpoint by their names."""

    def chunks(self, stage: int) -> list[range]:
        return [range(self.spec.num_layers)]

    def sites(self, row: Row) -> tuple[Site, ...]:
        return tuple(Site(name, "whole", (block,)) for block, name in enumerate(row.hf))

    def at(self, row: Row, name: str, *sites: Site) -> Row:
        return replace(row, name=name, hf=tuple(site.tensor for site in sites))


def layout_of(backend: str) -> type[TrainerLayout]:
    """The layout class of a trainer backend.

    Raises:
        ConfigError: a backend outside the project cannot be found or is not a backend.
        UserCodeError: code outside the project raises.
    """
    if ":" in backend:
        layout = kind_outside(backend).layout
        if not (isinstance(layout, type) and issubclass(layout, TrainerLayout)):
            raise ConfigError(
                f"actor.backend: layout of {backend} is {layout}, not a class derived from TrainerLayout",
                where=_WHERE,
                fix="docs/extend_trainer.md shows one",
            )
        return Guarded(layout, backend, where=_WHERE)  # type: ignore[return-value]
    return importlib.import_module(f"hybridrl.layout.{backend}").LAYOUT


def kind_outside(backend: str) -> Any:
    """The trainer/base.BackendKind that `module:Kind` names.

    Raises:
        ConfigError, UserCodeError: as layout_of.
    """
    kind = registry.find("hybridrl.trainer", backend, where=_WHERE, has=("layout", "open"))
    return called(kind, backend, key=_WHERE, where=_WHERE)


_WHERE = "actor.backend"
