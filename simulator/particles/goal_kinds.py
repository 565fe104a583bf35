"""The goal kinds that ship with the package, one class each. Their methods are described in goal_kind.GoalKind.

W is the shorter side of the environment, 64 px by default. All quantities are means over each environment's
particles: the spread is the root mean square distance from the centroid.
"""
import numpy as np

from simulator.particles.goal_kind import PULL, PUSH, SPEED, GoalKind, dispersion, format_number, register_goal
from simulator.particles.kernels import MAX_TEMPERATURE
from simulator.particles.particle_goals import MOVE_PARTICLE, MoveToward

DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}   # y points down
REGIONS = {"center": (0.5, 0.5), "top_left": (0.22, 0.22), "top_right": (0.78, 0.22),
           "bottom_left": (0.22, 0.78), "bottom_right": (0.78, 0.78)}
AXES = {"horizontal": 0, "vertical": 1}

LOOKAHEAD_DIRECTION = 28.0      # distance from the centroid to the point of a pull in a direction, px
LOOKAHEAD_REGION = 16.0         # distance from the centroid to the point of a pull to a region, px
PUSH_FROM = 40.0                # distance from the centroid to the point of a push to a wall, px


@register_goal("push")
class Push(GoalKind):
    """Move the centroid by `distance` px (0.22 W), at most a fifth of it sideways."""
    argument, values = "direction", tuple(DIRECTIONS)
    reward_bound = 0.5
    max_start_spread = 0.35

    def parse_arguments(self, reader):
        fields = super().parse_arguments(reader)
        if reader.peek(","):
            reader.expect(",", '","')
            reader.name("distance")
            fields["amount"] = reader.number(1, 1000)
        return fields

    def format_arguments(self, goal):
        distance = [] if goal.amount is None else [f"distance={format_number(goal.amount)}"]
        return super().format_arguments(goal) + distance

    def slots(self, goal):
        distance = [] if goal.amount is None else [f"distance={goal.amount:g}"]
        return super().slots(goal) + distance

    def progress(self, goal, now, start, size):
        return (now.centroid - start.centroid) @ np.array(DIRECTIONS[goal.argument])

    def target(self, goal, start, size):
        return goal.amount or 0.22 * min(size)

    def is_success(self, goal, now, start, size):
        sideways = np.abs((now.centroid - start.centroid) @ np.array(DIRECTIONS[goal.argument])[::-1])
        return super().is_success(goal, now, start, size) & (sideways <= 0.2 * self.target(goal, start, size))

    def is_reachable(self, goal, at, size):
        direction = np.array(DIRECTIONS[goal.argument])
        room = np.where(direction > 0, size - at.centroid[0], at.centroid[0]) @ np.abs(direction)
        return room > self.target(goal, at, size) + 0.1 * min(size)

    def start_direction(self, goal):
        return DIRECTIONS[goal.argument]

    def target_velocity(self, goal, position, current, initial, size):
        direction, sideways = self._sideways(goal, current, initial)
        gather = (current.centroid[:, None] - position) / 40
        return SPEED * direction - 0.2 * sideways[:, None] + gather

    def action_point(self, goal, current, initial, size):
        direction, sideways = self._sideways(goal, current, initial)
        heading = direction - 0.1 * sideways
        return current.centroid + LOOKAHEAD_DIRECTION * heading / np.linalg.norm(heading, axis=-1, keepdims=True), PULL

    def _sideways(self, goal, current, initial):
        """Return the direction [2], and the sideways part [B,2] of the way so far."""
        direction = np.array(DIRECTIONS[goal.argument])
        moved = current.centroid - initial.centroid
        return direction, moved - (moved @ direction)[:, None] * direction


