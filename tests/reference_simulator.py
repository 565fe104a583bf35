"""The same step of the particle environment, written plainly: one environment, particle by particle, nothing compiled.

It is the oracle of tests/test_simulator.py and what scripts/benchmark.py compares the speed with.
"""
import math
from types import SimpleNamespace

import numpy as np

from simulator.particles.kernels import HEAT_CAPACITY, MAX_SPEED, MAX_TEMPERATURE


class ReferenceWorld:
    """Environment b of a ParticleSimulator, copied; `step` advances the copy."""

    def __init__(self, simulator, b=0):
        fields = ("position", "velocity", "radius", "mass", "charge", "temperature", "conductivity")
        self.particles = [SimpleNamespace(**{name: getattr(simulator, name)[b, i].copy() for name in fields})
                          for i in range(simulator.count[b])]
        self.size = np.array([simulator.width, simulator.height])
        self.seed, self.time, self.physics = int(simulator.seed[b]), int(simulator.time[b]), simulator.physics

    def step(self, field=None):
        h = self.physics["dt"] / self.physics["substeps"]
        for _ in range(self.physics["substeps"]):
            contacts = self.interact(h)
            for particle in self.particles:
                if field is not None:
                    offset = particle.position - field[:2]
                    d = np.linalg.norm(offset)
                    if 1e-9 < d < field[3]:
                        particle.force += field[2] * (1 - d / field[3]) * offset / d
                gravity = np.array([0, self.physics["gravity_y"]])
                particle.velocity += (particle.force / particle.mass + gravity) * h
                particle.temperature += particle.heat / particle.mass
            for a, b, normal, depth in contacts:
                self.collide(a, b, normal, depth, h)
            for particle in self.particles:
                self.move(particle, h)
        for i, particle in enumerate(self.particles):
            noise = np.array([uniform(self.seed, self.time, i, axis) for axis in range(2)])
            particle.position += self.physics["vibration_scale"] * math.sqrt(particle.temperature) * noise
            particle.position = np.clip(particle.position, particle.radius, self.size - particle.radius)
        self.time += 1

    def interact(self, h):
        """Sums up each particle's force and heat; the contacts (a, b, normal, depth) in order."""
        p, contacts = self.physics, []
        for particle in self.particles:
            particle.force, particle.heat, particle.shift = np.zeros(2), 0.0, np.zeros(2)
        for i, a in enumerate(self.particles):
            for b in self.particles[i + 1:]:
                offset = a.position - b.position
                d = np.linalg.norm(offset)
                normal = offset / d if d > 1e-9 else np.array([1.0, 0.0])
                if d < p["em_force_radius"]:
                    force = p["em_force_strength"] * a.charge * b.charge / max(d, a.radius + b.radius)**2
                    force *= (1 - d / p["em_force_radius"]) * normal
                    a.force += force
                    b.force -= force
                if d < p["thermal_radiation_radius"]:
                    reduced = a.mass * b.mass / (a.mass + b.mass)
                    heat = p["thermal_radiation_rate"] * (1 - d / p["thermal_radiation_radius"]) * h * reduced
                    heat *= b.temperature - a.temperature
                    a.heat += heat
                    b.heat -= heat
                if d < a.radius + b.radius:
                    contacts.append((a, b, normal, a.radius + b.radius - d))
        return contacts

    def collide(self, a, b, normal, depth, h):
        reduced, restitution = a.mass * b.mass / (a.mass + b.mass), self.physics["restitution"]
        closing = np.dot(a.velocity - b.velocity, normal)
        if closing < 0:
            impulse = -(1 + restitution) * closing * reduced * normal
            a.velocity += impulse / a.mass
            b.velocity -= impulse / b.mass
            lost = 0.5 * reduced * closing**2 * (1 - restitution**2)
            a.temperature += lost / 2 / (HEAT_CAPACITY * a.mass)
            b.temperature += lost / 2 / (HEAT_CAPACITY * b.mass)
        rate = min(0.5, (a.conductivity + b.conductivity) / 2 * self.physics["thermal_conduction"] * h)
        heat = rate * reduced * (b.temperature - a.temperature)
        a.temperature += heat / a.mass
        b.temperature -= heat / b.mass
        a.shift += depth * reduced / a.mass * normal
        b.shift -= depth * reduced / b.mass * normal

    def move(self, particle, h):
        speed = np.linalg.norm(particle.velocity)
        particle.velocity *= min(1, MAX_SPEED / max(speed, 1e-300))
        position = particle.position + particle.velocity * h + particle.shift
        low, high = particle.radius, self.size - particle.radius
        outwards = (position < low) & (particle.velocity < 0) | (position > high) & (particle.velocity > 0)
        particle.velocity[outwards] *= -self.physics["restitution"]
        particle.position = np.clip(position, low, high)
        cooled = particle.temperature * math.exp(-self.physics["heat_dissipation"] * h)
        particle.temperature = np.clip(cooled, 0, MAX_TEMPERATURE)


def uniform(seed, time, particle, axis):
    """A hash of its arguments, in [-1, 1)."""
    z = (seed + time * 0x9E3779B97F4A7C15 + (2 * particle + axis) * 0xD1342543DE82EF95) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return ((z ^ (z >> 31)) >> 11) * 2.0**-52 - 1.0
