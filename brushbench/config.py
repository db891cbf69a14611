"""The frozen settings of one run: one method on one benchmark. Unknown keys are refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brushbench.errors import UsageError
from brushbench.types import SPLITS

__all__ = ["SCHEMA_VERSION", "RunConfig", "make_config"]

SCHEMA_VERSION = 1


class RunConfig(BaseModel):
    """What was asked for. Together with the method's and the data's own hashes it is the run's identity.

    ``metrics`` and ``variants`` are not here: they are decided when a run is scored, as often as one likes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[^/\\]*[^/\\.][^/\\]*$", description="label in tables and name of the folder")
    model: str = Field(min_length=1)
    options: dict[str, str] = {}
    benchmark: str = Field(min_length=1)
    splits: tuple[str, ...] = SPLITS
    limit: Annotated[int, Field(ge=1)] | None = None  # pictures in manifest order, for every split
    seed: int = Field(default=1234, ge=0, lt=2**63)
    repeats: int = Field(default=1, ge=1)
    batch_size: int = Field(default=4, ge=1)
    negative_prompt: str = ""
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"


def make_config(**values: object) -> RunConfig:
    """Build a :class:`RunConfig`; what pydantic refuses becomes one :class:`UsageError` sentence per field."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors())
        raise UsageError(f"These settings do not make a run: {problems}.") from None
