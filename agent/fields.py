"""What several parts of the configuration are made of: kinds of values, and the model that refuses unknown keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LONGEST_S = 86_400  # of any time limit


def without(unwanted: str, what: str) -> Callable[[Any], Any]:
    """Validator of text that is given to the system as `what`."""

    def validate(value: Any) -> Any:
        if any(c in unwanted for c in str(value)):
            raise ValueError(f"{str(value)!r} cannot be {what}")
        return value

    return validate


Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=LONGEST_S)]
MiB = Annotated[int, Field(ge=1, le=4096)]
Interface = Annotated[
    str,
    Field(min_length=1, max_length=15),
    AfterValidator(without("\0/ \t\n\v\f\r", "the name of an interface")),
]
User = Annotated[str, Field(min_length=1), AfterValidator(without("\0", "the name of a user"))]
Directory = Annotated[Path, AfterValidator(without("\0", "a path"))]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
