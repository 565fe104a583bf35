"""The generator of instructions: goals, prompts, and every way in which an endpoint answers."""
import json
import random
import threading
import time
from dataclasses import replace

import pytest
from generate_helpers import (
    Endpoint,
    arguments,
    checks,
    completion,
    generate,
    goals,
    instructions,
    journal,
    lines,
    prompt,
    tasks,
    well,
)

from simulator.particles.commands import load_instructions
from simulator.particles.goals import KINDS, parse
from simulator.particles.parser import instruction_to_goal

pytest_plugins = ["generate_fixtures"]
pytestmark = pytest.mark.usefixtures("short_backoff")


# Goals and prompts


def test_goals_are_a_function_of_seed_and_number_over_the_whole_language():
    drawn = [goals.draw_goal(0, k) for k in range(3000)]
    assert drawn[700] == goals.draw_goal(0, 700) and drawn[:50] != [goals.draw_goal(1, k) for k in range(50)]
    assert [task.goal for task in tasks(20)] == [task.goal for task in tasks(40)[:20]]
    for goal in drawn:
        plan = parse(goal)
        assert str(plan) == goal
        for phase in plan.phases:
            kinds = [part.kind for part in phase]
            for odd in ({"heat", "cool"}, {"cluster", "spread"}, {"spread", "align"}, {"push", "vibrate"}):
                assert not odd <= set(kinds)
            assert sum(part.kind == "push" or part.kind == "move_to" and not part.ids for part in phase) <= 1
    parts = {part for goal in drawn for part in parse(goal).goals}
    assert {part.kind for part in parts} == set(KINDS)
    assert {i for part in parts for i in part.ids} == set(range(8))
    assert {len(part.bounds) for part in parts} == {0, 1, 2}
    assert {part.argument for part in parts if part.kind in ("heat", "cool")} == {None, "to", "by"}
    assert any(len(parse(goal).phases) == 3 for goal in drawn) and any(" AND " in goal for goal in drawn)


def test_a_goal_is_described_in_words_with_its_colours_in_both_languages():
    describe = prompt.describe
    assert describe("push(direction=left, distance=20)") == "move all particles left by 20 pixels"
    assert describe("move_toward(0, 5)", "ko") == (
        "move the red particle (빨간 입자) to the cyan particle (하늘색 입자), so that it is next to it")
    assert describe("heat(to=7) AND cluster(ids=[1,2]) THEN move_to(id=3, x>48)") == (
        "first make all particles hotter, until they have exactly 7 degrees, and at the same time gather only the "
        "green particle and the blue particle close together in one group; then, after that, move only the yellow "
        "particle to the far right of the picture")


def test_the_examples_shown_are_training_rows_of_the_language():
    held_out = {row["text"] for row in load_instructions() if row["split"] == "held_out"}
    for task in tasks(50, ("ko", "en")):
        system, *talk, last = prompt.messages(task)
        shown = [json.loads(message["content"]) for message in talk if message["role"] == "assistant"]
        assert len(shown) == 2 and held_out.isdisjoint(sum(shown, []))
        assert goals.LANGUAGES[task.language] in last["content"] and "5 different sentences" in last["content"]


# Every way to answer


def test_goals_at_once_are_kept_in_the_order_in_which_they_are_said(tmp_path):
    task = replace(tasks(1, variations=4)[0], goal="push(direction=left) AND heat()", language="en")
    corpus = journal.Corpus(tmp_path / "out.jsonl", [task])
    corpus.add_answer(task, json.dumps(["warm them all as you move them left", "move them left as you warm them all",
                                    "something quite unclear to rules", "warm them all as you move them right"]))
    corpus.close()
    written = [row["goal"] for row in load_instructions(tmp_path / "out.jsonl")]
    assert written == ["heat() AND push(direction=left)", task.goal, task.goal] and corpus.counts["contradicted"] == 1


