"""The compiled inner loops of the particle world, for many worlds at once.

Legend: B worlds, N particles (capacity), H W image. State arrays are float64 [B,N] or [B,N,2]; see core.py.

A trajectory is a function of a world's seed and the actions alone: each world is advanced by one thread from its
own state, and its noise is a hash of (seed, time, particle, axis), so neither the batch nor the threads matter.
"""
import math

import numba
import numpy as np

# numba's OpenMP layer and torch's OpenMP in one process slow each other down several times
numba.config.THREADING_LAYER = "workqueue"

MAX_SPEED, MAX_TEMPERATURE, MAX_CHARGE = 10.0, 10.0, 5.0      # px/step, -, -
MIN_RADIUS, MAX_RADIUS, MIN_MASS, MAX_MASS = 1.0, 5.0, 0.1, 10.0
HEAT_CAPACITY = 5.0     # heat = HEAT_CAPACITY * mass * temperature, in the unit of kinetic energy
CELLS_FROM = 96         # with more particles than this, neighbours are found through a cell list
# columns of the settings vector
GRAVITY, RESTITUTION, EM_STRENGTH, EM_RADIUS, DT, VIBRATION, DISSIPATION, RADIATION, RADIATION_RADIUS, CONDUCTION = range(10)

_jit = numba.njit(cache=True, nogil=True)


@_jit
def _uniform(seed, time, particle, axis):
    """A number in [-1, 1) that depends on its arguments alone (splitmix64's finaliser, Steele et al. 2014)."""
    z = seed + np.uint64(time) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(2 * particle + axis) * np.uint64(0xD1342543DE82EF95)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * (2.0 / 9007199254740992.0) - 1.0


@_jit
def _pair(i, j, position, radius, mass, charge, temperature, force, warmth, contacts, found, p, h):
    """Forces and radiation between two particles, and a note of their contact; returns the contacts found so far."""
    dx, dy = position[i, 0] - position[j, 0], position[i, 1] - position[j, 1]
    d2 = dx * dx + dy * dy
    touching = radius[i] + radius[j]
    reach = max(p[EM_RADIUS], p[RADIATION_RADIUS], touching)
    if d2 >= reach * reach:
        return found
    d = math.sqrt(d2)
    if d > 1e-9:
        nx, ny = dx / d, dy / d
    else:
        nx, ny = 1.0, 0.0
    if d < p[EM_RADIUS]:
        near = max(d, touching)
        f = p[EM_STRENGTH] * charge[i] * charge[j] / (near * near) * (1.0 - d / p[EM_RADIUS])
        force[i, 0] += f * nx
        force[i, 1] += f * ny
        force[j, 0] -= f * nx
        force[j, 1] -= f * ny
    if d < p[RADIATION_RADIUS]:
        reduced = mass[i] * mass[j] / (mass[i] + mass[j])
        q = p[RADIATION] * (1.0 - d / p[RADIATION_RADIUS]) * (temperature[j] - temperature[i]) * reduced * h
        warmth[i] += q / mass[i]
        warmth[j] -= q / mass[j]
    if d < touching and found < len(contacts):
        contacts[found, 0], contacts[found, 1] = i, j
        contacts[found, 2], contacts[found, 3], contacts[found, 4] = nx, ny, touching - d
        found += 1
    return found


