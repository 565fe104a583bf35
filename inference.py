"""A sentence in, an episode out: what the trained agent does, in words and as an animated GIF.

    python inference.py --goal "입자들을 왼쪽으로 이동시켜"
    python inference.py --goal "push everything up" --model checkpoints/vlm_best.pt --seed 7 --output up.gif
    python inference.py --goal "heat the red one" --image photo.jpg https://example.com/other.png

The world starts at random (--seed fixes it), in a way that leaves the goal to be done. A sentence that the rule-based
reader cannot place is acted on all the same; whether it was reached is then "not scored".

With --image the agent decides once for each of these pictures instead, paths or addresses. It takes each for the world
that it was trained in: an action is told in that world's coordinates, the place in the picture by its pixel, and in the
GIF by a ring.
"""
import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SHIPPED, TRAINED = Path(__file__).parent / "checkpoints/vlm_tiny.pt", Path("checkpoints/vlm_best.pt")
FONT = Path(__file__).parent / "data/fonts/FlexibleWorldSansKR-Regular.ttf"
BACKGROUND, BORDER, TEXT_COLOR, RED = (250, 250, 250), (200, 200, 200), (20, 20, 20), (220, 20, 60)
MAX_SIDE = 512                     # longest side of a picture in a GIF, pixels


# --- GIFs -------------------------------------------------------------------------------------------------------
def wrap(text, size, width):
    """A font in which the text fits on one line, `size` at most, and its lines: several where even 12 is too large."""
    from PIL import ImageFont
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


def draw_frame(image, goal, line, marker=None):
    """One GIF frame: a picture uint8 [H,W,3], the sentence above it, what was done below; a `ring` around a pixel."""
    import numpy as np
    from PIL import Image, ImageDraw
    height, width = image.shape[:2]
    wide, tall = max(width, MAX_SIDE), max(height, 48)
    texts = [(5, *wrap(goal, 18, wide - 12)), (6, *wrap(line, 14, wide - 12))]
    above, below = (32 + (len(lines) - 1) * (font.size + 5) for _, font, lines in texts)
    frame = Image.new("RGB", (wide, above + tall + below), BACKGROUND)
    left, top = (wide - width) // 2, above + (tall - height) // 2
    draw = ImageDraw.Draw(frame)
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=BORDER)
    frame.paste(Image.fromarray(np.ascontiguousarray(image)), (left, top))
    for start, (margin, font, lines) in zip((0, above + tall), texts, strict=True):
        for i, text in enumerate(lines):
            draw.text((6, start + margin + i * (font.size + 5)), text, TEXT_COLOR, font)
    if marker:
        x, y = left + marker[0], top + marker[1]
        for colour, extra in (((255, 255, 255), 2), (RED, 0)):
            draw.circle((x, y), 14 + extra, outline=colour, width=4 + 2 * extra)
            draw.circle((x, y), 2 + extra, fill=colour)
    return frame


def save_gif(scenes, path, milliseconds=140):
    """Writes scenes, lists of frames (PIL images), as one endless GIF; the last frame of each scene stays a while."""
    from PIL import Image
    durations = [time for scene in scenes for time in [milliseconds] * (len(scene) - 1) + [1500]]
    sizes = [frame.size for scene in scenes for frame in scene]
    frames = []
    for frame in (frame for scene in scenes for frame in scene):
        frames.append(Image.new("RGB", (max(width for width, _ in sizes), max(height for _, height in sizes)), BACKGROUND))
        frames[-1].paste(frame)
    temporary = path.with_name(path.name + ".tmp")
    try:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- episodes ---------------------------------------------------------------------------------------------------
@dataclass
class Step:
    """One step of an episode: the action in `words`, a `note` on how it went, what the model has `understood` (words
    of the goal language), the `frame` after it, when deciding `began` and when it was `decided` (time.perf_counter),
    and of the last step the episode's `outcome`."""
    action_text: str
    note: str
    parsed_goal: list
    frame: object
    began: float
    decided: float
    outcome: str


