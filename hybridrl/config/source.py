"""The keys of a source of rows: data.train and data.heldout."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from hybridrl.models import hub


class SourceConfig(BaseModel):
    """A source of rows: files, a data set of the hub, or a procedural task with its options (every further
    key is one)."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    path: str | tuple[str, ...] | None = None
    """A .jsonl, .json, .csv or .parquet file, one row a line or an object; .gz may follow. Also a pattern, as
    data/*.jsonl, or a list of files and patterns."""

    hub: str | None = None
    """A data set on the Hugging Face hub, as openai/gsm8k, which `launch` takes from the cache (HF_HOME) or
    downloads. Options: subset, and split (train for data.train, test for data.heldout)."""

    task: str | None = None
    """File name in hybridrl.data.tasks, or module:function, that makes rows from its options."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        value = {"path": value} if isinstance(value, (str, list, tuple)) else value
        paths = value.get("path") if isinstance(value, dict) else None
        return {**value, "path": tuple(paths)} if isinstance(paths, list) else value  # strict: no list

    @model_validator(mode="after")
    def _one_of_three(self) -> "SourceConfig":
        if sum(given is not None for given in (self.path, self.hub, self.task)) != 1:
            raise ValueError("give a path, a data set of the hub, or a task: one of the three")
        if self.path is not None and self.model_extra:
            raise ValueError(f"{', '.join(self.model_extra)}: a file has no options; they belong to a task")
        if self.path is not None and not (self.paths and all(self.paths)):
            raise ValueError("a path is empty" if self.paths else "the list of paths is empty")
        if self.hub is not None:
            self._check_hub(self.hub)
        return self

    def _check_hub(self, name: str) -> None:
        if not hub.is_name(name):
            raise ValueError(f"hub = {name!r} is no name of the form ORGANISATION/DATASET")
        for option, value in self.options.items():
            if option not in ("subset", "split"):
                raise ValueError(f"{option}: a data set of the hub has the options subset and split")
            if not isinstance(value, str) or not value:
                raise ValueError(f"{option} = {value!r} is not text")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def paths(self) -> tuple[str, ...]:
        """The files and patterns; empty for another source."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()

    @property
    def name(self) -> str:
        """The source in a message."""
        first, *more = self.paths or (self.hub or str(self.task),)
        return f"{first} and {len(more)} more" if more else first
