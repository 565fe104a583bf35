"""Record demonstrations of a robot arm's scripted expert into a file in robomimic's format (HDF5).

    python scripts/collect_demonstrations.py PRESET... key=value... --episodes 200 --output data/lift.hdf5
    python scripts/collect_demonstrations.py PRESET... --episodes 200 --output data/lift.hdf5 \\
        --val-fraction 0.1 --action-noise 0.2

Random actions lead to mistakes, and the file contains how the expert corrects them. Failed episodes are kept unless
--only-success is given. --val-fraction also writes the filter keys `train` and `valid`. Ctrl-C writes the episodes
recorded so far; the exit code is then 130. simulator/formats/robomimic.py describes the file.
"""
import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="PRESET or key=value", help="the environment, as for train_vlm.py")
    add("--episodes", type=int, default=200, help="number of episodes (default 200)")
    add("--output", type=Path, required=True, help="the .hdf5 file to write")
    add("--action-noise", type=float, default=0.1, help="probability of a random action (default 0.1)")
    add("--seed", type=int, default=0, help="seed of all random numbers (default 0)")
    add("--workers", type=int, default=4, help="parallel environments, a process each (default 4)")
    add("--val-fraction", type=float, help="fraction of the episodes to hold out (default: no split)")
    add("--only-success", action="store_true", help="leave out failed episodes")
    return parser.parse_intermixed_args(argv)


def usage_error(args: argparse.Namespace) -> str | None:
    """Return what is wrong with the arguments, or None."""
    if args.episodes < 1 or args.workers < 1 or args.seed < 0 or not 0 <= args.action_noise <= 1:
        return ("--episodes and --workers must be at least 1, --seed at least 0, and --action-noise between 0 and 1")
    if args.output.suffix != ".hdf5" or args.output.is_dir():
        return f"cannot write --output {args.output}: name a .hdf5 file"
    if args.val_fraction is not None and not 0 < round(args.val_fraction * args.episodes) < args.episodes:
        return (f"--val-fraction {args.val_fraction} of {args.episodes} episodes leaves none to hold out, or none to "
                "train on: give another fraction, or more episodes")
    return None


def die(message: object) -> int:
    """Print an error as one line and return the exit code 2."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


class Recorder:
    """Records into a file with a progress bar; keeps the counts of episodes and the exit code."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.exit_code = args, 0
        self.finished = self.successes = 0

    def record(self, env) -> int:
        """Write the file and return the number of samples."""
        from simulator.formats import recorder, robomimic
        args = self.args
        with tqdm(total=args.episodes, unit="episode") as self.bar:
            episodes = recorder.record_demos(env, args.episodes, args.seed, args.action_noise,
                                             progress=self.progress, only_success=args.only_success)
            samples = robomimic.write_demonstrations(args.output, self.until_stopped(episodes),
                                                     env.call("env_args")[0])
        if args.val_fraction is not None:
            robomimic.split_demonstrations(args.output, args.val_fraction, args.seed)
        return samples

    def progress(self, finished: int, successes: int) -> None:
        self.finished, self.successes = finished, successes
        self.bar.set_postfix(success=f"{successes} of {finished}", refresh=False)
        self.bar.update(not self.args.only_success or successes > self.bar.n)

    def until_stopped(self, episodes: Iterable[dict]) -> Iterator[dict]:
        """Yield the episodes until the end, Ctrl-C, or a failure of the environment."""
        from simulator.registry import EnvError
        try:
            yield from episodes
        except KeyboardInterrupt:
            print("\nstopped: writing the episodes recorded so far", file=sys.stderr)
            self.exit_code = 130
        except EnvError as error:
            self.exit_code = die(f"{error}; writing the episodes recorded so far")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv)
    problem = usage_error(args)
    if problem:
        return die(problem)

    import config
    from simulator.formats.robomimic import import_h5py
    from simulator.registry import EnvError, make_env
    recorder, env, start_time = Recorder(args), None, time.perf_counter()
    try:
        import_h5py()
        settings = config.load(args.overrides)
        if settings.env.world != "robosuite":
            return die("demonstrations of this environment are generated during training: give a robosuite preset")
        env = make_env(settings, min(args.workers, args.episodes))
        samples = recorder.record(env)
    except (config.UserError, EnvError, OSError) as error:
        return die(error)
    finally:
        if env is not None:
            env.close()
    seconds, megabytes = time.perf_counter() - start_time, args.output.stat().st_size / 1e6
    print(f"{args.output}: {samples} samples, {megabytes:.1f} MB; {recorder.successes} of {recorder.finished} episodes "
          f"successful; {recorder.finished / seconds:.2f} episodes/s")
    return recorder.exit_code


if __name__ == "__main__":
    sys.exit(main())
