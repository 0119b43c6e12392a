"""What all sections of a config are made from."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True, allow_inf_nan=False
    )
