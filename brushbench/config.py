"""The settings of one run, and the record of it in ``run.json``. Typed and versioned; unknown keys are refused.

A record is data: it may come from someone else, so nothing that it names is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from brushbench.errors import RunError, UsageError, printable
from brushbench.types import JSON, SPLITS, Capabilities

__all__ = [
    "MAX_REPEATS",
    "SCHEMA_VERSION",
    "BenchmarkRecord",
    "ColumnRecord",
    "Origin",
    "PlanRecord",
    "RunConfig",
    "RunHeader",
    "SpecRecord",
    "make_config",
    "problems",
    "read_header",
    "read_model",
    "refuse_newer",
]

SCHEMA_VERSION = 2
MAX_REPEATS = 10_000
RUN_NAME = r"^[^/\\\x00]*[^/\\.\x00][^/\\\x00]*$"  # no path, and not dots alone
MAX_INTEGER = 2**63 - 1

Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Sha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
T = TypeVar("T", bound=BaseModel)


class RunConfig(BaseModel):
    """What was asked for. Together with the method's and the data's own hashes it is the run's identity.

    ``metrics`` and ``variants`` are not here: they are decided when a run is scored, as often as one likes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=RUN_NAME, description="label in tables and name of the folder")
    model: str = Field(min_length=1, description="name of the method, or module:Class, or file.py:Class")
    options: dict[str, str] = Field(default={}, description="options of the method, as they were written")
    benchmark: str = Field(min_length=1, description="name of the benchmark")
    splits: tuple[str, ...] = SPLITS
    limit: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = Field(
        default=None, description="images in manifest order, for every split"
    )
    seed: int = Field(default=1234, ge=0, lt=2**63)
    repeats: int = Field(default=1, ge=1, le=MAX_REPEATS, description="images per sample")
    batch_size: int = Field(default=4, ge=1, le=MAX_INTEGER)
    negative_prompt: str = ""
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    tf32: bool = Field(default=False, description="the method's float32 may round to TF32 on CUDA")


class SpecRecord(BaseModel):
    """A benchmark's name with the options that load it again. Only a built-in name is ever loaded from here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="", description="registered name, module:Class or file.py:Class; empty: made in Python")
    options: dict[str, str] = {}


class BenchmarkRecord(BaseModel):
    """The benchmark's manifest: what must be the same (name, SHA-256), and what only describes it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    sha256: str = Field(description="over everything that the samples are made of")
    title: str = Field(default="", description="what tables call it; empty: its name")


class PlanRecord(BaseModel):
    """How much there is to generate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batches: Count
    pictures: Count
    keys_sha256: str = Field(description="over the (sample, split) keys, in order")


class Origin(BaseModel):
    """Where a run was begun. Recorded; never compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loaded_with: dict[str, str] = Field(default={}, description="schema 1: options of the benchmark")
    git: str = Field(default="", description="revision of the checkout; empty for an installed wheel")
    credits: dict[str, str] = Field(default={}, description="paper and licence of the method")
    machine: dict[str, Any] = {}


class ColumnRecord(BaseModel):
    """What ``metrics.json`` says of one column, besides the metric's own settings and hashes."""

    model_config = ConfigDict(frozen=True, extra="allow")

    unavailable: str | None = None
    identity: Sha256 = ""
    scores_sha256: Sha256 = Field(default="", description="over the column's scores: they belong to this record")
    unit: str = ""
    higher_is_better: bool | None = None
    region: str = "whole"
    display: tuple[str, Annotated[float, Field(allow_inf_nan=False)]] | None = None
    caveat: str = ""
    variants: list[str] = []
    captions_cut: Count = 0
    weights: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_scored_or_unavailable(self) -> ColumnRecord:
        if self.unavailable is None and self.higher_is_better is None:
            raise ValueError("higher_is_better is missing")
        return self


