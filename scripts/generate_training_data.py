"""Asks a language model for sentences that ask for goals, checks them and appends them to a corpus.

    scripts/start_vllm.sh qwen72b        or any other OpenAI-compatible endpoint; its key in OPENAI_API_KEY
    python scripts/generate_training_data.py --n-goals 2000 --n-variations 5 --output data/generated.jsonl

Killed at any moment, the same command goes on where it was: every answer is first written, whole, to
OUTPUT.journal.jsonl. The rows follow from the answers in the order of the requests, not in that of their arrival.
"""
import argparse
import asyncio
import email.utils
import fcntl
import json
import os
import random
import re
import signal
import sys
import unicodedata
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import httpx
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from build_corpus import is_held_out

from simulator.commands import ALLOWED_CHARS, load_instructions
from simulator.particles.goals import AXES, DIRECTIONS, REGIONS, parse
from simulator.particles.parser import instruction_to_goal, normalise
from simulator.particles.physics import PALETTE

BACKOFF, LONGEST_BACKOFF, LONGEST_WAIT = 1.0, 60.0, 600.0        # s; the last for a Retry-After
LANGUAGES = {"ko": "Korean", "en": "English"}


class FatalError(Exception):
    """The run cannot go on; the message says why."""


class RequestFailed(Exception):
    """One request came to nothing."""

    def __init__(self, reason, detail):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Task:
    """One request: `variations` sentences in one language for a goal, which is number `number` of a seed."""
    seed: int
    number: int
    language: str
    goal: str
    variations: int
    model: str


# Goals

SIDES = {(0, "<", 16): "the far left", (0, ">", 48): "the far right", (1, "<", 16): "the very top",
         (1, ">", 48): "the very bottom", (0, "<", 32): "the left half", (0, ">", 32): "the right half",
         (1, "<", 32): "the upper half", (1, ">", 32): "the lower half"}
# What a goal is about: those that share something cannot be asked for at once, or make an odd pair.
ASPECTS = {"push": "place", "move_to(region": "place", "vibrate": "place size", "spread": "shape size",
           "cluster": "shape", "align": "shape", "cluster(ids": "shape one", "move_to(id": "one", "move_toward": "one",
           "heat": "temperature", "cool": "temperature"}


def _ids(rng, count):
    return rng.sample(range(len(PALETTE)), count)


def _bounds(rng):
    bounds = (rng.choice([bound for bound in SIDES if bound[0] == axis]) for axis in rng.choice(((0,), (1,), (0, 1))))
    return ", ".join(f"{'xy'[axis]}{side}{px}" for axis, side, px in bounds)


FORMS = (
    lambda rng: f"push(direction={rng.choice(list(DIRECTIONS))})",
    lambda rng: f"push(direction={rng.choice(list(DIRECTIONS))}, distance={rng.randint(5, 30)})",
    lambda rng: "cluster()",
    lambda rng: f"cluster(ids={sorted(_ids(rng, rng.randint(2, 4)))})",
    lambda rng: "spread()",
    lambda rng: "vibrate()",
    lambda rng: "heat()",
    lambda rng: rng.choice((f"heat(by={rng.randint(1, 6)})", f"heat(to={rng.randint(4, 9)})")),
    lambda rng: "cool()",
    lambda rng: rng.choice((f"cool(by={rng.randint(1, 3)})", f"cool(to={rng.randint(0, 2)})")),
    lambda rng: f"align(axis={rng.choice(list(AXES))})",
    lambda rng: f"move_to(region={rng.choice(list(REGIONS))})",
    lambda rng: f"move_to(id={_ids(rng, 1)[0]}, {_bounds(rng)})",
    lambda rng: "move_toward({}, {})".format(*_ids(rng, 2)),
)


def conflicts(a, b):
    """Whether two goals of the goal language contradict each other."""
    about = lambda goal: max((kind for kind in ASPECTS if goal.startswith(kind)), key=len)
    return not set(ASPECTS[about(a)].split()).isdisjoint(ASPECTS[about(b)].split())


def draw_goal(seed, number):
    """Goal `number` of a seed, anything the goal language can say and training may see: one goal, two at once, two or
    three in order."""
    rng = random.Random(f"{seed}/{number}")
    while any(is_held_out(goal := _draw(rng), language) for language in LANGUAGES):
        pass
    return goal


