"""The compiled inner loops of the particle simulation, for many environments at once.

Legend: B environments, N particles (capacity), n particles of one environment, H W image. `state` is the tuple of
arrays that ParticleSimulator.STATE names, `p` the settings as a named tuple, `size` the (width, height) in px.

A trajectory is a function of an environment's seed and the actions alone. One thread advances an environment from its
own state, and its noise is a hash of (seed, time, particle, axis). So neither batch size nor threads matter.
"""
import math
import os
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from itertools import pairwise

import numba
import numpy as np

MAX_SPEED = 10.0                                # px per step
MAX_TEMPERATURE, MAX_CHARGE = 10.0, 5.0         # temperature from 0, charge of either sign
MIN_RADIUS, MAX_RADIUS = 1.0, 5.0               # px
MIN_MASS, MAX_MASS = 0.1, 10.0
HEAT_CAPACITY = 5.0     # heat = HEAT_CAPACITY * mass * temperature, in the unit of kinetic energy
CELL_LIST_ABOVE = 96         # with more particles than this, a cell list finds the neighbours
THREADS = numba.config.NUMBA_NUM_THREADS    # cores, or the value of the environment variable of this name
ENVS_PER_THREAD = 128     # at least: with fewer, starting a thread costs more than it saves


class ActionType(IntEnum):
    NOOP = 0
    ADD_PARTICLE = 1
    SET_PROPERTY = 2
    APPLY_HEAT = 3
    APPLY_FORCE = 4
    APPLY_ATTRACTION = 5
    APPLY_REPULSION = 6
    STEP = 7


class PropertyType(IntEnum):
    POSITION_X = 0
    POSITION_Y = 1
    VELOCITY_X = 2
    VELOCITY_Y = 3
    CHARGE = 4
    MASS = 5
    RADIUS = 6
    TEMPERATURE = 7


class ActionStatus(IntEnum):
    """The result of an action. With NO_TARGET, WORLD_FULL and NOT_FINITE the simulation only steps."""
    OK = 0
    CLIPPED = 1
    NOT_FINITE = 2
    NO_TARGET = 3
    WORLD_FULL = 4


# plain integers for the compiled code
NOOP, ADD_PARTICLE, SET_PROPERTY, APPLY_HEAT = map(int, list(ActionType)[:4])
APPLY_FORCE, APPLY_ATTRACTION, APPLY_REPULSION, STEP = map(int, list(ActionType)[4:])
OK, CLIPPED, NOT_FINITE, NO_TARGET, WORLD_FULL = map(int, ActionStatus)

jit = numba.njit(cache=True, nogil=True)
_inline = numba.njit(inline="always")
_GOLDEN, _OTHER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1342543DE82EF95)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_11, _27, _30, _31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


@_inline
def _uniform(seed, time, particle, axis):
    """Return a number in [-1, 1), a hash of the arguments (finaliser of splitmix64; Steele et al. 2014)."""
    z = seed + np.uint64(time) * _GOLDEN + np.uint64(2 * particle + axis) * _OTHER
    z = (z ^ (z >> _30)) * _MIX1
    z = (z ^ (z >> _27)) * _MIX2
    return np.int64((z ^ (z >> _31)) >> _11) * (2.0 / 9007199254740992.0) - 1.0


@_inline
def _clip(x, low, high):
    return min(high, max(low, x))


@_inline
def _speed_limit(vx, vy):
    """Return the factor that brings a velocity within MAX_SPEED."""
    speed2 = vx * vx + vy * vy
    return MAX_SPEED / math.sqrt(speed2) if speed2 > MAX_SPEED * MAX_SPEED else 1.0


@jit
def _sort_into_cells(b, n, position, order, first, cell, columns, rows, size):
    """Sort particles into cells by counting: cell c holds order[first[c]:first[c + 1]], by increasing index."""
    for i in range(n):
        column = min(columns - 1, int(position[b, i, 0] / size[0] * columns))
        row = min(rows - 1, int(position[b, i, 1] / size[1] * rows))
        cell[i] = row * columns + column
        first[cell[i]] += 1
    for c in range(1, len(first)):
        first[c] += first[c - 1]
    for i in range(n - 1, -1, -1):     # backwards, so that first[c] ends at the start of its cell
        first[cell[i]] -= 1
        order[first[cell[i]]] = i


