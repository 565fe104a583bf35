"""Record episodes: run a policy in one env, draw each step as a frame, and write GIF or MP4 files.

A policy here is any object with
    sample_action(images, instructions, deterministic=..., proprio=...) -> (actions [B,...] tensor, log_probs, output)
"""
import time
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simulator.registry import get_env_family

FONT = Path(__file__).resolve().parent.parent / "data/fonts/FlexibleWorldSansKR-Regular.ttf"
BACKGROUND, BORDER, TEXT_COLOR = (250, 250, 250), (200, 200, 200), (20, 20, 20)
MARKER_COLOR, SUCCESS_COLOR, FAILURE_COLOR = (220, 20, 60), (0, 120, 40), (170, 0, 0)
MIN_SIDE, MAX_SIDE = 256, 512       # longest side of an image in a frame, pixels
FRAME_MS, LAST_FRAME_MS = 140, 1500
NOTE_TEXT = {"no_target": "no particle there", "clipped": "values out of range were clipped",
             "not_finite": "not a number, so nothing was done", "world_full": "no room for another particle"}


# --- frames -----------------------------------------------------------------------------------------------------
def wrap(text: str, size: int, width: int) -> tuple[ImageFont.FreeTypeFont, list[str]]:
    """Return a font of at most `size` in which the text fits into `width` pixels, and the lines of the text.

    There are several lines where the text does not fit at size 12.
    """
    font = ImageFont.truetype(FONT, size)
    while font.getlength(text) > width and size > 12:
        size -= 1
        font = ImageFont.truetype(FONT, size)
    lines = []
    while font.getlength(text) > width:
        end = next(i for i in range(1, len(text) + 1) if font.getlength(text[:i + 1]) > width)
        end = max(text.rfind(" ", 0, end + 1), 0) or end
        lines.append(text[:end])
        text = text[end:].lstrip()
    return font, [*lines, text]


def upscale(image: np.ndarray) -> np.ndarray:
    """Return an image uint8 [H,W,3] whose longest side is at least MIN_SIDE, enlarged by a whole number."""
    factor = -(-MIN_SIDE // max(image.shape[:2]))
    return image.repeat(factor, 0).repeat(factor, 1)


def draw_frame(image: np.ndarray, instruction: str, line: str, marker: tuple[float, float] | None = None,
               target: str | None = None, size: tuple[int, int] | None = None,
               line_color: tuple[int, int, int] = TEXT_COLOR) -> Image.Image:
    """Return one frame: an image uint8 [H,W,3], the instruction above it, and a line of text below it.

    marker: where the action acts, (x, y) as fractions of the image.
    target: a goal in the goal language, drawn as an outline; size: width and height of its env, px.
    """
    image = upscale(np.ascontiguousarray(image))
    height, width = image.shape[:2]
    wide, tall = max(width, MAX_SIDE), max(height, 48)
    title_font, title = wrap(unicodedata.normalize("NFC", instruction), 18, wide - 12)
    line_font, lines = wrap(unicodedata.normalize("NFC", line), 14, wide - 12)
    above, below = _text_height(title_font, title), _text_height(line_font, lines)
    frame = Image.new("RGB", (wide, above + tall + below), BACKGROUND)
    left, top = (wide - width) // 2, above + (tall - height) // 2
    draw = ImageDraw.Draw(frame)
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=BORDER)
    frame.paste(Image.fromarray(image), (left, top))
    if target:
        from simulator.particles.overlay import draw_targets  # imports numba, which takes a second
        draw_targets(draw, target, size or (width, height), (left, top, width, height))
    _draw_lines(draw, 5, title_font, title, TEXT_COLOR)
    _draw_lines(draw, above + tall + 6, line_font, lines, line_color)
    if marker is not None:
        _draw_marker(draw, left + marker[0] * width, top + marker[1] * height)
    return frame


def _text_height(font, lines):
    return 32 + (len(lines) - 1) * (font.size + 5)


def _draw_lines(draw, top, font, lines, color):
    for i, text in enumerate(lines):
        draw.text((6, top + i * (font.size + 5)), text, color, font)


def _draw_marker(draw, x, y):
    """Draw a red ring on a white one around a pixel."""
    for color, extra in (((255, 255, 255), 2), (MARKER_COLOR, 0)):
        draw.circle((x, y), 14 + extra, outline=color, width=4 + 2 * extra)
        draw.circle((x, y), 2 + extra, fill=color)


