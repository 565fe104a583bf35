"""What the command-line programs share: errors in one line, checks of paths, and the arguments that name a model."""
import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from config import UserError

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_MODEL = ROOT / "checkpoints/vlm_tiny.pt"
TRAINED_MODEL = Path("checkpoints/vlm_best.pt")      # in the current folder, where train_vlm.py writes it
MAX_SEED = 2**32 - 1                                 # numpy's bound


def die(message: object) -> int:
    """Print `error: message` on stderr in one line and return the exit code 2."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def report_user_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a program: a UserError becomes one line and exit code 2, Ctrl-C exit code 130."""
    @functools.wraps(main)
    def program(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except UserError as error:
            return die(error)
        except KeyboardInterrupt:
            return 130
    return program


class ArgumentParser(argparse.ArgumentParser):
    """Show the module's docstring as it is written, and report a wrong argument in one line."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str):
        sys.exit(die(f"{message} (see --help)"))


def use_quiet_threads() -> None:
    """Let idle threads sleep. Call it before the import of torch.

    Spinning threads decide 60 times as slowly where anything else uses the cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def check_seed(seed: int) -> None:
    """Raise UserError for a seed that numpy does not take."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"--seed is {seed}: give a whole number from 0 to 2**32 - 1")


def check_positive(option: str, value: int | None) -> None:
    """Raise UserError for a count below 1. None means that the option was not given."""
    if value is not None and value < 1:
        raise UserError(f"{option} is {value}: give a whole number from 1 up")


def check_output_path(output: Path, suffixes: tuple[str, ...] = (".gif",), option: str = "--output") -> str | None:
    """Return why a file cannot be written to the path `output`, in one line, or None if it can.

    A temporary file is opened beside it and removed again. Without `suffixes` any name will do.
    """
    probe = output.parent / f"{output.name}.tmp"
    reason = f"cannot write {option} {output}: name a file in a folder that exists and can be written"
    try:
        is_file = output.is_file() or not output.exists()
        if not (is_file and output.parent.is_dir() and os.access(output.parent, os.W_OK)):
            return reason
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"{reason} ({error.strerror})"
    if suffixes and output.suffix.lower() not in suffixes:
        return f"{option} {output} has the wrong ending: let its name end in {' or '.join(suffixes)}"
    return None


def require_output_path(output: Path, suffixes: tuple[str, ...] = (), option: str = "--output") -> None:
    """Raise UserError if `check_output_path` finds a reason."""
    if reason := check_output_path(output, suffixes, option):
        raise UserError(reason)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model and --base-model, which every program that acts has."""
    parser.add_argument("--model", metavar="FILE|FOLDER|NAME",
                        help="checkpoint, folder of an agent, or its name on the Hub "
                        f"(default: {TRAINED_MODEL}, else the shipped vlm_tiny.pt)")
    parser.add_argument("--base-model", metavar="FOLDER|NAME",
                        help="where the base model is, if not where it was in training")


def resolve_model(name: str | None) -> str:
    """Return the model that --model names, or the default. Raise UserError for a .pt file that does not exist.

    This runs before torch is imported, so a wrong name is reported at once.
    """
    name = name or str(TRAINED_MODEL if TRAINED_MODEL.is_file() else SHIPPED_MODEL)
    if name.endswith(".pt") and not Path(name).exists():
        raise UserError(f"no checkpoint at {name}: train one with `python train_vlm.py vlm_tiny`, "
                        "or name a .pt file that train_vlm.py wrote")
    return name


def pick_device() -> str:
    """Return "cuda" where a CUDA GPU is available, else "cpu"."""
    import torch
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_policy(args: argparse.Namespace):
    """Return the VLMPolicy that --model and --base-model name, on the device of `pick_device`."""
    from models.vlm_policy import VLMPolicy
    return VLMPolicy.from_pretrained(args.model, pick_device(), args.base_model)
