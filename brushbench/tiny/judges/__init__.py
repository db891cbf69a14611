"""Train the small models behind the metrics: CLIP in both forms, aesthetic head, ImageReward, HPS, LPIPS's backbone.

All learn from rendered scenes. Each ends in the folder that ``brushbench.load_metric(name, weights=FOLDER)`` reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from brushbench.errors import MissingWeightsError, UnknownNameError, UsageError
from brushbench.training.loop import Task, fit
from brushbench.training.settings import FitConfig, FitResult

__all__ = ["JUDGES", "ORDER", "JudgeRecipe", "make_task", "recipe_of", "train_judge"]

ORDER = ("clip", "aesthetic", "hps", "image_reward", "lpips")  # the second and the third start from the first


@dataclass(frozen=True)
class JudgeRecipe:
    """How one model is trained unless told otherwise.

    Attributes:
        max_steps: optimizer steps.
        batch_size: scenes a step.
        learning_rate: peak.
        warmup: steps of linear rise.
        weight_decay: AdamW's.
        ema_decay: of the moving average that is saved.
    """

    max_steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 1e-2
    ema_decay: float = 0.998


JUDGES = {
    "clip": JudgeRecipe(2600, 64, 1e-3, warmup=200),
    "aesthetic": JudgeRecipe(500, 64, 5e-2, warmup=20, weight_decay=0.0, ema_decay=0.98),
    "hps": JudgeRecipe(1600, 48, 5e-4),
    "image_reward": JudgeRecipe(4000, 32, 8e-4, warmup=200),
    "lpips": JudgeRecipe(700, 48, 6e-4),
}


def recipe_of(which: str) -> JudgeRecipe:
    """Return how a model is trained unless told otherwise.

    Raises:
        UnknownNameError: no such model.
    """
    if which not in JUDGES:
        raise UnknownNameError("metric model", which, ORDER)
    return JUDGES[which]


def make_task(
    which: str, *, seed: int = 0, clip: Path | None = None, init_from: Path | None = None, cache_scenes: int = 0
) -> Task:
    """Return what is trained, with its first weights; they follow from the seed.

    Args:
        which: one of ``ORDER``.
        seed: of the first weights.
        clip: folder of the trained CLIP, which ``aesthetic`` judges with and ``hps`` starts from.
        init_from: folder of a trained ``hps`` or ``image_reward`` to go on from.
        cache_scenes: see :class:`brushbench.tiny.judges.scenes.SceneStream`.

    Raises:
        UnknownNameError: no such model.
        MissingWeightsError: a CLIP is needed and is not there, or nothing lies in ``init_from``.
        UsageError: ``init_from`` with another model than these two.
    """
    from brushbench.tiny.judges import clip as clips
    from brushbench.tiny.judges.image_reward import REWARD_CONFIG, RewardTask, load_reward, small_reward
    from brushbench.tiny.judges.lpips import LpipsTask
    from brushbench.tiny.judges.scenes import SceneStream

    recipe_of(which)  # refuses an unknown name
    if init_from and which not in ("hps", "image_reward"):
        raise UsageError(f"--init-from is for hps and image_reward; {which} does not read it.")
    start = init_from or clip
    if which in ("aesthetic", "hps") and start is None:
        raise MissingWeightsError(f"{which} starts from a trained CLIP: pass its folder as --clip.")
    torch.manual_seed(seed)
    stream = SceneStream(which, cache_scenes)
    if which == "clip":
        return clips.ClipTask(clips.small_clip(clips.CLIP_CONFIG), clips.CLIP_CONFIG, stream)
    if which == "aesthetic":
        return clips.AestheticTask(*clips.load_clip(start or Path()), stream)
    if which == "hps":
        return clips.ClipTask(*clips.hps_from_clip(start or Path()), stream, preference=True)
    if which == "image_reward":
        model = load_reward(init_from) if init_from else small_reward(REWARD_CONFIG)
        return RewardTask(model, REWARD_CONFIG, stream)
    return LpipsTask(stream)


def train_judge(
    which: str,
    config: FitConfig,
    *,
    clip: Path | None = None,
    init_from: Path | None = None,
    cache_scenes: int = 0,
) -> FitResult:
    """Train one model; its folder ends under ``config.out / "model"``.

    Args:
        which: one of ``ORDER``.
        config: how to train; ``JUDGES`` holds what was chosen for each.
        clip: see :func:`make_task`.
        init_from: see :func:`make_task`.
        cache_scenes: see :func:`make_task`.

    Raises:
        UsageError: a batch of one scene, which leaves nothing to compare with; or see :func:`make_task`.
        UnknownNameError: no such model.
        MissingWeightsError: see :func:`make_task`.
    """
    if config.batch_size < 2:
        raise UsageError(f"Judges learn by comparing scenes: batch size {config.batch_size} is less than 2.")
    task = make_task(which, seed=config.seed, clip=clip, init_from=init_from, cache_scenes=cache_scenes)
    return fit(task, config)
