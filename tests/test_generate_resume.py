"""A generator that is stopped goes on with the same command and ends with the same rows."""
import errno
import json
import os
import random
import resource
import signal
import threading
import time

import pytest
from generate_helpers import Endpoint, arguments, checks, completion, finish, generate, journal, lines, start, well

from simulator.particles.commands import load_instructions

pytest_plugins = ["generate_fixtures"]
pytestmark = pytest.mark.usefixtures("short_backoff")


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", fail)
    journal.Corpus(tmp_path / "rows.jsonl", []).close()
    assert "cannot be locked" in capsys.readouterr().err


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
