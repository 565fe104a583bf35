"""The environment of simulator/README.md, from its text: trained by the real `main`, evaluated and recorded."""
import json
import re
import sys
import types
from pathlib import Path

import config
import inference
import train_vlm
from simulator import registry
from simulator.evaluation import evaluate_policy

DOCUMENT = Path(__file__).resolve().parent.parent / "simulator/README.md"


def test_the_documented_world_trains_and_acts(tmp_path, monkeypatch, capsys):
    """One file and one line of the registry: cloning the documented expert reaches at least 14 of 16 goals."""
    world, line = re.findall(r"```python\n# simulator/\w+\.py\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    module = types.ModuleType("simulator.corridor")
    monkeypatch.setitem(sys.modules, "simulator.corridor", module)
    exec(compile(world, "simulator/corridor.py", "exec"), module.__dict__)
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    exec(line, {"REGISTRY": registry.REGISTRY})

    small = ["env.max_steps=16", "env.num_envs=16", "rl.iterations=1", "rl.rollout_steps=16", "parser.samples=1024",
             "bc.samples=4096", "eval.episodes=16"]
    assert train_vlm.main(["vlm_tiny", "env.world=corridor", *small, f"train.output_dir={tmp_path}"]) == 0
    report = json.loads((tmp_path / "eval.json").read_text())
    assert report["baselines"]["expert"]["k"] == 16 and report["policy"]["greedy"]["k"] >= 14

    output = str(tmp_path / "a.gif")
    assert inference.main(["--goal", "go right", "--model", str(tmp_path / "vlm_best.pt"), "--output", output]) == 0
    assert "reached in" in capsys.readouterr().out

    family = registry.get_env_family(config.load(["vlm_tiny", "env.world=corridor"]))
    env = family.make_vector(config.load(["vlm_tiny", "env.world=corridor"]), 8)
    assert evaluate_policy(env, None, 8, 0)["baselines"]["expert"]["k"] == 8
