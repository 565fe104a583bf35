"""A robot arm led by a VLM that was never trained for it: the picture and the actions' names in, a name out.

    python scripts/zero_shot.py --model Qwen/Qwen2-VL-2B-Instruct --goal "Pick up the can and put it in its bin."
    python scripts/zero_shot.py --model FOLDER --task Lift --steps 50 --output lift.gif --frames pictures --every 5

Each action is held for --repeat control steps of 50 ms. Prints every step's action, and `default` where the answer
named none; at the end the return, success, and how many answers named an action.
"""
import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from inference import check_output_path, die, draw_frame, save_gif  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FOLDER|NAME", help="a Qwen2-VL, here or on the hub")
    parser.add_argument("--task", default="PickPlaceCan", help="the scene (default PickPlaceCan)")
    parser.add_argument("--goal", help="a sentence, or a goal's name (default: one of the task's own sentences)")
    parser.add_argument("--steps", type=int, default=300, help="actions at most (default 300)")
    parser.add_argument("--action-repeat", type=int, default=1, help="control steps for each action (default 1)")
    parser.add_argument("--camera", default="robot0_eye_in_hand", help="what the model sees through")
    parser.add_argument("--resolution", type=int, default=256, help="of what it sees, pixels (default 256)")
    parser.add_argument("--seed", type=int, default=0, help="of the world's start (default 0)")
    parser.add_argument("--output", type=Path, default=Path("zero_shot.gif"), help="GIF to write")
    parser.add_argument("--save-frames", type=Path, metavar="FOLDER", help="write frames there too, as stepNNN.png")
    parser.add_argument("--frame-every", type=int, default=5, help="each of how many of them (default 5)")
    args = parser.parse_args(argv)
    if min(args.steps, args.frame_every) < 1 or not 0 <= args.seed < 2**32:
        return die("--steps and --every take a whole number from 1 up, --seed one from 0 to 2**32 - 1")
    if why := check_output_path(args.output):
        return die(why)
    if args.save_frames and not (args.save_frames.is_dir() and os.access(args.save_frames, os.W_OK)):
        return die(f"cannot write into {args.save_frames}: name a folder that exists and can be written")

    import torch

    from models.checkpoint import first_line
    from models.zero_shot import VLMGenerator, ZeroShotPolicy
    from simulator.robosuite.env import ACTIONS, EnvError, RobosuiteEnv
    env = None
    try:
        env = RobosuiteEnv(task=args.task, cameras=args.camera, resolution=args.resolution, max_steps=args.steps,
                           action_repeat=args.action_repeat)
        model = ZeroShotPolicy(VLMGenerator(args.model, "cuda" if torch.cuda.is_available() else "cpu"), ACTIONS)
        scene, ending = run_episode(env, model, args)
        save_gif([scene], args.output)
    except EnvError as error:
        return die(error)
    except OSError as error:
        return die(f"{args.model}: {first_line(error)}")
    finally:
        if env:
            env.close()
    print(f"{ending}; {model.report()}; {args.output} written")
    return 0


def run_episode(env, model, args):
    """One episode -> its frames, and what came of it in words."""
    from simulator.robosuite.env import ACTIONS
    goal = " ".join((args.goal or "").split())
    obs, info = env.reset(seed=args.seed, options={"goal": goal})
    print(f"goal \"{obs['goal']}\", " + (f"scored as {info['goal']}" if info["goal"] else "not scored: not known"))
    frames, previous, total, ended = [draw_frame(env.render(), obs["goal"], "initial")], None, 0.0, False
    while not ended:
        prediction = model.predict_action(obs["image"], obs["goal"], previous)
        obs, reward, success, truncated, _ = env.step(ACTIONS.index(prediction.action))
        total, previous, ended = total + reward, (prediction.action, reward), success or truncated
        action_text = prediction.action + ("" if prediction.parsed else f"  [default: {prediction.error or repr(prediction.text)}]")
        print(f"{len(frames):3d}  {action_text}  {reward:+.4f}")
        frames.append(draw_frame(env.render(), obs["goal"], f"{len(frames)}: {prediction.action}"))
        if args.save_frames and (len(frames) - 1) % args.frame_every == 0:
            frames[-1].save(args.save_frames / f"step{len(frames) - 1:03d}.png")
    return frames, f"{'success' if success else 'no success'} after {len(frames) - 1} actions, return {total:.4f}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
