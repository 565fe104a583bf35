"""Success of a policy beside no-op, random and expert on the same episodes, as k of n with 95 % Wilson intervals.

    python scripts/evaluate.py --model checkpoints/vlm_best.pt                         the simple goals, goal by goal
    python scripts/evaluate.py --split all --json out.json                             every split, in one table
    python scripts/evaluate.py --split held_out_en chain --episodes 1000
    python scripts/evaluate.py --world robosuite_can --episodes 100        a world's no-op, random and expert, no model

What the splits are: simulator/splits.py. `chain` takes 1,000 episodes of five goals unless --episodes says otherwise.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from inference import SHIPPED, TRAINED, add_model_arguments  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--env-preset", nargs="+", default=[], metavar="WORD",
                        help="in place of a model: presets and key=value of a world, whose baselines are measured")
    parser.add_argument("--split", nargs="+", default=[], help="what to measure (default: the simple goals one by one)")
    parser.add_argument("--episodes", type=int, help="of each split (default: as in training, chain 1000)")
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True,
                        help="no-op, random and expert too (default); --no-baselines saves their time")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first episode (default 1000000)")
    parser.add_argument("--json", type=Path,
                        help="file to write the figures to; the model's own .json takes them in as its `results`")
    args = parser.parse_args(argv)
    die = lambda message: print(f"error: {' '.join(str(message).split())}", file=sys.stderr) or 2
    if (args.episodes is not None and args.episodes < 1) or not 0 <= args.seed < 2**32:
        return die("--episodes takes a whole number from 1 up and --seed one from 0 to 2**32 - 1")
    folder = args.json and args.json.absolute().parent
    there = args.json and args.json.exists() and not args.json.is_file()
    if args.json and (there or not folder.is_dir() or not os.access(folder, os.W_OK)):
        return die(f"cannot write --json {args.json}: name a file in a folder that exists and can be written")

    if args.env_preset and (args.split or args.model):
        return die("--world measures no model: leave out --model and --split")

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")      # see inference.py
    import torch

    import config
    from models.checkpoint import CheckpointError
    from models.vlm_policy import VLMPolicy
    from simulator.commands import CorpusError
    from simulator.evaluation import evaluate_policy, format_splits, format_table
    from simulator.particles.goals import GoalError
    from simulator.registry import EnvError, get_env_family, make_env
    args.model = args.model or str(TRAINED if TRAINED.is_file() else SHIPPED)
    try:
        policy = None if args.env_preset else VLMPolicy.from_pretrained(
            args.model, "cuda" if torch.cuda.is_available() else "cpu", args.base_model)
        if policy and "config" not in policy.meta:
            return die(f"{args.model} does not say how it was trained: name a .pt file that train_vlm.py wrote")
        settings = config.from_dict(policy.meta["config"]) if policy else config.load(args.env_preset)
        default_episodes = settings.eval.episodes
        if args.split:
            world, figures = get_env_family(settings), {}
            groups = {"held_out": ["held_out_en", "held_out_ko"], "all": world.eval_splits(settings)} | {
                name: [name] for name in world.SPLITS}
            for word in args.split:
                if word not in groups:
                    return die(f"unknown split {word!r}: choose from {', '.join(groups)}")
            names = groups["all"] if "all" in args.split else [name for word in args.split for name in groups[word]]
            for i, name in enumerate(names):
                began = time.perf_counter()
                episodes = args.episodes or (1000 if name == "long_horizon" else default_episodes)
                figures[name] = world.evaluate_split(name, settings, policy, episodes, args.seed, args.baselines)
                print(f"{name}: {i + 1} of {len(names)} splits, {time.perf_counter() - began:.0f} s", file=sys.stderr)
            print(format_splits(figures))
        else:
            figures = evaluate_policy(make_env(settings), policy, args.episodes or default_episodes, args.seed,
                                      baselines=args.baselines)
            print(format_table(figures))
    except (CheckpointError, config.ConfigError, GoalError, CorpusError, EnvError) as error:
        return die(error)
    if args.json and args.env_preset:
        args.json.write_text(json.dumps({"world": args.env_preset} | figures, indent=1) + "\n")
    elif args.json:
        model = Path(args.model).absolute()
        own = args.json.absolute() == (model / "policy.json" if model.is_dir() else model.with_suffix(".json"))
        about = {key: value for key, value in policy.meta.items() if key != "model_config"}
        figures = about | {"results": figures} if own else {"model": args.model, "seed": args.seed} | figures
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
