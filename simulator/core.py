"""ParticleSimulator: many 2-D particle worlds at once. State as arrays; the physics in kernels.py.

One step of length dt, in `substeps`; each substep of length h:
 1. from its start positions, over all pairs: a Coulomb-like force k q_i q_j / max(d, r_i + r_j)^2 (1 - d / em_radius)
    within em_radius (like charges repel), radiation of heat between near ones, a list of contacts;
 2. velocities take up forces, gravity and the action's field;
 3. contacts one after the other: impulse with restitution, the lost kinetic energy becomes heat of both, touching
    particles conduct heat, overlaps are pushed apart;
 4. positions move; walls reflect with restitution; heat is lost to the surroundings.
After the last substep, temperature shakes the positions.

Legend: B worlds, N particles a world can hold, H W image. Lengths in px, times in steps.
"""
import difflib

import numpy as np

from simulator import kernels
from simulator.kernels import MAX_RADIUS

PHYSICS = {
    "gravity_y": 0.0,                     # px/step^2, downwards
    "restitution": 0.8,                   # speed kept in a collision, share
    "em_force_strength": 5.0,             # force between unit charges at 1 px
    "em_force_radius": 15.0,              # px
    "substeps": 3,
    "dt": 1.0,                            # length of a step
    "vibration_scale": 0.5,               # px per square root of temperature
    "heat_dissipation": 0.02,             # share of the temperature lost per step
    "thermal_radiation_rate": 0.01,       # per step
    "thermal_radiation_radius": 10.0,     # px
    "thermal_conduction": 1.0,            # times the mean conductivity of two touching particles, per step
}
_VECTOR = ("gravity_y", "restitution", "em_force_strength", "em_force_radius", "dt", "vibration_scale",
           "heat_dissipation", "thermal_radiation_rate", "thermal_radiation_radius", "thermal_conduction")
# (English, Korean, RGB): the colour of particle i is PALETTE[i % 8]
PALETTE = (("red", "빨간", (230, 50, 60)), ("green", "초록", (50, 190, 80)), ("blue", "파란", (60, 110, 250)),
           ("yellow", "노란", (245, 220, 60)), ("purple", "보라", (170, 80, 220)), ("cyan", "하늘", (70, 210, 230)),
           ("pink", "분홍", (250, 150, 190)), ("brown", "갈색", (150, 95, 50)))
BACKGROUND = np.array([16, 16, 20], np.int64)
_COLOURS = np.array([colour for *_, colour in PALETTE], np.int64)


class ParticleSimulator:
    """B worlds of up to N particles. `physics` overrides entries of PHYSICS.

    Public state, C-contiguous float64 unless said: `position` [B,N,2] within the walls, `velocity` [B,N,2] up to 10
    px/step, `radius` [B,N] 1..5, `mass` [B,N] 0.1..10, `charge` [B,N] -5..5, `temperature` [B,N] 0..10,
    `conductivity` [B,N] 0..1; `count` int64 [B] (particles 0..count-1 exist; none is ever removed), `seed` uint64 [B]
    and `time` int64 [B], which with the state determine the noise. ValueError for settings out of range.
    """
    STATE = ("position", "velocity", "radius", "mass", "charge", "temperature", "conductivity", "count", "seed", "time")

    def __init__(self, batch_size=1, max_particles=50, width=64, height=64, physics=None):
        physics = dict(physics or {})
        for key in physics:
            if key not in PHYSICS:
                near = difflib.get_close_matches(key, PHYSICS, 1, 0)[0]
                raise ValueError(f"unknown physics setting {key!r}: did you mean {near!r}?")
        if batch_size < 1 or max_particles < 1 or min(width, height) < 3 * MAX_RADIUS:
            raise ValueError(f"a world needs at least one particle and sides of {3 * MAX_RADIUS:.0f} px or more")
        self.physics = PHYSICS | physics
        self.width, self.height, self.batch_size, self.max_particles = width, height, batch_size, max_particles
        for name in ("radius", "mass", "charge", "temperature", "conductivity"):
            setattr(self, name, np.zeros((batch_size, max_particles)))
        self.position, self.velocity = np.zeros((2, batch_size, max_particles, 2))
        self.count, self.time = np.zeros((2, batch_size), np.int64)
        self.seed = np.zeros(batch_size, np.uint64)
        self._size = np.array([width, height], float)
        self._vector = np.array([self.physics[name] for name in _VECTOR], float)
        self._everyone, self._calm = np.arange(batch_size), np.zeros((batch_size, 4))

    def clear(self, worlds, seeds):
        """Empties the named worlds and gives them new seeds."""
        for name in self.STATE:
            getattr(self, name)[worlds] = 0
        self.seed[worlds] = seeds

    def step(self, field=None, worlds=None):
        """Advances all worlds (or the named ones) by dt. `field` float64 [B,4]: x, y, strength, radius of a
        repulsion that acts during this step; strength 0 is none."""
        kernels.step(self._everyone if worlds is None else worlds, self.count, self.position, self.velocity,
                     self.radius, self.mass, self.charge, self.temperature, self.conductivity, self.seed, self.time,
                     self._calm if field is None else field, self._vector, int(self.physics["substeps"]), self._size)

    def render(self, scale=1, worlds=None):
        """Pictures uint8 [B,H*scale,W*scale,3]. A particle's body has its own colour (PALETTE), a white or black core
        shows its charge, an orange halo its temperature, a grey trail where it comes from. Hard-edged at scale 1,
        anti-aliased (three samples a pixel and axis) at larger scales."""
        worlds = self._everyone if worlds is None else np.asarray(worlds)
        fine = scale if scale == 1 else 3 * scale
        images = np.empty((len(worlds), self.height * fine, self.width * fine, 3), np.uint8)
        kernels.draw(worlds, images, float(fine), self.count, self.position, self.velocity, self.radius, self.charge,
                     self.temperature, _COLOURS, BACKGROUND)
        if scale > 1:
            shape = (len(worlds), self.height * scale, 3, self.width * scale, 3, 3)
            images = images.reshape(shape).mean((2, 4)).round().astype(np.uint8)
        return images
