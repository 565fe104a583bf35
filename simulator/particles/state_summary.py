"""StateSummary: the statistics of particle states that goals are measured on."""
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass
class StateSummary:
    """Statistics of B environments, float64, over the particles that existed at the start of the episode.

    centroid     [B,2]   px
    extent       [B,2]   standard deviation of x and of y, px
    spread       [B]     root mean square distance from the centroid, px
    speed        [B]     root mean square velocity relative to the centroid's, px/step
    temperature  [B]     mean temperature
    position     [B,N,2] px
    """
    centroid: np.ndarray
    extent: np.ndarray
    spread: np.ndarray
    speed: np.ndarray
    temperature: np.ndarray
    position: np.ndarray

    @classmethod
    def from_sim(cls, sim: Any, count: np.ndarray, envs: Any = slice(None)) -> Self:
        """Return the summary of the first `count[b]` particles of each selected environment of a ParticleSimulator."""
        position, velocity = sim.position[envs], sim.velocity[envs]
        count = count[envs]
        limit = int(count.max(initial=1))
        weight = (np.arange(limit) < count[:, None]) / count[:, None]     # [B,N], sums to 1

        def mean(values: np.ndarray) -> np.ndarray:
            return np.einsum("bn,bn...->b...", weight, values[:, :limit])

        centroid = mean(position)
        group_velocity = mean(velocity)
        extent = np.sqrt(mean((position - centroid[:, None]) ** 2))
        speed = np.sqrt(mean((velocity - group_velocity[:, None]) ** 2).sum(-1))
        spread = np.sqrt((extent**2).sum(-1))
        temperature = mean(sim.temperature[envs])
        return cls(centroid, extent, spread, speed, temperature, position[:, :limit].copy())

    def __getitem__(self, envs: Any) -> "StateSummary":
        return StateSummary(*(getattr(self, name)[envs] for name in self.__dataclass_fields__))

    def __setitem__(self, envs: Any, other: "StateSummary") -> None:
        for name in self.__dataclass_fields__:
            getattr(self, name)[envs] = getattr(other, name)