def action_point(spec: object, action: np.ndarray) -> tuple[float, float] | None:
    """Return where an action acts, (x, y) as fractions of the image, or None for an action without a place.

    spec: a hybrid action space or spec, with `used_params`, `xy_params`, `low` and `high`; others have no place.
    """
    if not hasattr(spec, "xy_params") or not spec.used_params[round(float(action[0]))][spec.xy_params[0]]:
        return None
    columns = list(spec.xy_params)
    low, high = np.array(spec.low)[columns], np.array(spec.high)[columns]
    x, y = (np.array(action)[columns] - low) / (high - low)
    return float(x), float(y)


# --- files ------------------------------------------------------------------------------------------------------
def _same_size(scenes):
    """Return the frames of all scenes, padded to one even size, and how long each is shown, in ms."""
    durations = [ms for scene in scenes for ms in [FRAME_MS] * (len(scene) - 1) + [LAST_FRAME_MS]]
    frames = [frame for scene in scenes for frame in scene]
    width = max(frame.width for frame in frames)
    height = max(frame.height for frame in frames)
    padded = [Image.new("RGB", (width + width % 2, height + height % 2), BACKGROUND) for _ in frames]
    for canvas, frame in zip(padded, frames, strict=True):
        canvas.paste(frame)
    return padded, durations


def _write_gif(scenes, path):
    frames, durations = _same_size(scenes)
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _write_mp4(scenes, path):
    import av
    frames, durations = _same_size(scenes)
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=round(1000 / FRAME_MS))
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame, duration in zip(frames, durations, strict=True):
            for _ in range(round(duration / FRAME_MS)):
                file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())


WRITERS = {".gif": _write_gif, ".mp4": _write_mp4}


def save_video(scenes: list[list[Image.Image]], path: str | Path) -> None:
    """Write scenes, lists of frames, one after the other; the last frame of each stays for 1.5 s.

    The ending of the path, .gif or .mp4, chooses the format. Raise OSError if the file cannot be written;
    then the old file stays.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        WRITERS[path.suffix.lower()](scenes, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- episodes ---------------------------------------------------------------------------------------------------
@dataclass
class Step:
    """One step of an episode.

    action_text: the action in words; note: what the env reports about it; frame: the image after it;
    decision_seconds: the time of the policy's forward pass; outcome: "" before the last step.
    """
    action_text: str
    note: str
    frame: Image.Image
    decision_seconds: float
    outcome: str


def initial_frame(env: object, obs: dict, goal: str | None) -> Image.Image:
    """Return the frame of an episode's first observation. goal: as in `info["goal"]`."""
    return draw_frame(env.render(), obs["goal"], "initial", None, goal, _env_size(obs))


def run_episode(env: object, policy: object, obs: dict, deterministic: bool = True) -> Iterator[Step]:
    """Run an episode of one env (see simulator.registry) from its first observation on, and yield each Step."""
    instruction, outcome, k = obs["goal"], "", 0
    while not outcome:
        start = time.perf_counter()
        proprio = {"proprio": obs["proprio"][None]} if "proprio" in obs else {}
        actions, *_ = policy.sample_action(obs["image"][None], [instruction], deterministic=deterministic, **proprio)
        action, seconds = actions[0].cpu().numpy(), time.perf_counter() - start
        obs, _, terminated, truncated, info = env.step(action)
        action_text, note, k = env.describe_action(action), NOTE_TEXT.get(info["note"], info["note"]), k + 1
        if terminated or truncated:
            result = f"{'reached' if info['success'] else 'not reached'} in {k} steps"
            outcome = result if info["goal"] else "not scored"
        line = f"{k}: {action_text}" + (f" [{note}]" if note else "") + (f": {outcome}" if outcome else "")
        color = TEXT_COLOR if outcome in ("", "not scored") else SUCCESS_COLOR if info["success"] else FAILURE_COLOR
        marker = action_point(env.action_space, action)
        frame = draw_frame(env.render(), instruction, line, marker, info["goal"], _env_size(obs), color)
        yield Step(action_text, note, frame, seconds, outcome)


def _env_size(obs):
    """Return the width and height of an env, px: those of its observed image."""
    return obs["image"].shape[1], obs["image"].shape[0]


def record_episodes(policy: object, config: dict, episodes: Iterable[tuple[str, int]]) -> list[list[Image.Image]]:
    """Return a scene for each (goal, seed), for `save_video`: episodes of a policy in the env of a config."""
    family, scenes = get_env_family(config), []
    env = family.make_single(config, instructions=family.instructions(config))
    for goal, seed in episodes:
        obs, info = env.reset(seed=seed, options={"goal": str(goal)})
        frames = [initial_frame(env, obs, info["goal"])]
        frames += [step.frame for step in run_episode(env, policy, obs)]
        scenes.append(frames)
    env.close()
    return scenes
