"""Rendered scenes: coloured objects over textured backgrounds, with exact masks and captions that name what is there.

A scene is a function of ``(domain, seed, index)`` alone. Domains never share a random stream, so the benchmark, the
held-out scenes and the endless training stream are disjoint. Every random number is made from
``numpy.random.Generator.random`` on PCG64, whose stream NumPy keeps stable.

Geometry is analytic: each object is a signed distance field in float64, and a pixel's coverage is half minus the
distance of its centre from the edge, clamped to [0, 1]. No supersampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from brushbench.errors import UsageError
from brushbench.types import Picture

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "DOMAINS",
    "RELATIONS",
    "SHAPES",
    "SIDE",
    "SIZES",
    "STYLES",
    "TONES",
    "UNSEEN_PAIRS",
    "Rendering",
    "Scene",
    "SceneObject",
    "SceneRng",
    "caption",
    "compose",
    "render",
    "sample_scene",
    "scene_rng",
    "words",
]

SIDE = 64  # height and width of every scene, pixels

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS: dict[str, tuple[float, float, float]] = {  # saturated or black or white: far from every background tone
    "red": (0.85, 0.10, 0.12),
    "orange": (0.97, 0.52, 0.05),
    "yellow": (0.97, 0.90, 0.12),
    "green": (0.08, 0.58, 0.16),
    "blue": (0.10, 0.22, 0.85),
    "purple": (0.52, 0.10, 0.66),
    "black": (0.05, 0.05, 0.06),
    "white": (0.97, 0.97, 0.96),
}
SIZES: dict[str, tuple[float, float]] = {
    "small": (6.8, 7.6),
    "medium": (9.6, 10.6),
    "large": (13.2, 14.6),
}  # radius, px
TONES: dict[str, tuple[float, float, float]] = {  # muted and of middle brightness
    "grey": (0.56, 0.56, 0.56),
    "tan": (0.73, 0.62, 0.48),
    "teal": (0.36, 0.60, 0.61),
    "rose": (0.76, 0.55, 0.60),
    "olive": (0.50, 0.53, 0.36),
    "slate": (0.42, 0.48, 0.62),
}
BACKGROUNDS = ("plain", "stripes", "checks", "gradient", "dots", "noise")
STYLES = ("clean", "painterly")
RELATIONS = ("left of", "right of", "above", "below")
UNSEEN_PAIRS = frozenset(  # (colour, shape) that the training stream never shows; one a shape, no colour twice
    {("blue", "circle"), ("orange", "square"), ("purple", "triangle"), ("green", "star"), ("red", "cross")}
)
DOMAINS = {"train": 0, "held-out": 1, "benchmark": 2}

_BACKGROUND_PHRASES = {
    "plain": "plain {tone}",
    "stripes": "{tone} stripes",
    "checks": "{tone} checks",
    "gradient": "a {tone} gradient",
    "dots": "{tone} dots",
    "noise": "{tone} noise",
}
_COUNT_WEIGHTS = (0.45, 0.30, 0.25)  # one, two, three objects in the training stream
_PHASES = 24  # uniform numbers a scene carries for its textures
_GAP = 1.5  # least distance between two objects, and to the border, pixels

_Item = TypeVar("_Item")
_Float: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SceneObject:
    """One object: what it is and where.

    Attributes:
        colour: a key of ``COLOURS``.
        shape: one of ``SHAPES``.
        size: a key of ``SIZES``.
        x: centre, pixels from the left edge.
        y: centre, pixels from the top edge.
        radius: radius of the disc of about the same reach, pixels.
        angle: rotation, radians.
    """

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def reach(self) -> float:
        """Radius of the smallest disc round the centre that holds the object, pixels."""
        return self.radius * _REACH[self.shape]


@dataclass(frozen=True)
class Scene:
    """Everything that is needed to draw one picture.

    Attributes:
        objects: one to three, each colour-and-shape pair once.
        background: one of ``BACKGROUNDS``.
        tone: a key of ``TONES``.
        style: ``clean`` | ``painterly``.
        phases: uniform numbers in [0, 1) from which the textures are made.
        grain: seed of the background's noise.
    """

    objects: tuple[SceneObject, ...]
    background: str
    tone: str
    style: str
    phases: tuple[float, ...]
    grain: int


@dataclass(frozen=True)
class Rendering:
    """A drawn scene.

    Attributes:
        image: uint8 (64, 64, 3) RGB.
        masks: bool (objects, 64, 64); True where the object covers any part of the pixel, so that no kept pixel
            shows a trace of an object whose mask is the hole. Never overlapping.
    """

    image: Picture
    masks: npt.NDArray[np.bool_]


class SceneRng:
    """The only source of randomness here: uniform numbers of one PCG64 stream."""

    def __init__(self, *entropy: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def below(self, stop: int) -> int:
        """Return a whole number in [0, stop)."""
        return int(self._generator.random() * stop)

    def pick(self, items: Sequence[_Item]) -> _Item:
        """Return one of the items."""
        return items[self.below(len(items))]

    def array(self, *shape: int) -> _Float:
        """Return float64 numbers in [0, 1)."""
        return self._generator.random(shape)


def scene_rng(domain: str, seed: int, index: int) -> SceneRng:
    """Return the random stream of one scene.

    Args:
        domain: a key of ``DOMAINS``.
        seed: seed of the stream of scenes, 0 or more.
        index: place in the stream, 0 or more.

    Raises:
        UsageError: unknown domain, or a negative seed or index.
    """
    if domain not in DOMAINS:
        raise UsageError(f"Unknown domain {domain!r} of scenes. Expected one of {', '.join(DOMAINS)}.")
    if seed < 0 or index < 0:
        raise UsageError(f"Scenes are numbered from 0 up: got seed {seed}, index {index}.")
    return SceneRng(DOMAINS[domain], seed, index)


def sample_scene(seed: int, index: int, domain: str = "train") -> Scene:
    """Return one scene of the endless stream; pairs in ``UNSEEN_PAIRS`` never occur.

    Args:
        seed: seed of the stream, 0 or more.
        index: place in the stream, 0 or more.
        domain: ``train``, or ``held-out`` for validation scenes of the same distribution.

    Raises:
        UsageError: unknown domain, or a negative seed or index.
    """
    rng = scene_rng(domain, seed, index)
    u = rng.uniform()
    count = 1 if u < _COUNT_WEIGHTS[0] else 2 if u < _COUNT_WEIGHTS[0] + _COUNT_WEIGHTS[1] else 3
    return compose(rng, count=count, style=rng.pick(STYLES), background=rng.pick(BACKGROUNDS))


def compose(
    rng: SceneRng,
    *,
    count: int,
    style: str,
    background: str,
    tone: str | None = None,
    target: tuple[str, str, str] | None = None,
) -> Scene:
    """Return a scene with the attributes given; the rest is drawn.

    Args:
        rng: the scene's random stream.
        count: number of objects, 1 to 3.
        style: one of ``STYLES``.
        background: one of ``BACKGROUNDS``.
        tone: a key of ``TONES``, or None to draw it.
        target: (colour, shape, size) of the first object, which may be an unseen pair, or None to draw it.

    Raises:
        UsageError: a count other than 1, 2, 3 or an unknown name.
    """
    if count not in (1, 2, 3):
        raise UsageError(f"A scene holds 1, 2 or 3 objects; got {count}.")
    for name, known in ((style, STYLES), (background, BACKGROUNDS), (tone or "grey", tuple(TONES))):
        if name not in known:
            raise UsageError(f"Unknown scene attribute {name!r}. Expected one of {', '.join(known)}.")
    tone = tone or rng.pick(tuple(TONES))
    seen = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in UNSEEN_PAIRS]
    kinds: list[tuple[str, str, str]] = [target] if target else []
    while len(kinds) < count:
        colour, shape = rng.pick(seen)
        if (colour, shape) not in [kind[:2] for kind in kinds]:
            kinds.append((colour, shape, rng.pick(tuple(SIZES))))
    objects = _place(rng, kinds)
    phases = tuple(rng.uniform() for _ in range(_PHASES))
    return Scene(tuple(objects), background, tone, style, phases, rng.below(2**32))


def _place(rng: SceneRng, kinds: Sequence[tuple[str, str, str]]) -> list[SceneObject]:
    """Roll positions until no two objects touch; every twelfth failure shrinks the largest companion by a size."""
    kinds = list(kinds)
    names = list(SIZES)
    for attempt in range(1, 10_000):
        objects: list[SceneObject] = []
        for colour, shape, size in kinds:
            radius = rng.uniform(*SIZES[size])
            room = radius * _REACH[shape] + _GAP
            x, y = rng.uniform(room, SIDE - room), rng.uniform(room, SIDE - room)
            objects.append(SceneObject(colour, shape, size, x, y, radius, rng.uniform(-0.22, 0.22)))
        if all(_apart(a, b) for i, a in enumerate(objects) for b in objects[:i]):
            return objects
        if attempt % 12 == 0 and len(kinds) > 1:
            worst = max(range(1, len(kinds)), key=lambda i: names.index(kinds[i][2]))
            colour, shape, size = kinds[worst]
            kinds[worst] = (colour, shape, names[max(0, names.index(size) - 1)])
    raise AssertionError("a large and two small objects always fit")


def _apart(a: SceneObject, b: SceneObject) -> bool:
    return float(np.hypot(a.x - b.x, a.y - b.y)) > a.reach + b.reach + _GAP


# ---------------------------------------------------------------------------------------------------------- captions


def caption(scene: Scene) -> str:
    """Return the sentence that names style, objects, the relation of the first two and the background."""
    named = [f"a {thing.size} {thing.colour} {thing.shape}" for thing in scene.objects]
    text = named[0]
    if len(named) > 1:
        text += f" {relation(scene.objects[0], scene.objects[1])} {named[1]}"
    if len(named) > 2:
        text += f" and {named[2]}"
    ground = _BACKGROUND_PHRASES[scene.background].format(tone=scene.tone)
    return ("a painting of " if scene.style == "painterly" else "") + f"{text} on {ground}"


def relation(first: SceneObject, second: SceneObject) -> str:
    """Return where the first object lies, seen from the second, along the axis on which they are further apart."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def words() -> tuple[str, ...]:
    """Return every word that a caption may hold, sorted."""
    phrases = [*SHAPES, *COLOURS, *SIZES, *TONES, *RELATIONS, "a painting of", "and", "on"]
    phrases += [phrase.format(tone="grey") for phrase in _BACKGROUND_PHRASES.values()]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


