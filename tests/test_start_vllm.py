"""scripts/start_vllm.sh starts a server, and scripts/generate_training_data.py gets its rows from it.

The server is a stand-in: an executable called `vllm` on PATH, which takes `vllm serve MODEL --port PORT` and speaks the
OpenAI chat protocol.
"""
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVER = '''#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

assert sys.argv[1] == "serve"
MODEL, PORT = sys.argv[2], int(sys.argv[sys.argv.index("--port") + 1])
COUNTER = iter(range(10**6))


class Handler(BaseHTTPRequestHandler):
    def reply(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        assert self.path == "/v1/models"
        self.reply({{"data": [{{"id": MODEL}}]}})

    def do_POST(self):
        assert self.path == "/v1/chat/completions"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert request["model"] == MODEL and request["messages"]
        content = json.dumps(["zorb the quux %s" % "abcdefghij"[next(COUNTER)]])
        self.reply({{"choices": [{{"message": {{"role": "assistant", "content": content}}}}]}})

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
'''


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_until_ready(process: subprocess.Popen, url: str) -> dict:
    """Return the server's list of models as soon as it answers."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5) as response:
                return json.load(response)
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the server ended with exit code {process.returncode}")


@pytest.fixture
def server(tmp_path):
    """Start the stand-in with the script; yield (address, listed models)."""
    executable = tmp_path / "vllm"
    executable.write_text(SERVER.format(python=sys.executable))
    executable.chmod(0o755)
    port = free_port()
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PORT": str(port)}
    process = subprocess.Popen([ROOT / "scripts" / "start_vllm.sh", "llama8b"], env=env)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        yield url, wait_until_ready(process, url)
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("script", ["start_vllm.sh", "quick_train.sh", "full_train.sh"])
def test_help_of_the_shell_scripts_starts_nothing(script):
    result = subprocess.run([ROOT / "scripts" / script, "--help"], capture_output=True, text=True, timeout=10)
    assert result.returncode == 0 and f"scripts/{script}" in result.stdout and not result.stderr


def test_generate_training_data_gets_rows_from_the_started_server(server, tmp_path):
    url, models = server
    assert [model["id"] for model in models["data"]] == ["meta-llama/Llama-3.1-8B-Instruct"]
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, ROOT / "scripts" / "generate_training_data.py", "--base-url", url, "--output", output,
               "--languages", "en", "--n-goals", "3", "--n-variations", "1", "--retries", "0", "--concurrency", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 3 and len({row["goal"] for row in rows}) == 3
    assert all("Llama-3.1-8B-Instruct" in json.dumps(row) for row in rows)
