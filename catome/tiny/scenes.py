"""Procedural landscapes: the world that the embedded model is trained on.

Twelve clearly different classes, each an endless family of images: a scene is a pure function of ``(class,
seed)``. They have what token merging is about, wide smooth skies beside fine texture, and no detail below
about three pixels at the native size of 128, because a VAE that divides the resolution by 4 could not keep
it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SIZE = 128
PROMPT = "A high quality photograph of a {}."


class Canvas:
    """A float RGB image ``[S, S, 3]`` in [0, 1] with its coordinates ``x``, ``y`` in [0, 1) and its own
    generator."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size, self.px = rng, size, 1.0 / SIZE
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.x, self.y = axis[None, :], axis[:, None]
        self.rgb = np.zeros((size, size, 3), np.float32)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def paint(self, colour, mask) -> None:
        """Lay ``colour`` (RGB triple or image) over the canvas where ``mask`` (broadcast to ``[S, S]``) is
        1."""
        mask = np.broadcast_to(np.asarray(mask, np.float32), (self.size, self.size))[..., None]
        self.rgb += (np.asarray(colour, np.float32) - self.rgb) * mask

    def glow(self, colour, mask) -> None:
        """Add light: ``colour`` times ``mask``."""
        mask = np.broadcast_to(np.asarray(mask, np.float32), (self.size, self.size))[..., None]
        self.rgb += np.asarray(colour, np.float32) * mask

    def inside(self, distance, softness: float = 1.5):
        """Signed distance (in image heights, negative inside) to a mask whose edge is ``softness`` pixels
        wide."""
        return np.clip(0.5 - distance / (softness * self.px), 0.0, 1.0)

    def gradient(self, *stops: tuple[float, tuple]) -> np.ndarray:
        """Vertical colour gradient through ``(height, colour)`` stops, ``[S, 1, 3]``."""
        heights = [stop[0] for stop in stops]
        colours = np.array([stop[1] for stop in stops], np.float32)
        return np.stack([np.interp(self.y[:, 0], heights, colours[:, c]) for c in range(3)], -1)[
            :, None
        ].astype(np.float32)

    def noise(self, wavelength: float, aspect: float = 1.0, power: float = 1.5) -> np.ndarray:
        """Smooth random field ``[S, S]``, mean 0 and deviation 1, with nothing finer than ``wavelength``
        heights.

        ``aspect`` > 1 stretches it sideways; ``power`` is how fast the amplitude falls with frequency."""
        fy = np.fft.fftfreq(self.size, 1 / self.size)[:, None].astype(np.float32)
        fx = np.fft.rfftfreq(self.size, 1 / self.size)[None].astype(np.float32)
        frequency = np.sqrt(fy**2 + (fx * aspect) ** 2)
        amplitude = np.where(frequency > 0, np.maximum(frequency, 1e-6) ** -power, 0.0)
        amplitude *= np.exp(-((frequency * wavelength) ** 2))
        shape = (2, self.size, self.size // 2 + 1)
        real, imaginary = self.rng.standard_normal(shape, dtype=np.float32)
        field = np.fft.irfft2(amplitude * (real + 1j * imaginary), s=(self.size, self.size)).astype(
            np.float32
        )
        return (field - field.mean()) / (field.std() + 1e-6)

    def ridge(
        self, level: float, amplitude: float, first: int = 1, count: int = 5, fall: float = 1.3
    ) -> np.ndarray:
        """A skyline ``[S]``: the height ``y`` of a hill line around ``level``."""
        waves = np.arange(first, first + count, dtype=np.float32)[:, None]
        phase = self.rng.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32)
        weight = self.rng.uniform(0.5, 1.0, (count, 1)).astype(np.float32) * waves**-fall
        line = (weight * np.sin(np.pi * waves * self.x + phase)).sum(0)
        return level + amplitude * line / np.abs(weight).sum()

    def sun(
        self, cx: float, cy: float, radius: float, disc, halo, spread: float, strength: float = 0.6
    ) -> None:
        """A disc with a halo of light around it."""
        distance = np.hypot(self.x - cx, self.y - cy)
        self.glow(halo, strength * np.exp(-(distance / spread)))
        self.paint(disc, self.inside(distance - radius, 2.0))

    def clouds(self, top: float, bottom: float, colour, cover: float = 0.6) -> None:
        """Flat cumulus between two heights."""
        field = self.noise(0.06, aspect=2.2, power=1.6) - cover
        band = np.clip((self.y - top) / 0.08, 0, 1) * np.clip((bottom - self.y) / 0.12, 0, 1)
        self.paint(colour, np.clip(field, 0, 1) * band * 0.9)

    def conifer(self, cx: float, base: float, height: float, colour) -> None:
        """A spruce: stacked triangles, standing at ``base``."""
        up = (base - self.y) / height
        tiers = 1.0 - up - 0.10 * ((up * 5) % 1.0 - 0.5) * (1 - up)
        width = 0.24 * height * np.clip(tiers, 0, 1)
        self.paint(colour, self.inside(np.abs(self.x - cx) - width) * (up > 0) * (up < 1))

    def image(self) -> np.ndarray:
        return (np.clip(self.rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def desert(c: Canvas) -> None:
    horizon = c.uniform(0.42, 0.55)
    c.paint(c.gradient((0, (0.30, 0.56, 0.86)), (horizon, (0.97, 0.90, 0.75))), 1)
    c.sun(c.uniform(0.15, 0.85), c.uniform(0.12, 0.28), 0.065, (1, 0.98, 0.85), (1, 0.85, 0.5), 0.12)
    for layer in range(4):
        depth = layer / 3
        line = c.ridge(horizon + 0.16 * layer, 0.05 + 0.05 * depth, count=3)
        below = c.y - line
        crest = np.sin(2 * np.pi * (c.x * c.uniform(0.9, 1.6) + c.uniform(0, 1)) + 11.0 * below)
        light = 0.84 + 0.12 * np.tanh(2 * crest) - 0.25 * np.clip(below, 0, 0.4)
        ripple = np.sin(2 * np.pi * (below * 15 + 0.6 * np.sin(5 * c.x + layer)))
        light = light + 0.035 * depth * ripple
        c.paint(np.array([0.98, 0.72, 0.42]) * light[..., None], c.inside(-below))


def snowy_mountain(c: Canvas) -> None:
    c.paint(c.gradient((0, (0.20, 0.45, 0.82)), (0.7, (0.80, 0.90, 0.98))), 1)
    c.clouds(0.02, 0.42, (1, 1, 1), 0.7)
    texture = c.noise(0.05, power=1.2)
    for layer in range(2):
        peaks = 1.0
        slope = 1.3 if layer == 0 else 1.1
        shade = np.zeros((c.size, c.size), np.float32)
        for _ in range(3):
            centre, top = c.uniform(0.0, 1.0), c.uniform(0.14, 0.34) + 0.2 * layer
            side = top + slope * np.abs(c.x - centre)
            bend = 0.03 * np.sin(14 * c.y + c.uniform(0, 6)) * np.clip(6 * (c.y - top), 0, 1)
            shade = np.where(side < peaks, np.clip((centre + bend - c.x) / 0.02, -1, 1), shade)
            peaks = np.minimum(peaks, side)
        peaks = np.minimum(peaks, 0.72) + 0.015 * np.sin(40 * c.x + c.uniform(0, 6))
        below = c.y - peaks
        snow = np.clip(0.5 + 4.0 * (0.22 - below) + 0.5 * texture, 0, 1)[..., None]
        lit = 0.86 + 0.14 * shade[..., None]
        rock = np.array([0.40, 0.42, 0.50]) * (0.85 + 0.12 * texture[..., None])
        c.paint((snow * np.array([0.97, 0.98, 1.0]) + (1 - snow) * rock) * lit, c.inside(-below))
    line = c.ridge(c.uniform(0.80, 0.86), 0.03, first=2, count=6)
    green = np.array([0.10, 0.28, 0.18]) * (1 + 0.25 * c.noise(0.04, power=0.8)[..., None])
    c.paint(green, c.inside(line - c.y))


def sea_sunset(c: Canvas) -> None:
    horizon, cx = c.uniform(0.50, 0.60), c.uniform(0.2, 0.8)
    c.paint(
        c.gradient(
            (0, (0.28, 0.14, 0.42)), (0.6 * horizon, (0.88, 0.36, 0.36)), (horizon, (1.0, 0.78, 0.36))
        ),
        1,
    )
    streaks = np.clip(c.noise(0.06, aspect=4.0, power=1.5) - 0.6, 0, 1)
    c.paint((0.50, 0.20, 0.42), 0.7 * streaks * (c.y < horizon))
    c.sun(cx, horizon - c.uniform(0.0, 0.08), 0.085, (1.0, 0.96, 0.70), (1.0, 0.6, 0.2), 0.14, 0.7)
    depth = np.clip((c.y - horizon) / (1 - horizon), 0, 1)
    sea = c.gradient((horizon, (0.78, 0.42, 0.38)), (1, (0.16, 0.10, 0.30)))
    waves = c.noise(0.05, aspect=3.5, power=0.8)
    sea = sea * (1 + 0.16 * waves * np.sqrt(depth))[..., None]
    water = c.inside(horizon - c.y)
    c.paint(sea, water)
    path = np.exp(-(((c.x - cx) / (0.05 + 0.10 * depth)) ** 2)) * np.clip(0.75 + 0.5 * waves, 0, 1)
    c.paint((1.0, 0.80, 0.45), path * water * (1 - 0.45 * depth))


def city_at_night(c: Canvas) -> None:
    c.paint(c.gradient((0, (0.03, 0.04, 0.14)), (0.75, (0.34, 0.20, 0.46)), (1, (0.55, 0.32, 0.45))), 1)
    if c.rng.random() < 0.6:
        c.sun(c.uniform(0.1, 0.9), c.uniform(0.08, 0.2), 0.05, (0.98, 0.96, 0.84), (0.5, 0.5, 0.6), 0.06)
    for layer, tone in enumerate(((0.20, 0.16, 0.36), (0.06, 0.06, 0.14))):
        left = c.uniform(-0.08, 0.0)
        while left < 1.0:
            cell = 6 * c.px
            columns = int(c.rng.integers(2, 5))
            width = columns * cell + 3 * c.px
            top = c.uniform(0.25, 0.55) + 0.18 * layer
            box = np.maximum(np.maximum(left - c.x, c.x - left - width), top - c.y)
            c.paint(tone, c.inside(box, 1.0))
            if layer:
                u, v = (c.x - left - 1.5 * c.px) / cell, (c.y - top - 2 * c.px) / cell
                lit = c.rng.random((32, columns + 2)) < 0.55
                column = np.clip(np.floor(u), -1, columns).astype(int)
                row = np.clip(np.floor(v), 0, 31).astype(int)
                window = np.clip(4.0 - 10.0 * np.abs(u % 1 - 0.5), 0, 1) * np.clip(
                    4.0 - 10.0 * np.abs(v % 1 - 0.5), 0, 1
                )
                window = window * lit[row, column] * (column >= 0) * (column < columns) * (v > 0)
                c.paint((1.0, 0.84, 0.45), window)
            left += width + c.uniform(0, 2) * c.px


def misty_forest(c: Canvas) -> None:
    c.paint(c.gradient((0, (0.80, 0.86, 0.86)), (1, (0.90, 0.93, 0.90))), 1)
    mist = np.array([0.82, 0.88, 0.87])
    for layer in range(4):
        near = layer / 3
        colour = mist + (np.array([0.06, 0.20, 0.16]) - mist) * (0.18 + 0.74 * near)
        base = 0.58 + 0.15 * layer
        line = c.ridge(base, 0.02, count=3)
        height = 0.24 + 0.24 * near
        count = 11 - 2 * layer
        for i in range(count):
            cx = (i + c.uniform(0.1, 0.9)) / count
            at = line[min(int(cx * c.size), c.size - 1)]
            c.conifer(cx, at + 0.05, height * c.uniform(0.75, 1.15), colour)
        c.paint(colour, c.inside(line + 0.02 - c.y))
        fog = np.exp(-(((c.y - base - 0.10) / 0.07) ** 2)) * (1 - 0.65 * near)
        c.paint(mist, 0.75 * fog)


def flower_meadow(c: Canvas) -> None:
    horizon = c.uniform(0.38, 0.48)
    c.paint(c.gradient((0, (0.26, 0.55, 0.92)), (horizon, (0.78, 0.90, 0.98))), 1)
    c.clouds(0.0, horizon, (1, 1, 1), 0.5)
    c.paint((0.36, 0.56, 0.50), c.inside(c.ridge(horizon - 0.03, 0.04, count=3) - c.y))
    line = c.ridge(horizon + 0.02, 0.02, count=2)
    depth = np.clip((c.y - horizon) / (1 - horizon), 0, 1)
    grass = np.array([0.36, 0.66, 0.20]) * (1 - 0.28 * depth + 0.10 * c.noise(0.05, power=0.8))[..., None]
    c.paint(grass, c.inside(line - c.y))
    palettes = [
        [(0.96, 0.30, 0.45), (1.0, 0.70, 0.80)],
        [(1.0, 0.86, 0.16), (1.0, 0.98, 0.92)],
        [(0.60, 0.36, 0.90), (0.90, 0.80, 1.0)],
        [(0.95, 0.20, 0.14), (1.0, 0.82, 0.2)],
    ]
    palette = palettes[int(c.rng.integers(len(palettes)))]
    for near in np.sort(c.rng.uniform(0.04, 1.0, 75)) ** 1.3:
        cx, cy = c.uniform(0, 1), horizon + 0.04 + near * (0.98 - horizon)
        radius = (1.5 + 3.2 * near) * c.px
        rows = slice(max(int((cy - 2 * radius) * c.size), 0), int((cy + 2 * radius) * c.size) + 2)
        cols = slice(max(int((cx - 2 * radius) * c.size), 0), int((cx + 2 * radius) * c.size) + 2)
        distance = np.hypot(c.x[:, cols] - cx, c.y[rows] - cy)
        patch = c.rgb[rows, cols]
        colour = np.array(palette[int(c.rng.integers(2))], np.float32)
        patch += (colour - patch) * c.inside(distance - radius, 1.5)[..., None].astype(np.float32)
        if near > 0.45:
            patch += (np.array([1.0, 0.8, 0.1], np.float32) - patch) * c.inside(distance - 0.35 * radius)[
                ..., None
            ]


def starry_night(c: Canvas) -> None:
    c.paint(c.gradient((0, (0.02, 0.03, 0.12)), (0.9, (0.16, 0.16, 0.40))), 1)
    tilt, offset = c.uniform(-0.5, 0.5), c.uniform(0.25, 0.45)
    band = np.exp(-(((c.y - offset - tilt * (c.x - 0.5)) / 0.16) ** 2)) * np.clip(
        0.6 + 0.4 * c.noise(0.06), 0, 1.5
    )
    c.glow((0.26, 0.16, 0.36), band)
    for _ in range(int(c.rng.integers(28, 40))):
        distance = np.hypot(c.x - c.uniform(0, 1), c.y - c.uniform(0, 0.8))
        c.glow(
            (0.95, 0.95, 0.85),
            c.uniform(0.4, 1.0) * np.exp(-((distance / (c.uniform(1.3, 2.2) * c.px)) ** 2)),
        )
    cx, cy = c.uniform(0.12, 0.88), c.uniform(0.10, 0.28)
    moon = c.inside(np.hypot(c.x - cx, c.y - cy) - 0.07)
    if c.rng.random() < 0.5:
        moon = moon * (1 - c.inside(np.hypot(c.x - cx - 0.035, c.y - cy + 0.01) - 0.06))
    c.paint((0.98, 0.95, 0.78), moon)
    c.paint((0.03, 0.04, 0.09), c.inside(c.ridge(c.uniform(0.76, 0.84), 0.06) - c.y))


def lighthouse(c: Canvas) -> None:
    horizon, cx = c.uniform(0.56, 0.64), c.uniform(0.25, 0.75)
    c.paint(c.gradient((0, (0.40, 0.66, 0.90)), (horizon, (0.94, 0.92, 0.86))), 1)
    c.clouds(0.02, horizon - 0.05, (1, 1, 1), 0.7)
    sea = np.array([0.12, 0.38, 0.55]) * (1 + 0.14 * c.noise(0.05, aspect=3.0, power=0.8))[..., None]
    c.paint(sea, c.inside(horizon - c.y))
    top, foot = c.uniform(0.16, 0.24), 0.74
    along = np.clip((c.y - top) / (foot - top), 0, 1)
    half = 0.042 + 0.030 * along
    shade = (1.0 - 0.35 * np.clip((c.x - cx) / half, -0.3, 1))[..., None]
    stripe = np.clip(0.5 + 6 * np.sin(2 * np.pi * 2.5 * along), 0, 1)[..., None]
    tower = (np.array([0.86, 0.14, 0.14]) * stripe + np.array([0.97, 0.96, 0.94]) * (1 - stripe)) * shade
    box = np.maximum(np.maximum(np.abs(c.x - cx) - half, top - c.y), c.y - foot)
    c.paint(tower, c.inside(box))
    lamp = np.maximum(np.abs(c.x - cx) - 0.034, np.abs(c.y - top + 0.028) - 0.028)
    c.paint((1.0, 0.92, 0.50), c.inside(lamp))
    roof = np.maximum(np.abs(c.x - cx) - 0.055 * np.clip((c.y - top + 0.115) / 0.06, 0, 1), c.y - top + 0.055)
    c.paint((0.60, 0.10, 0.12), c.inside(roof) * (c.y > top - 0.115))
    cliff = (
        0.70
        + 0.9 * np.maximum(np.abs(c.x - cx) - 0.14, 0) ** 1.3
        + 0.012 * np.sin(30 * c.x + c.uniform(0, 6))
    )
    rock = (
        np.array([0.42, 0.40, 0.36]) * (1 + 0.22 * c.noise(0.045, power=0.9) - 0.3 * (c.y - 0.7))[..., None]
    )
    c.paint(rock, c.inside(cliff - c.y))
    c.paint((0.40, 0.58, 0.26), c.inside(np.abs(c.y - cliff - 0.015) - 0.015))


def volcano(c: Canvas) -> None:
    cx, top = c.uniform(0.35, 0.65), c.uniform(0.30, 0.40)
    c.paint(c.gradient((0, (0.14, 0.05, 0.12)), (0.8, (0.86, 0.28, 0.12)), (1, (0.95, 0.45, 0.15))), 1)
    plume = np.exp(
        -(((c.x - cx - 0.3 * c.uniform(-1, 1) * (top - c.y)) / (0.07 + 0.45 * np.clip(top - c.y, 0, 1))) ** 2)
    )
    smoke = np.array([0.34, 0.26, 0.28]) * (1 + 0.18 * c.noise(0.06, power=1.2))[..., None]
    c.paint(smoke, plume * c.inside(c.y - top - 0.02, 6) * 0.9)
    c.glow((1.0, 0.45, 0.10), 0.8 * np.exp(-np.hypot(c.x - cx, c.y - top) / 0.09))
    reach = np.clip(c.y - top, 0, 1)
    flank = 0.07 + 0.62 * reach + 0.25 * reach**2
    cone = np.maximum(np.abs(c.x - cx) - flank, top - c.y)
    rock = (
        np.array([0.16, 0.11, 0.12])
        * (1 + 0.25 * c.noise(0.05, power=0.9) - 0.5 * np.sign(c.x - cx) * 0.4)[..., None]
    )
    c.paint(rock, c.inside(cone))
    for i in range(3):
        drift = (i - 1) * 0.42 + c.uniform(-0.08, 0.08)
        wobble = 0.025 * np.sin(c.y * 22 + c.uniform(0, 6)) * np.clip(reach * 6, 0, 1)
        river = np.abs(c.x - cx - drift * reach - wobble) - (0.020 + 0.016 * reach)
        length = c.uniform(0.35, 0.65)
        flow = (c.y > top) * c.inside(c.y - top - length, 8)
        c.paint((0.95, 0.30, 0.05), c.inside(river - 0.012, 3) * flow)
        c.paint((1.0, 0.78, 0.25), c.inside(river + 0.008, 2) * flow)
    c.paint((0.07, 0.05, 0.07), c.inside(c.ridge(0.92, 0.03) - c.y))


def hot_air_balloon(c: Canvas) -> None:
    c.paint(c.gradient((0, (0.36, 0.62, 0.94)), (0.85, (0.98, 0.92, 0.86))), 1)
    c.clouds(0.05, 0.75, (1, 1, 1), 0.9)
    c.paint((0.56, 0.66, 0.74), c.inside(c.ridge(0.82, 0.05, count=4) - c.y))
    c.paint((0.42, 0.60, 0.34), c.inside(c.ridge(0.90, 0.03, count=3) - c.y))
    pairs = [
        ((0.90, 0.16, 0.16), (1.0, 0.84, 0.20)),
        ((0.14, 0.36, 0.80), (0.98, 0.96, 0.92)),
        ((0.50, 0.18, 0.62), (1.0, 0.62, 0.16)),
        ((0.10, 0.58, 0.42), (0.98, 0.92, 0.50)),
    ]
    count = int(c.rng.integers(1, 4))
    slots = c.rng.permutation(3)[:count]
    for slot in slots:
        cx, cy = (slot + 0.5) / 3 + c.uniform(-0.06, 0.06), c.uniform(0.22, 0.50)
        radius = c.uniform(0.10, 0.15)
        first, second = pairs[int(c.rng.integers(len(pairs)))]
        u, v = (c.x - cx) / radius, (c.y - cy) / radius
        taper = np.where(v > 0, 1 - 0.28 * np.clip(v, 0, 1.35) ** 1.5, 1.0)
        body = np.maximum(np.hypot(u / taper, np.where(v > 0, v * 0.74, v)) - 1, v - 1.15) * radius
        stripe = np.clip(0.5 + 5 * np.sin(4.6 * np.arcsin(np.clip(u / (taper * 1.02), -1, 1))), 0, 1)[
            ..., None
        ]
        light = (1.02 - 0.22 * np.clip(u + 0.3 * v, 0, 1))[..., None]
        c.paint((np.array(first) * stripe + np.array(second) * (1 - stripe)) * light, c.inside(body))
        basket = np.maximum(np.abs(u) - 0.20, np.abs(v - 1.50) - 0.16) * radius
        c.paint((0.42, 0.26, 0.14), c.inside(basket))


def lake_in_autumn(c: Canvas) -> None:
    shore = c.uniform(0.52, 0.58)
    c.paint(c.gradient((0, (0.40, 0.66, 0.92)), (shore, (0.92, 0.94, 0.95))), 1)
    c.clouds(0.0, 0.3, (1, 1, 1), 0.7)
    c.paint((0.52, 0.58, 0.70), c.inside(c.ridge(shore - 0.20, 0.10, count=4) - c.y))
    palette = np.array(
        [(0.86, 0.28, 0.10), (0.96, 0.62, 0.12), (0.92, 0.80, 0.22), (0.62, 0.16, 0.10), (0.45, 0.50, 0.18)]
    )
    for row in range(2):
        for i in range(9):
            cx, radius = (i + c.uniform(0.1, 0.9)) / 9, c.uniform(0.055, 0.085)
            cy = shore - 0.09 + 0.05 * row
            distance = np.hypot(c.x - cx, (c.y - cy) * 0.85) - radius
            light = 1.05 - 0.35 * np.clip((c.y - cy + radius) / (2 * radius), 0, 1)
            c.paint(
                palette[int(c.rng.integers(5))] * light[..., None], c.inside(distance, 2.0) * (c.y < shore)
            )
    c.paint((0.30, 0.24, 0.12), c.inside(np.abs(c.y - shore) - 0.012))
    wave = 0.010 * np.sin(2 * np.pi * (c.y - shore) * 16) * np.clip((c.y - shore) * 6, 0, 1)
    source = np.clip((2 * shore - c.y) * c.size, 0, c.size - 1).astype(int)[:, 0]
    shift = (wave[:, 0] * c.size).round().astype(int)
    columns = (np.arange(c.size)[None] + shift[:, None]) % c.size
    mirror = c.rgb[source[:, None], columns] * np.array([0.74, 0.80, 0.88]) + np.array([0.02, 0.04, 0.06])
    c.paint(mirror, c.inside(shore + 0.01 - c.y, 1.0))


def polar_aurora(c: Canvas) -> None:
    c.paint(c.gradient((0, (0.02, 0.04, 0.14)), (0.8, (0.06, 0.16, 0.30))), 1)
    for colour in ((0.10, 0.85, 0.50), (0.25, 0.75, 0.60), (0.55, 0.25, 0.75)):
        curtain = c.ridge(c.uniform(0.40, 0.58), 0.14, count=3)
        above = curtain - c.y
        rays = 0.65 + 0.35 * np.sin(
            2 * np.pi * (c.uniform(5, 8) * c.x + 1.2 * np.sin(5 * c.x + c.uniform(0, 6)))
        )
        light = np.where(above > 0, np.exp(-above / (0.10 + 0.14 * rays)), np.exp(above / 0.02))
        c.glow(colour, 0.75 * light * rays)
    c.paint((0.10, 0.14, 0.26), c.inside(c.ridge(0.70, 0.06, count=5) - c.y))
    line = c.ridge(0.80, 0.02, count=3)
    snow = c.gradient((0.78, (0.50, 0.66, 0.74)), (1, (0.28, 0.40, 0.56)))
    c.paint(snow, c.inside(line - c.y))
    for _ in range(int(c.rng.integers(3, 7))):
        c.conifer(c.uniform(0.03, 0.97), c.uniform(0.83, 0.90), c.uniform(0.16, 0.28), (0.02, 0.05, 0.09))


_PAINTERS: dict[str, Callable[[Canvas], None]] = {
    "desert": desert,
    "snowy mountain": snowy_mountain,
    "sea sunset": sea_sunset,
    "city at night": city_at_night,
    "misty forest": misty_forest,
    "flower meadow": flower_meadow,
    "starry night": starry_night,
    "lighthouse": lighthouse,
    "volcano": volcano,
    "hot air balloon": hot_air_balloon,
    "lake in autumn": lake_in_autumn,
    "polar aurora": polar_aurora,
}
CLASSES = tuple(_PAINTERS)


def prompt(name: str) -> str:
    """The sentence that the embedded model was trained with for class ``name`` (the paper's ImageNet
    prompt)."""
    return PROMPT.format(name)


def render(name: str, seed: int, size: int = SIZE) -> np.ndarray:
    """Draw one scene.

    Args:
        name: one of `CLASSES`.
        seed: which member of the class; the same seed gives the same image.
        size: edge in pixels.

    Returns:
        uint8 RGB image ``[size, size, 3]``.

    Raises:
        ValueError: if ``name`` is not a class.
    """
    if name not in _PAINTERS:
        raise ValueError(f"name={name!r} is no scene class; the classes are {', '.join(CLASSES)}")
    canvas = Canvas(np.random.default_rng((CLASSES.index(name), seed)), size)
    _PAINTERS[name](canvas)
    return canvas.image()
