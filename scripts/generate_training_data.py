"""Ask a language model for instructions, check them and append them to a corpus.

    scripts/start_vllm.sh qwen72b        or any other OpenAI-compatible endpoint; its key in OPENAI_API_KEY
    python scripts/generate_training_data.py --n-goals 2000 --n-variations 5 --output data/generated.jsonl

A stopped run continues with the same command: each answer is first written to OUTPUT.journal.jsonl. The rows follow
from the answers in the order of the requests, not of their arrival.
"""
import argparse
import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

import httpx
from commands.client import FatalError, ask, ask_all, find_model
from commands.goals import LANGUAGES, Task, make_tasks
from commands.journal import Corpus
from commands.prompt import messages
from tqdm import tqdm

LIMITS = {"n_goals": (1, 10**6), "n_variations": (1, 50), "concurrency": (1, 512), "timeout": (0.001, 86400),
          "retries": (0, 100), "seed": (0, 2**32 - 1)}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments; `languages` as a list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    add = parser.add_argument
    add("--n-goals", type=int, default=2000, help="goals to draw (default 2000)")
    add("--n-variations", type=int, default=5, help="instructions to ask for, per goal and language (default 5)")
    add("--output", type=Path, default=Path("data/generated.jsonl"), help="corpus to append to (%(default)s)")
    add("--base-url", default="http://localhost:8000/v1", help="URL of the endpoint (%(default)s)")
    add("--model", help="model name (default: the first that the endpoint lists)")
    add("--languages", default="ko,en", help="ko, en or both (%(default)s)")
    add("--concurrency", type=int, default=64, help="requests at once (%(default)s)")
    add("--timeout", type=float, default=60, help="seconds before a request is given up (%(default)s)")
    add("--retries", type=int, default=5, help="retries of a request that may still succeed (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the goals (%(default)s)")
    add("--dry-run", action="store_true", help="print some requests; ask and write nothing")
    args = parser.parse_args(argv)
    args.languages = args.languages.split(",")
    return args


def usage_error(args: argparse.Namespace) -> str | None:
    """Return what is wrong with the numbers or languages, or None."""
    for name, (low, high) in LIMITS.items():
        if not low <= getattr(args, name) <= high:
            return f"--{name.replace('_', '-')} requires a number from {low} to {high}"
    if not set(args.languages) <= set(LANGUAGES) or len(set(args.languages)) < len(args.languages):
        return "--languages requires ko, en or ko,en"
    return None


def access_error(args: argparse.Namespace) -> str | None:
    """Return why the output cannot be written or the API key cannot be sent, or None."""
    folder = args.output.absolute().parent
    target = args.output if args.output.exists() else folder
    if args.output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK) or not os.access(target, os.W_OK):
        return f"cannot write --output {args.output}: name a file in a folder that exists and can be written"
    api_key = os.environ.get("OPENAI_API_KEY", "")
    if not api_key.isascii() or not api_key.isprintable():
        return "OPENAI_API_KEY contains characters that are not allowed in a key"
    return None


def draw_tasks(args: argparse.Namespace, model: str) -> list[Task]:
    """Return all requests of a run."""
    return make_tasks(args.seed, args.n_goals, args.n_variations, args.languages, model)


async def generate(args: argparse.Namespace) -> None:
    """Ask for everything that the journal does not answer, and print a summary."""
    headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY') or 'EMPTY'}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=args.concurrency)
    async with httpx.AsyncClient(base_url=args.base_url, headers=headers, limits=limits, timeout=None) as client:
        corpus = Corpus(args.output, draw_tasks(args, await find_model(client, args.model, args.timeout)))
        try:
            await ask_todo(client, corpus, args)
        finally:
            corpus.close()
    print(corpus.summary())


async def ask_todo(client: httpx.AsyncClient, corpus: Corpus, args: argparse.Namespace) -> None:
    """Ask for the tasks without an answer, with a progress bar."""
    done = len(corpus.tasks) - len(corpus.todo)
    with tqdm(total=len(corpus.tasks), initial=done, unit="request", disable=not corpus.todo) as bar:
        def recorded(record, task: Task, result: object) -> None:
            record(task, result)
            rows = corpus.counts["rows"]
            bar.set_postfix(rows=rows, refused=corpus.counts.total() - rows, refresh=False)
            bar.update()

        ask_one = partial(ask, client, timeout=args.timeout, retries=args.retries)
        await ask_all(corpus.todo, ask_one, partial(recorded, corpus.add_answer),
                      partial(recorded, corpus.add_failure), args.concurrency)


def print_dry_run(tasks: list[Task]) -> None:
    """Print the first requests and the numbers of all."""
    for task in tasks[:3]:
        print(f"{task.goal} ({LANGUAGES[task.language]})")
        for message in messages(task):
            print(f"  {message['role']}: {message['content']}")
    print(f"dry run: {len(tasks)} requests for {len({task.goal for task in tasks})} different goals, "
          f"{sum(task.variations for task in tasks)} instructions; nothing was asked or written")


def exit_at_once(number: int, frame: object) -> None:
    """Handle Ctrl-C. Requests that hang may not be cancellable; the journal makes an immediate exit safe."""
    os.write(sys.stderr.fileno(), b"\nstopped: the same command continues from here\n")
    os._exit(130)


def die(message: object) -> int:
    """Print an error as one line and return the exit code 2."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv)
    problem = usage_error(args)
    if args.dry_run and not problem:
        print_dry_run(draw_tasks(args, args.model or "MODEL"))
        return 0
    problem = problem or access_error(args)
    if problem:
        return die(problem)
    previous_handler = signal.signal(signal.SIGINT, exit_at_once)
    try:
        asyncio.run(generate(args))
    except (FatalError, httpx.InvalidURL) as error:
        return die(error)
    except OSError as error:
        return die(f"cannot write {error.filename or args.output}: {error.strerror}")
    finally:
        signal.signal(signal.SIGINT, previous_handler)
    return 0


if __name__ == "__main__":
    sys.exit(main())
