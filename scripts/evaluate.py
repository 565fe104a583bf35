"""Measure the success of a policy beside no-op, random and expert actions on the same episodes.

Success is k of n episodes with a 95 % Wilson interval.

    python scripts/evaluate.py --model checkpoints/vlm_best.pt                     the simple goals, goal by goal
    python scripts/evaluate.py --split all --json out.json                         every split, in one table
    python scripts/evaluate.py --split held_out --split chain --episodes 1000
    python scripts/evaluate.py --env-preset robosuite_can --episodes 100           the baselines of an env, no model

The splits are described in simulator/particles/splits.py. `held_out` means held_out_en and held_out_ko, `swap`
instruction_swap, `chain` long_horizon. The last takes 1,000 episodes of five goals unless --episodes is given.
"""
import argparse
import json
import sys
import time
from pathlib import Path

from config import UserError
from scripts import cli

SHORT_NAMES = {"held_out": ["held_out_en", "held_out_ko"], "swap": ["instruction_swap"], "chain": ["long_horizon"]}
LONG_HORIZON_EPISODES = 1000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments. Raise UserError for a wrong value."""
    parser = cli.ArgumentParser(description=__doc__)
    cli.add_model_arguments(parser)
    parser.add_argument("--env-preset", nargs="+", default=[], metavar="PRESET",
                        help="presets and key=value of an env, whose baselines are measured without a model")
    parser.add_argument("--split", nargs="+", action="extend", default=[],
                        help="what to measure, one or more (default: the simple goals one by one)")
    parser.add_argument("--episodes", type=int, help="of each split (default: as in training, long_horizon 1000)")
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True,
                        help="no-op, random and expert too (default); --no-baselines saves their time")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first episode (default 1000000)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="file for the results; in the model's own .json they become its `results`")
    args = parser.parse_args(argv)
    if args.json:
        cli.require_output_path(args.json, option="--json")
    cli.check_seed(args.seed)
    cli.check_positive("--episodes", args.episodes)
    if args.env_preset and (args.split or args.model):
        raise UserError("--env-preset measures no model: leave out --model and --split")
    if not args.env_preset:
        args.model = cli.resolve_model(args.model)
    return args


def resolve_splits(names: list[str], known: list[str], available: list[str]) -> list[str]:
    """Return the splits that names mean, each once. `all` means the available ones.

    Raise UserError for a name that is neither in `known` nor short for one that is.
    """
    table = {name: splits for name, splits in SHORT_NAMES.items() if set(splits) <= set(known)}
    table |= {"all": available} | {name: [name] for name in known}
    for name in names:
        if name not in table:
            raise UserError(f"unknown split {name!r}: choose from {', '.join(table)}")
    names = ["all"] if "all" in names else names
    return list(dict.fromkeys(split for name in names for split in table[name]))


def evaluate(args: argparse.Namespace, config, policy) -> dict:
    """Measure what the arguments ask for, print it as a table, and return the results."""
    from simulator.evaluation import evaluate_policy, format_table
    from simulator.registry import make_env
    if args.split:
        return evaluate_splits(args, config, policy)
    episodes = args.episodes or config.eval.episodes
    results = evaluate_policy(make_env(config), policy, episodes, args.seed, baselines=args.baselines)
    print(format_table(results))
    return results


def evaluate_splits(args: argparse.Namespace, config, policy) -> dict:
    """Measure the splits that the arguments name, print one table, and return {split: results}."""
    from simulator.evaluation import format_splits
    from simulator.registry import get_env_family
    family, results = get_env_family(config), {}
    splits = resolve_splits(args.split, list(family.SPLITS), list(family.eval_splits(config)))
    for i, split in enumerate(splits):
        start = time.perf_counter()
        episodes = args.episodes or (LONG_HORIZON_EPISODES if split == "long_horizon" else config.eval.episodes)
        results[split] = family.evaluate_split(split, config, policy, episodes, args.seed, args.baselines)
        seconds = time.perf_counter() - start
        print(f"{split}: {i + 1} of {len(splits)} splits, {seconds:.0f} s", file=sys.stderr)
    print(format_splits(results))
    return results


def write_json(args: argparse.Namespace, policy, results: dict) -> None:
    """Write the results to --json. The model's own description keeps what it says and gets them as `results`."""
    if policy is None:
        content = {"env_preset": args.env_preset} | results
    else:
        model = Path(args.model).absolute()
        own_file = model / "policy.json" if model.is_dir() else model.with_suffix(".json")
        description = {key: value for key, value in policy.meta.items() if key != "model_config"}
        is_own = args.json.absolute() == own_file
        content = description | {"results": results} if is_own else {"model": args.model, "seed": args.seed} | results
    args.json.write_text(json.dumps(content, indent=1) + "\n")


@cli.report_user_errors
def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    args = parse_args(argv)
    cli.use_quiet_threads()
    import config
    policy = None if args.env_preset else cli.load_policy(args)
    if policy and "config" not in policy.meta:
        raise UserError(f"{args.model} has no training config: name a .pt file that train_vlm.py wrote")
    settings = config.from_dict(policy.meta["config"]) if policy else config.load(args.env_preset)
    results = evaluate(args, settings, policy)
    if args.json:
        write_json(args, policy, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
