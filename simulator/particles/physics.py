"""ParticleSimulator: many 2-D particle environments at once. The state is in arrays, the physics in kernels.py.

One step of length dt, in `substeps`; each substep of length h:
 1. from its start positions, over all pairs: a Coulomb-like force k q_i q_j / max(d, r_i + r_j)^2 (1 - d / R)
    within R = em_force_radius (like charges repel), radiation of heat between near particles, a list of contacts;
 2. velocities take up forces, gravity and the action's field;
 3. contacts one after the other: impulse with restitution, the lost kinetic energy becomes heat of both,
    touching particles conduct heat, overlaps are pushed apart;
 4. positions move; walls reflect with restitution; heat is lost to the surroundings.
After the last substep, temperature shakes the positions.

Legend: B environments, N particles that one can hold, H W image. Lengths in px, times in steps.
"""
import difflib
import itertools
from collections import namedtuple

import numpy as np

from simulator.particles import draw_kernels, kernels
from simulator.particles.kernels import MAX_RADIUS

PHYSICS = {
    "gravity_y": 0.0,                     # px/step^2, downwards
    "restitution": 0.8,                   # fraction of the speed kept in a collision
    "em_force_strength": 5.0,             # force between unit charges at 1 px
    "em_force_radius": 15.0,              # px
    "substeps": 3,
    "dt": 1.0,                            # length of a step
    "vibration_scale": 0.5,               # px per square root of temperature
    "heat_dissipation": 0.02,             # fraction of the temperature lost per step
    "thermal_radiation_rate": 0.01,       # per step
    "thermal_radiation_radius": 10.0,     # px
    "thermal_conduction": 1.0,            # times the mean conductivity of two touching particles, per step
}
# (English, Korean, RGB): the colour of particle i is PALETTE[i % 8]
PALETTE = (("red", "빨간", (230, 50, 60)), ("green", "초록", (50, 190, 80)),
           ("blue", "파란", (60, 110, 250)), ("yellow", "노란", (245, 220, 60)),
           ("purple", "보라", (170, 80, 220)), ("cyan", "하늘", (70, 210, 230)),
           ("pink", "분홍", (250, 150, 190)), ("brown", "갈색", (150, 95, 50)))
BACKGROUND = (16, 16, 20)
SAMPLES = 3         # per pixel and axis of an anti-aliased image
_HALO = np.linspace(BACKGROUND, (255, 130, 0), draw_kernels.HALOS)
_COLOURS = np.array([*_HALO, *(rgb for *_, rgb in PALETTE), (255, 255, 255), (0, 0, 0)], np.uint8)
_STRIP_WORDS = [np.tile(np.roll(_COLOURS, -i, 1), 3)[:, :8] for i in range(3)]      # RGBRGBRG, GBRGBRGB, BRGBRGBR
_COLOR_WORDS = np.concatenate([np.ascontiguousarray(strip).view(np.uint64) for strip in _STRIP_WORDS], 1)
# bounds of the settings whose bounds are not 0 and any finite number
_MIN = {"gravity_y": -100, "substeps": 1, "dt": 0.01,
        "em_force_radius": 1e-6, "thermal_radiation_radius": 1e-6}
_MAX = {"gravity_y": 100, "substeps": 1000, "dt": 100, "restitution": 1}
_Settings = namedtuple("_Settings", [*PHYSICS, "h", "cooling", "reach"])