class RunHeader(BaseModel):
    """``run.json``: everything the images depend on, and where they were generated."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    schema_version: int = Field(alias="schema", ge=1, description="of this record")
    config: RunConfig
    method: dict[str, Any] = Field(
        default={}, description="what the method says of itself: settings and SHA-256 of its weights"
    )
    capabilities: Capabilities
    benchmark: BenchmarkRecord
    bench: SpecRecord = SpecRecord()
    plan: PlanRecord
    software: dict[str, str] = Field(default={}, description="versions that images may depend on")
    code: dict[str, Sha256] = Field(
        default={}, description="SHA-256 by file of plug-in code: its own file and what that imports from its folder"
    )
    contents: dict[str, Sha256] = Field(default={}, description="SHA-256 by option of the files that options name")
    device: str = Field(default="", description="kind of device the method computed on; empty: it has no say")
    where: Origin = Origin()

    def to_json(self) -> dict[str, JSON]:
        """Return what ``run.json`` holds."""
        return self.model_dump(mode="json", by_alias=True)

    def identity(self, schema: int = SCHEMA_VERSION) -> dict[str, Any]:
        """Return what decides the images, but for the data and how much of it: equal for two parts of one run.

        Left out is what only surrounds them: Python's patch version, credits, the machine, the folder that a plug-in
        or a checkpoint lies in, and how a device was asked for.

        Args:
            schema: of the record that it is compared with; schema 1 knew less.
        """
        config, kind = self.config, self.device or _device_of_schema_1(self)
        dtype = {"cuda": "float16"}.get(kind, "float32") if config.dtype == "auto" else config.dtype
        asked = config.model_dump(mode="json", exclude={"splits", "limit", "repeats", "device"})
        found: dict[str, Any] = {
            "config": {**asked, "dtype": dtype, "model": config.model.rpartition("/")[2]},
            "method": self.method,
            "software": {**self.software, "python": ".".join(self.software.get("python", "").split(".")[:2])},
        }
        if config.model == "images":  # each of its images has its own SHA-256
            found["method"] = {}
        if schema > 1:
            found["config"]["options"] = {**config.options, **self.contents}
            found |= {"capabilities": asdict(self.capabilities), "code": self.code, "device": self.device}
        return found

    def differences(self, other: RunHeader) -> list[str]:
        """Return ``field: here -> there`` for everything for which ``other`` is no part of this run."""
        schema = min(self.schema_version, other.schema_version)
        mine, theirs = self.identity(schema), other.identity(schema)
        if schema == 1:  # what the method has learned to say since then
            theirs["method"] = {key: value for key, value in theirs["method"].items() if key in mine["method"]}
        found = [*_differences(mine, theirs), *_differences(self._extent(), other._extent())]
        if self._has_other_images(other):
            found = [*_differences(self.method["folder"], other.method["folder"], "images"), *found]
        return found

    def may_grow_to(self, other: RunHeader) -> bool:
        """Whether ``other`` asks for the same and more: more images of the manifest, splits or repeats.

        Whether the data are the same as far as they go is not known here.
        """
        if self.schema_version == 1 or self.identity() != other.identity() or self._has_other_images(other):
            return False
        mine, theirs = self.config, other.config
        most = theirs.limit is None or (mine.limit is not None and theirs.limit >= mine.limit)
        return most and set(theirs.splits) >= set(mine.splits) and theirs.repeats >= mine.repeats

    def notes(self, other: RunHeader) -> list[str]:
        """Return sentences about what has changed since, but decides no image: the record keeps what it says."""
        found = []
        if (was := self.software.get("python", "")) != (now := other.software.get("python", "")):
            found.append(f"The run was begun with Python {was}; this is {now}. Images do not depend on that.")
        credits_before, credits_now = (
            header.benchmark.model_dump(mode="json", exclude={"name", "sha256"}) for header in (self, other)
        )
        changed = sorted(k for k in {*credits_before, *credits_now} if credits_before.get(k) != credits_now.get(k))
        if changed:
            found.append(f"The benchmark now says other things of its {', '.join(changed)}; its data are the same.")
        before, now_used = (header.where.machine.get("threads") for header in (self, other))
        if before and now_used and before != now_used:
            found.append(
                f"The run was begun with {before} threads; now there are {now_used}: images may differ in the last bit "
                f"from those of one process. For equal bits set OMP_NUM_THREADS={before}."
            )
        return found

    def _has_other_images(self, other: RunHeader) -> bool:
        """Whether both score images from elsewhere, of two folders that differ: one would replace the other."""
        mine, theirs = self.method, other.method
        elsewhere = self.config.model == other.config.model == "images" and mine.get("folder") != theirs.get("folder")
        return elsewhere and "folder" in mine and mine.get("sha256") != theirs.get("sha256")

    def _extent(self) -> dict[str, Any]:
        config = self.config.model_dump(mode="json", include={"splits", "limit", "repeats"})
        data = {"name": self.benchmark.name, "sha256": self.benchmark.sha256}
        return {"config": config, "benchmark": data, "plan": {"keys_sha256": self.plan.keys_sha256}}


def _device_of_schema_1(header: RunHeader) -> str:
    if header.config.device != "auto":
        return header.config.device.partition(":")[0]
    return "cuda" if header.where.machine.get("cuda") else "cpu"


def _differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Yield ``path: old -> new`` for every leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            place = f"{at}.{key}" if at else str(key)
            yield from _differences(old.get(key, "(absent)"), new.get(key, "(absent)"), place)
    elif (before := json.dumps(old, ensure_ascii=False)) != (after := json.dumps(new, ensure_ascii=False)):
        yield f"{at}: {printable(before)} -> {printable(after)}"  # as text: NaN equals itself


def make_config(**values: object) -> RunConfig:
    """Build a :class:`RunConfig`; what pydantic refuses becomes one :class:`UsageError` sentence per field."""
    name = values.get("name")
    if isinstance(name, str) and not re.search(RUN_NAME, name):
        raise UsageError(
            f"--name {printable(name)!r} cannot name a folder. Give it a letter or a digit, and no slash or backslash."
        )
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"Invalid settings: {problems(error)}.") from None


def read_header(content: Mapping[str, Any], file: object) -> RunHeader:
    """Return the typed record of a run, whatever release wrote it.

    Args:
        content: of ``run.json``.
        file: what messages call it.

    Raises:
        RunError: it is of a newer schema, has keys that this release does not know, or holds wrong types.
    """
    schema = content.get("schema", 0)
    if type(schema) is int and schema > SCHEMA_VERSION:
        raise RunError(f"{file} has schema {schema}; this release reads up to {SCHEMA_VERSION}. Upgrade brushbench.")
    absent = [key for key in ("config", "capabilities", "benchmark", "plan") if key not in content]
    if absent:
        raise RunError(f"{file} says nothing of {', '.join(absent)}. Restore it, or start again in another folder.")
    if schema == 1:
        content = _from_schema_1(content)
    return read_model(RunHeader, content, file)


def _from_schema_1(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record of schema 1 with the benchmark's spec where schema 2 has it; the rest is as it was."""
    config, where = content["config"], content.get("where")
    options = where.get("loaded_with", {}) if isinstance(where, Mapping) else {}
    name = config.get("benchmark", "") if isinstance(config, Mapping) else ""
    return {**content, "bench": {"name": name, "options": options}}