def run_episode(env, policy, obs, deterministic=True):
    """An episode of one world (see simulator.registry) from its first observation on: yields each Step."""
    goal, outcome, k = obs["goal"], "", 0
    while not outcome:
        began = time.perf_counter()
        inputs = {"proprio": obs["proprio"][None]} if "proprio" in obs else {}
        actions, _, output = policy.sample_action(obs["image"][None], [goal], deterministic=deterministic, **inputs)
        action, decided = actions[0].cpu().numpy(), time.perf_counter()
        obs, _, terminated, truncated, info = env.step(action)
        action_text, note, k = env.describe(action), info["note"], k + 1
        if terminated or truncated:
            outcome_text = f"{'reached' if info['success'] else 'not reached'} in {k} steps"
            outcome = outcome_text if info["goal"] else "not scored"
        line = f"{k}: {action_text}" + (f" [{note}]" if note else "") + (f": {outcome}" if outcome else "")
        frame = draw_frame(env.render(), goal, line)
        yield Step(action_text, note, policy.parsed_goal(output)[0], frame, began, decided, outcome)


def record_episodes(policy, config, asked):
    """Episodes of a policy as scenes for `save_gif`, one for each (goal, seed) of `asked`, in the world of a config."""
    from simulator.registry import get_env_family
    world, scenes = get_env_family(config), []
    env = world.make_single(config, instructions=world.instructions(config))
    for goal, seed in asked:
        obs, _ = env.reset(seed=seed, options={"goal": str(goal)})
        scenes.append([draw_frame(env.render(), obs["goal"], "initial")])
        scenes[-1] += [step.frame for step in run_episode(env, policy, obs)]
    env.close()
    return scenes


# --- people's own pictures --------------------------------------------------------------------------------------
def predict(policy, resized, goal, deterministic=True):
    """What the agent does about one picture: the action in words, what the model understands, and the place that it
    acts on, (x, y) as shares of the picture, or None."""
    import numpy as np

    from simulator.registry import get_env_family
    actions, _, output = policy.sample_action([resized], [goal], deterministic=deterministic)
    action, spec, xy = actions[0].cpu().numpy(), policy.spec, None
    if hasattr(spec, "xy_params") and spec.used_params[round(float(action[0]))][spec.xy_params[0]]:
        low, high = np.array([spec.low, spec.high])[:, list(spec.xy_params)]
        xy = (action[list(spec.xy_params)] - low) / (high - low)
    action_text = get_env_family(getattr(policy, "meta", {}).get("config", {})).describe(action)
    return action_text, policy.parsed_goal(output)[0], xy


def pixel(xy, width, height):
    """The pixel (x, y) at a place of a picture."""
    return min(int(xy[0] * width), width - 1), min(int(xy[1] * height), height - 1)


def upscale(image_):
    """A picture (PIL) as it is shown, longest side SHOWN: uint8 [H,W,3]. Of a small one the pixels stay visible."""
    import numpy as np
    from PIL import Image, ImageOps
    small = max(image_.size) <= MAX_SIDE // 4
    how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return np.asarray(ImageOps.contain(image_, (MAX_SIDE, MAX_SIDE), how))


# --- the program ------------------------------------------------------------------------------------------------
def die(message):
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def check_output_path(output):
    """Why a GIF cannot go to the path `output`, in one line; None where it can."""
    folder = output.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK) and (output.is_file() or not output.exists())):
        return f"cannot write --output {output}: name a file in a folder that exists and can be written"
    return None if output.suffix.lower() == ".gif" else f"--output {output} would be a GIF: let its name end in .gif"


def add_model_arguments(parser):
    """--model and --base, of every program that acts."""
    parser.add_argument("--model", metavar="FILE|FOLDER|NAME", help="checkpoint, agent's folder, or its name on the "
                        f"hub (default: {TRAINED}, else the shipped vlm_tiny.pt)")
    parser.add_argument("--base-model", metavar="FOLDER|NAME",
                        help="where the base model is, if not where it was in training")


def show_episode(args, policy, goal, started):
    """Prints an episode in a world -> its scenes for the GIF, and what came of it."""
    from simulator.registry import get_env_family
    config = policy.meta.get("config", {})
    env = get_env_family(config).make_single(config, args.steps)
    obs, info = env.reset(seed=args.seed, options={"goal": goal})
    goal = obs["goal"]          # a goal in the goal language is said in words, where a sentence is known
    scored = f"scored as {info['goal']}" if info["goal"] else f"not scored: {info['note']}"
    print(f"model {args.model}, goal \"{goal}\", {scored}")
    frames, deciding = [draw_frame(env.render(), goal, "initial")], 0.0
    for k, step in enumerate(run_episode(env, policy, obs, args.deterministic), 1):
        if k == 1:
            print(f"the model understands: {', '.join(step.parsed_goal) or 'nothing'}; "
                  f"first action after {step.decided - started:.1f} s")
        else:                    # the first one also warms up
            deciding += step.decided - step.began
        print(f"{k:3d}  {step.action_text}" + (f"  [{step.note}]" if step.note else ""))
        frames.append(step.frame)
    env.close()
    return [frames], step.outcome + (f", {(k - 1) / deciding:.0f} decisions per second" if deciding else "")