@register_goal("cluster")
class Cluster(GoalKind):
    """Reduce the spread to 0.6 of that at the start; with ids, the spread of these particles to 0.36."""
    expert_rank = 3

    def parse_arguments(self, reader):
        return {} if reader.peek(r"\)") else {"ids": reader.id_list()}

    def format_arguments(self, goal):
        return [f"ids=[{','.join(map(str, goal.ids))}]"] if goal.ids else []

    def slots(self, goal):
        return [f"particle {i}" for i in goal.ids]

    def progress(self, goal, now, start, size):
        return -dispersion(goal, now)

    def target(self, goal, start, size):
        return -(0.36 if goal.ids else 0.6) * dispersion(goal, start)

    def is_reachable(self, goal, at, size):
        return dispersion(goal, at)[0] > (0.26 if goal.ids else 0.18) * min(size)

    def target_velocity(self, goal, position, current, initial, size):
        velocity = (self._center(goal, current)[:, None] - position) / 8
        if goal.ids:
            velocity[:, np.setdiff1d(np.arange(velocity.shape[1]), goal.ids)] = np.nan
        return velocity

    def action_point(self, goal, current, initial, size):
        return self._center(goal, current), PULL

    def handover_target(self, goal, initial, size, radius):
        return -1.75 * np.sqrt((radius**2).sum(1))

    def _center(self, goal, at):
        """Return the centroid [B,2] of the goal's particles."""
        return at.position[:, list(goal.ids)].mean(1) if goal.ids else at.centroid


@register_goal("spread")
class Spread(GoalKind):
    """Increase the spread to 0.42 W."""
    start_extent = (0.07, 0.09)
    expert_rank = 4

    def progress(self, goal, now, start, size):
        return now.spread

    def target(self, goal, start, size):
        return 0.42 * min(size)

    def is_reachable(self, goal, at, size):
        return at.spread[0] < 0.16 * min(size)

    def target_velocity(self, goal, position, current, initial, size):
        return -((current.centroid[:, None] - position) / 6)

    def action_point(self, goal, current, initial, size):
        return current.centroid, PUSH

    def handover_target(self, goal, initial, size, radius):
        return np.maximum(self.target(goal, initial, size), 0.28 * min(size))


class Temperature(GoalKind):
    """Base of heat and cool: `to` a mean temperature, or `by` a difference."""
    reward_scale = 0.1

    def parse_arguments(self, reader):
        if reader.peek(r"\)"):
            return {}
        argument = reader.choice(("to", "by"))
        reader.expect("=", '"="')
        return {"argument": argument, "amount": reader.number(0 if argument == "to" else 0.1, MAX_TEMPERATURE)}

    def format_arguments(self, goal):
        return [f"{goal.argument}={format_number(goal.amount)}"] if goal.argument else []

    def slots(self, goal):
        return [f"{goal.argument}={goal.amount:g}"] if goal.argument else []

    def action_point(self, goal, current, initial, size):
        return current.centroid, PUSH


@register_goal("heat")
class Heat(Temperature):
    """Raise the mean temperature to `to`, or by `by` (3)."""
    expert_rank = 0
    heat_strength = 2.0

    def progress(self, goal, now, start, size):
        return now.temperature

    def target(self, goal, start, size):
        return goal.amount if goal.argument == "to" else start.temperature + (goal.amount or 3)

    def is_reachable(self, goal, at, size):
        return goal.argument == "to" or self.target(goal, at, size)[0] < 0.9 * MAX_TEMPERATURE

    def handover_target(self, goal, initial, size, radius):
        return np.maximum(self.target(goal, initial, size), 4.5)


@register_goal("cool")
class Cool(Temperature):
    """Lower the mean temperature to `to`, or by `by`, or to a fifth of that at the start."""
    start_temperature = (3.0, 6.0)
    expert_rank = 1
    heat_strength = -2.0

    def progress(self, goal, now, start, size):
        return -now.temperature

    def target(self, goal, start, size):
        if goal.argument == "to":
            return -goal.amount
        return goal.amount - start.temperature if goal.argument == "by" else -0.2 * start.temperature

    def is_reachable(self, goal, at, size):
        lowest = {"to": -1, "by": goal.amount, None: 1}[goal.argument]
        return at.temperature[0] > lowest

    def handover_target(self, goal, initial, size, radius):
        return np.maximum(self.target(goal, initial, size), -0.4)


@register_goal("vibrate")
class Vibrate(GoalKind):
    """Raise the speed to 2.5 px/step on the spot: centroid within 0.08 W, spread within 1.5 times its start.

    The speed itself is rewarded, not its increase. The reward is small: a larger one would make it pay to shake
    just below the target for the rest of the episode.
    """
    reward_scale = 0.01
    max_speed = 3 * SPEED
    max_strength = 5.0          # one kick at the centre suffices, before the group has spread

    def progress(self, goal, now, start, size):
        return now.speed

    def target(self, goal, start, size):
        return 2.5

    def is_success(self, goal, now, start, size):
        moved = np.linalg.norm(now.centroid - start.centroid, axis=-1)
        in_place = (moved <= 0.08 * min(size)) & (now.spread <= 1.5 * start.spread)
        return super().is_success(goal, now, start, size) & in_place

    def reward(self, goal, now, before, start, size):
        return self.clip_reward(np.minimum(self.progress(goal, now, start, size), self.target(goal, start, size)))

    def target_velocity(self, goal, position, current, initial, size):
        outwards = np.where(current.spread < 1.3 * initial.spread, -1.0, 1.0)
        return outwards[:, None, None] * ((current.centroid[:, None] - position) / 2)

    def action_point(self, goal, current, initial, size):
        return current.centroid, PUSH