def read_model(model: type[T], content: Any, file: object) -> T:
    """Return a typed record; what pydantic refuses becomes one :class:`RunError`.

    Raises:
        RunError: wrong types, or keys that this release does not know.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        refuse_newer(error, file)
        raise RunError(f"{file} is damaged: {problems(error)}. Restore it, or start again in another folder.") from None
    except UsageError as error:  # what a dataclass among the fields refuses
        raise RunError(f"{file} is damaged: {error} Restore it, or start again in another folder.") from None


def refuse_newer(error: ValidationError, file: object) -> None:
    """Say that a newer release wrote a file, where unknown keys are all that is wrong with it.

    Raises:
        RunError: it is so.
    """
    kinds = ("extra_forbidden", "unexpected_keyword_argument")
    unknown = [printable(".".join(map(str, e["loc"])), 80) for e in error.errors() if e["type"] in kinds]
    if unknown and len(unknown) == error.error_count():
        raise RunError(
            f"{file} has keys that this release does not know ({', '.join(unknown)[:200]}): a newer one wrote it. "
            "Upgrade brushbench."
        ) from None


def problems(error: ValidationError, most: int = 4) -> str:
    """Return what pydantic refused as text: field, reason and value, each printable."""
    found = []
    for entry in error.errors()[:most]:
        value = entry["input"]
        shown = f"a {type(value).__name__}" if isinstance(value, dict | list | tuple) else printable(repr(value), 80)
        found.append(f"{printable('.'.join(map(str, entry['loc'])), 80)}: {printable(entry['msg'])} (got {shown})")
    more = error.error_count() - most
    return "; ".join(found) + (f"; and {more} more" if more > 0 else "")