@_inline
def _interact(b, n, position, radius, charge, temperature, inverse_mass, fx, fy, heat_gain, contacts, p, size,
              large):
    """Add up the forces and the radiation between all pairs i < j; return the number of contacts.

    With many particles a cell list finds the pairs. Touching pairs are written to `contacts` as i * n + j, in
    lexicographic order.
    """
    found, cells, columns, rows = 0, False, 1, 1
    order = cell = first = contacts      # only for the type, if there is no cell list
    if large is not None and n > CELL_LIST_ABOVE:
        cells, columns, rows = True, max(1, int(size[0] / p.reach)), max(1, int(size[1] / p.reach))
        order, cell = np.empty(n, np.int64), np.empty(n, np.int64)
        first = np.zeros(columns * rows + 1, np.int64)
        _sort_into_cells(b, n, position, order, first, cell, columns, rows, size)
    top, bottom, left, right = 0, 1, 0, 0
    for i in range(n):
        x, y, before = position[b, i, 0], position[b, i, 1], found
        if cells:
            row, column = cell[i] // columns, cell[i] % columns
            top, bottom = max(0, row - 1), min(rows, row + 2)
            left, right = max(0, column - 1), min(columns, column + 2)
        for r in range(top, bottom):
            low, high = (first[r * columns + left], first[r * columns + right]) if cells else (i + 1, n)
            for k in range(low, high):
                j = order[k] if cells else k
                dx, dy = x - position[b, j, 0], y - position[b, j, 1]
                d2 = dx * dx + dy * dy
                if d2 >= p.reach * p.reach or j <= i:
                    continue
                d, touching = math.sqrt(d2), radius[b, i] + radius[b, j]
                if d < 1e-9:      # two in one place: any direction, but always the same
                    dx, dy, d = 1e-9, 0.0, 1e-9
                if d < p.em_force_radius:
                    near = max(d, touching)
                    f = (p.em_force_strength * charge[b, i] * charge[b, j] * (1.0 - d / p.em_force_radius)
                         / (near * near * d))
                    fx[i] += f * dx
                    fy[i] += f * dy
                    fx[j] -= f * dx
                    fy[j] -= f * dy
                if d < p.thermal_radiation_radius:
                    q = (p.thermal_radiation_rate * p.h * (1.0 - d / p.thermal_radiation_radius)
                         * (temperature[b, j] - temperature[b, i]) / (inverse_mass[i] + inverse_mass[j]))
                    heat_gain[i] += q * inverse_mass[i]
                    heat_gain[j] -= q * inverse_mass[j]
                if d < touching and found < len(contacts):
                    contacts[found] = i * n + j
                    found += 1
        if cells:
            contacts[before:found].sort()
    return found


@_inline
def _collide(found, contacts, b, n, position, velocity, radius, temperature, conductivity, inverse_mass, sx,
             sy, p):
    """Resolve the contacts one after the other, so that energy never grows; lost kinetic energy becomes heat."""
    for c in range(found):
        i, j = contacts[c] // n, contacts[c] % n
        nx, ny = position[b, i, 0] - position[b, j, 0], position[b, i, 1] - position[b, j, 1]
        d = math.sqrt(nx * nx + ny * ny)
        if d < 1e-9:
            nx, ny, d = 1e-9, 0.0, 1e-9
        nx, ny = nx / d, ny / d
        # each particle's fraction of the change: in velocity, temperature and position
        to_i = inverse_mass[i] / (inverse_mass[i] + inverse_mass[j])
        to_j = 1.0 - to_i
        closing = (velocity[b, i, 0] - velocity[b, j, 0]) * nx + (velocity[b, i, 1] - velocity[b, j, 1]) * ny
        if closing < 0.0:
            change = -(1.0 + p.restitution) * closing
            velocity[b, i, 0] += change * to_i * nx
            velocity[b, i, 1] += change * to_i * ny
            velocity[b, j, 0] -= change * to_j * nx
            velocity[b, j, 1] -= change * to_j * ny
            half = 0.25 * closing * closing * (1.0 - p.restitution * p.restitution) / HEAT_CAPACITY
            temperature[b, i] += half * to_i
            temperature[b, j] += half * to_j
        # at most half of the way to the common temperature
        rate = min(0.5, 0.5 * (conductivity[b, i] + conductivity[b, j]) * p.thermal_conduction * p.h)
        flow = rate * (temperature[b, j] - temperature[b, i])
        temperature[b, i] += flow * to_i
        temperature[b, j] -= flow * to_j
        depth = radius[b, i] + radius[b, j] - d
        sx[i] += depth * to_i * nx
        sy[i] += depth * to_i * ny
        sx[j] -= depth * to_j * nx
        sy[j] -= depth * to_j * ny


