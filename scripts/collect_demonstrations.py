"""Demonstrations of the scripted expert of a robot arm, as a file in robomimic's format (see dataset.py).

    python scripts/collect_demonstrations.py PRESET... key=value... --episodes 200 --output data/lift.hdf5
    python scripts/collect_demonstrations.py PRESET... --episodes 200 --output data/lift.hdf5 --valid 0.1 --perturb 0.2

Mistakes are made on purpose, so that the file holds how to mend them; episodes that fail are kept too, unless
--only-success. --valid also writes the filter keys `train` and `valid`. Ctrl-C writes what there is, exit code 130.
"""
import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="PRESET or key=value", help="the world, as train_vlm.py takes it")
    parser.add_argument("--episodes", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--output", type=Path, required=True, help="the .hdf5 file to write")
    parser.add_argument("--action-noise", type=float, default=0.1, help="probability of a random action (default 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="what all follows from (default 0)")
    parser.add_argument("--workers", type=int, default=4, help="worlds side by side, a process each (default 4)")
    parser.add_argument("--val-fraction", type=float, help="share of the episodes to hold back (default: no split)")
    parser.add_argument("--only-success", action="store_true", help="leave out episodes that fail")
    args = parser.parse_intermixed_args(argv)
    die = lambda message: print(f"error: {' '.join(str(message).split())}", file=sys.stderr) or 2
    if args.episodes < 1 or args.workers < 1 or args.seed < 0 or not 0 <= args.action_noise <= 1:
        return die("--episodes and --workers take a whole number from 1 up, --seed one from 0 up, --perturb 0 to 1")
    if args.output.suffix != ".hdf5" or args.output.is_dir():
        return die(f"cannot write --output {args.output}: name a .hdf5 file")
    if args.val_fraction is not None and not 0 < round(args.val_fraction * args.episodes) < args.episodes:
        return die(f"--valid {args.val_fraction} of {args.episodes} episodes leaves none to hold back, or none to train on: "
                    "give another share, or more episodes")

    from tqdm import tqdm

    import config
    from dataset import DatasetError, import_h5py, record_demos, split_demonstrations, write_demonstrations
    from simulator.registry import EnvError, make_env
    env, began, counts, code = None, time.perf_counter(), [0, 0], 0

    def what_there_is(episodes):
        nonlocal code
        try:
            yield from episodes
        except KeyboardInterrupt:
            print("\nstopped: writing what there is", file=sys.stderr)
            code = 130
        except EnvError as error:
            code = die(f"{error}; writing what there is")

    try:
        import_h5py()
        settings = config.load(args.overrides)
        env = make_env(settings, min(args.workers, args.episodes))
        if not hasattr(env, "call"):
            return die("this world's expert needs no file: give a preset of the robot arm")
        with tqdm(total=args.episodes, unit="episode") as bar:
            def progress(finished, successes):
                counts[:] = finished, successes
                bar.set_postfix(success=f"{successes} of {finished}", refresh=False)
                bar.update(not args.only_success or successes > bar.n)
            episodes = record_demos(env, args.episodes, args.seed, args.action_noise, progress=progress,
                               only_success=args.only_success)
            samples = write_demonstrations(args.output, what_there_is(episodes), env.call("env_args")[0])
        if args.val_fraction is not None:
            split_demonstrations(args.output, args.val_fraction, args.seed)
    except (config.ConfigError, DatasetError, EnvError, OSError) as error:
        return die(error)
    finally:
        if env is not None:
            env.close()
    seconds = time.perf_counter() - began
    print(f"{args.output}: {samples} samples, {args.output.stat().st_size / 1e6:.1f} MB; "
          f"{counts[1]} of {counts[0]} episodes successful; {counts[0] / seconds:.2f} episodes/s")
    return code


if __name__ == "__main__":
    sys.exit(main())
