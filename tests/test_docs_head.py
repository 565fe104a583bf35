"""The code in models/README.md, as it stands there."""
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from config import UserError
from models import heads
from models.backbones.qwen2_vl import Qwen2VLBackbone
from models.vlm_policy import VLMPolicy

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
SPACE = spaces.Box(np.float32([-1, 0.1, 2]), np.float32([0.1, 4, 2]))


def code(title):
    """The block of code that begins with this comment."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    return next(block for block in blocks if block.startswith(f"# {title}\n"))


@pytest.fixture
def mlp_head(tmp_path, monkeypatch):
    """The example's module, registered for one test."""
    (tmp_path / "mlp_head.py").write_text(code("mlp_head.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(heads, "HEADS", dict(heads.HEADS))
    monkeypatch.setattr(heads, "SPECS", dict(heads.SPECS))
    import mlp_head
    yield mlp_head
    del sys.modules["mlp_head"]


def test_the_head_is_short():
    assert len(code("mlp_head.py").splitlines()) <= 40


def test_the_head_acts_learns_and_survives_a_checkpoint(mlp_head, model_folder, tmp_path):
    torch.manual_seed(0)
    env = type("Env", (), {"action_space": SPACE})
    names = {"env": env, "backbone": Qwen2VLBackbone.from_pretrained(model_folder), "VLMPolicy": VLMPolicy}
    exec(code("use of mlp_head.py"), names)
    policy = names["policy"].eval()
    assert isinstance(policy.action_head, mlp_head.MLPBoxHead)
    obs = {"image": np.zeros((4, 64, 64, 3), np.uint8), "goal": ["heat", "cool", "move left", "모아줘"]}
    actions, log_probs, _ = policy.act(obs)
    assert all(SPACE.contains(action) for action in actions.numpy()) and torch.isfinite(log_probs).all()
    (policy.evaluate_actions(obs, actions)[0].sum() + policy.evaluate_actions(obs, actions)[1].sum()).backward()
    assert all(parameter.grad is not None for parameter in policy.action_head.parameters())
    attention = policy.forward_obs(obs).distribution.attention_log_prob(actions, torch.rand(4, 2, 2), torch.zeros(4))
    assert torch.equal(attention, torch.zeros(4))
    policy.save(tmp_path / "policy.pt")
    loaded = VLMPolicy.from_checkpoint(tmp_path / "policy.pt")
    assert torch.equal(loaded.act(obs, deterministic=True)[0], policy.act(obs, deterministic=True)[0])
    heads.HEADS.pop("mlp_box"), heads.SPECS.pop("mlp_box")
    with pytest.raises(UserError, match="policy.pt: unknown action head 'mlp_box'.*register_head"):
        VLMPolicy.from_checkpoint(tmp_path / "policy.pt")


def test_the_notebook_example_succeeds(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(code("notebook"), names)
    assert names["info"]["success"] and not names["info"]["truncated"]
    assert "True" in capsys.readouterr().out


def test_the_kinds_are_those_of_the_readme():
    for kind in heads.HEADS:
        assert f"`{kind}`" in TEXT


def test_parameter_counts():
    policy = VLMPolicy.from_checkpoint(ROOT / "checkpoints" / "vlm_tiny.pt")
    assert f"{sum(parameter.numel() for parameter in policy.parameters()):,}" in TEXT
