"""What all sections of the settings are, and the types that several of them use."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
# TOML has arrays, not tuples: the array is let through, its values are checked as strictly as all others.
Names = Annotated[tuple[str, ...], Strict(False)]
Counts = Annotated[tuple[Positive, ...], Strict(False)]


class Section(BaseModel):
    """One section of the settings file."""

    # strict: "10" is no number and 1 is no truth value; a whole number where a float is meant is fine.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def identity(self, **dump: Any) -> dict[str, Any]:
        """The values as JSON holds them but for where things lie, as paths and storage options say: what outputs depend on."""
        return self.model_dump(mode="json", context={"identity": True}, **dump)