@jit
def step_range(begin, end, envs, state, field, p, size, large):
    """Advance envs[begin:end] by one step. `field` is [B,4].

    `large` is True if an environment may have more than CELL_LIST_ABOVE particles, else None: numba then leaves the
    cell list out and compiles faster.
    """
    position, velocity, radius, mass, charge, temperature, conductivity, count, seed, time = state
    capacity = radius.shape[1]
    work = np.empty((6, capacity))
    inverse_mass, fx, fy, heat_gain, sx, sy = work[0], work[1], work[2], work[3], work[4], work[5]
    # enough unless hundreds lie in one place; further contacts wait for the next substep
    contacts = np.empty(min(capacity * (capacity - 1) // 2, 64 * capacity), np.int64)
    for k in range(begin, end):
        b = envs[k]
        n, strength, reach = count[b], field[b, 2], field[b, 3]
        for i in range(n):
            inverse_mass[i] = 1.0 / mass[b, i]
        for _ in range(p.substeps):
            for i in range(n):
                fx[i] = fy[i] = heat_gain[i] = sx[i] = sy[i] = 0.0
            found = _interact(b, n, position, radius, charge, temperature, inverse_mass, fx, fy, heat_gain,
                              contacts, p, size, large)
            for i in range(n):
                if strength != 0.0:
                    dx, dy = position[b, i, 0] - field[b, 0], position[b, i, 1] - field[b, 1]
                    d = math.sqrt(dx * dx + dy * dy)
                    if 1e-9 < d < reach:
                        push = strength * (1.0 - d / reach) / d
                        fx[i] += push * dx
                        fy[i] += push * dy
                velocity[b, i, 0] += fx[i] * inverse_mass[i] * p.h
                velocity[b, i, 1] += (fy[i] * inverse_mass[i] + p.gravity_y) * p.h
                temperature[b, i] += heat_gain[i]
            _collide(found, contacts, b, n, position, velocity, radius, temperature, conductivity,
                     inverse_mass, sx, sy, p)
            for i in range(n):
                slow = _speed_limit(velocity[b, i, 0], velocity[b, i, 1])
                for axis in range(2):      # move; a wall holds the particle and reflects its velocity
                    velocity[b, i, axis] *= slow
                    v, low, high = velocity[b, i, axis], radius[b, i], size[axis] - radius[b, i]
                    x = position[b, i, axis] + v * p.h + (sx[i] if axis == 0 else sy[i])
                    if (x < low and v < 0.0) or (x > high and v > 0.0):
                        velocity[b, i, axis] = -p.restitution * v
                    position[b, i, axis] = _clip(x, low, high)
                temperature[b, i] = _clip(temperature[b, i] * p.cooling, 0.0, MAX_TEMPERATURE)
        for i in range(n):
            shake = p.vibration_scale * math.sqrt(temperature[b, i])
            for axis in range(2):
                x = position[b, i, axis] + shake * _uniform(seed[b], time[b], i, axis)
                position[b, i, axis] = _clip(x, radius[b, i], size[axis] - radius[b, i])
        time[b] += 1


def _start_pool():
    global _pool
    _pool = ThreadPoolExecutor(max(1, THREADS - 1), "envs")


_start_pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_pool)     # a child process has no threads


def run(kernel, envs, *arguments):
    """Run a kernel on all environments, in this thread and those of the pool; kernels release the GIL.

    Two threads are 1.7 times as fast as one. numba's prange (workqueue) is not faster than one, and compiles twice.
    """
    parts = max(1, min(THREADS, len(envs) // ENVS_PER_THREAD))
    bounds = [len(envs) * part // parts for part in range(parts + 1)]
    others = [_pool.submit(kernel, *pair, envs, *arguments) for pair in pairwise(bounds[1:])]
    kernel(0, bounds[1], envs, *arguments)
    for other in others:
        other.result()


def step(envs, *arguments):
    """Advance the selected environments by one step."""
    run(step_range, envs, *arguments)


@jit
def act(actions, state, size, status, field, extra_step):
    """Apply the immediate part of actions [B,7], which are within bounds (see actions.py), to the state.

    Writes NO_TARGET and WORLD_FULL to `status` [B], a repulsion to `field` [B,4], and STEP to `extra_step` [B].
    """
    position, velocity, radius, mass, charge, temperature, conductivity, count, _, _ = state
    for b in range(len(actions)):
        kind, i, what = int(actions[b, 0]), int(actions[b, 1]), int(actions[b, 6])
        x, y, value, reach = actions[b, 2], actions[b, 3], actions[b, 4], actions[b, 5]
        n = count[b]
        if kind == ADD_PARTICLE:
            i = n
            if n == radius.shape[1]:
                status[b] = WORLD_FULL
                continue
            position[b, i, 0], position[b, i, 1], velocity[b, i, 0], velocity[b, i, 1] = x, y, 0.0, 0.0
            radius[b, i], mass[b, i], charge[b, i] = reach, reach * reach / 4.0, value
            temperature[b, i], conductivity[b, i] = 0.0, 0.1
            count[b] += 1
        elif kind == SET_PROPERTY:
            if i < 0:      # the nearest that covers (x, y), with a margin of 2 px
                nearest = math.inf
                for j in range(n):
                    dx, dy, r = position[b, j, 0] - x, position[b, j, 1] - y, radius[b, j] + 2.0
                    d2 = dx * dx + dy * dy
                    if d2 <= r * r and d2 < nearest:
                        nearest, i = d2, j
            if i < 0 or i >= n:
                status[b] = NO_TARGET
                continue
            if what < 2:
                position[b, i, what] = value
            elif what < 4:
                velocity[b, i, what - 2] = value
                slow = _speed_limit(velocity[b, i, 0], velocity[b, i, 1])
                velocity[b, i, 0], velocity[b, i, 1] = velocity[b, i, 0] * slow, velocity[b, i, 1] * slow
            elif what == 4:
                charge[b, i] = value
            elif what == 5:
                mass[b, i] = value
            elif what == 6:
                radius[b, i] = value
            else:
                temperature[b, i] = value
        elif kind == APPLY_REPULSION:
            field[b, 0], field[b, 1], field[b, 2], field[b, 3] = x, y, value, reach
        elif kind == STEP:
            extra_step[b] = True
        elif kind != NOOP:
            for j in range(n):
                dx, dy = position[b, j, 0] - x, position[b, j, 1] - y
                d = math.sqrt(dx * dx + dy * dy)
                amount = value * (1.0 - d / reach)
                if d < reach and kind == APPLY_HEAT:
                    temperature[b, j] = _clip(temperature[b, j] + amount, 0.0, MAX_TEMPERATURE)
                elif 1e-9 < d < reach:
                    push = (amount if kind == APPLY_FORCE else -amount) / (mass[b, j] * d)
                    vx, vy = velocity[b, j, 0] + push * dx, velocity[b, j, 1] + push * dy
                    slow = _speed_limit(vx, vy)
                    velocity[b, j, 0], velocity[b, j, 1] = vx * slow, vy * slow
        if kind in (ADD_PARTICLE, SET_PROPERTY):      # the new position or radius must keep it inside the walls
            r = radius[b, i]
            for axis in range(2):
                position[b, i, axis] = _clip(position[b, i, axis], r, size[axis] - r)
