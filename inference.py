"""A sentence in, an episode out: what the trained agent does, in words and as an animated GIF.

    python inference.py --goal "입자들을 왼쪽으로 이동시켜"
    python inference.py --goal "push everything up" --model checkpoints/vlm_best.pt --seed 7 --output up.gif

The world starts at random (--seed fixes it), in a way that leaves the goal to be done. A sentence that the rule-based
reader cannot place is acted on all the same; whether it was reached is then "not scored".
"""
import argparse
import os
import sys
import time
from pathlib import Path

SHIPPED, TRAINED = Path(__file__).parent / "checkpoints/vlm_tiny.pt", Path("checkpoints/vlm_best.pt")
FONT = Path(__file__).parent / "data/fonts/FlexibleWorldSansKR-Regular.ttf"


def draw_frame(image, goal, line):
    """One GIF frame: the world's picture uint8 [H,W,3], the sentence above it, what was done below."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont
    height, width = image.shape[:2]
    frame = Image.new("RGB", (width, height + 64), (250, 250, 250))
    frame.paste(Image.fromarray(np.ascontiguousarray(image)), (0, 32))
    draw = ImageDraw.Draw(frame)
    for text, size, y in ((goal, 18, 5), (line, 14, height + 38)):
        font = ImageFont.truetype(FONT, size)
        while draw.textlength(text, font) > width - 12 and size > 8:
            size -= 1
            font = ImageFont.truetype(FONT, size)
        draw.text((6, y), text, (20, 20, 20), font)
    return frame


def save_gif(frames, path, milliseconds=140):
    """Writes the frames (PIL images) as an endless GIF whose last frame stays a while."""
    temporary = path.with_name(path.name + ".tmp")
    durations = [milliseconds] * (len(frames) - 1) + [1500]
    try:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fail(message):
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goal", required=True, help="what to do, in Korean or English")
    parser.add_argument("--model", type=Path, help=f"checkpoint (default: {TRAINED}, else the shipped vlm_tiny.pt)")
    parser.add_argument("--seed", type=int, default=0, help="of the world's start (default 0)")
    parser.add_argument("--steps", type=int, help="time limit, steps for each goal (default: that of training)")
    parser.add_argument("--output", type=Path, default=Path("rollout.gif"), help="GIF to write (default rollout.gif)")
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=True,
                        help="the likeliest action (default); --no-deterministic draws one")
    parser.add_argument("--sample", dest="deterministic", action="store_false", help="draw actions from the policy")
    args = parser.parse_args(argv)
    if not args.goal.strip():
        return fail("--goal is empty: say what to do, as in --goal \"move the particles left\"")
    if len(args.goal) > 500:
        return fail(f"--goal is {len(args.goal)} characters long: say it in 500 at most")
    if not args.goal.isprintable() or any(0xD800 <= ord(character) < 0xE000 for character in args.goal):
        return fail("--goal holds characters that are no text: give the sentence in UTF-8, on one line")
    if not 0 <= args.seed < 2**32 or (args.steps is not None and args.steps < 1):
        return fail("--seed takes a whole number from 0 to 2**32 - 1 and --steps one from 1 up")
    folder = args.output.parent
    usable = folder.is_dir() and os.access(folder, os.W_OK) and (args.output.is_file() or not args.output.exists())
    if not usable:
        return fail(f"cannot write --output {args.output}: name a file in a folder that exists and can be written")

    started = time.perf_counter()
    # sleeping threads: spinning ones decide 60 times as slowly where anything else uses the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from models.checkpoint import CheckpointError
    from models.vlm_policy import VLMPolicy
    from simulator.action_operator import Action
    from simulator.goal_env import ParticleEnv
    from simulator.goals import GoalError
    from simulator.reader import explain

    model = args.model or (TRAINED if TRAINED.is_file() else SHIPPED)
    try:
        policy = VLMPolicy.from_checkpoint(model)
    except CheckpointError as error:
        return fail(error)
    settings = policy.meta.get("config", {})
    env = ParticleEnv(max_steps=args.steps or settings.get("env", {}).get("max_steps", 32),
                      physics=settings.get("physics"), **settings.get("world", {}))
    torch.manual_seed(args.seed)
    goal = " ".join(args.goal.split())
    try:
        obs, info = env.reset(seed=args.seed, options={"goal": goal})
    except GoalError as error:
        return fail(error)
    goal = obs["goal"]          # a goal in the goal language is said in words, where a sentence is known
    reason = {"unknown": "no known goal recognised", "ambiguous": "more goals than one, or contradictory ones"}
    scored = f"scored as {info['goal']}" if info["goal"] else f"not scored: {reason[explain(goal)[1]]}"
    print(f"model {model}, goal \"{goal}\", {scored}")
    frames = [draw_frame(env.render(), goal, "start")]
    deciding, done, k = 0.0, False, 0
    while not done:
        began = time.perf_counter()
        actions, _, output = policy.sample_action(obs["image"][None], [goal], deterministic=args.deterministic)
        deciding += time.perf_counter() - began
        action = actions[0].numpy()
        if k == 0:
            print(f"the model understands: {', '.join(policy.understood(output)[0]) or 'nothing'}; "
                  f"first action after {time.perf_counter() - started:.1f} s")
            deciding = 0.0           # the first one also warms up
        obs, _, terminated, truncated, info = env.step(action)
        done, k = terminated or truncated, k + 1
        words = Action.from_vector(action).describe()
        print(f"{k:3d}  {words}" + ("" if info["action_status"] == "OK" else f"  [{info['action_status'].lower()}]"))
        frames.append(draw_frame(env.render(), goal, f"{k}: {words}"))
    outcome = f"{'reached' if info['success'] else 'not reached'} in {k} steps" if info["goal"] else "not scored"
    frames[-1] = draw_frame(env.render(), goal, f"{k}: {words}: {outcome}")
    try:
        save_gif(frames, args.output)
    except OSError as error:
        return fail(f"cannot write {args.output} ({error.strerror or error})")
    rate = f", {(k - 1) / deciding:.0f} decisions per second" if deciding else ""
    print(f"{outcome}{rate}; {args.output} written")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