def _draw(rng):
    kind = lambda goal: goal.partition("(")[0]
    plan = [rng.choice(FORMS)(rng)]
    for word in rng.choices(("", "AND", "THEN", "AND THEN", "THEN THEN"), (65, 15, 15, 2, 3))[0].split():
        while True:
            goal = rng.choice(FORMS)(rng)
            again = goal in plan or not goal.startswith(("push", "move")) and kind(goal) in map(kind, plan)
            if not again and not (word == "AND" and conflicts(plan[-1], goal)):
                break
        plan += [word, goal]
    return str(parse(" ".join(plan)))


def describe(goal, language="en"):
    """What a goal of the goal language asks for, in plain English words; colours also in Korean where it is wanted."""
    phases = [", and at the same time ".join(_describe(part, language) for part in phase)
              for phase in parse(goal).phases]
    return ("first " if len(phases) > 1 else "") + "; then, after that, ".join(phases)


def _describe(goal, language):
    amount = f"{goal.amount or 0:g} {'pixel' if goal.kind == 'push' else 'degree'}" + "s" * (goal.amount != 1)
    those = [_colour(i, language) for i in goal.ids]
    region = (goal.argument or "").replace("_", " ")
    match goal.kind:
        case "push":
            return f"move all particles {goal.argument}" + (f" by {amount}" if goal.amount else "")
        case "cluster":
            who = f"only {', '.join(those[:-1])} and {those[-1]}" if those else "all particles"
            return f"gather {who} close together in one group"
        case "spread":
            return "spread all particles apart, away from each other"
        case "vibrate":
            return "make all particles vibrate (shake) on the spot"
        case "heat" | "cool":
            verb = "make all particles " + ("hotter" if goal.kind == "heat" else "colder")
            return verb + {"to": f", until they have exactly {amount}", "by": f" by {amount}"}.get(goal.argument, "")
        case "align":
            return "line all particles up in " + ("a horizontal row, side by side" if goal.argument == "horizontal"
                                                  else "a vertical column, one above the other")
        case "move_toward":
            return f"move {those[0]} to {those[1]}, so that it is next to it"
        case _ if goal.ids:
            return f"move only {those[0]} to " + " and ".join(SIDES[bound] for bound in goal.bounds) + " of the picture"
        case _:
            return f"move all particles to the {region}" + (" corner" if " " in region else "") + " of the picture"


def _colour(i, language):
    english, korean, _ = PALETTE[i % len(PALETTE)]
    korean += "" if korean[-1] in "간란색" else "색"
    return f"the {english} particle" + (f" ({korean} 입자)" if language == "ko" else "")


# What the model is told

SYSTEM = """You write down what people say to a program that moves small coloured particles (dots) in a picture.
For a goal you write sentences as different people would really say them, spontaneously, to have exactly this done: \
nothing left out, nothing added. Vary the words, the order and the tone. Keep every number, in digits, and every \
colour that the goal names. All particles may be called particles, dots, balls, them or everything (in Korean 입자, \
알갱이, 점, 공, 전부); a single particle is called by its colour. At most 120 characters each.
Answer with a JSON list of strings and nothing else."""
TONES = ("polite requests", "plain orders", "questions", "indirect requests", "wishes", "colloquial speech",
         "formal requests", "very short phrases", "a reason or an aside in the same sentence", "unusual verbs")


@cache
def _examples(language):
    """{goal: its sentences} of the training rows that ship."""
    table = {}
    for row in load_instructions():
        if (row["language"], row["split"]) == (language, "train"):
            table.setdefault(row["goal"], []).append(row["text"])
    return table


def messages(task):
    """The conversation that asks for a task's sentences: a function of the task alone."""
    rng = random.Random(f"{task.seed}/{task.number}/{task.language}")

    def ask(goal, count, tones=""):
        return {"role": "user", "content": f"Goal: {describe(goal, task.language)}.\n"
                f"Language: {LANGUAGES[task.language]}.\nWrite {count} different sentences{tones}."}
    talk = [{"role": "system", "content": SYSTEM}]
    table = _examples(task.language)
    for goal in rng.sample([goal for goal in table if goal != task.goal], 2):
        instructions = rng.sample(table[goal], min(task.variations, 4, len(table[goal])))
        talk += [ask(goal, len(instructions)),
                 {"role": "assistant", "content": json.dumps(instructions, ensure_ascii=False)}]
    return [*talk, ask(task.goal, task.variations, ", among them " + ", ".join(rng.sample(TONES, 3)))]


# Checking an answer

GOAL_SYNTAX = re.compile(r"\w\(|\w_\w|[=<>{}\[\]]|\b(AND|THEN)\b")       # traces of the goal language


