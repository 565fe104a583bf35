"""The Python example of README.md, from its text."""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_first_example_succeeds(monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "True\n"
