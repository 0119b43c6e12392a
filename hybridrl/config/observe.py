"""Keys about where the metrics of a run go."""

from typing import Any

from pydantic import model_validator

from hybridrl.config.section import Section


class ObserveConfig(Section):
    """Destinations of the metrics of a run, besides the files in its folder."""

    sinks: tuple[str | dict[str, Any], ...] = ("mlflow",)
    """Tools that get what metrics.jsonl gets: mlflow, wandb, tensorboard, or module:Name for code outside the
    project; {name: wandb, mode: online} gives one its options. [] for none. See docs/observing.md."""

    @model_validator(mode="after")
    def _every_sink_has_a_name_of_its_own(self) -> "ObserveConfig":
        for entry in self.sinks:
            if isinstance(entry, dict) and not isinstance(entry.get("name"), str):
                raise ValueError(f"{entry} has no name: write {{name: wandb, mode: online}}")
        names = [entry if isinstance(entry, str) else entry["name"] for entry in self.sinks]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(f"sinks names {twice[0]} twice: once is enough")
        return self
