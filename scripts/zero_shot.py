"""Control a robot arm with a VLM that was never trained for it: it reads an image and writes an action's name.

    python scripts/zero_shot.py --model Qwen/Qwen2-VL-2B-Instruct --goal "Pick up the can and put it in its bin."
    python scripts/zero_shot.py --model FOLDER --task Lift --steps 50 --output lift.gif --save-frames frames

Each action is repeated for --action-repeat control steps of 50 ms. Every step's action and reward are printed, and
`default` if the answer names no action. At the end: success, return, and how many answers named an action.
"""
import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.cli import check_output_path, die
from simulator.recording import draw_frame, save_video

if TYPE_CHECKING:
    from PIL.Image import Image

    from models.zero_shot import ActionPrediction, ZeroShotPolicy
    from simulator.robosuite.env import RobosuiteEnv

DEFAULT_ACTION = "forward"      # if the answer names no action


def policy_prompt(task: str, actions: Sequence[str]) -> str:
    """Return the prompt for a policy with an action head. `task` is an instruction, `actions` are names."""
    return (f"Robot control task: {task}\nAvailable actions: {', '.join(actions)}\n"
            "Choose the best action based on the current view.\nAnswer:")


def zero_shot_prompt(task: str, actions: Sequence[str], previous: tuple[str, float] | None = None) -> str:
    """Return the prompt for a model that writes an action's name. `previous` is the last action and its reward."""
    feedback = "" if previous is None else f"Previous action: {previous[0]}\nReward: {previous[1]:+.4f}\n"
    return (f"Robot control task: {task}\nAvailable actions: {', '.join(actions)}\n{feedback}"
            "Choose exactly ONE action; each moves the robot a little. Reply with its name and nothing else.\nAnswer:")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER|NAME", help="a Qwen2-VL, in a folder or on the hub")
    add("--task", default="PickPlaceCan", help="robosuite task (default PickPlaceCan)")
    add("--goal", help="an instruction, or a goal's name (default: one of the task's own instructions)")
    add("--steps", type=int, default=300, help="maximum number of actions (default 300)")
    add("--action-repeat", type=int, default=1, help="control steps for each action (default 1)")
    add("--camera", default="robot0_eye_in_hand", help="camera of the model's images (default robot0_eye_in_hand)")
    add("--resolution", type=int, default=256, help="of the model's images, pixels (default 256)")
    add("--seed", type=int, default=0, help="seed of the environment (default 0)")
    add("--output", type=Path, default=Path("zero_shot.gif"), help="GIF to write (default zero_shot.gif)")
    add("--save-frames", type=Path, metavar="FOLDER", help="also write frames to this folder, as stepNNN.png")
    add("--frame-every", type=int, default=5, help="steps between these frames (default 5)")
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> str | None:
    """Return a one-line error message if an option cannot be used, else None."""
    if min(args.steps, args.frame_every) < 1:
        return "--steps and --frame-every require a whole number from 1 up"
    if not 0 <= args.seed < 2**32:
        return "--seed requires a whole number from 0 to 2**32 - 1"
    if args.save_frames and not (args.save_frames.is_dir() and os.access(args.save_frames, os.W_OK)):
        return f"cannot write into {args.save_frames}: name a folder that exists and can be written"
    return check_output_path(args.output)


def main(argv: list[str] | None = None) -> int:
    """Run one episode and return the exit code."""
    args = parse_args(argv)
    if message := check_args(args):
        return die(message)

    import torch

    from models.checkpoint import first_line
    from models.zero_shot import VLMGenerator, ZeroShotPolicy
    from simulator.robosuite.env import ACTIONS, EnvError, RobosuiteEnv
    device = "cuda" if torch.cuda.is_available() else "cpu"
    env = None
    try:
        env = RobosuiteEnv(task=args.task, cameras=args.camera, resolution=args.resolution, max_steps=args.steps,
                           action_repeat=args.action_repeat)
        policy = ZeroShotPolicy(VLMGenerator(args.model, device), ACTIONS, DEFAULT_ACTION, zero_shot_prompt)
        frames, summary = run_episode(env, policy, args)
        save_video([frames], args.output)
    except EnvError as error:
        return die(error)
    except OSError as error:
        return die(f"{args.model}: {first_line(error)}")
    finally:
        if env:
            env.close()
    print(f"{summary}; {policy.report()}; {args.output} written")
    return 0


def run_episode(env: "RobosuiteEnv", policy: "ZeroShotPolicy", args: argparse.Namespace) -> tuple[list["Image"], str]:
    """Run and print one episode. Return its frames and a one-line summary."""
    goal = " ".join((args.goal or "").split())
    obs, info = env.reset(seed=args.seed, options={"goal": goal})
    scored = f"scored as {info['goal']}" if info["goal"] else "not scored: not a known goal"
    print(f"goal \"{obs['goal']}\", {scored}")
    frames = [draw_frame(env.render(), obs["goal"], "initial")]
    previous, episode_return, done, step = None, 0.0, False, 0
    while not done:
        step += 1
        prediction = policy.predict_action(obs["image"], obs["goal"], previous)
        obs, reward, success, truncated, _ = env.step(policy.actions.index(prediction.action))
        episode_return += reward
        previous = prediction.action, reward
        done = success or truncated
        print(f"{step:3d}  {describe(prediction)}  {reward:+.4f}")
        frames.append(draw_frame(env.render(), obs["goal"], f"{step}: {prediction.action}"))
        if args.save_frames and step % args.frame_every == 0:
            frames[-1].save(args.save_frames / f"step{step:03d}.png")
    outcome = "success" if success else "no success"
    return frames, f"{outcome} after {step} actions, return {episode_return:.4f}"


def describe(prediction: "ActionPrediction") -> str:
    """Return an action as printed: its name, and why it is the default if it is."""
    if prediction.parsed:
        return prediction.action
    return f"{prediction.action}  [default: {prediction.error or repr(prediction.text)}]"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
