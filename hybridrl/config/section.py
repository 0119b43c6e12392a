"""Base classes of the sections of a config."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from hybridrl import registry
from hybridrl.errors import ConfigError


def _tuple(value: Any) -> Any:
    """A section that has a short form gets its lists as lists, and strictness refuses them as tuples."""
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_tuple)]
"""Several names, in a section that has a short form."""


class Section(BaseModel):
    """A part of a config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True, allow_inf_nan=False
    )


class PluginConfig(BaseModel):
    """A plug-in and its own options, which the plug-in declares and checks: every further key is one."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str
    """File name in the project's package of this kind, or module:Name for code outside."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


Common = TypeVar("Common", bound=Section)


@dataclass(frozen=True, slots=True)
class SectionOf(Generic[Common]):
    """Marks a field of a section whose class comes from a plug-in, which another key of the section names.

    The declared class of the field, `common`, has what all of these classes share. A plug-in holds its class
    in `attribute`.
    """

    package: str
    """Every folder in this package is such a plug-in, and the folder's name is the plug-in's."""

    key: str
    attribute: str
    common: type[Common]

    def named(self, name: str) -> type[Common]:
        """
        Raises:
            HybridRLError: there is no such plug-in, or code outside the project fails.
        """
        found = registry.find(self.package, name, key=self.key, folders=True, has=(self.attribute,))
        section = getattr(found, self.attribute)
        if not (isinstance(section, type) and issubclass(section, self.common)):
            common = self.common.__name__
            what = f"{self.attribute} of {name} is {section!r}, not a class derived from {common}"
            raise ConfigError(what, fix=f"write {self.attribute} = {common}, or a class of it, in the class")
        return section

    def all(self) -> list[type[Common]]:
        """The classes of the project's own plug-ins."""
        return [self.named(name) for name in registry.names(self.package, folders=True)]