class ParticleSimulator:
    """B environments of up to N particles. `physics` overrides entries of PHYSICS.

    Public state, C-contiguous float64 unless noted; callers write start states into these arrays:
    `position` [B,N,2] px, inside the walls, `velocity` [B,N,2] up to 10 px/step, `radius` [B,N] 1..5 px,
    `mass` [B,N] 0.1..10, `charge` [B,N] -5..5, `temperature` [B,N] 0..10, `conductivity` [B,N] 0..1,
    `count` int64 [B] (particles 0..count-1 exist; none is ever removed), `seed` uint64 [B] and `time` int64
    [B] (steps since `clear`), which determine the noise. ValueError for settings out of range.
    """
    STATE = ("position", "velocity", "radius", "mass", "charge", "temperature", "conductivity", "count",
             "seed", "time")

    def __init__(self, batch_size: int = 1, max_particles: int = 50, width: int = 64, height: int = 64,
                 physics: dict[str, float] | None = None) -> None:
        physics = dict(physics or {})
        for key in physics:
            if key not in PHYSICS:
                near = difflib.get_close_matches(key, PHYSICS, 1, 0)[0]
                raise ValueError(f"unknown physics setting {key!r}: did you mean {near!r}?")
        self.physics = PHYSICS | physics
        for key, value in self.physics.items():
            if not _MIN.get(key, 0) <= value <= _MAX.get(key, np.finfo(float).max):
                raise ValueError(f"physics setting {key} is out of range: {value}")
        if batch_size < 1 or max_particles < 1 or min(width, height) < 3 * MAX_RADIUS:
            raise ValueError(f"an environment requires a particle and sides of {3 * MAX_RADIUS:.0f} px or more")
        self.batch_size, self.max_particles = batch_size, max_particles
        self.width, self.height = width, height
        for name in ("radius", "mass", "charge", "temperature", "conductivity"):
            setattr(self, name, np.zeros((batch_size, max_particles)))
        self.position, self.velocity = np.zeros((2, batch_size, max_particles, 2))
        self.count, self.time = np.zeros((2, batch_size), np.int64)
        self.seed = np.zeros(batch_size, np.uint64)
        self._size = (float(width), float(height))
        p = {name: int(value) if name == "substeps" else float(value) for name, value in self.physics.items()}
        h = p["dt"] / p["substeps"]
        reach = max(p["em_force_radius"], p["thermal_radiation_radius"], 2 * MAX_RADIUS)
        self._settings = _Settings(**p, h=h, cooling=float(np.exp(-p["heat_dissipation"] * h)), reach=reach)
        self._large = True if max_particles > kernels.CELL_LIST_ABOVE else None
        self._all_envs, self._no_field = np.arange(batch_size), np.zeros((batch_size, 4))

    def clear(self, envs: np.ndarray | slice, seeds: np.ndarray | int) -> None:
        """Empty the selected environments and give them new seeds."""
        for name in self.STATE:
            getattr(self, name)[envs] = 0
        self.seed[envs] = seeds

    def step(self, field: np.ndarray | None = None, envs: np.ndarray | None = None) -> None:
        """Advance all environments, or the selected ones, by dt.

        `field` float64 [B,4] is x, y, strength and radius of a repulsion during this step; strength 0 is none.
        """
        envs = self._all_envs if envs is None else np.asarray(envs)
        field = self._no_field if field is None else field
        kernels.step(envs, self._state(), field, self._settings, self._size, self._large)

    def _state(self) -> tuple[np.ndarray, ...]:
        return tuple(getattr(self, name) for name in self.STATE)

    def render(self, scale: int = 1, envs: np.ndarray | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Return images uint8 [B,H*scale,W*scale,3] of all environments, or the selected ones, in `out` if given.

        A particle's body has its own colour (PALETTE). A white (+) or black (-) core shows its charge, an orange halo
        its temperature, three grey dots behind it the direction of its motion. Images are hard-edged at scale 1 and
        anti-aliased at larger scales.
        """
        envs = self._all_envs if envs is None else np.asarray(envs)
        shape = (len(envs), self.height * scale, self.width * scale, 3)
        out = np.empty(shape, np.uint8) if out is None else out
        if scale == 1:
            draw_kernels.draw(envs, out, 1, self._size, self._state(), _COLOR_WORDS)
            return out
        fine = scale * SAMPLES
        images = np.empty((len(envs), self.height * fine, self.width * fine, 3), np.uint8)
        draw_kernels.draw(envs, images, fine, self._size, self._state(), _COLOR_WORDS)
        offsets = itertools.product(range(SAMPLES), repeat=2)
        parts = (images[:, row::SAMPLES, column::SAMPLES] for row, column in offsets)
        out[:] = sum(part.astype(np.uint16) for part in parts) // SAMPLES**2
        return out
