"""Keys about step bundles."""

from pydantic import NonNegativeInt, PositiveInt

from hybridrl.config.section import Section


class BundleConfig(Section):
    """When a run writes a step bundle, which `hybridrl replay` computes again. It takes as much disk as a
    checkpoint."""

    on_error: bool = True
    """An optimizer step whose loss or gradient norm is not finite leaves one."""

    every: NonNegativeInt = 0
    """Policy updates between bundles; 0: none of them."""

    keep: PositiveInt = 2
    """Older ones are deleted."""
