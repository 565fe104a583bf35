"""The generator refuses wrong arguments, endpoints that cannot serve, and outputs it cannot write."""
import contextlib
import fcntl
import socket
import subprocess
import sys

import pytest
from generate_helpers import SCRIPT, Endpoint, arguments, generate, goals, lines, prompt, well

pytest_plugins = ["generate_fixtures"]
pytestmark = pytest.mark.usefixtures("short_backoff")


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
