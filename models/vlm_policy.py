"""VLMPolicy: a vision-language model that acts. Backbone, action head and value head in one module.

    policy = VLMPolicy.from_checkpoint("checkpoints/vlm_best.pt")
    actions, log_probs, output = policy.sample_action([image], ["입자들을 모아줘"])
"""
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.backbones.hub_loading import resolve_hub_kwargs
from models.backbones.qwen2_vl import Backbone
from models.checkpoint import CheckpointError, atomic_write, checksum, first_line, load, read_tensors, save
from models.heads.attention import (
    ActionDistribution,
    GoalParserHead,
    ProprioEncoder,
    ValueHead,
    last_token,
    spec_from_dict,
)


@dataclass
class PolicyOutput:
    """What one forward pass knows: `value` [B], the action `distribution`, and `said` [B,V], logits of which of the
    policy's `words` the sentence says."""
    value: torch.Tensor
    distribution: ActionDistribution
    slot_logits: torch.Tensor


class VLMPolicy(nn.Module):
    """pi(a | picture, sentence) and V(picture, sentence). Legend: B samples, A numbers in an action, H W image.

    Dropout (LoRA's, and of subwords) is off by default, also in `.train()`: PPO's ratio must compare the same function
    before and after an update. Behaviour cloning turns it on with `use_dropout(True)`.

    `words` are what plans are made of (`simulator.particles.goals.words_of`). The policy says which of them it reads in the
    sentence, chooses the goal that is due, and acts on that alone: taught directly, it understands a sentence long
    before it can do what was asked. Without words it acts on the hidden state of the sentence's last token.

    `proprio` (low, high), each Q numbers: what the body tells of itself is read by both heads, beside the picture.
    """

    def __init__(self, backbone, spec, hidden=(512, 256), init_std=0.135, goal_vocab=(), proprio=None):
        super().__init__()
        self.backbone, self.spec, self.goal_vocab = backbone, spec, tuple(goal_vocab)
        self.head_settings = {"hidden": list(hidden), "init_std": init_std, "goal_vocab": list(goal_vocab)}
        if proprio:
            self.head_settings["proprio"] = [[float(value) for value in bound] for bound in proprio]
        self.proprio_encoder = ProprioEncoder(*proprio) if proprio else None
        proprio_features = self.proprio_encoder.width if proprio else 0
        self.parser_head = GoalParserHead(backbone.width, self.goal_vocab)
        known = self.parser_head.to_goal_features(torch.zeros(1, len(goal_vocab))).shape[-1] if goal_vocab else backbone.width
        from models.heads import make_head
        self.action_head = make_head(spec, known + proprio_features, backbone.patch_width, hidden, init_std)
        self.value_head = ValueHead(backbone.width + proprio_features, [hidden[-1]])
        # a checkpoint must hold the weights that training changes, and the base's too if it is nowhere else
        self._saved_names = {name for name, parameter in self.named_parameters() if parameter.requires_grad or backbone.config_files}
        self.use_dropout(False)

    def use_dropout(self, on, bpe_dropout=0.0):
        self._dropout, self.backbone.bpe_dropout = on, bpe_dropout if on else 0.0
        return self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.train(mode and self._dropout)
        return self

    @property
    def device(self):
        return self.backbone.device

    def forward(self, images, goals, proprio=None):
        """images: uint8 [B,H,W,3] (array or tensor) or B PIL images; goals: B strings; proprio: float [B,Q], of a
        policy that has it -> PolicyOutput."""
        images, goals = self._images(images), [goals] if isinstance(goals, str) else list(goals)
        if len(goals) != len(images) or not all(isinstance(goal, str) and goal.strip() for goal in goals):
            raise ValueError(f"goals must be as many sentences as there are images, {len(images)}, not {goals!r}")
        return self.forward_heads(*self.backbone(images, goals), self._encode_proprio(proprio, len(images)))

    def _encode_proprio(self, proprio, count):
        """Proprioception [B,Q] as the heads read it [B,11Q]; None for a policy without."""
        if self.proprio_encoder is None:
            return None
        shape = None if proprio is None else tuple(np.shape(proprio))
        if shape != (count, len(self.proprio_encoder.low)):
            raise ValueError("this policy reads proprioception: give proprio, floats of shape "
                             f"{(count, len(self.proprio_encoder.low))}, not {shape}")
        proprio = proprio if isinstance(proprio, torch.Tensor) else np.asarray(proprio)
        return self.proprio_encoder(torch.as_tensor(proprio, dtype=torch.float32, device=self.device))

    def forward_heads(self, text, last_index, patches, patch_xy, proprio_features=None):
        """What the heads make of a backbone's output and of what is `felt` -> PolicyOutput."""
        # in float32 whatever the backbone computes in: PPO's ratio is that of two nearly equal log-probabilities
        with torch.autocast(text.device.type, enabled=False):
            last, slot_logits = last_token(text, last_index), self.parser_head(text, last_index)
            parsed_goal = self.parser_head.to_goal_features(slot_logits) if self.goal_vocab else last[:, None]
            if proprio_features is not None:
                parsed_goal = torch.cat([parsed_goal, proprio_features[:, None].expand(-1, parsed_goal.shape[1], -1)], -1)
            # the critic learns from the features without pulling at them: its loss must not move the policy
            return PolicyOutput(self.value_head(self.critic_input(last, proprio_features)), self.action_head(parsed_goal, patches, patch_xy),
                                slot_logits)

    @staticmethod
    def critic_input(last, proprio_features):
        """What the critic reads [B,D+11Q]."""
        return last.detach() if proprio_features is None else torch.cat([last.detach(), proprio_features], -1)

    def value_features(self, obs):
        """`judged` of observations."""
        text, last_index, *_ = self.backbone(self._images(obs["image"]), list(obs["goal"]))
        return self.critic_input(last_token(text, last_index), self._encode_proprio(obs.get("proprio"), len(text)))

    def forward_obs(self, obs):
        """`forward` on an observation: a dict with image [B,...], goal and, of some worlds, proprio."""
        return self(obs["image"], obs["goal"], obs.get("proprio"))

    def _images(self, images):
        wrong = "images must be uint8 [B,H,W,3] or PIL images of one size, not "
        if not isinstance(images, (list, tuple, np.ndarray, torch.Tensor)):
            raise ValueError(f"{wrong}one {type(images).__name__}")
        if isinstance(images, (list, tuple)):
            images = [np.asarray(patches.convert("RGB") if hasattr(patches, "convert") else patches) for patches in images]
            if len({patches.shape for patches in images}) != 1:
                raise ValueError(wrong + str([patches.shape for patches in images]))
            images = np.stack(images)
        fits = images.ndim == 4 and images.shape[-1] == 3 and min(images.shape) > 0
        if images.dtype not in (np.uint8, torch.uint8) or not fits:
            raise ValueError(f"{wrong}{images.dtype} {tuple(images.shape)}")
        return torch.as_tensor(np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images)

    @torch.no_grad()
    def sample_action(self, images, goals, deterministic=False, proprio=None):
        """-> (actions, log_probs float32 [B], both on the CPU, PolicyOutput). Actions: float32 [B,A], or int64 [B] of a
        discrete space. Deterministic: the mode of each part."""
        output = self(images, goals, proprio)
        actions = output.distribution.sample(deterministic)
        return actions.cpu(), output.distribution.log_prob(actions).cpu(), output

    def parse_goal(self, goals):
        """Logits [B,V] of which `words` B sentences say, read without a picture."""
        text, last_index = self.backbone.encode_text(list(goals))
        with torch.autocast(text.device.type, enabled=False):       # as in `decide`
            return self.parser_head(text, last_index)

    def parsed_goal(self, output):
        """What the policy takes B sentences to say, from their PolicyOutput: B lists of `words`."""
        slot_logits = (output.slot_logits > 0).tolist()
        return [[word for word, present in zip(self.goal_vocab, row, strict=True) if present] for row in slot_logits]

    def evaluate_actions(self, obs, actions):
        """obs {"image": uint8 [B,H,W,3], "goal": B strings, ...}, actions [B,A] or [B] -> log_probs, entropy, values,
        all [B]."""
        output = self.forward_obs(obs)
        return output.distribution.log_prob(actions.to(self.device)), output.distribution.entropy(), output.value

    def act(self, obs, deterministic=False):
        """The Policy protocol of simulator.rollout: obs -> actions [B,A] or [B], log_probs [B], values [B]."""
        actions, log_probs, output = self.sample_action(obs["image"], obs["goal"], deterministic, obs.get("proprio"))
        return actions, log_probs, output.value

    # --- checkpoints ------------------------------------------------------------------------------------------
    def trainable_state_dict(self):
        """What a checkpoint must hold, {name: tensor}, on the CPU. Of sharded weights every process has to ask."""
        return {name: full_tensor(tensor.detach()).cpu().clone() for name, tensor in self.state_dict().items()
                if name in self._saved_names}

    def parameter_groups(self):
        """Parameters by their learning rates: {"backbone", "action", "value"}."""
        reads = [*self.backbone.parameters(), *self.parser_head.parameters()]
        return {"backbone": [p for p in reads if p.requires_grad],
                "action": list(self.action_head.parameters()), "value": list(self.value_head.parameters())}

    def model_config(self):
        """Plain data from which `from_architecture` builds the same policy, without the weights."""
        backbone = self.backbone
        return {"spec": asdict(self.spec), "heads": self.head_settings, "base": backbone.name,
                "base_hash": backbone.base_hash, "backbone": backbone.init_kwargs(), "config_files": backbone.config_files}

    @classmethod
    def from_config(cls, a, base_model=None):
        """`base`: where the base model is by now, if not where it was (a.k.a. its name)."""
        if a["config_files"] and base_model:
            raise CheckpointError("trained on a base model of its own, which it holds: leave out the other one")
        if a["config_files"]:
            backbone = Backbone.from_files(a["config_files"], a["base"], **a["backbone"])
        else:
            backbone = Backbone.from_pretrained(base_model or a["base"], **a["backbone"])
            if backbone.base_hash != a["base_hash"]:
                raise CheckpointError(f"trained on the base model {a['base']!r} ({a['base_hash']}), which "
                                      f"{backbone.name!r} ({backbone.base_hash}) is not: name the folder of the former")
        return cls(backbone, spec_from_dict(a["spec"]), **a["heads"])

    def save(self, path, meta=None):
        """Writes a checkpoint to act from; `meta` is JSON-able data on what made it."""
        save(path, {"model_config": self.model_config()} | (meta or {}), self.trainable_state_dict())

    @classmethod
    def from_checkpoint(cls, path, device="cpu", base_model=None):
        """Loads what `save` or `save_pretrained` wrote, a file or a folder; CheckpointError (one line) for anything
        else. `.meta` says what made it. `base`: the folder or hub name of the base model, if it has moved."""
        meta, weights = _read_folder(Path(path)) if Path(path).is_dir() else load(path)[:2]
        if "model_config" not in meta:
            raise CheckpointError(f"{path} does not say which policy it holds; use a file that train_vlm.py wrote")
        try:
            policy = cls.from_config(meta["model_config"], base_model)
        except CheckpointError as error:
            raise CheckpointError(f"{path} was {error}") from None
        except (OSError, ValueError, ImportError) as error:
            name = str(base_model or meta["model_config"]["base"])
            raise CheckpointError(f"{path} needs its base model {name!r}, which cannot be loaded "
                                  f"({first_line(error)}); give the folder it is in as `base`") from None
        policy.load_trainable_state_dict(weights, path)
        policy.meta = meta
        return policy.to(device).eval()

    @classmethod
    def from_pretrained(cls, name, device="cpu", base_model=None):
        """`from_checkpoint` of a local file or folder, or of a repository on the hub that `push_to_hub` made."""
        if not Path(name).exists() and Path(name).suffix != ".pt":
            from huggingface_hub import snapshot_download
            try:
                name = snapshot_download(name, **resolve_hub_kwargs(name, agent=True))
            except OSError as error:
                raise CheckpointError(f"no agent at {name!r} ({first_line(error)}): "
                                      "give a local path or a hub name") from None
        return cls.from_checkpoint(name, device, base_model)

    def save_pretrained(self, folder, meta=None, results="", weights=None):
        """Writes a folder for the hub: the adapters as peft keeps them (adapter_config.json,
        adapter_model.safetensors), everything else that was trained (policy.pt, policy.json), and a model card with the
        measured `results`, text. Other files in the folder stay as they are. `weights`: default, its own."""
        folder, meta = Path(folder), {"model_config": self.model_config()} | (meta or getattr(self, "meta", {}))
        folder.mkdir(parents=True, exist_ok=True)
        weights = dict(weights or self.trainable_state_dict())
        adapters = {name: weights.pop(name) for name in list(weights) if ".lora_" in name}
        with tempfile.TemporaryDirectory() as fresh:
            if adapters:
                self.backbone.model.save_pretrained(fresh, save_embedding_layers=False, state_dict={
                    name.removeprefix("backbone.model."): tensor for name, tensor in adapters.items()})
            Path(fresh, "README.md").write_text(_model_card(meta, results), encoding="utf-8")
            for path in Path(fresh).iterdir():
                with atomic_write(folder / path.name) as temporary:
                    temporary.write_bytes(path.read_bytes())
        # last, with the sum of the adapters that belong to it: a killed save is noticed
        save(folder / "policy.pt", meta | {"adapters": checksum(adapters)}, weights)

    def push_to_hub(self, repo_id, private=False, **about):
        """`save_pretrained`, with its arguments `about`, to a model repository on the hub -> its address."""
        from huggingface_hub import HfApi
        api = HfApi()
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "agent", **about)
            api.upload_folder(repo_id=repo_id, folder_path=Path(folder) / "agent")
        return str(address)

    def load_trainable_state_dict(self, weights, path="checkpoint"):
        own = {name: tensor for name, tensor in self.state_dict().items() if name in self._saved_names}
        wrong = sorted(set(own) ^ set(weights)) or [name for name in own if own[name].shape != weights[name].shape]
        if wrong:
            raise CheckpointError(f"{path} is of another architecture: {len(wrong)} weights do not fit, "
                                  f"the first is {wrong[0]}")
        broken = next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None)
        if broken:
            raise CheckpointError(f"{path} holds weights that are not finite, as {broken}: use an earlier one")
        for name, tensor in own.items():
            tensor.copy_(distribute_like(weights[name], tensor))


