"""Run the trained agent on an instruction: an episode in words and as an animated GIF (or MP4).

    python inference.py --goal "입자들을 왼쪽으로 이동시켜"
    python inference.py --goal "push everything up" --model checkpoints/vlm_best.pt --seed 7 --output up.gif
    python inference.py --goal "heat everything up" --image photo.jpg https://example.com/other.png

The env starts at random (--seed fixes it), in a state in which the goal is not yet reached. Rules and the model both
read the instruction. The model's confidence is the product over all goal slots of max(p, 1 - p). The rules' reading
scores the episode. Where the rules do not know the instruction, the model's does, if it is a valid goal, its confidence
is at least 0.5 and a similar instruction is known. Otherwise the program stops; --force acts anyway.

With --image the agent decides once for each image (path or URL). It takes each for an image of the env that it was
trained in. The place of an action is printed as a pixel and drawn as a ring.
"""
import sys
import time
from pathlib import Path

import numpy as np

from config import MAX_INSTRUCTION_LENGTH, UserError
from scripts import cli
from simulator.recording import (
    MAX_SIDE,
    WRITERS,
    action_point,
    draw_frame,
    initial_frame,
    run_episode,
    save_video,
)


def parse_args(argv: list[str] | None = None):
    """Return the arguments. Raise UserError for a wrong value."""
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--goal", required=True, help="what to do, in Korean or English")
    parser.add_argument("--image", nargs="*", metavar="PATH|URL", help="decide about these images, not in an env")
    cli.add_model_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the start state (default 0)")
    parser.add_argument("--steps", type=int, help="time limit, steps for each goal (default: that of training)")
    parser.add_argument("--output", type=Path, default=Path("rollout.gif"),
                        help="GIF or MP4 file to write (default rollout.gif)")
    parser.add_argument("--force", action="store_true", help="act on an instruction that is not understood")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--greedy", "--deterministic", dest="greedy", action="store_true",
                         help="take the most likely action (default)")
    actions.add_argument("--sample", action="store_true", help="draw actions from the policy")
    args = parser.parse_args(argv)
    cli.require_output_path(args.output, tuple(WRITERS))
    check_goal(args.goal)
    cli.check_seed(args.seed)
    cli.check_positive("--steps", args.steps)
    if args.image == []:
        raise UserError("--image names no image: give paths or URLs, as in --image photo.jpg")
    args.model = cli.resolve_model(args.model)
    args.goal = " ".join(args.goal.split())
    return args


def check_goal(goal: str) -> None:
    """Raise UserError for a goal that is empty, too long, or not text."""
    if not goal.strip():
        raise UserError("--goal is empty: give an instruction, as in --goal \"move the particles left\"")
    if len(goal) > MAX_INSTRUCTION_LENGTH:
        raise UserError(f"--goal is {len(goal)} characters long: use {MAX_INSTRUCTION_LENGTH} at most")
    if not goal.isprintable() or any(0xD800 <= ord(character) < 0xE000 for character in goal):
        raise UserError("--goal has characters that are not text: give the instruction in UTF-8, on one line")


def show_episode(args, policy, config, start: float) -> tuple[list, str]:
    """Print an episode in an env. Return its scenes for the video, and its outcome in words."""
    from scripts.instructions import start_episode
    episode = start_episode(policy, config, args.goal, args.seed, args.steps, args.force)
    print_reading(args, episode)
    frames, seconds = [initial_frame(episode.env, episode.obs, episode.goal)], []
    for k, step in enumerate(run_episode(episode.env, policy, episode.obs, not args.sample), 1):
        if k == 1:
            print(f"first action after {time.perf_counter() - start:.1f} s")
        print(f"{k:3d}  {step.action_text}" + (f"  [{step.note}]" if step.note else ""))
        frames.append(step.frame)
        seconds.append(step.decision_seconds)
    episode.env.close()
    rate = f", {1 / np.mean(seconds[1:]):.0f} decisions per second" if k > 1 else ""      # the first one warms up
    return [frames], step.outcome + rate


def print_reading(args, episode) -> None:
    """Print the instruction, the goal that scores the episode, and the model's reading."""
    note = f" ({episode.note})" if episode.note else ""
    scored = f"scored as {episode.goal}{note}" if episode.goal else f"not scored: {episode.note}"
    print(f"model {args.model}, goal \"{episode.obs['goal']}\", {scored}")
    print(f"the model understands: {episode.reading}")


def show_images(args, policy, config, start: float, images: list) -> tuple[list, str]:
    """Print a decision for each of `images`, pairs (name, PIL image). Return as `show_episode`."""
    from models.image_io import resize_for_model
    from scripts.instructions import start_episode
    resized = [resize_for_model(image, name, policy.backbone) for name, image in images]
    episode = start_episode(policy, config, args.goal, args.seed, args.steps, args.force, np.array(resized[0]))
    print_reading(args, episode)
    episode.env.close()
    scenes = []
    for i, (name, image) in enumerate(images):
        action_text, xy = predict(policy, config, resized[i], episode.obs["goal"], not args.sample)
        if i == 0:
            print(f"first action after {time.perf_counter() - start:.1f} s")
        place = "" if xy is None else f": pixel {to_pixel(xy, *image.size)}"
        print(f"{i + 1:3d}  {name}, {image.width}x{image.height}: {action_text}{place}")
        line = f"{i + 1} of {len(images)}: {action_text}"
        scenes.append([draw_frame(resize_for_display(image), episode.obs["goal"], line, xy)])
    return scenes, f"{len(images)} image{'s' * (len(images) > 1)}"


def predict(policy, config, image, instruction: str, deterministic: bool = True) -> tuple[str, tuple | None]:
    """Return the policy's action for one image in words, and its place: (x, y) as fractions of the image, or None."""
    from simulator.registry import get_env_family
    actions, *_ = policy.sample_action([image], [instruction], deterministic=deterministic)
    action = actions[0].cpu().numpy()
    return get_env_family(config).describe_action(action), action_point(policy.spec, action)


def to_pixel(xy: tuple[float, float], width: int, height: int) -> tuple[int, int]:
    """Return the pixel (x, y) at fractions of an image."""
    return min(int(xy[0] * width), width - 1), min(int(xy[1] * height), height - 1)


def resize_for_display(image) -> np.ndarray:
    """Return a PIL image as uint8 [H,W,3] with longest side MAX_SIDE. The pixels of a small one stay visible."""
    from PIL import Image, ImageOps
    is_small = max(image.size) <= MAX_SIDE // 4
    method = Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
    return np.asarray(ImageOps.contain(image, (MAX_SIDE, MAX_SIDE), method))


@cli.report_user_errors
def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    start, args = time.perf_counter(), parse_args(argv)
    cli.use_quiet_threads()
    import torch

    from models.image_io import display_name, load_image
    images = [(display_name(source), load_image(source)) for source in args.image or ()]
    policy = cli.load_policy(args)
    config = policy.meta.get("config", {})
    torch.manual_seed(args.seed)
    if images and policy.proprio_encoder:
        raise UserError(f"{args.model} also reads proprioception, which images do not have: leave out --image")
    if images:
        scenes, outcome = show_images(args, policy, config, start, images)
    else:
        scenes, outcome = show_episode(args, policy, config, start)
    try:
        save_video(scenes, args.output)
    except OSError as error:
        print(outcome)
        raise UserError(f"cannot write {args.output} ({error.strerror or error})") from None
    print(f"{outcome}; {args.output} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
