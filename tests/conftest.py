"""A tiny VLMPolicy with fresh weights, written and built once for all tests."""
import pytest
import torch

import config
from models.backbone import Backbone, save_random_model
from models.heads import ActionSpec
from models.vlm_policy import VLMPolicy
from simulator.goal_env import action_space, sentences_by_goal

torch.set_num_threads(1)       # the tensors are tiny; where the cores are busy, more threads are up to 60 times slower
LORA = {"r": 4, "alpha": 8, "dropout": 0.05, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    sentences = [text for texts in sentences_by_goal().values() for text in texts]
    return save_random_model("vlm_tiny", tmp_path_factory.mktemp("model") / "base", sentences)


@pytest.fixture(scope="session")
def make_policy(model_folder):
    """make_policy(lora=None, hidden=(32,)): the same fresh weights every time; the adapters have an effect."""
    def make(lora=None, hidden=(32,)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = VLMPolicy(Backbone.from_pretrained(model_folder, lora=lora),
                               ActionSpec.from_space(action_space(64, 64, 50)), hidden=hidden,
                               words=("1 cluster", "1 left", "1 push", "2 push", "THEN"))
            policy.backbone.name, policy.backbone.files = "vlm_tiny", Backbone.small_files(model_folder)
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
