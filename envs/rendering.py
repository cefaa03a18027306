"""Pictures of environments: a small canvas in world coordinates, drawn with Pillow."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SIZE = 256
_OVERSAMPLING = 2  # drawn twice as large, then shrunk, because Pillow does not smooth edges

WHITE, LIGHT, GREY, DARK = (255, 255, 255), (225, 228, 232), (150, 155, 165), (60, 65, 75)
AGENT, GOAL = (31, 119, 180), (44, 160, 44)


class Point(NamedTuple):
    """A point in world coordinates, y upwards."""

    x: float
    y: float


class Canvas:
    """A square picture of the square from `(low, low)` to `(high, high)`; `frame()` returns it as an array.

    >>> Canvas(-1.0, 1.0, size=64).disc(Point(0, 0), 0.2, AGENT).frame().shape
    (64, 64, 3)
    """

    def __init__(self, low: float, high: float, size: int = SIZE) -> None:
        self.low, self.high, self.size = low, high, size
        self._scale = size * _OVERSAMPLING / (high - low)
        self._image = Image.new("RGB", (size * _OVERSAMPLING,) * 2, WHITE)
        self._draw = ImageDraw.Draw(self._image)

    def disc(self, centre: Point, radius: float, colour: tuple[int, int, int]) -> "Canvas":
        """A filled disc; a centre outside the picture is moved to its edge, so that it is always visible."""
        x, y = self._pixel(Point(*(min(max(c, self.low), self.high) for c in centre)))
        r = radius * self._scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        return self

    def box(self, lower: Point, upper: Point, colour: tuple[int, int, int]) -> "Canvas":
        """A filled rectangle."""
        (left, bottom), (right, top) = self._pixel(lower), self._pixel(upper)
        self._draw.rectangle((left, top, right, bottom), fill=colour)
        return self

    def line(self, start: Point, end: Point, colour: tuple[int, int, int], width: int = 1) -> "Canvas":
        """A straight line, `width` in pixels of the final picture."""
        self._draw.line((*self._pixel(start), *self._pixel(end)), fill=colour, width=width * _OVERSAMPLING)
        return self

    def frame(self) -> npt.NDArray[np.uint8]:
        """The picture, uint8 `[size, size, 3]`."""
        small = self._image.resize((self.size, self.size), Image.Resampling.BOX)
        return np.array(small, dtype=np.uint8)

    def _pixel(self, point: Point) -> tuple[float, float]:
        return (point.x - self.low) * self._scale, (self.high - point.y) * self._scale