# --------------------------------------------------------------------------------------------------------- rendering


def render(scene: Scene) -> Rendering:
    """Draw a scene.

    Returns:
        uint8 (64, 64, 3) RGB and the exact mask of each object, in the order of ``scene.objects``.
    """
    rows, columns = _GRID
    x, y = columns, rows
    painterly = scene.style == "painterly"
    if painterly:
        x, y = _wobble(scene, columns, rows)
    canvas = _background(scene, x, y)
    if painterly:
        canvas = canvas + _strokes(scene.phases[8:12], columns, rows, 0.030)[..., None]
    masks = np.zeros((len(scene.objects), SIDE, SIDE), dtype=np.bool_)
    for number, thing in enumerate(scene.objects):
        window = _window(thing, 3.0 if painterly else 1.0)
        cover = np.clip(0.5 - _distance(thing, x[window], y[window]), 0.0, 1.0)
        paint = np.asarray(COLOURS[thing.colour]) + _shade(scene, number)
        if painterly:
            place = 12 + 4 * number
            strokes = _strokes(scene.phases[place : place + 4], columns[window], rows[window], 0.050)
            paint = paint + strokes[..., None]
        canvas[window] += cover[..., None] * (paint - canvas[window])
        masks[(number, *window)] = cover > 0
    return Rendering(np.rint(np.clip(canvas, 0.0, 1.0) * 255.0).astype(np.uint8), masks)


