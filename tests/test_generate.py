"""The generator of instructions, with endpoints that answer well, badly or not at all; start_vllm.sh."""
import contextlib
import fcntl
import hashlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from simulator.particles.commands import load_instructions
from simulator.particles.goals import KINDS, parse
from simulator.particles.parser import instruction_to_goal

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "generate_training_data.py"
sys.path.insert(0, str(ROOT / "scripts"))
import generate_training_data as generate  # noqa: E402
from commands import checks, client, goals, journal, prompt  # noqa: E402

WORDS = ["amber", "birch", "cedar", "daisy", "elder", "fern", "ginger", "hazel", "iris", "jasmine"]
SYLLABLES = "가나라바사자카타파하"


def instructions(body):
    """Return the answer of a deterministic model. Now and then two requests get the same instruction."""
    digest = hashlib.sha256(str(body["seed"]).encode()).digest()
    korean = "Korean" in body["messages"][-1]["content"]
    text = lambda a, b: (f"{SYLLABLES[a % 10]}{SYLLABLES[b % 10]}{SYLLABLES[a // 10 % 10]} 해 줘" if korean else
                        f"please {WORDS[a % 10]} the {WORDS[b % 10]} {WORDS[a // 10 % 10]}")
    return [text(a, b) for a, b in zip(digest[:3], digest[3:6], strict=True)]


def completion(content):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


def well(body):
    return completion(json.dumps(instructions(body), ensure_ascii=False))


class Endpoint(ThreadingHTTPServer):
    """An endpoint on a free port. `reply(body, attempt)` returns the text of an answer, or (status, headers, text), or
    ... to break off within an answer; it may wait. `requests` lists the bodies; `most` were open at once."""
    request_queue_size = 256
    daemon_threads = True

    def __init__(self, reply=lambda body, attempt: well(body), models=("tiny",)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.lock, self.requests, self.now, self.most, self.tries = reply, threading.Lock(), [], 0, 0, {}
        self.models = models if isinstance(models, tuple) and models[:1] == (401,) else json.dumps(
            {"data": [{"id": model} for model in models]})
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """A client that was killed is no error here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_):
        pass

    def send(self, reply):
        status, headers, text = (200, {}, reply) if isinstance(reply, str) or reply is ... else reply
        data = b'{"choices": [{"mess' if text is ... else text.encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(data) + 1000 * (text is ...)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = text is ...

    def do_GET(self):
        self.send(self.server.models)

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = json.dumps(body["messages"])
        with server.lock:
            server.requests.append(body)
            server.now += 1
            server.most = max(server.most, server.now)
            server.tries[key] = attempt = server.tries.get(key, -1) + 1
        try:
            self.send(server.reply(body, attempt))
        finally:
            with server.lock:
                server.now -= 1


def arguments(endpoint, output, *more):
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    return ["--base-url", url, "--output", str(output), *map(str, more)]


def start(endpoint, output, *more, **options):
    return subprocess.Popen([sys.executable, SCRIPT, *arguments(endpoint, output, *more)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def finish(process):
    """-> exit code, lines of stdout, lines of stderr without the progress bar."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), [line for line in err.splitlines() if line and "request/s" not in line
                                                  and "?request" not in line and "s/request" not in line]


def lines(path):
    text = path.read_text()
    assert not text or text.endswith("\n")
    return text.splitlines()


def tasks(n, languages=("en",), variations=5, seed=0):
    return goals.make_tasks(seed, n, variations, languages, "tiny")


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch):
    monkeypatch.setattr(client, "BACKOFF", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


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


# Stopped and continued


def slow(body, attempt):
    time.sleep(0.01)
    return well(body)


def stumbling(body, attempt):
    """Deterministic in the end, with some tries that fail."""
    time.sleep(0.01)
    if attempt == 0 and body["seed"] % 25 == 0:
        return 429, {"Retry-After": "0"}, ""
    return completion("no idea") if body["seed"] % 11 == 0 else well(body)


def test_killed_at_ten_moments_it_ends_with_the_rows_of_an_undisturbed_run(tmp_path):
    rng, many = random.Random(7), ("--n-goals=250", "--concurrency=8")
    with Endpoint(stumbling) as endpoint:
        code, calm, _ = finish(start(endpoint, tmp_path / "calm.jsonl", *many))
        assert code == 0
    kills = 0
    with Endpoint(stumbling) as endpoint:
        for _ in range(10):
            process = start(endpoint, tmp_path / "out.jsonl", *many)
            enough = len(endpoint.requests) + rng.randint(0, 40)
            while len(endpoint.requests) < enough and process.poll() is None:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            process.communicate()
        assert 10 < (tmp_path / "out.jsonl.journal.jsonl").read_bytes().count(b"\n") < 500
        code, out, _ = finish(start(endpoint, tmp_path / "out.jsonl", *many))
        assert code == 0 and kills == 10
        assert lines(tmp_path / "out.jsonl") == lines(tmp_path / "calm.jsonl")
        assert [line.replace("out.jsonl", "calm.jsonl") for line in out[1:]] == calm
        # the power goes while a line is written, in either file
        asked = len(endpoint.requests)
        for name in ("out.jsonl", "out.jsonl.journal.jsonl"):
            os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 20)
        assert finish(start(endpoint, tmp_path / "out.jsonl", *many))[0] == 0
        assert len(endpoint.requests) == asked + 1
        assert lines(tmp_path / "out.jsonl") == lines(tmp_path / "calm.jsonl")