def show_pictures(args, policy, goal, started, images):
    """Prints a decision for each of `pictures`, pairs of a name and a picture -> as `show_episode`."""
    from models.image_io import resize_for_model
    resized = [resize_for_model(image_, name, policy.backbone) for name, image_ in images]
    count = f"{len(images)} picture{'s' * (len(images) > 1)}"
    print(f"model {args.model}, goal \"{goal}\", {count}")
    scenes, before = [], None
    for i, (name, image_) in enumerate(images):
        action_text, parsed_goal, xy = predict(policy, resized[i], goal, args.deterministic)
        if parsed_goal != before:
            print(f"the model understands: {', '.join(parsed_goal) or 'nothing'}"
                  + (f"; first action after {time.perf_counter() - started:.1f} s" if i == 0 else ""))
        before, shown = parsed_goal, upscale(image_)
        where = "" if xy is None else f": pixel {pixel(xy, *image_.size)}"
        print(f"{i + 1:3d}  {name}, {image_.width}x{image_.height}: {action_text}{where}")
        marker = None if xy is None else pixel(xy, *shown.shape[1::-1])
        scenes.append([draw_frame(shown, goal, f"{i + 1} of {len(images)}: {action_text}", marker)])
    return scenes, count


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goal", required=True, help="what to do, in Korean or English")
    parser.add_argument("--image", nargs="*", metavar="PATH|URL", help="decide about these pictures, not in a world")
    add_model_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the world's start (default 0)")
    parser.add_argument("--steps", type=int, help="time limit, steps for each goal (default: that of training)")
    parser.add_argument("--output", type=Path, default=Path("rollout.gif"), help="GIF to write (default rollout.gif)")
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=True,
                        help="the likeliest action (default); --no-deterministic draws one")
    parser.add_argument("--sample", dest="greedy", action="store_false", help="draw actions from the policy")
    args = parser.parse_args(argv)
    if not args.goal.strip():
        return die("--goal is empty: say what to do, as in --goal \"move the particles left\"")
    if len(args.goal) > 500:
        return die(f"--goal is {len(args.goal)} characters long: say it in 500 at most")
    if not args.goal.isprintable() or any(0xD800 <= ord(character) < 0xE000 for character in args.goal):
        return die("--goal holds characters that are no text: give the sentence in UTF-8, on one line")
    if not 0 <= args.seed < 2**32 or (args.steps is not None and args.steps < 1):
        return die("--seed takes a whole number from 0 to 2**32 - 1 and --steps one from 1 up")
    if args.image == []:
        return die("--image names no picture: give paths or addresses, as in --image photo.jpg")
    if why := check_output_path(args.output):
        return die(why)

    started = time.perf_counter()
    # sleeping threads: spinning ones decide 60 times as slowly where anything else uses the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from models.checkpoint import CheckpointError
    from models.image_io import ImageError, display_name, load_image
    from models.vlm_policy import VLMPolicy
    from simulator.particles.goals import GoalError
    from simulator.registry import EnvError

    args.model = args.model or str(TRAINED if TRAINED.is_file() else SHIPPED)
    goal = " ".join(args.goal.split())
    try:
        images = [(display_name(source), load_image(source)) for source in args.image or ()]
        policy = VLMPolicy.from_pretrained(args.model, "cuda" if torch.cuda.is_available() else "cpu", args.base_model)
        torch.manual_seed(args.seed)
        if images and policy.proprio_encoder:
            return die(f"{args.model} also reads what its arm's body tells, which pictures do not: leave out --image")
        if images:
            scenes, outcome = show_pictures(args, policy, goal, started, images)
        else:
            scenes, outcome = show_episode(args, policy, goal, started)
    except (CheckpointError, GoalError, ImageError, EnvError) as error:
        return die(error)
    try:
        save_gif(scenes, args.output)
    except OSError as error:
        return die(f"cannot write {args.output} ({error.strerror or error})")
    print(f"{outcome}; {args.output} written")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
