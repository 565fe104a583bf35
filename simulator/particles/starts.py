"""Start states: random states in which a plan's first goals are neither reached nor out of reach."""
import numpy as np

from simulator.particles.goal_kind import GoalKind, kind_of
from simulator.particles.grammar import GoalError, Plan
from simulator.particles.kernels import MAX_RADIUS, MIN_RADIUS
from simulator.particles.state_summary import StateSummary

MAX_TRIES = 1000            # draws for 8 particles before GoalError
MARGIN = 0.08               # distance of the particles from the walls, fraction of the environment
MIN_SPREAD = 0.06           # fraction of W
MAX_FILL = 0.4              # area of all particles, fraction of the environment
EXTENT = (0.12, 0.2)        # of the group, fraction of the environment
# A goal for some of the particles: in a wide group they are easier to tell apart.
WIDE_EXTENT = (0.16, 0.26)


def is_feasible_start(plan: Plan, at: StateSummary, size: np.ndarray) -> bool:
    """Return whether the plan's first goals are neither reached nor out of reach in the state of one environment."""
    return all(kind_of(goal).is_feasible_start(goal, at, size) for goal in plan.phases[0])


def sample_start_state(plan: Plan, rng: np.random.Generator, size: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    """Return a feasible start of a plan for one environment of `size` [2] px with n particles.

    Returns position [n,2], velocity [n,2], radius, mass, charge, temperature, conductivity [n], float64. Particles
    are at rest and do not overlap. Most starts are a loose group. GoalError if no start is found.
    """
    _check_ids(plan, n)
    kinds = [kind_of(goal) for goal in plan.phases[0]]
    radius = np.clip(rng.uniform(1.5, 3.0, n) * min(size) / 64, MIN_RADIUS, MAX_RADIUS)
    temperature = rng.uniform(*_start_temperature(kinds), n)
    extent = rng.uniform(*_start_extent(plan, kinds))
    position = _sample_positions(plan, rng, size, radius, temperature, extent)
    charge = rng.uniform(-0.6, 0.6, n) * (rng.random(n) < 0.75)      # a quarter is neutral
    mass = (radius * 64 / min(size) / 2) ** 2
    return position, np.zeros((n, 2)), radius, mass, charge, temperature, np.full(n, 0.1)


def _check_ids(plan: Plan, n: int) -> None:
    """Raise GoalError if the plan means a particle that does not exist."""
    largest = max((i for goal in plan.goals for i in goal.ids), default=0)
    if largest >= n:
        raise GoalError(f"{plan} means particle {largest}, and the environment has {n}, from 0 to {n - 1}: "
                        "give more particles, or a goal for these")


def _start_temperature(kinds: list[GoalKind]) -> tuple[float, float]:
    special = [kind.start_temperature for kind in kinds if kind.start_temperature != GoalKind.start_temperature]
    return (special or [GoalKind.start_temperature])[0]


def _start_extent(plan: Plan, kinds: list[GoalKind]) -> tuple[float, float]:
    default = WIDE_EXTENT if any(goal.ids for goal in plan.goals) else EXTENT
    return next((kind.start_extent for kind in kinds if kind.start_extent), default)


def _sample_positions(plan: Plan, rng: np.random.Generator, size: np.ndarray, radius: np.ndarray,
                      temperature: np.ndarray, extent: float) -> np.ndarray:
    """Return positions [n,2] of a feasible start; GoalError if none is found."""
    n = len(radius)
    directions = [direction for goal in plan.goals if (direction := kind_of(goal).start_direction(goal))]
    is_crowded = np.pi * (radius**2).sum() > MAX_FILL * size.prod()
    for _ in range(0 if is_crowded else max(MAX_TRIES * 8 // max(n, 8), 50)):
        center = rng.uniform(0.2, 0.8, 2)
        if directions:      # leave room in this direction, but do not start at the wall
            center = np.clip(center - 0.5 * np.array(directions[0]) * rng.uniform(0.3, 0.6), 0.2, 0.8)
        position = np.clip(rng.normal(center, extent, (n, 2)), MARGIN, 1 - MARGIN) * size
        position = _separate(position, radius, rng, size)
        at = _summarize(position, temperature)
        if at.spread[0] > MIN_SPREAD * min(size) and is_feasible_start(plan, at, size):
            return position
    raise GoalError(f"no start for {plan} found in an environment of {size[0]:.0f}x{size[1]:.0f} with {n} particles: "
                    "give fewer particles, at least two, a squarer environment, or a goal that fits into it")


def _summarize(position: np.ndarray, temperature: np.ndarray) -> StateSummary:
    """Return the StateSummary of one environment whose particles are at rest."""
    extent = position.std(0)
    spread = np.sqrt((extent**2).sum())
    return StateSummary(position.mean(0)[None], extent[None], spread[None], np.zeros(1), temperature.mean()[None],
                        position[None])


def _separate(position: np.ndarray, radius: np.ndarray, rng: np.random.Generator, size: np.ndarray) -> np.ndarray:
    """Move overlapping particles to free places nearby, and return the positions [n,2].

    A particle stays where it is after 50 tries; the physics then separates it.
    """
    for i in range(len(position)):
        for _ in range(50):
            gap = np.linalg.norm(position[:i] - position[i], axis=1) - radius[:i] - radius[i]
            if (gap > 0.5).all():
                break
            shifted = position[i] + rng.normal(0, 0.06 * min(size), 2)
            position[i] = np.clip(shifted, radius[i] + 1, size - radius[i] - 1)
    return position
