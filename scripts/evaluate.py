"""Success of a policy beside no-op, random and expert on the same episodes, as k of n with 95 % Wilson intervals.

    python scripts/evaluate.py --model checkpoints/vlm_best.pt --split seen --episodes 512 --json out.json
"""
import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
SPLITS = {"seen": "train", "held_out": "held_out"}       # split of the evaluation: split of the corpus


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("checkpoints/vlm_best.pt"), help="checkpoint to act from")
    parser.add_argument("--split", choices=SPLITS, default="seen", help="sentences trained on, or never seen")
    parser.add_argument("--episodes", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first episode (default 1000000)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args(argv)
    fail = lambda message: print(f"error: {' '.join(str(message).split())}", file=sys.stderr) or 2
    if args.episodes < 1 or not 0 <= args.seed < 2**32:
        return fail("--episodes takes a whole number from 1 up and --seed one from 0 to 2**32 - 1")
    folder = args.json and args.json.absolute().parent
    if args.json and (args.json.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK)):
        return fail(f"cannot write --json {args.json}: name a file in a folder that exists and can be written")

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")      # see inference.py
    import config
    from models.checkpoint import CheckpointError
    from models.vlm_policy import VLMPolicy
    from simulator.evaluation import evaluate_policy, show
    from simulator.goal_env import make_env
    try:
        policy = VLMPolicy.from_checkpoint(args.model)
        if "config" not in policy.meta:
            return fail(f"{args.model} does not say how it was trained: name a .pt file that train_vlm.py wrote")
        settings = config.from_dict(policy.meta["config"])
    except (CheckpointError, config.ConfigError) as error:
        return fail(error)
    env = make_env(settings, num_envs=min(128, args.episodes), split=SPLITS[args.split])
    figures = {"split": args.split} | evaluate_policy(env, policy, args.episodes, args.seed)
    print(show(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