def test_every_failure_ends_in_rows_or_in_a_counted_refusal(tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    kept = {"text": "Kept from before!", "language": "en", "goal": "heat()", "split": "train", "source": "me",
            "template_family": "mine"}
    output.write_text(json.dumps(kept))      # no newline: a person's editor
    held_out = next(row["text"] for row in load_instructions() if (row["split"], row["language"]) == ("held_out", "en"))
    known = ("please heat up all of these particles", "line up in a row")
    wrong = lambda goal: next(text for text in known if instruction_to_goal(text) != goal)
    todo = tasks(20, variations=7)
    numbers = {json.dumps(prompt.messages(task)): task.number for task in todo}
    times = {}

    def sleep(then):
        def reply(body):
            time.sleep(1.2)
            return then(body)
        return reply
    always = lambda content: [lambda body: completion(json.dumps(content))]
    fails = lambda status, text="", **headers: lambda body: (status, headers, text)
    plan = {      # task: its answers, the last again and again
        1: [sleep(well), well], 2: [fails(429, **{"Retry-After": "1"}), well], 3: [fails(500), fails(503), well],
        4: [lambda body: ..., well], 5: [fails(200, "<html>not here</html>")], 6: [fails(500, "oops")],
        7: [sleep(well)],
        8: [lambda body: completion("Sure! Here are some sentences: ...")],
        9: [lambda body: completion("```json\n" + json.dumps(instructions(body)) + "\n```")],
        10: [lambda body: completion(json.dumps({"sentences": instructions(body)}))],
        11: always(["빨리 해 줘", "mach es doch für mich", "把它们移开"]),
        12: always([held_out.upper() + "!!", "kept from before", "so new  to me", "So, new to me?", "So new to me.",
                    "sonew tome"]),
        13: always([wrong(todo[13].goal)]), 14: [fails(400, "context too long")],
        15: always([7, "x", "y" * 201, "one\ntwo of these", "do heat(by=3)", "first AND then", "party \U0001f389"]),
        16: always(["well done a", "well done b", "well done c", "well done d", "well done e", "well done f",
                    "well done g", "well done h"]),
        17: [lambda body: completion("[" * 100_000)], 18: [lambda body: completion("[]")],
        19: [fails(429, **{"Retry-After": "Thu, 01 Jan 2015 00:00:00 GMT"}), fails(408), well],
    }

    def reply(body, attempt):
        number = numbers[json.dumps(body["messages"])]
        times.setdefault(number, []).append(time.monotonic())
        answers = plan.get(number, [well])
        return answers[min(attempt, len(answers) - 1)](body)
    with Endpoint(reply) as endpoint:
        run = arguments(endpoint, output, "--n-goals=20", "--n-variations=7", "--languages=en",
                        "--timeout=0.8", "--retries=2")
        assert generate.main(run) == 0
        first = capsys.readouterr().out.splitlines()
        assert {number: len(at) for number, at in times.items() if len(at) > 1} == {
            1: 2, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3, 7: 3, 19: 3}
        assert times[2][1] - times[2][0] >= 1
        times.clear()
        assert generate.main(run) == 0       # asks only what failed
        assert set(times) == {5, 6, 7, 14} and capsys.readouterr().out.splitlines()[1:-1] == first[1:-1]
    counts = {reason: int(count) for count, reason in
              (part.split() for part in first[2].removeprefix("refused: ").split(", "))}
    assert counts.pop("duplicate") == 4
    assert counts == {"failed": 3, "rejected": 1, "not_json": 3, "language": 3, "contradicted": 1, "not_text": 1,
                      "length": 2, "characters": 2, "goal_language": 2, "surplus": 1}
    rows = load_instructions(output)
    assert rows[0] == kept and first[1] == f"20 requests: {len(rows) - 1} rows in {output}"
    keys = [checks.key(row["text"]) for row in rows]
    assert len(set(keys)) == len(keys) > 30
    assert "so new  to me" in {row["text"] for row in rows}
    assert {json.dumps({**row, "text": "", "goal": ""}) for row in rows[1:]} == {json.dumps(
        {"text": "", "language": "en", "goal": "", "split": "train", "source": "tiny", "template_family": "llm"})}
    by_number = {number: {row["text"] for row in rows if row["goal"] == todo[number].goal} for number in range(20)}
    assert all(by_number[number] for number in (0, 1, 2, 3, 4, 9, 10, 16, 19))


def test_sixty_four_requests_are_in_flight_and_never_more(tmp_path):
    barrier = threading.Barrier(64)

    def reply(body, attempt):
        barrier.wait(20)
        return well(body)
    with Endpoint(reply) as endpoint:
        assert generate.main(arguments(endpoint, tmp_path / "a", "--n-goals=64", "--retries=0")) == 0
        assert len(endpoint.requests) == 128 and endpoint.most == 64
    with Endpoint(lambda body, attempt: time.sleep(0.01) or well(body)) as endpoint:
        assert generate.main(arguments(endpoint, tmp_path / "b", "--n-goals=20", "--concurrency=3")) == 0
        assert endpoint.most == 3
    assert set(lines(tmp_path / "b")) <= set(lines(tmp_path / "a"))


def test_rows_do_not_depend_on_the_order_of_the_answers(tmp_path):
    with Endpoint() as steady, Endpoint(lambda body, n: time.sleep(random.random() / 20) or well(body)) as wild:
        for endpoint in (steady, wild):
            many = 1 if endpoint is steady else 32
            run = arguments(endpoint, tmp_path / str(many), "--n-goals=60", f"--concurrency={many}")
            assert generate.main(run) == 0
    assert lines(tmp_path / "1") == lines(tmp_path / "32")
