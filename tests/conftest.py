"""A tiny VLMPolicy with fresh weights, written and built once for all tests."""
from pathlib import Path

import pytest
import torch

import config
from models.backbones.hub_loading import read_config_files
from models.backbones.qwen2_vl import Qwen2VLBackbone
from models.backbones.tiny import init_model_files
from models.heads import spec_from_space
from models.vlm_policy import VLMPolicy
from simulator.particles.commands import instructions_by_goal
from simulator.particles.task import action_space

pytest.register_assert_rewrite(*(path.stem for path in Path(__file__).parent.glob("*_helpers.py")))
torch.set_num_threads(1)       # the tensors are tiny; where the cores are busy, more threads are up to 60 times slower
LORA = {"r": 4, "alpha": 8, "dropout": 0.05, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def save_model(name, folder, seed=0):
    """A model folder as a hub repository is one: the known configuration `name` with random weights."""
    files = init_model_files(name, sorted(text for texts in instructions_by_goal().values() for text in texts))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Qwen2VLBackbone.from_files(files, name).vlm.save_pretrained(folder)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save_model("vlm_tiny", tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="session")
def make_policy(model_folder):
    """make_policy(): the same fresh weights every time; the adapters have an effect. Without `own_base` the base is
    that of `model_folder`."""
    def make(lora=None, hidden=(32,), own_base=True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            backbone = Qwen2VLBackbone.from_pretrained(model_folder, lora=lora)
            if own_base:
                backbone.name, backbone.config_files = "vlm_tiny", read_config_files(model_folder)
            policy = VLMPolicy(backbone, spec_from_space(action_space(64, 64, 50)), hidden=hidden,
                               goal_vocab=("1 cluster", "1 left", "1 push", "2 push", "THEN"))
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:             # zero at the start, which would hide the dropout before it
                    torch.nn.init.normal_(parameter, std=0.1)
        return policy.eval()
    return make


@pytest.fixture(scope="session")
def policy(make_policy):
    """Shared: do not change its weights, and leave it in eval()."""
    return make_policy()


@pytest.fixture(scope="session")
def saved(policy, tmp_path_factory):
    """A checkpoint of `policy`, whose episodes end after three steps."""
    path = tmp_path_factory.mktemp("saved") / "policy.pt"
    policy.save(path, {"config": config.load(["vlm_tiny", "env.max_steps=3"]).to_dict()})
    return path
