"""Endpoints that answer as a language model does, and runs of the generator of instructions against them."""
import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import generate_training_data as generate  # noqa: E402, F401
from commands import checks, client, goals, journal, prompt  # noqa: E402, F401

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "generate_training_data.py"

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