_ROWS, _COLUMNS = np.mgrid[0:SIDE, 0:SIDE] + 0.5
_GRID: tuple[_Float, _Float] = (_ROWS, _COLUMNS)


def _background(scene: Scene, x: _Float, y: _Float) -> _Float:
    """Return float64 (64, 64, 3): two shades of the tone, mixed by the pattern."""
    angle, period, shift_x, shift_y, contrast, brightness = scene.phases[:6]
    tone = np.asarray(TONES[scene.tone]) + 0.06 * (brightness - 0.5)
    theta = np.pi * angle
    u, v = x * np.cos(theta) + y * np.sin(theta), y * np.cos(theta) - x * np.sin(theta)
    half = 0.07 + 0.05 * contrast  # half the difference of the two shades
    if scene.background == "stripes":
        mix = _bands(u, 9.0 + 6.0 * period, shift_x)
    elif scene.background == "checks":
        width = 15.0 + 8.0 * period
        a, b = _bands(u, width, shift_x), _bands(v, width, shift_y)
        mix = a + b - 2.0 * a * b
    elif scene.background == "dots":
        width = 11.0 + 5.0 * period
        du, dv = _from_centre(u, width, shift_x), _from_centre(v, width, shift_y)
        mix = np.clip(0.5 + 0.30 * width - np.hypot(du, dv), 0.0, 1.0)
    elif scene.background == "gradient":
        reach = (SIDE / 2) * (abs(np.cos(theta)) + abs(np.sin(theta)))
        centre = (SIDE / 2) * (np.cos(theta) + np.sin(theta))
        mix = 0.5 + (u - centre) / (2.0 * reach)
        half *= 1.8 if shift_x < 0.5 else -1.8
    else:
        mix = np.full_like(x, 0.5)
    canvas = tone + (2.0 * mix - 1.0)[..., None] * half
    if scene.background == "noise":
        canvas = canvas + _grain(scene.grain, 0.012 + 0.010 * contrast)
    return np.asarray(canvas)