def test_ctrl_c_and_a_full_disk_end_in_one_line_and_the_same_command_continues(tmp_path):
    many = ("--n-goals=40", "--concurrency=4")
    with Endpoint() as endpoint:
        assert finish(start(endpoint, tmp_path / "calm", *many))[0] == 0
    stopped = threading.Event()

    def until_stopped(body, attempt):       # from the eleventh request on nothing is answered
        if len(endpoint.requests) > 10:
            stopped.wait(60)
        return slow(body, attempt)

    with Endpoint(until_stopped) as endpoint:
        process = start(endpoint, tmp_path / "out", *many)
        while len(endpoint.requests) < 11:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        assert finish(process) == (130, [], ["stopped: the same command continues from here"])
        stopped.set()
        for limit in (3000, 9500):
            limits = lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            code, _, err = finish(start(endpoint, tmp_path / "out", *many, preexec_fn=limits))
            assert code == 2 and len(err) == 1 and f"cannot write {tmp_path / 'out'}" in err[0]
            assert all(json.loads(line) for path in ("out", "out.journal.jsonl") for line in lines(tmp_path / path))
        assert finish(start(endpoint, tmp_path / "out", *many))[0] == 0
    assert lines(tmp_path / "out") == lines(tmp_path / "calm")


def test_other_settings_add_to_the_output_and_say_so(tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    with Endpoint() as endpoint:
        assert generate.main(arguments(endpoint, output, "--n-goals=10")) == 0
        first = lines(output)
        capsys.readouterr()
        assert generate.main(arguments(endpoint, output, "--n-goals=12", "--seed=1")) == 0
        assert capsys.readouterr().out.splitlines()[0] == (
            f"{output} holds {len(first)} rows; 0 of 24 requests are answered; 20 answers to other settings (seed, "
            "model, ...) stay as they are")
        assert lines(output)[:len(first)] == first and len(lines(output)) > len(first)
        assert len(endpoint.requests) == 44
        assert generate.main(arguments(endpoint, output, "--n-goals=12")) == 0       # 10 of the 12 are there
        assert len(endpoint.requests) == 48
        assert len(load_instructions(output)) == len({checks.key(row["text"]) for row in load_instructions(output)})


# Errors


def refused(capsys, *argv):
    with contextlib.suppress(SystemExit):
        code = generate.main(list(map(str, argv)))
        out, err = capsys.readouterr()
        assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
        return err
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("argument", ["--n-goals=0", "--n-goals=x", "--n-variations=0", "--concurrency=0", "--seed=-1",
                                      "--timeout=0", "--timeout=nan", "--retries=-1", "--languages=ko,fr",
                                      "--languages=", "--languages=ko,ko", "--colour=red"])
def test_bad_numbers(argument, tmp_path, capsys):
    assert argument.split("=")[0] in refused(capsys, *arguments("http://127.0.0.1:9/v1", tmp_path / "out", argument))
    assert list(tmp_path.iterdir()) == []


def test_endpoints_that_cannot_serve(tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        assert "no endpoint at" in refused(capsys, *arguments(closed, output))
    for url in ("nonsense", "http://[", "ftp://localhost"):
        refused(capsys, *arguments(url, output))
    with Endpoint(models=()) as endpoint:
        assert "lists no model" in refused(capsys, *arguments(endpoint, output))
    with Endpoint(models=(401, {}, "bad key")) as endpoint:
        assert "401 bad key" in refused(capsys, *arguments(endpoint, output))
    monkeypatch.setenv("OPENAI_API_KEY", "geheim\u200b")
    assert "OPENAI_API_KEY" in refused(capsys, *arguments(closed, output))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_run_ends_if_no_request_can_succeed(status, tmp_path, capsys):
    with Endpoint(lambda body, attempt: (status, {}, "go\naway")) as endpoint:
        assert generate.main(arguments(endpoint, tmp_path / "out", "--n-goals=50")) == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith(f"chat/completions answers {status} go away")
        assert len(endpoint.requests) <= 64
    assert lines(tmp_path / "out") == []


def test_an_endpoint_that_goes_away_ends_the_run_and_loses_nothing(tmp_path, capsys):
    endpoint = Endpoint()

    def reply(body, attempt):
        if len(endpoint.requests) == 10:
            endpoint.socket.close()
            return ...
        return 200, {"Connection": "close"}, well(body)
    endpoint.reply = reply
    with contextlib.suppress(OSError, ValueError), endpoint:
        run = arguments(endpoint, tmp_path / "out", "--n-goals=20", "--concurrency=1", "--retries=1")
        assert generate.main(run) == 2
    assert "no longer answers" in capsys.readouterr().err.splitlines()[-1]
    assert len(lines(tmp_path / "out.journal.jsonl")) == 9


def test_outputs_that_cannot_be_written(tmp_path, capsys):
    with Endpoint() as endpoint:
        for output in (tmp_path, tmp_path / "no" / "out", "/proc/out"):
            assert "cannot write" in refused(capsys, *arguments(endpoint, output))
        other = tmp_path / "notes.txt"
        for text in ("my notes", "my notes\n", '{"text": "no corpus"}\n'):
            other.write_text(text)
            assert "notes.txt" in refused(capsys, *arguments(endpoint, other))
            assert other.read_text() == text and list(tmp_path.iterdir()) == [other]
        assert endpoint.requests == []


def test_a_second_run_into_the_same_file_is_refused(tmp_path, capsys):
    with Endpoint() as endpoint, open(tmp_path / "out.journal.jsonl", "w") as journal:
        fcntl.flock(journal, fcntl.LOCK_SH)
        assert "another run is writing" in refused(capsys, *arguments(endpoint, tmp_path / "out"))
        assert endpoint.requests == []


def test_dry_run_asks_and_writes_nothing(tmp_path, capsys):
    assert generate.main(arguments("http://127.0.0.1:9/v1", tmp_path / "out", "--dry-run", "--n-goals=30")) == 0
    out = capsys.readouterr().out
    assert out.endswith("goals, 300 instructions; nothing was asked or written\n") and "dry run: 60 requests" in out
    assert goals.draw_goal(0, 0) in out and prompt.SYSTEM in out
    assert list(tmp_path.iterdir()) == []


def test_the_script_does_not_load_torch():
    code = "import sys, generate_training_data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent).returncode == 0


# Real servers


def vllm(*argv, **env):
    return subprocess.run([ROOT / "scripts" / "start_vllm.sh", *argv], env={"PATH": "/usr/bin:/bin"} | env, text=True,
                          capture_output=True)


@pytest.mark.parametrize("preset, model, gpus", [
    ("qwen72b", "Qwen/Qwen2.5-72B-Instruct", 4), ("qwen32b", "Qwen/Qwen2.5-32B-Instruct", 2),
    ("qwen14b", "Qwen/Qwen2.5-14B-Instruct", 1), ("llama70b", "meta-llama/Llama-3.3-70B-Instruct", 4),
    ("llama8b", "meta-llama/Llama-3.1-8B-Instruct", 1), ("qwen_vl", "Qwen/Qwen2-VL-7B-Instruct", 1)])
def test_presets_of_start_vllm(preset, model, gpus):
    shown = vllm(preset, "--dry-run", "--dtype", "half")
    assert shown.returncode == 0 and shown.stdout == (
        f"vllm serve {model} --port 8000 --tensor-parallel-size {gpus} --max-model-len 8192 --dtype half\n")


def test_start_vllm_starts_vllm_or_says_what_is_wrong(tmp_path):
    for argv in ((), ("gpt",)):
        answer = vllm(*argv)
        assert answer.returncode == 2 and answer.stderr.count("\n") == 1 and "qwen72b, qwen32b" in answer.stderr
    answer = vllm("llama8b")
    assert answer.returncode == 2 and answer.stderr == "error: vllm is not installed: pip install '.[vllm]'\n"
    (tmp_path / "vllm").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "vllm").chmod(0o755)
    answer = vllm("llama8b", "--seed", "1", PATH=f"{tmp_path}:/usr/bin:/bin", PORT="9000", TP="2")
    assert answer.stdout == ("serve meta-llama/Llama-3.1-8B-Instruct --port 9000 --tensor-parallel-size 2 "
                             "--max-model-len 8192 --seed 1\n")


@pytest.mark.slow
def test_garbage_of_a_real_server_is_refused(tmp_path):
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([], vocab_size=300, special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|im_end|>",
                                        pad_token="<|im_end|>")
    tokenizer.chat_template = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
                               "<|im_end|>\n{% endfor %}<|im_start|>assistant\n")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "tiny")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                        "CUDA_VISIBLE_DEVICES": ""}
    command = [Path(sys.executable).parent / "transformers", "serve", tmp_path / "tiny", "--port", str(port)]
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5)
                break
            assert server.poll() is None
            time.sleep(0.2)
        output = tmp_path / "out.jsonl"
        code, out, err = finish(start(f"http://localhost:{port}/v1", output, "--n-goals=3", "--n-variations=1",
                                      "--concurrency=2", "--retries=0", "--model", tmp_path / "tiny"))
        assert (code, err) == (0, [])
        assert out == [f"6 requests: 0 rows in {output}", "refused: 6 not_json"]
        assert lines(output) == [] and len(lines(tmp_path / "out.jsonl.journal.jsonl")) == 6
    finally:
        server.terminate()
        server.wait(20)
