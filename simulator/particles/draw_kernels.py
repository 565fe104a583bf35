"""The compiled loop that draws the particles. Legend: B environments, H W image, K colours."""
import math

import numpy as np

from simulator.particles.kernels import jit, run

HALOS = 64              # shades of halos, for temperatures up to 5
# rows of the colour table: background, halos from dark to bright, bodies, positive and negative cores
BACKGROUND, BODY, POSITIVE, NEGATIVE = 0, HALOS, HALOS + 8, HALOS + 9


@jit
def draw_range(begin, end, envs, images, words, scale, size, state, paints):
    """Draw envs[begin:end] into `images` uint8 [B,H*W*3]; see ParticleSimulator.render.

    `words` uint64 [B,H*W*3-7] is a view of the same memory: eight bytes from each byte on. A row of `paints`
    uint64 [K,3] is a colour, as RGBRGBRG, GBRGBRGB and BRGBRGBR.
    """
    position, velocity, radius, _, charge, temperature, _, count, _, _ = state
    height, width = int(size[1]) * scale, int(size[0]) * scale
    blank = np.empty(images.shape[1], np.uint8)
    for at in range(len(blank)):
        blank[at] = paints[BACKGROUND, at % 3]
    one, two, three, eight, sixteen = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(8), np.uint64(16)
    r, paint = 0.0, 0
    for k in range(begin, end):
        b, image, word = envs[k], images[k], words[k]
        n = count[b]
        for at in range(len(blank)):    # compiles to a copy, which is faster than writing three colours
            image[at] = blank[at]
        # a tail of three dots behind the particle, longer if it is faster: a single image then shows motion
        for i in range(n):
            vx, vy = velocity[b, i, 0], velocity[b, i, 1]
            speed = math.sqrt(vx * vx + vy * vy)
            if speed > 0.15:
                x, y, back = position[b, i, 0] * scale, position[b, i, 1] * scale, radius[b, i] / speed - 0.5
                for dot in range(1, 4):
                    back += 1.5
                    u, v = x - back * vx * scale, y - back * vy * scale
                    if 0.0 <= u < width and 0.0 <= v < height:
                        left = min(max(0, int(u) - scale // 2), width - scale)
                        top = min(max(0, int(v) - scale // 2), height - scale)
                        for row in range(top, top + scale):
                            at = np.uint64(3 * (row * width + left))
                            for _ in range(scale):
                                image[at] = image[at + one] = 230 - 50 * dot
                                image[at + two] = 235 - 50 * dot
                                at += three
        for disc in range(3 * n):       # all halos first, then body and core of each particle
            i = disc if disc < n else (disc - n) // 2
            if disc < n:
                r, paint = radius[b, i] + 1.6, int(min(HALOS - 1.0, temperature[b, i] * (HALOS / 5.0)))
                if paint == 0:
                    continue
            elif (disc - n) % 2 == 0:
                r, paint = radius[b, i], BODY + i % 8
            else:
                q = charge[b, i]
                r, paint = min(0.6 * radius[b, i], 0.7 + 0.6 * math.sqrt(abs(q))), POSITIVE if q > 0.0 else NEGATIVE
                if abs(q) < 0.05:
                    continue
            rgb, gbr, brg = paints[paint, 0], paints[paint, 1], paints[paint, 2]
            # the pixels whose centre lies within r, row by row
            x, y, r = position[b, i, 0] * scale - 0.5, position[b, i, 1] * scale - 0.5, r * scale
            if r < 1.0:     # exactly one pixel: not none, and not all of a small body
                x, y = math.floor(x + 0.5), math.floor(y + 0.5)
            for row in range(max(0, math.ceil(y - r)), min(height, math.floor(y + r) + 1)):
                half = math.sqrt(max(0.0, r * r - (row - y) * (row - y)))
                left, right = max(0, math.ceil(x - half)), min(width, math.floor(x + half) + 1)
                # Overlapping writes of eight bytes. A loop over pixels takes twice as long: its length changes
                # from row to row and is mispredicted. Unsigned indices, because numba then leaves out the test
                # for negative ones.
                at, stop = np.uint64(3 * (row * width + left)), np.uint64(3 * (row * width + right))
                if right - left > 8:
                    while at + sixteen + eight < stop:
                        word[at], word[at + eight], word[at + sixteen] = rgb, brg, gbr
                        at += sixteen + eight
                    word[stop - sixteen - eight], word[stop - sixteen], word[stop - eight] = rgb, brg, gbr
                elif right - left > 2:
                    last = stop - eight
                    word[at] = rgb
                    word[min(at + eight, last)] = brg if at + eight <= last else gbr
                    word[last] = gbr
                elif right - left > 0:
                    image[at], image[at + one], image[at + two] = rgb, gbr, brg
                    image[stop - three], image[stop - two], image[stop - one] = rgb, gbr, brg


def draw(envs, images, *arguments):
    """Draw the selected environments into `images` uint8 [B,H,W,3], C-contiguous."""
    flat = images.reshape(len(images), -1)
    words = np.ndarray((len(images), flat.shape[1] - 7), np.uint64, images, strides=(flat.shape[1], 1))
    run(draw_range, envs, flat, words, *arguments)
