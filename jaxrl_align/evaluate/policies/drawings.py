"""What environments look like: one picture of a state, drawn with Pillow.

A drawing gets the state's fields as NumPy numbers, the observation, and the environment's parameters.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT = 300, 200
"""Of a picture, pixels; images of cells are square."""
FINE = 2
"""Pictures are drawn so many times larger and made smaller, so that slanted lines are smooth."""
INK, PAPER, BLUE, RED, GREY = "#222222", "#ffffff", "#0072B2", "#D55E00", "#999999"
CELLS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999")
"""Colours of the channels of an image, which colour-blind readers tell apart."""


class Camera(NamedTuple):
    """How a kind of environment is filmed."""

    draw: Callable[[Any, np.ndarray, Any], Any]
    """`(state, obs, params) -> picture`."""
    every: int
    """Steps from one picture to the next."""
    milliseconds: int
    """That a picture is shown."""


def need_pillow(name: str = "PIL.Image") -> Any:
    """Return a module of Pillow.

    Raises:
      ImportError: naming the extra that brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError("films need pillow; pip install 'jaxrl-align[plots]'") from error


class Sheet:
    """A picture whose places are given in the environment's units.

    Args:
      left, right: the range of x.
      bottom: the smallest y; the scale is that of x.
    """

    def __init__(self, left: float, right: float, bottom: float) -> None:
        size = (FINE * WIDTH, FINE * HEIGHT)
        self.picture = need_pillow().new("RGB", size, PAPER)
        self._pen = need_pillow("PIL.ImageDraw").Draw(self.picture)
        self._scale, self._left, self._bottom = size[0] / (right - left), left, bottom

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (x - self._left) * self._scale, FINE * HEIGHT - (y - self._bottom) * self._scale

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        """Draw a line through points, `width` pixels wide."""
        self._pen.line([self._at(*p) for p in points], colour, round(FINE * width), joint="curve")

    def box(self, left: float, bottom: float, right: float, top: float, colour: str) -> None:
        """Fill a box."""
        self._pen.rectangle([*self._at(left, top), *self._at(right, bottom)], colour)

    def disc(self, x: float, y: float, radius: float, colour: str) -> None:
        """Fill a circle whose radius is in the environment's unit."""
        (a, b), r = self._at(x, y), radius * self._scale
        self._pen.ellipse([a - r, b - r, a + r, b + r], colour)

    def finish(self) -> Any:
        """Return the picture in its final size."""
        return self.picture.resize((WIDTH, HEIGHT), need_pillow().Resampling.LANCZOS)


def draw_cart_pole(state: Any, obs: np.ndarray, params: Any) -> Any:
    """Draw cart, pole and the ends of the track."""
    limit, x, angle = float(params.x_threshold), float(state.x), float(state.theta)
    sheet = Sheet(-1.15 * limit, 1.15 * limit, -1.6)
    sheet.line([(-1.15 * limit, 0), (1.15 * limit, 0)], GREY, 1.5)
    for end in (-limit, limit):
        sheet.line([(end, -0.15), (end, 0.15)], RED, 2)
    sheet.box(x - 0.35, 0.0, x + 0.35, 0.3, INK)
    length = 2 * float(params.length)
    sheet.line([(x, 0.3), (x + length * math.sin(angle), 0.3 + length * math.cos(angle))], RED, 6)
    sheet.disc(x, 0.3, 0.06, BLUE)
    return sheet.finish()


def draw_acrobot(state: Any, obs: np.ndarray, params: Any) -> Any:
    """Draw both links, and the line that the tip is to pass."""
    first, second = float(params.link_length_1), float(params.link_length_2)
    sheet = Sheet(-3.6, 3.6, -2.4)
    sheet.line([(-3.6, first), (3.6, first)], GREY, 1.5)
    a, b = float(state.joint_angle1), float(state.joint_angle1) + float(state.joint_angle2)
    elbow = (first * math.sin(a), -first * math.cos(a))
    tip = (elbow[0] + second * math.sin(b), elbow[1] - second * math.cos(b))
    sheet.line([(0, 0), elbow], INK, 7)
    sheet.line([elbow, tip], BLUE, 7)
    for place in ((0.0, 0.0), elbow):
        sheet.disc(*place, 0.1, RED)
    return sheet.finish()


def draw_mountain_car(state: Any, obs: np.ndarray, params: Any) -> Any:
    """Draw the valley, the car and its goal."""
    low, high = float(params.min_position), float(params.max_position)
    height = lambda x: 0.45 * math.sin(3 * x) + 0.55
    sheet = Sheet(low - 0.1, high + 0.1, -0.05)
    road = np.linspace(low, high, 60)
    sheet.line([(x, height(x)) for x in road], GREY, 3)
    goal, x = float(params.goal_position), float(state.position)
    sheet.line([(goal, height(goal)), (goal, height(goal) + 0.15)], RED, 2)
    sheet.box(goal, height(goal) + 0.1, goal + 0.07, height(goal) + 0.15, RED)
    sheet.disc(x, height(x) + 0.04, 0.04, BLUE)
    return sheet.finish()


def draw_pendulum(state: Any, obs: np.ndarray, params: Any) -> Any:
    """Draw the pendulum; upright is what is wanted."""
    angle, length = float(state.theta), float(params.l)
    tip = (-length * math.sin(angle), length * math.cos(angle))
    sheet = Sheet(-1.95 * length, 1.95 * length, -1.3 * length)
    sheet.line([(0, 0), tip], BLUE, 9)
    sheet.disc(0, 0, 0.07 * length, INK)
    sheet.disc(*tip, 0.1 * length, RED)
    return sheet.finish()


def draw_cells(state: Any, obs: np.ndarray, params: Any) -> Any:
    """Draw an image [H, W, C] of things that are there or not, each channel in its own colour."""
    image = np.full((*obs.shape[:2], 3), 24, np.uint8)
    for channel in range(obs.shape[2]):
        colour = CELLS[channel % len(CELLS)]
        image[obs[:, :, channel] > 0] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    side = max(1, HEIGHT // max(obs.shape[:2]))
    return need_pillow().fromarray(image.repeat(side, 0).repeat(side, 1))


CAMERAS = {
    "CartPole": Camera(draw_cart_pole, 2, 40),
    "Acrobot": Camera(draw_acrobot, 1, 60),
    "MountainCar": Camera(draw_mountain_car, 1, 40),
    "ContinuousMountainCar": Camera(draw_mountain_car, 2, 40),
    "Pendulum": Camera(draw_pendulum, 1, 50),
}
"""By the name of the environment's class."""


def find_camera(environment: Any, obs_shape: tuple[int, ...]) -> Camera:
    """Return how an environment is filmed.

    Raises:
      ValueError: it has no drawing, and its observation is no image.
    """
    name = type(environment).__name__
    if name in CAMERAS:
        return CAMERAS[name]
    if len(obs_shape) == 3 and min(obs_shape[:2]) >= 3:
        return Camera(draw_cells, 1, 100)
    raise ValueError(
        f"there are films of {', '.join(CAMERAS)} and of environments whose observation is an image "
        f"[H, W, C]; got {name}, observations of shape {obs_shape}; leave the film out"
    )
