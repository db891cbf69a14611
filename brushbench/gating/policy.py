"""What a gate tolerates: margins, tail guards and budgets, from a TOML file or documented defaults."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from brushbench.errors import UnknownNameError, UsageError
from brushbench.scoresets import ColumnKey, ScoreSet, refuse_sets
from brushbench.types import PROTOCOLS
from brushbench.variants import VARIANTS

__all__ = ["DEFAULT_GATED", "DEFAULT_MARGINS", "Budget", "MetricPolicy", "Policy", "Worst", "load_policy"]

LARGEST = 1_000_000  # bytes of a policy file
# Without a policy and without a noise floor: losses that one begins to see. Own units, unscaled.
DEFAULT_MARGINS: Mapping[str, float] = {
    "psnr": 0.5, "mse": 0.0005, "lpips": 0.005, "ssim": 0.005, "boundary": 0.01, "clip_score": 0.5,
    "clip_score_crop": 1.0, "aesthetic": 0.1, "image_reward": 0.1, "hps_v2": 0.005, "hps_v2.1": 0.005,
    "attribute_accuracy": 0.05,
}  # fmt: skip
# Few: every further metric is a further chance of a false alarm. The others are reported by `compare`.
DEFAULT_GATED = ("psnr", "lpips", "clip_score", "image_reward", "attribute_accuracy")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Worst(_Strict):
    """A tail guard: a mean hides ten ruined images.

    Attributes:
        limit: a sample is worse if it loses more than this, in the metric's own unit.
        share: of the samples, in [0, 1), that may be worse.
    """

    limit: Positive
    share: Annotated[float, Field(ge=0, lt=1)]


class MetricPolicy(_Strict):
    """What is tolerated of one metric.

    Attributes:
        margin: tolerated loss of the mean, in the metric's own, unscaled unit; ``None``: noise floor or default.
        splits: gated splits; ``None``: all.
        variant: ``raw``, ``blended``, …
        worst: the tail guard, if any.
    """

    margin: Positive | None = None
    splits: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    variant: str = "raw"
    worst: Worst | None = None

    @field_validator("variant")
    @classmethod
    def _known_variant(cls, name: str) -> str:
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; known: {', '.join(VARIANTS)}")
        return name


class Budget(_Strict):
    """Images that may be without a score more than were accepted."""

    failed: Annotated[int, Field(ge=0)] = 0
    missing: Annotated[int, Field(ge=0)] = 0
    black: Annotated[int, Field(ge=0)] = 0


class Policy(_Strict):
    """What a gate tolerates.

    Attributes:
        metrics: by ``metric`` or ``metric@protocol``; empty gates :data:`DEFAULT_GATED`.
        budget: images without a score.
        level: of each one-sided bound.
        no_op: the change is declared to change nothing: any change beyond noise is flagged, also a gain.
        same_settings: refuse a candidate that was sampled otherwise (steps, guidance, scheduler, scale, window,
            negative prompt): it answers another question than the weights' quality.
    """

    metrics: dict[str, MetricPolicy] = {}
    budget: Budget = Budget()
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    no_op: bool = False
    same_settings: bool = True

    def gated(self, accepted: ScoreSet) -> dict[ColumnKey, MetricPolicy]:
        """Return the gated columns of an accepted run, each with what is tolerated of it.

        Raises:
            UnknownNameError: a metric or a split of the policy that the accepted run does not have.
        """
        named = self.metrics or {m: MetricPolicy() for m in DEFAULT_GATED if _has(accepted, m, "standard", "raw")}
        refuse_sets(named, "the gate")
        found: dict[ColumnKey, MetricPolicy] = {}
        for name, own in named.items():
            metric, _, protocol = name.partition("@")
            protocol = protocol or "standard"
            if protocol not in PROTOCOLS or not _has(accepted, metric, protocol, own.variant):
                known = {f"{k.metric}@{k.protocol}" if k.protocol != "standard" else k.metric for k in accepted.columns}
                raise UnknownNameError(f"metric of the policy, variant {own.variant},", name, known)
            mine = [k for k in accepted.columns if k[:2] == (metric, protocol) and k.variant == own.variant]
            for split in own.splits or ():
                if split not in {key.split for key in mine}:
                    raise UnknownNameError(f"split of the policy's {name}", split, {key.split for key in mine})
            found |= {key: own for key in mine if own.splits is None or key.split in own.splits}
        return found

    def margin(self, key: ColumnKey, own: MetricPolicy, accepted: ScoreSet) -> tuple[float, str]:
        """Return a column's margin and where it comes from: the policy, the noise floor, or the default.

        Raises:
            UsageError: none of the three knows one.
        """
        if own.margin is not None:
            return own.margin, "policy"
        if accepted.noise.get(key, 0.0) > 0:
            return 3 * accepted.noise[key], "3 sd of the noise floor"
        if key.metric in DEFAULT_MARGINS:
            return DEFAULT_MARGINS[key.metric], "default"
        raise UsageError(
            f'Metric {key.metric!r} has no default margin. Write one into the policy: [metrics."{key.metric}"] margin '
            "= …, in the metric's own unit, or accept a run with a noise floor: brushbench accept RUN --noise RUN_B "
            '--name NAME --reason "…"'
        )


def _has(scores: ScoreSet, metric: str, protocol: str, variant: str) -> bool:
    return any(key[:2] == (metric, protocol) and key.variant == variant for key in scores.columns)


def load_policy(file: Path | str) -> Policy:
    """Read a policy file.

    Raises:
        UsageError: it is missing, no TOML, or has an unknown or invalid key; the key is named.
    """
    path = Path(file).expanduser()
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"The policy {path} has {path.stat().st_size} bytes; expected at most {LARGEST}.")
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"The policy {path} cannot be read ({error.strerror}). Name a TOML file.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"The policy {path} is not TOML ({error}).") from None
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        known = "level, no_op, same_settings, [metrics.NAME] margin, splits, variant, worst, [budget] failed, missing"
        raise UsageError(f"The policy {path} is invalid: {problems}. Known keys: {known}, black.") from None