def read_answer(answer):
    """The sentences of an answer, a list of whatever; None if it is none."""
    fenced = re.fullmatch(r"\s*```\w*\s*\n(.*)```\s*", answer, re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return None
    value = value.get("sentences") if isinstance(value, dict) else value
    return value if isinstance(value, list) and value else None


def key(text):
    """What two sentences share that are the same but for case, punctuation and spaces."""
    return (normalise(text) or text.casefold()).replace(" ", "")


def refusal(text, task):
    """What is wrong with a sentence's form; None if nothing is."""
    if not 2 <= len(text) <= 200:
        return "length"
    letters = [c for c in text if c.isalpha()]
    hangul = len(re.findall("[가-힣ㄱ-ㆎ]", text))
    if not letters or (2 * hangul < len(letters) if task.language == "ko" else not "".join(letters).isascii()):
        return "language"
    if not text.isprintable() or not ALLOWED_CHARS.issuperset(text):
        return "characters"
    return "goal_language" if GOAL_SYNTAX.search(text) else None


# The files


def partial_bytes(path):
    """How many bytes at the end of a file of JSON lines are half a line; ValueError if its end is no such thing."""
    tail = path.read_bytes().rpartition(b"\n")[2]
    try:
        json.loads(tail or b"{}")
    except ValueError:
        if tail[:1] not in (b"{", b"\0"):
            raise ValueError(f"the end of {path} is not JSON") from None
        return len(tail)
    return 0


def truncate_partial_line(path):
    """Takes half a line away from the end of a file, or ends its last line."""
    size = path.stat().st_size - partial_bytes(path)
    os.truncate(path, size)
    with path.open("r+b") as file:
        if size and file.seek(size - 1) >= 0 and file.read(1) != b"\n":
            file.write(b"\n")


def append(file, text):
    """Adds whole lines to the end of a file or, with Stop, nothing."""
    end, data = os.fstat(file.fileno()).st_size, text.encode()
    try:
        while data:
            data = data[file.write(data):]
        os.fsync(file.fileno())
    except OSError as error:
        os.ftruncate(file.fileno(), end)
        raise FatalError(f"cannot write {file.name} ({error.strerror}): make room, and the same command goes on") from None


class Corpus:
    """The output file and its journal, which has one line for every answer. Rows are appended in the order of the
    tasks; they follow from the answers, so what a killed run left out is made up for. Lock held until `close`."""

    def __init__(self, path, tasks):
        self.path, self.tasks, self.next_index, self.counts, self.detail = path, tasks, 0, Counter(), ""
        journal = path.with_name(path.name + ".journal.jsonl")
        self.journal = journal.open("ab", buffering=0)
        try:
            fcntl.flock(self.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FatalError(f"another run is writing {path}") from None
        self.output = path.open("ab", buffering=0)
        self.shipped, self.accepted = {key(row["text"]) for row in load_instructions()}, set()
        try:
            truncate_partial_line(path)
            self.present = {key(row["text"]): row for row in load_instructions(path)}
            truncate_partial_line(journal)
            answers = self._read(journal)
        except ValueError as error:
            if not journal.stat().st_size:
                journal.unlink()
            raise FatalError(error) from None
        self.answers = {task: answers[task] for task in tasks if task in answers}
        self.todo = [task for task in tasks if task not in answers]
        if self.present or answers:
            other = len(answers) - len(self.answers)
            print(f"{path} holds {len(self.present)} rows; {len(self.answers)} of {len(tasks)} requests are answered" +
                  f"; {other} answers to other settings (seed, model, ...) stay as they are" * bool(other), flush=True)
        self._settle()

    def _read(self, journal):
        answers = {}
        for number, line in enumerate(journal.read_bytes().splitlines(), start=1):
            try:
                entry = json.loads(line)
                answer = entry.pop("answer")
                answers[Task(**entry)] = answer
            except (ValueError, TypeError, KeyError, AttributeError):
                raise ValueError(f"{journal}, line {number}: not a line of a journal; take it out") from None
        return answers

    def answer(self, task, answer):
        append(self.journal, json.dumps(asdict(task) | {"answer": answer}) + "\n")
        self.answers[task] = answer
        self._settle()

    def fail(self, task, refused):
        """Not in the journal: the next run asks again."""
        self.counts[refused.reason] += 1
        self.detail = str(refused)
        self.answers[task] = None
        self._settle()

    def _settle(self):
        """Takes the sentences of all tasks before the first that has no answer yet."""
        while self.next_index < len(self.tasks) and self.tasks[self.next_index] in self.answers:
            task = self.tasks[self.next_index]
            self._take(task, self.answers.pop(task))
            self.next_index += 1

    def _take(self, task, answer):
        instructions = read_answer(answer) if answer is not None else []
        self.counts["not_json"] += instructions is None
        rows = []
        for number, instruction in enumerate(instructions or []):
            text = unicodedata.normalize("NFC", instruction).strip() if isinstance(instruction, str) else ""
            parsed_goal = parse(instruction_to_goal(text) or task.goal)        # goals at once in the order in which they are said
            row = {"text": text, "language": task.language, "goal": str(parsed_goal), "split": "train",
                   "source": task.model, "template_family": "llm"}
            contradicted = parsed_goal.canonical != parse(task.goal).canonical
            reason = "surplus" if number >= task.variations else self._refusal(row, task, instruction, contradicted)
            self.counts[reason or "rows"] += 1
            if reason is None:
                self.accepted.add(key(text))
                if key(text) not in self.present:
                    rows.append(json.dumps(row, ensure_ascii=False) + "\n")
        if rows:
            append(self.output, "".join(rows))

    def _refusal(self, row, task, instruction, contradicted):
        if not isinstance(instruction, str):
            return "not_text"
        same = key(row["text"])
        double = same in self.accepted or (self.present[same] != row if same in self.present else same in self.shipped)
        return (refusal(row["text"], task)
                or ("duplicate" if double else "contradicted" if contradicted else None))

    def summary(self):
        refused = {reason: count for reason, count in self.counts.most_common() if reason != "rows" and count}
        lines = [f"{len(self.tasks)} requests: {self.counts['rows']} rows in {self.path}",
                 "refused: " + (", ".join(f"{count} {reason}" for reason, count in refused.items()) or "nothing")]
        if self.detail:
            lines.append(f"the same command asks failed and rejected requests again (the last: {self.detail})")
        return "\n".join(lines)

    def close(self):
        self.output.close()
        self.journal.close()


# The endpoint


def retry_after(response):
    """Seconds that a Retry-After header names, as a number or as a date; 0 if there is none."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = (float(value) if value[:1].isdigit() else
                   (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)


def said(response):
    """What a refusing endpoint says, in one short line."""
    return f"{response.status_code} {' '.join(response.text.split())[:200]}".strip()


async def find_model(client, name, timeout):
    """The model to ask: `name`, or the first that the endpoint lists. Stop if it cannot be reached."""
    try:
        async with asyncio.timeout(timeout):
            response = await client.get("/models")
        if name:
            return name
        if not response.is_success:
            raise FatalError(f"{client.base_url}models answers {said(response)}")
        return str(response.json()["data"][0]["id"])
    except (httpx.RequestError, TimeoutError) as error:
        raise FatalError(f"no endpoint at {client.base_url} ({error or 'timed out'}): start one, as with "
                   "scripts/start_vllm.sh, or give its --base-url") from None
    except (ValueError, LookupError, TypeError):
        raise FatalError(f"{client.base_url}models lists no model: give --model") from None


async def ask(client, task, args):
    """The model's answer, a text. Tries again where that may help; Refused where it did not, Stop where no request
    can succeed."""
    seed = random.Random(f"{task.seed}/{task.number}/{task.language}").getrandbits(31)
    body = {"model": task.model, "messages": messages(task), "temperature": 1.0, "top_p": 0.95, "seed": seed,
            "max_tokens": 128 * (task.variations + 1), "stream": False}
    for attempt in range(args.retries + 1):
        wait, lost = 0.0, False
        try:
            async with asyncio.timeout(args.timeout):
                response = await client.post("/chat/completions", json=body)
            if response.is_success:
                return response.json()["choices"][0]["message"]["content"].encode("utf-8", "replace").decode()
            if response.status_code in (401, 403, 404):
                raise FatalError(f"{client.base_url}chat/completions answers {said(response)}")
            if response.status_code < 500 and response.status_code not in (408, 429):
                raise RequestFailed("rejected", said(response))
            wait, detail = retry_after(response), said(response)
        except TimeoutError:
            detail = "timed out"
        except httpx.RequestError as error:
            lost, detail = isinstance(error, httpx.ConnectError), f"{type(error).__name__} {error}".strip()
        except (ValueError, LookupError, TypeError, AttributeError):
            detail = "an answer that is no chat completion"
        if attempt < args.retries:
            backoff = min(BACKOFF * 2**attempt, LONGEST_BACKOFF) * random.uniform(0.5, 1)
            await asyncio.sleep(wait + backoff)
    if lost:
        raise FatalError(f"{client.base_url} no longer answers ({detail}): the same command goes on from here")
    raise RequestFailed("failed", detail)


async def ask_all(client, corpus, args, bar):
    """Asks for everything that is still to do, up to `concurrency` requests at once."""
    queue = iter(corpus.todo)

    async def worker():
        for task in queue:
            try:
                corpus.answer(task, await ask(client, task, args))
            except RequestFailed as refused:
                corpus.fail(task, refused)
            bar.set_postfix(rows=corpus.counts["rows"], refused=corpus.counts.total() - corpus.counts["rows"],
                            refresh=False)
            bar.update()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(args.concurrency, len(corpus.todo))):
                group.create_task(worker())
    except ExceptionGroup as several:
        raise several.exceptions[0] from None


def all_tasks(args, model):
    goals = [draw_goal(args.seed, number) for number in range(args.n_goals)]
    return [Task(args.seed, number, language, goal, args.n_variations, model)
            for number, goal in enumerate(goals) for language in args.languages]


async def generate(args):
    headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY') or 'EMPTY'}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=args.concurrency)
    async with httpx.AsyncClient(base_url=args.base_url, headers=headers, limits=limits, timeout=None) as client:
        corpus = Corpus(args.output, all_tasks(args, await find_model(client, args.model, args.timeout)))
        try:
            done = len(corpus.tasks) - len(corpus.todo)
            with tqdm(total=len(corpus.tasks), initial=done, unit="request", disable=not corpus.todo) as bar:
                await ask_all(client, corpus, args, bar)
        finally:
            corpus.close()
    print(corpus.summary())


def show(tasks):
    """What --dry-run prints."""
    for task in tasks[:3]:
        print(f"{task.goal} ({LANGUAGES[task.language]})")
        for message in messages(task):
            print(f"  {message['role']}: {message['content']}")
    print(f"dry run: {len(tasks)} requests for {len({task.goal for task in tasks})} different goals, "
          f"{sum(task.variations for task in tasks)} sentences; nothing was asked or written")


def stop(number, frame):
    """Ctrl-C: at once, for requests that hang may not let themselves be cancelled; a killed run loses nothing."""
    os.write(sys.stderr.fileno(), b"\nstopped: the same command goes on from here\n")
    os._exit(130)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    add = parser.add_argument
    add("--n-goals", type=int, default=2000, help="goals to draw (default 2000)")
    add("--n-variations", type=int, default=5, help="sentences to ask for, per goal and language (default 5)")
    add("--output", type=Path, default=Path("data/generated.jsonl"), help="corpus to append to (%(default)s)")
    add("--base-url", default="http://localhost:8000/v1", help="of the endpoint (%(default)s)")
    add("--model", help="default: the first that the endpoint lists")
    add("--languages", default="ko,en", help="ko, en or both (%(default)s)")
    add("--concurrency", type=int, default=64, help="requests at once (%(default)s)")
    add("--timeout", type=float, default=60, help="of a request, in seconds (%(default)s)")
    add("--retries", type=int, default=5, help="of a request that may yet succeed (%(default)s)")
    add("--seed", type=int, default=0, help="of the goals (%(default)s)")
    add("--dry-run", action="store_true", help="print some requests; ask and write nothing")
    args = parser.parse_args(argv)
    die = lambda message: print(f"error: {' '.join(str(message).split())}", file=sys.stderr) or 2
    for name, low, high in (("n_goals", 1, 10**6), ("n_variations", 1, 50), ("concurrency", 1, 512),
                            ("timeout", 0.001, 86400), ("retries", 0, 100), ("seed", 0, 2**32 - 1)):
        if not low <= getattr(args, name) <= high:
            return die(f"--{name.replace('_', '-')} takes a number from {low} to {high}")
    args.languages = args.languages.split(",")
    if not set(args.languages) <= set(LANGUAGES) or len(set(args.languages)) < len(args.languages):
        return die("--languages takes ko, en or ko,en")
    if args.dry_run:
        return show(all_tasks(args, args.model or "MODEL")) or 0
    folder = args.output.absolute().parent
    target = args.output if args.output.exists() else folder
    if args.output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK) or not os.access(target, os.W_OK):
        return die(f"cannot write --output {args.output}: name a file in a folder that exists and can be written")
    if not os.environ.get("OPENAI_API_KEY", "").isascii() or not os.environ.get("OPENAI_API_KEY", "").isprintable():
        return die("OPENAI_API_KEY holds characters that no key has")
    before = signal.signal(signal.SIGINT, stop)
    try:
        asyncio.run(generate(args))
    except (FatalError, httpx.InvalidURL) as error:
        return die(error)
    except OSError as error:
        return die(f"cannot write {error.filename or args.output}: {error.strerror}")
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
