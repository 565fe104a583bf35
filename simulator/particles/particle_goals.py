"""The goal kinds that move a single particle. Their methods are described in goal_kind.GoalKind."""
import numpy as np

from simulator.particles.goal_kind import GoalKind, format_number
from simulator.particles.kernels import MAX_RADIUS


class OneParticle(GoalKind):
    """Base of the kinds that move particle `goal.ids[0]` to a target of its own."""
    moves_one_particle = True
    min_start_distance = 0.0      # fraction of W

    def progress(self, goal, now, start, size):
        return -np.linalg.norm(self.offset_to_target(goal, now), axis=-1)

    def is_reachable(self, goal, at, size):
        return np.linalg.norm(self.offset_to_target(goal, at)) > self.min_start_distance * min(size)


class MoveParticle(OneParticle):
    """Move one particle within bounds of x and y: `move_to(id=0, x>48, y<16)`."""
    expert_rank = 2
    min_start_distance = 0.42

    def parse_arguments(self, reader):
        reader.name("id", "region= or id=")
        return {"ids": (reader.particle_id(),), "bounds": reader.bounds()}

    def format_arguments(self, goal):
        bounds = ["xy"[axis] + side + format_number(limit) for axis, side, limit in goal.bounds]
        return [f"id={goal.ids[0]}", *bounds]

    def slots(self, goal):
        return [*("xy"[axis] + side + f"{limit:g}" for axis, side, limit in goal.bounds), f"particle {goal.ids[0]}"]

    def target(self, goal, start, size):
        return 0

    def is_reachable(self, goal, at, size):
        inside = all(limit + MAX_RADIUS < size[axis] if side == ">" else limit > MAX_RADIUS
                     for axis, side, limit in goal.bounds)
        return inside and super().is_reachable(goal, at, size)

    def offset_to_target(self, goal, at):
        position = at.position[:, goal.ids[0]]
        offset = np.zeros_like(position)
        for axis, side, limit in goal.bounds:
            gap = limit - position[:, axis]
            offset[:, axis] += np.maximum(0, gap) if side == ">" else np.minimum(0, gap)
        return offset


class MoveToward(OneParticle):
    """Move the first particle to at most 0.12 W from the second."""
    min_start_distance = 0.48

    def parse_arguments(self, reader):
        first = reader.particle_id()
        reader.expect(",", '","')
        return {"ids": (first, reader.particle_id([first]))}

    def format_arguments(self, goal):
        return list(map(str, goal.ids))

    def slots(self, goal):
        return [f"particle {goal.ids[0]}", f"to {goal.ids[1]}"]

    def target(self, goal, start, size):
        return -0.12 * min(size)

    def offset_to_target(self, goal, at):
        return at.position[:, goal.ids[1]] - at.position[:, goal.ids[0]]


MOVE_PARTICLE = MoveParticle()