def full_tensor(tensor):
    """All of a tensor that is spread over the processes (FSDP); any other value as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def distribute_like(tensor, other):
    """`tensor`, spread over the processes as `other` is, if it is (FSDP)."""
    if not hasattr(other, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


def _read_folder(folder):
    """What `save_pretrained` wrote -> (meta, weights)."""
    if not (folder / "policy.pt").is_file():
        raise CheckpointError(f"{folder} is a folder without an agent: name a .pt file, or a folder with policy.pt")
    meta, weights, _ = load(folder / "policy.pt")
    if meta.get("model_config", {}).get("backbone", {}).get("lora"):
        adapters = read_tensors(folder / "adapter_model.safetensors")[1]
        adapters = {"backbone.model." + name.replace(".weight", ".default.weight"): tensor
                    for name, tensor in adapters.items()}
        if meta.get("adapters") != checksum(adapters):
            raise CheckpointError(f"{folder} holds the adapters of another agent, or half of a save: save it anew")
        weights |= adapters
    return meta, weights


def _model_card(meta, results):
    """README.md of a folder for the hub."""
    base_model, goal_vocab = meta["model_config"]["base"], meta["model_config"]["heads"]["goal_vocab"]
    adapters = meta["model_config"]["backbone"]["lora"] and not meta["model_config"]["config_files"]    # of a base elsewhere
    front = {"base_model": base_model, "library_name": "peft"} if adapters else {}
    front |= {"pipeline_tag": "robotics", "tags": ["flexibleworld", "qwen2_vl", "reinforcement-learning"]}
    about = {key: value for key, value in meta.items() if key not in ("model_config", "results")}
    peft = f"""
The adapters alone, with stock peft:

    from peft import PeftModel
    from transformers import Qwen2VLModel
    model = PeftModel.from_pretrained(Qwen2VLModel.from_pretrained("{base_model}"), "THIS FOLDER")
""" if adapters else ""
    return f"""---
{json.dumps(front, ensure_ascii=False, indent=1)}
---
# An agent that acts from a sentence

A vision-language model, {base_model}, with action and value heads, trained by FlexibleWorld. It reads goals in Korean and
English, of {len(goal_vocab)} words of the goal language.

    from train_vlm import VLMPolicy
    policy = VLMPolicy.from_pretrained("THIS FOLDER")
    actions, log_probs, output = policy.sample_action([image], ["move everything to the left"])
{peft}
## Results

{results.strip() or "Not measured."}

## What made it

```json
{json.dumps(about, ensure_ascii=False, indent=1)}
```
"""