@_jit
def _all_pairs(n, position, radius, mass, charge, temperature, force, warmth, contacts, p, h, size):
    """`_pair` over i < j: every pair of few particles, or the pairs in neighbouring cells of many."""
    found = 0
    if n <= CELLS_FROM:
        for i in range(n):
            for j in range(i + 1, n):
                found = _pair(i, j, position, radius, mass, charge, temperature, force, warmth, contacts, found, p, h)
        return found
    reach = max(p[EM_RADIUS], p[RADIATION_RADIUS], 2 * MAX_RADIUS)
    columns, rows = max(1, int(size[0] // reach)), max(1, int(size[1] // reach))
    first, cell, order = np.zeros(columns * rows + 1, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):                                        # a counting sort of the particles by cell
        column = min(columns - 1, int(position[i, 0] / size[0] * columns))
        row = min(rows - 1, int(position[i, 1] / size[1] * rows))
        cell[i] = row * columns + column
        first[cell[i] + 1] += 1
    first = np.cumsum(first)
    place = first[:-1].copy()
    for i in range(n):
        order[place[cell[i]]] = i
        place[cell[i]] += 1
    for i in range(n):
        before = found
        row, column = cell[i] // columns, cell[i] % columns
        for r in range(max(0, row - 1), min(rows, row + 2)):
            left, right = max(0, column - 1), min(columns - 1, column + 1)
            for k in range(first[r * columns + left], first[r * columns + right + 1]):
                j = order[k]
                if j > i:
                    found = _pair(i, j, position, radius, mass, charge, temperature, force, warmth, contacts, found, p, h)
        for a in range(before + 1, found):                    # this particle's contacts in the order of j, as above
            b = a
            while b > before and contacts[b - 1, 1] > contacts[b, 1]:
                for c in range(5):
                    contacts[b - 1, c], contacts[b, c] = contacts[b, c], contacts[b - 1, c]
                b -= 1
    return found


@_jit
def _collide(found, contacts, velocity, mass, temperature, conductivity, shift, p, h):
    """Impulses, one contact after the other so that energy never grows; lost kinetic energy becomes heat."""
    for c in range(found):
        i, j, nx, ny, depth = (int(contacts[c, 0]), int(contacts[c, 1]), contacts[c, 2], contacts[c, 3], contacts[c, 4])
        reduced = mass[i] * mass[j] / (mass[i] + mass[j])
        closing = (velocity[i, 0] - velocity[j, 0]) * nx + (velocity[i, 1] - velocity[j, 1]) * ny
        if closing < 0:
            impulse = -(1.0 + p[RESTITUTION]) * closing * reduced
            velocity[i, 0] += impulse / mass[i] * nx
            velocity[i, 1] += impulse / mass[i] * ny
            velocity[j, 0] -= impulse / mass[j] * nx
            velocity[j, 1] -= impulse / mass[j] * ny
            half = 0.25 * reduced * closing * closing * (1.0 - p[RESTITUTION] ** 2) / HEAT_CAPACITY
            temperature[i] += half / mass[i]
            temperature[j] += half / mass[j]
        rate = min(0.5, 0.5 * (conductivity[i] + conductivity[j]) * p[CONDUCTION] * h)
        q = rate * reduced * (temperature[j] - temperature[i])
        temperature[i] += q / mass[i]
        temperature[j] -= q / mass[j]
        share = depth * reduced
        shift[i, 0] += share / mass[i] * nx
        shift[i, 1] += share / mass[i] * ny
        shift[j, 0] -= share / mass[j] * nx
        shift[j, 1] -= share / mass[j] * ny


@_jit
def _world(n, position, velocity, radius, mass, charge, temperature, conductivity, seed, time, field, p, substeps, size):
    """Advances one world by one step; the arrays are that world's own [N,...]."""
    h = p[DT] / substeps
    force, shift, warmth = np.zeros((n, 2)), np.zeros((n, 2)), np.zeros(n)
    # discs in the plane touch six others of their size; small ones around a large one are a few more
    contacts = np.empty((min(n * (n - 1) // 2, 12 * n), 5))
    cooling = math.exp(-p[DISSIPATION] * h)
    for _ in range(substeps):
        force[:], shift[:], warmth[:] = 0.0, 0.0, 0.0
        found = _all_pairs(n, position, radius, mass, charge, temperature, force, warmth, contacts, p, h, size)
        for i in range(n):
            ax, ay = force[i, 0] / mass[i], force[i, 1] / mass[i] + p[GRAVITY]
            if field[2] != 0.0:
                dx, dy = position[i, 0] - field[0], position[i, 1] - field[1]
                d = math.sqrt(dx * dx + dy * dy)
                if 1e-9 < d < field[3]:
                    a = field[2] * (1.0 - d / field[3]) / mass[i] / d
                    ax += a * dx
                    ay += a * dy
            velocity[i, 0] += ax * h
            velocity[i, 1] += ay * h
            temperature[i] += warmth[i]
        _collide(found, contacts, velocity, mass, temperature, conductivity, shift, p, h)
        for i in range(n):
            speed2 = velocity[i, 0] ** 2 + velocity[i, 1] ** 2
            if speed2 > MAX_SPEED * MAX_SPEED:
                slow = MAX_SPEED / math.sqrt(speed2)
                velocity[i, 0] *= slow
                velocity[i, 1] *= slow
            for a in range(2):
                x, high = position[i, a] + velocity[i, a] * h + shift[i, a], size[a] - radius[i]
                if x < radius[i]:
                    x = radius[i]
                    velocity[i, a] = abs(velocity[i, a]) * p[RESTITUTION]
                elif x > high:
                    x = high
                    velocity[i, a] = -abs(velocity[i, a]) * p[RESTITUTION]
                position[i, a] = x
            temperature[i] = min(MAX_TEMPERATURE, max(0.0, temperature[i] * cooling))
    for i in range(n):
        shake = p[VIBRATION] * math.sqrt(temperature[i])
        for a in range(2):
            x = position[i, a] + shake * _uniform(seed, time, i, a)
            position[i, a] = min(size[a] - radius[i], max(radius[i], x))


@_jit
def _step_range(begin, end, worlds, count, position, velocity, radius, mass, charge, temperature, conductivity, seed,
                time, field, p, substeps, size):
    for k in range(begin, end):
        b = worlds[k]
        _world(count[b], position[b], velocity[b], radius[b], mass[b], charge[b], temperature[b], conductivity[b],
               seed[b], time[b], field[b], p, substeps, size)
        time[b] += 1


@_jit
def _disc(image, x, y, r, red, green, blue):
    """Fills the disc's pixels: those whose centre lies within r of (x, y)."""
    height, width = image.shape[:2]
    r2 = r * r
    for row in range(max(0, int(math.ceil(y - r - 0.5))), min(height, int(math.floor(y + r - 0.5)) + 1)):
        dy = row + 0.5 - y
        half = math.sqrt(max(0.0, r2 - dy * dy))
        for column in range(max(0, int(math.ceil(x - half - 0.5))), min(width, int(math.floor(x + half - 0.5)) + 1)):
            image[row, column, 0] = red
            image[row, column, 1] = green
            image[row, column, 2] = blue


@_jit
def _draw_range(begin, end, worlds, images, scale, count, position, velocity, radius, charge, temperature, palette,
                background):
    for k in range(begin, end):
        b, image = worlds[k], images[k]
        flat = image.reshape(-1, 3)
        for pixel in range(flat.shape[0]):
            flat[pixel, 0], flat[pixel, 1], flat[pixel, 2] = background[0], background[1], background[2]
        for i in range(count[b]):
            x, y = position[b, i, 0] * scale, position[b, i, 1] * scale
            # where it came from: a dim trail, so that one still picture shows the motion
            for back in range(1, 4):
                _disc(image, x - back * 1.5 * velocity[b, i, 0] * scale, y - back * 1.5 * velocity[b, i, 1] * scale,
                      0.6 * scale, 230 - 50 * back, 230 - 50 * back, 235 - 50 * back)
        for i in range(count[b]):
            warm = min(1.0, temperature[b, i] / 5.0)
            if warm > 0.02:   # heat: an orange halo
                _disc(image, position[b, i, 0] * scale, position[b, i, 1] * scale, (radius[b, i] + 1.6) * scale,
                      background[0] + int(warm * (255 - background[0])), background[1] + int(warm * (130 - background[1])),
                      background[2] - int(warm * background[2]))
        for i in range(count[b]):
            x, y, r = position[b, i, 0] * scale, position[b, i, 1] * scale, radius[b, i]
            c = i % len(palette)
            _disc(image, x, y, r * scale, palette[c, 0], palette[c, 1], palette[c, 2])
            q = charge[b, i]
            if abs(q) >= 0.05:   # charge: a white (+) or black (-) core
                tone = 255 if q > 0 else 0
                _disc(image, x, y, min(0.75 * r, 0.7 + 0.6 * math.sqrt(abs(q))) * scale, tone, tone, tone)


@numba.njit(cache=True, parallel=True)
def _step_threads(threads, worlds, count, position, velocity, radius, mass, charge, temperature, conductivity, seed, time,
                  field, p, substeps, size):
    for t in numba.prange(threads):
        _step_range(t * len(worlds) // threads, (t + 1) * len(worlds) // threads, worlds, count, position, velocity,
                    radius, mass, charge, temperature, conductivity, seed, time, field, p, substeps, size)


@numba.njit(cache=True, parallel=True)
def _draw_threads(threads, worlds, images, scale, count, position, velocity, radius, charge, temperature, palette,
                  background):
    for t in numba.prange(threads):
        _draw_range(t * len(worlds) // threads, (t + 1) * len(worlds) // threads, worlds, images, scale, count, position,
                    velocity, radius, charge, temperature, palette, background)


def _run(single, threads, worlds, *arguments):
    """Threads only where they pay: waking them costs about as much as a few dozen worlds."""
    if len(worlds) < 64 or numba.get_num_threads() == 1:
        single(0, len(worlds), worlds, *arguments)
    else:
        threads(numba.get_num_threads(), worlds, *arguments)


def step(worlds, *arguments):
    """Advances the named worlds by one step each."""
    _run(_step_range, _step_threads, worlds, *arguments)


def draw(worlds, *arguments):
    """Draws the named worlds, one image each."""
    _run(_draw_range, _draw_threads, worlds, *arguments)


@_jit
def act(actions, count, position, velocity, radius, mass, charge, temperature, conductivity, size, status, field, extra):
    """The immediate part of clean actions [B,7] (see action_operator.py): changes the state, fills `status` [B]
    where a target is missing or the world is full, the repulsion `field` [B,4], and `extra` [B]: one more step."""
    capacity = position.shape[1]
    for b in range(len(actions)):
        kind, target, x, y, value, reach, what = (int(actions[b, 0]), int(actions[b, 1]), actions[b, 2], actions[b, 3],
                                                  actions[b, 4], actions[b, 5], int(actions[b, 6]))
        if kind == 1:
            i = count[b]
            if i >= capacity:
                status[b] = 4
                continue
            r = min(MAX_RADIUS, reach)
            position[b, i, 0], position[b, i, 1] = min(size[0] - r, max(r, x)), min(size[1] - r, max(r, y))
            velocity[b, i, 0], velocity[b, i, 1], temperature[b, i] = 0.0, 0.0, 0.0
            radius[b, i], mass[b, i], charge[b, i], conductivity[b, i] = r, (r / 2) ** 2, value, 0.1
            count[b] += 1
        elif kind == 2:
            if target < 0:      # whichever covers (x, y), with two pixels' grace
                nearest = 1e300
                for i in range(count[b]):
                    d2 = (position[b, i, 0] - x) ** 2 + (position[b, i, 1] - y) ** 2
                    if d2 <= (radius[b, i] + 2.0) ** 2 and d2 < nearest:
                        nearest, target = d2, i
            if target < 0 or target >= count[b]:
                status[b] = 3
                continue
            if what < 2:
                position[b, target, what] = value
            elif what < 4:
                velocity[b, target, what - 2] = value
            elif what == 4:
                charge[b, target] = value
            elif what == 5:
                mass[b, target] = min(MAX_MASS, max(MIN_MASS, value))
            elif what == 6:
                radius[b, target] = min(MAX_RADIUS, max(MIN_RADIUS, value))
            else:
                temperature[b, target] = min(MAX_TEMPERATURE, max(0.0, value))
            for a in range(2):   # a new place or radius must leave it inside the walls
                r = radius[b, target]
                position[b, target, a] = min(size[a] - r, max(r, position[b, target, a]))
        elif kind == 3 or kind == 4 or kind == 5:
            for i in range(count[b]):
                dx, dy = position[b, i, 0] - x, position[b, i, 1] - y
                d = math.sqrt(dx * dx + dy * dy)
                if d >= reach:
                    continue
                amount = value * (1.0 - d / reach)
                if kind == 3:
                    temperature[b, i] = min(MAX_TEMPERATURE, max(0.0, temperature[b, i] + amount))
                elif d > 1e-9:
                    push = (amount if kind == 4 else -amount) / mass[b, i] / d
                    velocity[b, i, 0] += push * dx
                    velocity[b, i, 1] += push * dy
                    speed = math.sqrt(velocity[b, i, 0] ** 2 + velocity[b, i, 1] ** 2)
                    if speed > MAX_SPEED:
                        velocity[b, i, 0] *= MAX_SPEED / speed
                        velocity[b, i, 1] *= MAX_SPEED / speed
        elif kind == 6:
            field[b, 0], field[b, 1], field[b, 2], field[b, 3] = x, y, value, reach
        elif kind == 7:
            extra[b] = True
