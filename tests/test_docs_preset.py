"""The own preset of models/training/README.md, from the document's text."""
import re
from pathlib import Path

import config

DOCUMENT = Path(__file__).resolve().parent.parent / "models/training/README.md"


def test_the_documented_preset_composes_and_can_be_given_back(tmp_path):
    text = DOCUMENT.read_text(encoding="utf-8")
    name, body = re.search(r"```yaml\n# (\w+\.yaml)\n(.*?)```", text, re.S).groups()
    words = re.search(rf"python train_vlm\.py (.*{name}.*)", text)[1].split()
    (tmp_path / name).write_text(body)
    c = config.load([str(tmp_path / name) if word == name else word for word in words])
    assert (c.rl.iterations, c.rl.entropy_coef, c.env.goals, c.seed) == (20, 0.003, ["per_object"], 1)
    assert c.model.vlm.name == "vlm_tiny" and c.bc.samples == 60000
    config.save_file(c, tmp_path / "config.yaml")
    assert config.load([str(tmp_path / "config.yaml")]).to_dict() == c.to_dict()