def _grain(seed: int, sigma: float) -> _Float:
    """Return float64 (64, 64, 3) noise of the given standard deviation: the sum of two uniform numbers."""
    pair = SceneRng(seed).array(2, SIDE, SIDE, 3)
    return np.asarray((pair[0] + pair[1] - 1.0) * (sigma * np.sqrt(6.0)))


def _from_centre(u: _Float, period: float, shift: float) -> _Float:
    """Return the signed distance from the middle of the period, in pixels."""
    return np.asarray(((u / period + shift) % 1.0 - 0.5) * period)


def _bands(u: _Float, period: float, shift: float) -> _Float:
    """Return the antialiased coverage of bands half a period wide."""
    return np.clip(0.5 + 0.25 * period - np.abs(_from_centre(u, period, shift)), 0.0, 1.0)


def _shade(scene: Scene, number: int) -> float:
    """Return a small change of an object's brightness, so that no colour is one single value."""
    return 0.05 * (scene.phases[6 if number == 0 else 6 + number % 2] - 0.5)


def _wobble(scene: Scene, x: _Float, y: _Float) -> tuple[_Float, _Float]:
    """Displace the grid by under a pixel: a hand that is not steady."""
    a, b, c, d = scene.phases[4:8]
    tau = 2.0 * np.pi
    dx = np.sin(tau * (y / 17.0 + a)) + 0.3 * np.sin(tau * ((x + y) / 9.5 + b))
    dy = np.sin(tau * (x / 19.0 + c)) + 0.3 * np.sin(tau * ((x - y) / 10.5 + d))
    return np.asarray(x + 0.7 * dx), np.asarray(y + 0.7 * dy)


def _strokes(phases: Sequence[float], x: _Float, y: _Float, strength: float) -> _Float:
    """Return brightness changes like bent brush strokes."""
    angle, period, shift, bend = phases
    tau = 2.0 * np.pi
    u, v = x * np.cos(np.pi * angle) + y * np.sin(np.pi * angle), y * np.cos(np.pi * angle) - x * np.sin(np.pi * angle)
    along = u / (6.5 + 2.5 * period) + 0.35 * np.sin(tau * (v / 23.0 + bend)) + shift
    return np.asarray(strength * np.sin(tau * along) * (0.75 + 0.25 * np.sin(tau * (v / 15.0 + 2.0 * shift))))


# ---------------------------------------------------------------------------------------------------------- geometry


def _polygon(radii: Sequence[float], start: float) -> _Float:
    """Return (n, 2) corners (x, y) at equal angles with the radii in turn."""
    turns = start + np.arange(len(radii)) * (2.0 * np.pi / len(radii))
    return np.stack([np.asarray(radii) * np.cos(turns), np.asarray(radii) * np.sin(turns)], axis=1)


def _cross(long: float, wide: float) -> _Float:
    """Return the (12, 2) corners of a plus sign."""
    arm = [(wide, -long), (wide, -wide), (long, -wide), (long, wide), (wide, wide), (wide, long)]
    return np.asarray(arm + [(-x, -y) for x, y in arm])


# Corners for radius 1, y down. The scales make the five shapes of one size look alike in weight.
_CORNERS: dict[str, _Float] = {
    "square": _polygon([1.16] * 4, np.pi / 4),
    "triangle": _polygon([1.26] * 3, -np.pi / 2),
    "star": _polygon([1.27, 0.55] * 5, -np.pi / 2),
    "cross": _cross(1.10, 0.38),
}
_REACH = {"circle": 1.0} | {name: float(np.hypot(*corners.T).max()) for name, corners in _CORNERS.items()}


def _window(thing: SceneObject, pad: float) -> tuple[slice, slice]:
    """Return the rows and columns that the object can touch; ``pad`` is room for the edge and the unsteady hand."""
    pad += thing.reach
    return (
        slice(max(0, int(thing.y - pad)), min(SIDE, int(thing.y + pad) + 1)),
        slice(max(0, int(thing.x - pad)), min(SIDE, int(thing.x + pad) + 1)),
    )


def _distance(thing: SceneObject, x: _Float, y: _Float) -> _Float:
    """Return the signed distance from the object's edge in pixels, negative inside."""
    dx, dy = x - thing.x, y - thing.y
    if thing.shape == "circle":
        return np.asarray(np.hypot(dx, dy) - thing.radius)
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    corners = thing.radius * _CORNERS[thing.shape] @ np.array([[cos, sin], [-sin, cos]])
    nearest = np.full(dx.shape, np.inf)
    inside = np.zeros(dx.shape, dtype=np.bool_)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        px, py = dx - ax, dy - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        crosses = (py < 0.0) != (py - ey < 0.0)  # the even-odd rule along the row
        inside ^= crosses & (px < ex * py / (ey if ey else 1.0))
    return np.asarray(np.where(inside, -1.0, 1.0) * np.sqrt(nearest))
