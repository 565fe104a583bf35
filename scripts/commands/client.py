"""HTTP requests to an OpenAI-compatible endpoint, with retries."""
import asyncio
import email.utils
import random
from collections.abc import Callable
from datetime import UTC, datetime

import httpx

from commands.goals import Task
from commands.prompt import messages
from config import UserError

BACKOFF = 1.0               # seconds before the first retry; doubled for each further one
MAX_BACKOFF = 60.0          # seconds
MAX_RETRY_AFTER = 600.0     # seconds


class FatalError(UserError):
    """The run cannot go on. The message says why, in one line."""


class RequestFailed(Exception):
    """One request failed for good; `reason` is a short name to count it by."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class TransientError(Exception):
    """An attempt failed, and another one may succeed after `wait` seconds; `unreachable`: no connection was made."""

    def __init__(self, detail: str, wait: float = 0.0, unreachable: bool = False):
        super().__init__(detail)
        self.wait, self.unreachable = wait, unreachable


async def find_model(client: httpx.AsyncClient, name: str | None, timeout: float) -> str:
    """Return the model to ask: `name`, or the first that the endpoint lists. FatalError if it is not reachable."""
    try:
        async with asyncio.timeout(timeout):
            response = await client.get("/models")
    except (httpx.RequestError, TimeoutError) as error:
        raise FatalError(f"no endpoint at {client.base_url} ({error or 'timed out'}): start one, as with "
                         "scripts/start_vllm.sh, or give its --base-url") from None
    if name:
        return name
    if not response.is_success:
        raise FatalError(f"{client.base_url}models answers {error_text(response)}")
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise FatalError(f"{client.base_url}models lists no model: give --model") from None


async def ask(client: httpx.AsyncClient, task: Task, timeout: float, retries: int) -> str:
    """Return the model's answer to a task, a text.

    Timeouts, lost connections, status 408, 429 and 5xx are retried with exponential backoff. Raises RequestFailed for
    a request that fails, FatalError if no request can succeed.
    """
    seed = random.Random(f"{task.seed}/{task.number}/{task.language}").getrandbits(31)
    body = {"model": task.model, "messages": messages(task), "temperature": 1.0, "top_p": 0.95, "seed": seed,
            "max_tokens": 128 * (task.variations + 1), "stream": False}
    for attempt in range(retries + 1):
        try:
            return _read_completion(client, await _post(client, body, timeout))
        except TransientError as error:
            failure = error
        if attempt < retries:
            backoff = min(BACKOFF * 2**attempt, MAX_BACKOFF) * random.uniform(0.5, 1)
            await asyncio.sleep(failure.wait + backoff)
    if failure.unreachable:
        raise FatalError(f"{client.base_url} no longer answers ({failure}): the same command continues from here")
    raise RequestFailed("failed", str(failure))


async def ask_all(tasks: list[Task], ask_one: Callable, on_answer: Callable, on_failure: Callable,
                  concurrency: int) -> None:
    """Ask for all tasks, up to `concurrency` at once.

    `ask_one(task)` is awaited; then `on_answer(task, answer)` or `on_failure(task, error)` is called.
    """
    queue = iter(tasks)

    async def worker() -> None:
        for task in queue:
            try:
                on_answer(task, await ask_one(task))
            except RequestFailed as error:
                on_failure(task, error)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(tasks))):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _post(client: httpx.AsyncClient, body: dict, timeout: float) -> httpx.Response:
    try:
        async with asyncio.timeout(timeout):
            return await client.post("/chat/completions", json=body)
    except TimeoutError:
        raise TransientError("timed out") from None
    except httpx.RequestError as error:
        detail = f"{type(error).__name__} {error}".strip()
        raise TransientError(detail, unreachable=isinstance(error, httpx.ConnectError)) from None


def _read_completion(client: httpx.AsyncClient, response: httpx.Response) -> str:
    """Return the text of a chat completion; raise the error that fits the response otherwise."""
    if response.is_success:
        try:
            return response.json()["choices"][0]["message"]["content"].encode("utf-8", "replace").decode()
        except (ValueError, LookupError, TypeError, AttributeError):
            raise TransientError("the answer is not a chat completion") from None
    detail = error_text(response)
    if response.status_code in (401, 403, 404):
        raise FatalError(f"{client.base_url}chat/completions answers {detail}")
    if response.status_code < 500 and response.status_code not in (408, 429):
        raise RequestFailed("rejected", detail)
    raise TransientError(detail, wait=retry_after(response))


def retry_after(response: httpx.Response) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 if there is none."""
    value = response.headers.get("Retry-After", "")
    try:
        if value[:1].isdigit():
            seconds = float(value)
        else:
            seconds = (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def error_text(response: httpx.Response) -> str:
    """Return the status and the text of a response in one short line."""
    return f"{response.status_code} {' '.join(response.text.split())[:200]}".strip()