@register_goal("move_to")
class MoveToRegion(GoalKind):
    """Move the centroid to within 0.06 W of the centre, or 0.1 W of a point 0.22 W from both walls of a corner.

    `move_to(id=...)` is a form of its own: particle_goals.MoveParticle.
    """
    argument, values = "region", tuple(REGIONS)
    max_start_spread = 0.35
    expert_rank = 2

    def variant(self, goal):
        return MOVE_PARTICLE if goal.ids else self

    def parse_arguments(self, reader):
        return super().parse_arguments(reader) if reader.peek(r"region\b") else MOVE_PARTICLE.parse_arguments(reader)

    def progress(self, goal, now, start, size):
        return -np.linalg.norm(self._offset(goal, now, size), axis=-1)

    def target(self, goal, start, size):
        return -(0.06 if goal.argument == "center" else 0.1) * min(size)

    def is_reachable(self, goal, at, size):
        distance = np.linalg.norm(self._offset(goal, at, size)[0])
        return distance > (0.33 if goal.argument == "center" else 0.3) * min(size)

    def target_velocity(self, goal, position, current, initial, size):
        offset = self._offset(goal, current, size)[:, None]
        slowdown = np.minimum(1, 8 * SPEED / np.linalg.norm(offset, axis=-1, keepdims=True))
        return offset / 8 * slowdown + (current.centroid[:, None] - position) / 20

    def action_point(self, goal, current, initial, size):
        offset = self._offset(goal, current, size)
        distance = np.linalg.norm(offset, axis=-1, keepdims=True)
        return current.centroid + offset / distance * np.minimum(LOOKAHEAD_REGION, distance + 4), PULL

    def _offset(self, goal, at, size):
        """Return the way [B,2] from the centroid to the region."""
        return np.array(REGIONS[goal.argument]) * size - at.centroid


register_goal("move_toward")(MoveToward)


@register_goal("align")
class Align(GoalKind):
    """Reduce the extent across the line to 0.07 W, with at least twice as much along it."""
    argument, values = "axis", tuple(AXES)
    max_start_spread = 0.35
    max_speed = 2 * SPEED

    def progress(self, goal, now, start, size):
        return -now.extent[:, 1 - AXES[goal.argument]]

    def target(self, goal, start, size):
        return -0.07 * min(size)

    def is_success(self, goal, now, start, size):
        is_line = now.extent[:, AXES[goal.argument]] >= -2 * self.progress(goal, now, start, size)
        return super().is_success(goal, now, start, size) & is_line

    def is_reachable(self, goal, at, size):
        along = at.extent[0, AXES[goal.argument]]
        across = at.extent[0, 1 - AXES[goal.argument]]
        return along > across > 0.12 * min(size)

    def target_velocity(self, goal, position, current, initial, size):
        """Sweep the particles against the nearer wall, and a little apart along it."""
        along, across = AXES[goal.argument], 1 - AXES[goal.argument]
        wall = self._nearer_wall(goal, current, size)
        missing_length = 3 * current.extent[:, across] + 4 - current.extent[:, along]
        apart = -((current.centroid[:, None] - position) / 16)
        velocity = apart * np.clip(missing_length / 10, 0, 1)[:, None, None]
        velocity[..., across] = (wall[:, None] - position[..., across]) / 4
        return velocity

    def action_point(self, goal, current, initial, size):
        point, across = current.centroid.copy(), 1 - AXES[goal.argument]
        point[:, across] -= np.where(self._nearer_wall(goal, current, size) > 0, PUSH_FROM, -PUSH_FROM)
        return point, PUSH

    def _nearer_wall(self, goal, at, size):
        """Return the coordinate [B] of the nearer wall across the line."""
        across = 1 - AXES[goal.argument]
        return np.where(at.centroid[:, across] > size[across] / 2, size[across], 0.0)
