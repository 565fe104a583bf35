"""The output corpus and the journal of answers, from which a stopped run continues."""
import fcntl
import json
import os
import sys
import unicodedata
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from commands.checks import form_error, key, read_answer
from commands.client import FatalError, RequestFailed
from commands.goals import Task
from simulator.particles.commands import load_instructions
from simulator.particles.goals import parse
from simulator.particles.parser import instruction_to_goal


class Corpus:
    """An output file of rows and its journal OUTPUT.journal.jsonl, which has one line for each answer.

    Rows are appended in the order of the tasks and follow from the answers alone. So the rows that a killed run did
    not write are written by the next one. The journal is locked until `close`.
    """

    def __init__(self, path: Path, tasks: list[Task]):
        self.path, self.tasks, self.next_index = path, tasks, 0
        self.counts, self.last_failure = Counter(), ""
        journal = path.with_name(path.name + ".journal.jsonl")
        self.journal = journal.open("ab", buffering=0)
        try:
            fcntl.flock(self.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FatalError(f"another run is writing {path}") from None
        except OSError as error:        # a file system without locks
            print(f"warning: {journal} cannot be locked ({error.strerror}): do not start a second run", file=sys.stderr)
        self.output = path.open("ab", buffering=0)
        self.shipped, self.accepted = {key(row["text"]) for row in load_instructions()}, set()
        try:
            truncate_partial_line(path)
            self.present = {key(row["text"]): row for row in load_instructions(path)}
            truncate_partial_line(journal)
            answers = read_journal(journal)
        except ValueError as error:
            if not journal.stat().st_size:
                journal.unlink()
            raise FatalError(error) from None
        self.answers = {task: answers[task] for task in tasks if task in answers}
        self.todo = [task for task in tasks if task not in answers]
        if self.present or answers:
            self._print_progress(len(answers) - len(self.answers))
        self._settle()

    def _print_progress(self, num_others: int) -> None:
        others = f"; {num_others} answers to other settings (seed, model, ...) stay as they are" if num_others else ""
        print(f"{self.path} holds {len(self.present)} rows; {len(self.answers)} of {len(self.tasks)} requests are "
              f"answered{others}", flush=True)

    def add_answer(self, task: Task, answer: str) -> None:
        """Write an answer to the journal, then the rows that can be written."""
        append(self.journal, json.dumps(asdict(task) | {"answer": answer}) + "\n")
        self.answers[task] = answer
        self._settle()

    def add_failure(self, task: Task, error: RequestFailed) -> None:
        """Count a failed request. It is not in the journal: the next run asks again."""
        self.counts[error.reason] += 1
        self.last_failure = str(error)
        self.answers[task] = None
        self._settle()

    def _settle(self) -> None:
        """Write the rows of all tasks before the first one without an answer."""
        while self.next_index < len(self.tasks) and self.tasks[self.next_index] in self.answers:
            task = self.tasks[self.next_index]
            self._write_rows(task, self.answers.pop(task))
            self.next_index += 1

    def _write_rows(self, task: Task, answer: str | None) -> None:
        items = read_answer(answer) if answer is not None else []
        self.counts["not_json"] += items is None
        lines = []
        for number, item in enumerate(items or []):
            row = make_row(task, item)
            reason = "surplus" if number >= task.variations else self._refusal(row, task, item)
            self.counts[reason or "rows"] += 1
            if reason is None:
                self.accepted.add(key(row["text"]))
                if key(row["text"]) not in self.present:
                    lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        if lines:
            append(self.output, "".join(lines))

    def _refusal(self, row: dict, task: Task, item: object) -> str | None:
        """Return why a row is refused, or None."""
        if not isinstance(item, str):
            return "not_text"
        error = form_error(row["text"], task)
        if error or self._is_duplicate(row):
            return error or "duplicate"
        return "contradicted" if parse(row["goal"]).canonical != parse(task.goal).canonical else None

    def _is_duplicate(self, row: dict) -> bool:
        """Return whether the instruction was accepted before, or is in the output or the shipped corpus.

        The same row in the output is not a duplicate: an earlier run wrote it from the same answer.
        """
        text_key = key(row["text"])
        if text_key in self.present:
            return text_key in self.accepted or self.present[text_key] != row
        return text_key in self.accepted or text_key in self.shipped

    def summary(self) -> str:
        """Return the numbers of rows and of refusals by reason."""
        refused = [f"{count} {reason}" for reason, count in self.counts.most_common() if reason != "rows" and count]
        lines = [f"{len(self.tasks)} requests: {self.counts['rows']} rows in {self.path}",
                 f"refused: {', '.join(refused) or 'nothing'}"]
        if self.last_failure:
            lines.append(f"the same command repeats failed and rejected requests (the last: {self.last_failure})")
        return "\n".join(lines)

    def close(self) -> None:
        """Close the files and release the lock."""
        self.output.close()
        self.journal.close()


def make_row(task: Task, item: object) -> dict:
    """Return the corpus row of an item of an answer. Its goal is the parsed one if the parser understands the text.

    So goals at once keep the order in which they are said. Text that is not a string becomes "".
    """
    text = unicodedata.normalize("NFC", item).strip() if isinstance(item, str) else ""
    goal = parse(instruction_to_goal(text) or task.goal)
    return {"text": text, "language": task.language, "goal": str(goal), "split": "train", "source": task.model,
            "template_family": "llm"}


def read_journal(journal: Path) -> dict[Task, str]:
    """Return the answers of a journal; ValueError for a line that is not one of a journal."""
    answers = {}
    for number, line in enumerate(journal.read_bytes().splitlines(), start=1):
        try:
            entry = json.loads(line)
            answer = entry.pop("answer")
            answers[Task(**entry)] = answer
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{journal}, line {number}: not a line of a journal; remove it") from None
    return answers


def partial_bytes(path: Path) -> int:
    """Return the number of bytes of an incomplete last line; ValueError if the file does not end in JSON lines."""
    tail = path.read_bytes().rpartition(b"\n")[2]
    try:
        json.loads(tail or b"{}")
    except ValueError:
        if tail[:1] not in (b"{", b"\0"):
            raise ValueError(f"the end of {path} is not JSON") from None
        return len(tail)
    return 0


def truncate_partial_line(path: Path) -> None:
    """Remove an incomplete last line from a file, or end its last line."""
    size = path.stat().st_size - partial_bytes(path)
    os.truncate(path, size)
    with path.open("r+b") as file:
        if size and file.seek(size - 1) >= 0 and file.read(1) != b"\n":
            file.write(b"\n")


def append(file: BinaryIO, text: str) -> None:
    """Append whole lines to a file; if that fails, append nothing and raise FatalError."""
    end, data = os.fstat(file.fileno()).st_size, text.encode()
    try:
        while data:
            data = data[file.write(data):]
        os.fsync(file.fileno())
    except OSError as error:
        os.ftruncate(file.fileno(), end)
        raise FatalError(f"cannot write {file.name} ({error.strerror}): free some space, then the same command "
                         "continues from here") from None
