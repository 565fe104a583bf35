"""The fixture of the tests of the generator of instructions, a pytest plugin."""
import pytest
from generate_helpers import client


@pytest.fixture
def short_backoff(monkeypatch):
    """Retry at once, and without a key of this machine."""
    monkeypatch.setattr(client, "BACKOFF", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
