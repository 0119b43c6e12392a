"""How trainers shard a model. Each trainer backend has a file of its name here: `LAYOUT` in it is its class.
One outside of the project has it as `layout`.

Everything that the rest of the project asks of a backend without torch is asked of that class.
"""

import importlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from hybridrl import registry
from hybridrl.layout.base import Holding, Layout
from hybridrl.models.spec import ModelSpec, parameters
from hybridrl.models.table import Parameter, Row, Site
from hybridrl.outside import Guarded, called


@dataclass(frozen=True)
class TrainerLayout(Layout):
    """The sizes are those of a config's `parallel`. A backend refuses the ones that it does not have."""

    PACKAGES: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions a checkpoint records."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    """Of what is not an expert's; world size = tp * cp * dp * pp."""

    cp: int = 1
    ep: int = 1
    etp: int = 1
    """Tensor parallel size of the experts."""

    vpp: int = 1
    """Chunks of layers a stage has; chunk v of stage p comes at place v * pp + p of the model."""

    stage_layers: tuple[int, ...] = ()
    """Layers of each chunk, in model order; (): equal parts."""

    @classmethod
    @abstractmethod
    def of(cls, spec: ModelSpec, *, on_gpu: bool, **sizes: Any) -> Self:
        """The layout on GPUs or on CPUs; `sizes` are TrainParallel.sizes.

        Raises:
            LayoutError: the model does not divide over the ranks.
        """

    @classmethod
    @abstractmethod
    def refuse_unbuildable(cls, model: ModelSpec, *, where: str) -> None:
        """
        Args:
            where: the model was named.

        Raises:
            ModelError: its layers have a part that the backend's lack.
        """

    @property
    def world_size(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    @abstractmethod
    def chunks(self, stage: int) -> list[range]:
        """The layers of a pipeline stage: one range for each of its chunks."""

    @abstractmethod
    def sites(self, row: Row) -> tuple[Site, ...]:
        """The tensors that a line of the model table is in."""

    @abstractmethod
    def at(self, row: Row, name: str, site: Site) -> Row:
        """The line of another parameter, which lies beside a line's tensors."""

    @abstractmethod
    def num_parts(self, row: Row, site: Site) -> int:
        """Ranks of a stage that share out what a site holds of a line, or of its experts."""

    @abstractmethod
    def place(self, parameters: Iterable[Parameter]) -> Iterator[Holding]:
        """Who holds these parameters."""

    def _holdings(self) -> Iterator[Holding]:
        return self.place(parameters(self.spec))

    @property
    def shape(self) -> str:
        """The sizes, as in tp2 pp1 dp4."""
        sizes = {axis: getattr(self, axis) for axis in ("tp", "pp", "vpp", "cp", "ep", "etp", "dp")}
        shown = {axis: size for axis, size in sizes.items() if size > 1 or axis in ("tp", "pp", "dp")}
        return " ".join(f"{axis}{size}" for axis, size in shown.items())


def layout_of(backend: str) -> type[TrainerLayout]:
    """The layouts of a trainer backend.

    Raises:
        ConfigError: it is outside the project, and not there or not a backend.
        UserCodeError: code outside raises.
    """
    if ":" in backend:
        return Guarded(kind_outside(backend).layout, backend, where=_WHERE)  # type: ignore[return-value]
    return importlib.import_module(f"hybridrl.layout.{backend}").LAYOUT


def kind_outside(backend: str) -> Any:
    """The trainer/base.BackendKind that module:Kind names.

    Raises: as layout_of.
    """
    kind = registry.find("hybridrl.trainer", backend, where=_WHERE, has=("layout", "open"))
    return called(kind, backend, key=_WHERE, where=_WHERE)


_WHERE = "actor.backend"
