"""Train a SqueezeNet 1.1 for LPIPS: it names what scenes show, and its distances grow with the damage.

The linear weights of LPIPS stay those that are published; the features under them are learnt here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F

from brushbench.metrics.lpips import TAPS, _linear_file, build_model, distance_maps, shifted
from brushbench.tiny.judges.scenes import Drawn, SceneStream
from brushbench.tiny.scenes import BACKGROUNDS, COLOURS, SHAPES, STYLES, TONES, SceneRng
from brushbench.training.loop import Draw, contact_sheet
from brushbench.types import JSON, Picture
from brushbench.weights import read_tensors

__all__ = ["DAMAGE", "STRENGTHS", "LpipsTask", "damaged", "distance_maps"]

DAMAGE = ("blur", "noise", "shift")
STRENGTHS: dict[str, tuple[float, ...]] = {  # standard deviation in pixels, in grey levels; pixels
    "blur": (0.5, 1.0, 2.0, 4.0),
    "noise": (4.0, 8.0, 16.0, 32.0),
    "shift": (1.0, 2.0, 4.0),
}
SIDES = (64, 64, 96)  # of the pictures that are named: pictures to be judged come in other sizes too
TRIPLES = 8  # scenes a batch whose distances are ranked
MARGIN = 0.2  # a damage about twice as strong is to be at least a fifth further away
RANK_WEIGHT = 2.0


def damaged(image: Picture, kind: str, strength: float, rng: SceneRng) -> Picture:
    """Return a copy with damage of a given strength.

    Args:
        image: uint8 (H, W, 3) RGB.
        kind: one of ``DAMAGE``.
        strength: see ``STRENGTHS``; a shift is rounded to whole pixels, and the border is repeated.
        rng: the noise, and the direction of the shift.
    """
    if kind == "blur":
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(strength)))
    if kind == "noise":
        pair = rng.array(2, *image.shape)
        noisy: Picture = np.rint(
            np.clip(image + (pair[0] + pair[1] - 1.0) * np.sqrt(6.0) * strength, 0.0, 255.0)
        ).astype(np.uint8)
        return noisy
    far = max(1, round(strength))
    dy, dx = rng.pick(((0, far), (0, -far), (far, 0), (-far, 0)))
    height, width = image.shape[:2]
    padded = np.pad(image, ((far, far), (far, far), (0, 0)), mode="edge")
    shifted: Picture = padded[far + dy : far + dy + height, far + dx : far + dx + width]
    return np.ascontiguousarray(shifted)


def prepared(images: Sequence[Picture]) -> Tensor:
    """Return float32 (n, 3, H, W) as LPIPS prepares uint8 pictures of one size."""
    values = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return shifted(values).contiguous()


class LpipsObjective(nn.Module):
    """Naming of what is in the picture, and a ranking loss on the distances themselves."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.things = nn.Linear(1024, len(COLOURS) + len(SHAPES))
        self.ground_classes = (len(BACKGROUNDS), len(TONES), len(STYLES))
        self.ground = nn.Linear(1024, sum(self.ground_classes))
        linear = read_tensors(_linear_file())
        for place in range(len(TAPS)):
            self.register_buffer(f"linear{place}", linear[f"lin{place}.model.1.weight"].float(), persistent=False)

    def forward(
        self, images: Tensor, things: Tensor, ground: Tensor, triples: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and what is logged.

        Args:
            images: float (n, 3, S, S).
            things: float (n, 13): which colours and shapes occur.
            ground: int64 (n, 3): background, tone, style.
            triples: float (3r, 3, 64, 64): references, weakly and strongly damaged copies.
        """
        features = self.model.get_submodule("features")
        x: Tensor = features(images)
        summary = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        named = self.things(summary)
        loss = F.binary_cross_entropy_with_logits(named, things)
        told = self.ground(summary).split(self.ground_classes, dim=1)
        for i, logits in enumerate(told):
            loss = loss + F.cross_entropy(logits, ground[:, i]) / len(told)
        near, far = self.distances(triples)
        growth = torch.log(far + 1e-8) - torch.log(near + 1e-8)
        extras = {
            "things": ((named > 0) == (things > 0.5)).all(dim=1).float().mean(),
            "ground": torch.stack([t.argmax(dim=1) == ground[:, i] for i, t in enumerate(told)])
            .all(dim=0)
            .float()
            .mean(),
            "ranked": (growth > 0).float().mean(),
        }
        return loss + RANK_WEIGHT * F.relu(MARGIN - growth).mean(), extras

    def distances(self, triples: Tensor) -> tuple[Tensor, Tensor]:
        """Return LPIPS (r,) of the weakly and the strongly damaged copies, from the references."""
        maps, _ = distance_maps(self.model.get_submodule("features"), triples)
        near: Any = 0.0
        far: Any = 0.0
        for place, values in enumerate(maps):
            reference, weak, strong = values.chunk(3)
            weight = self.get_buffer(f"linear{place}")
            near = near + F.conv2d((weak - reference).square(), weight).mean(dim=(1, 2, 3))
            far = far + F.conv2d((strong - reference).square(), weight).mean(dim=(1, 2, 3))
        return near, far


@dataclass
class LpipsTask:
    """SqueezeNet's features on their stream of scenes.

    Attributes:
        stream: of scenes.
        model: from :func:`brushbench.metrics.lpips.build_model`; trained.
    """

    stream: SceneStream
    model: nn.Module = field(default_factory=build_model)

    def __post_init__(self) -> None:
        self.objective = LpipsObjective(self.model)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return scenes with what they show, and triples of rising damage."""
        drawn, rng = self.stream.take(draw)
        side = rng.pick(SIDES)
        images = prepared([one.image for one in drawn])
        if side != images.shape[-1]:
            images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
        triples = _triples([one.image for one in drawn[:TRIPLES]], rng)
        return {"images": images, **_contents(drawn), "triples": prepared(triples)}

    def identity(self) -> dict[str, JSON]:
        """Return the model and how its stream repeats."""
        return {"model": self.stream.name, "cache_scenes": self.stream.cache_scenes}

    def pictures(self) -> Picture:
        """Return references above weakly and strongly damaged copies."""
        drawn, rng = SceneStream("lpips").take(Draw(0, 0, 0, TRIPLES))
        return contact_sheet(np.stack(_triples([one.image for one in drawn], rng)), TRIPLES)

    def save(self, folder: Path) -> None:
        """Write the folder that ``lpips`` reads: ``features.*`` in half precision."""
        from safetensors.torch import save_file

        state = {name: tensor.half().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(state, folder / "weights.safetensors")


def _triples(images: Sequence[Picture], rng: SceneRng) -> list[Picture]:
    """Return references, then weakly, then strongly damaged copies of the same kind."""
    weak, strong = [], []
    for image in images:
        kind = rng.pick(DAMAGE)
        low, high = STRENGTHS[kind][0], STRENGTHS[kind][-1]
        little = low * (0.5 * high / low) ** rng.uniform()
        little = float(max(1, round(little))) if kind == "shift" else little
        weak.append(damaged(image, kind, little, rng))
        strong.append(damaged(image, kind, little * (2.0 if kind == "shift" else rng.uniform(1.6, 2.4)), rng))
    return [*images, *weak, *strong]


def _contents(drawn: Sequence[Drawn]) -> dict[str, Tensor]:
    """Return which colours and shapes occur, and background, tone and style."""
    things = []
    for one in drawn:
        seen = {thing.colour for thing in one.scene.objects} | {thing.shape for thing in one.scene.objects}
        things.append([float(name in seen) for name in (*COLOURS, *SHAPES)])
    ground = [
        (BACKGROUNDS.index(one.scene.background), list(TONES).index(one.scene.tone), STYLES.index(one.scene.style))
        for one in drawn
    ]
    return {"things": torch.tensor(things), "ground": torch.tensor(ground)}
