"""VLMPolicy: a vision-language model that acts. One module with a backbone, an action head and a value head.

    policy = VLMPolicy.from_checkpoint("checkpoints/vlm_best.pt")
    actions, log_probs, output = policy.sample_action([image], ["입자들을 모아줘"])

Shapes: B samples, H W image, A action numbers, Q numbers of proprioception, F its features, V slots of the goal
vocabulary, S subgoals, T tokens, P image patches, D hidden size, E features of the vision tower.
"""
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from config import UserError
from models import checkpoint, hub
from models.backbones import VisionLanguageBackbone
from models.backbones.hub_loading import resolve_hub_kwargs
from models.checkpoint import CheckpointError, Tensors, distribute_like, full_tensor
from models.features import ProprioEncoder, check_instructions, image_tensor, proprio_tensor
from models.heads import ActionSpec, make_head, spec_from_dict
from models.heads.distributions import ActionDistribution
from models.heads.goal_parser import GoalParserHead, last_token
from models.heads.value import ValueHead

Images = torch.Tensor | np.ndarray | Sequence       # see models.features.image_tensor
Obs = Meta = dict[str, Any]                         # arrays by name; JSON data
Bounds = tuple[Sequence[float], Sequence[float]]    # low, high


@dataclass
class PolicyOutput:
    """The result of one forward pass."""
    value: torch.Tensor                     # float32 [B]
    distribution: ActionDistribution        # over actions
    slot_logits: torch.Tensor               # float32 [B,V], which slots of the goal vocabulary the instruction has


class VLMPolicy(nn.Module):
    """The policy pi(a | image, instruction) and the value V(image, instruction).

    `spec` describes the action space; its kind selects the head (models.heads). `hidden` are the widths of the action
    head's trunk, `init_std` the initial standard deviation of continuous actions as a fraction of their range.

    `goal_vocab` are the slots of a goal (models.heads.goal_parser). The policy predicts the slots of the instruction
    and the action head reads these predictions: supervised that way, it understands instructions long before it can
    carry them out. Without a vocabulary, the action head reads the hidden state of the instruction's last token.
    `proprio` (low, high), Q numbers each, are the bounds of proprioception, which both heads read too.

    Dropout (of LoRA and of subwords) is off, also after `.train()`: PPO's ratio must compare the same function before
    and after an update. Behaviour cloning turns it on with `use_dropout(True)`.
    """

    def __init__(self, backbone: VisionLanguageBackbone, spec: ActionSpec, hidden: Sequence[int] = (512, 256),
                 init_std: float = 0.135, goal_vocab: Sequence[str] = (), proprio: Bounds | None = None) -> None:
        super().__init__()
        self.backbone, self.spec, self.goal_vocab = backbone, spec, tuple(goal_vocab)
        self.head_settings = {"hidden": list(hidden), "init_std": init_std, "goal_vocab": list(goal_vocab)}
        if proprio:
            self.head_settings["proprio"] = [[float(value) for value in bound] for bound in proprio]
        self.proprio_encoder = ProprioEncoder(*proprio) if proprio else None
        proprio_width = self.proprio_encoder.width if proprio else 0
        self.parser_head = GoalParserHead(backbone.width, self.goal_vocab)
        goal_width = self.parser_head.goal_width if goal_vocab else backbone.width
        self.action_head = make_head(spec, goal_width + proprio_width, backbone.patch_width, hidden, init_std)
        self.value_head = ValueHead(backbone.width + proprio_width, [hidden[-1]])
        # a checkpoint holds what is trained, and the frozen base too if no other place has it
        self._saved_names = {name for name, parameter in self.named_parameters()
                             if parameter.requires_grad or backbone.config_files}
        self.use_dropout(False)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def use_dropout(self, on: bool, bpe_dropout: float = 0.0) -> "VLMPolicy":
        """Turn dropout in training mode on or off; `bpe_dropout` is the probability of a subword split."""
        self._dropout = on
        self.backbone.bpe_dropout = bpe_dropout if on else 0.0
        return self.train(self.training)

    def train(self, mode: bool = True) -> "VLMPolicy":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.train(mode and self._dropout)
        return self

    # --- forward passes ---------------------------------------------------------------------------------------
    def forward(self, images: Images, goals: Sequence[str], proprio: Any = None) -> PolicyOutput:
        """Return the distribution over actions, the value and the slot logits.

        images: uint8 [B,H,W,3], array or tensor, or a list of B images (arrays or PIL). goals: B instructions.
        proprio: float [B,Q], for a policy that reads it. Raises ValueError for other inputs.
        """
        images = image_tensor(images)
        features = self.backbone(images, check_instructions(goals, len(images)))
        return self.forward_heads(*features, self._encode_proprio(proprio, len(images)))

    def forward_obs(self, obs: Obs) -> PolicyOutput:
        """Return `forward` of an observation with the keys image, goal and, in some environments, proprio."""
        return self(obs["image"], obs["goal"], obs.get("proprio"))

    def forward_heads(self, text: torch.Tensor, last_index: torch.Tensor, patches: torch.Tensor,
                      patch_xy: torch.Tensor, proprio_features: torch.Tensor | None = None) -> PolicyOutput:
        """Return the heads' outputs for a backbone's outputs.

        text: [B,T,D]. last_index: int64 [B]. patches: [B,P,D+E]. patch_xy: [P,2]. proprio_features: [B,F].
        """
        # in float32 whatever the backbone uses: PPO's ratio compares two nearly equal log-probabilities
        with torch.autocast(text.device.type, enabled=False):
            last = last_token(text, last_index)                                                   # [B,D]
            slot_logits = self.parser_head(text, last_index)                                      # [B,V]
            goal_features = last[:, None]                                                         # [B,1,D]
            if self.goal_vocab:
                goal_features = self.parser_head.to_goal_features(slot_logits)                    # [B,S,W]
            if proprio_features is not None:
                expanded = proprio_features[:, None].expand(-1, goal_features.shape[1], -1)       # [B,S,F]
                goal_features = torch.cat([goal_features, expanded], -1)                          # [B,S,W+F]
            value = self.value_head(self.critic_input(last, proprio_features))
            return PolicyOutput(value, self.action_head(goal_features, patches, patch_xy), slot_logits)

    @staticmethod
    def critic_input(last: torch.Tensor, proprio_features: torch.Tensor | None) -> torch.Tensor:
        """Return the input [B,D+F] of the value head; detached, so that its loss does not train the backbone."""
        return last.detach() if proprio_features is None else torch.cat([last.detach(), proprio_features], -1)

    def value_features(self, obs: Obs) -> torch.Tensor:
        """Return `critic_input` of an observation."""
        text, last_index, *_ = self.backbone(image_tensor(obs["image"]), list(obs["goal"]))
        return self.critic_input(last_token(text, last_index), self._encode_proprio(obs.get("proprio"), len(text)))

    def _encode_proprio(self, proprio: Any, count: int) -> torch.Tensor | None:
        """Return the features [B,F] of proprioception [B,Q]; None for a policy without."""
        if self.proprio_encoder is None:
            if proprio is not None:
                raise ValueError("this policy reads no proprioception: leave out proprio")
            return None
        shape = (count, len(self.proprio_encoder.low))
        return self.proprio_encoder(proprio_tensor(proprio, shape, self.device))

    # --- acting -----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def sample_action(self, images: Images, goals: Sequence[str], deterministic: bool = False,
                      proprio: Any = None) -> tuple[torch.Tensor, torch.Tensor, PolicyOutput]:
        """Return (actions, log_probs float32 [B], output); the first two are on the CPU.

        Actions are float32 [B,A], or int64 [B] in a discrete space; with `deterministic` greedy, the mode of every
        factor. The other arguments are those of `forward`; `goals` are B instructions.
        """
        output = self(images, goals, proprio)
        actions = output.distribution.sample(deterministic)
        return actions.cpu(), output.distribution.log_prob(actions).cpu(), output

    def act(self, obs: Obs, deterministic: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return actions [B,A] or [B], log_probs [B] and values [B]: the Policy protocol of simulator.rollout."""
        actions, log_probs, output = self.sample_action(obs["image"], obs["goal"], deterministic, obs.get("proprio"))
        return actions, log_probs, output.value

    def evaluate_actions(self, obs: Obs,
                         actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log_probs, entropy and values, all [B], of actions [B,A] or [B]."""
        output = self.forward_obs(obs)
        distribution = output.distribution
        return distribution.log_prob(actions.to(self.device)), distribution.entropy(), output.value

    def parse_goal(self, instructions: Sequence[str]) -> torch.Tensor:
        """Return slot logits [B,V] of B instructions, read without an image."""
        text, last_index = self.backbone.encode_text(list(instructions))
        with torch.autocast(text.device.type, enabled=False):       # as in `forward_heads`
            return self.parser_head(text, last_index)

    def parsed_goal(self, output: PolicyOutput) -> list[list[str]]:
        """Return for each of B instructions the slots that the policy predicts."""
        predicted = (output.slot_logits > 0).tolist()
        return [[slot for slot, present in zip(self.goal_vocab, row, strict=True) if present] for row in predicted]

    # --- weights and checkpoints ------------------------------------------------------------------------------
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters by learning rate: backbone (with the goal parser), action, value."""
        backbone = [*self.backbone.parameters(), *self.parser_head.parameters()]
        return {"backbone": [parameter for parameter in backbone if parameter.requires_grad],
                "action": list(self.action_head.parameters()), "value": list(self.value_head.parameters())}

    def trainable_state_dict(self) -> Tensors:
        """Return the weights that a checkpoint holds, on the CPU. With FSDP, every process must call this."""
        return {name: full_tensor(tensor.detach()).cpu().clone() for name, tensor in self.state_dict().items()
                if name in self._saved_names}

    def load_trainable_state_dict(self, weights: Tensors, path: str | Path = "checkpoint") -> None:
        """Load what `trainable_state_dict` returned. Raises CheckpointError, which names `path`, if it does not fit."""
        own = {name: tensor for name, tensor in self.state_dict().items() if name in self._saved_names}
        checkpoint.check_weights(own, weights, path)
        for name, tensor in own.items():
            tensor.copy_(distribute_like(weights[name], tensor))

    def model_config(self) -> Meta:
        """Return JSON data from which `from_config` builds the same policy, without its weights."""
        base = self.backbone
        return {"spec": asdict(self.spec), "heads": self.head_settings, "base": base.name,
                "base_hash": base.base_hash, "backbone": base.init_kwargs(), "config_files": base.config_files}

    @classmethod
    def from_config(cls, config: Meta, base_model: str | Path | None = None) -> "VLMPolicy":
        """Return a policy from `model_config()`, with new heads; `base_model` as in `from_checkpoint`.

        Raises UserError for an unknown head, and for a base model that is another one or cannot be loaded.
        """
        spec = spec_from_dict(config["spec"])
        return cls(hub.load_backbone(config, base_model), spec, **config["heads"])

    def save(self, path: str | Path, meta: Meta | None = None) -> None:
        """Write an inference checkpoint; `meta` is JSON data on its training."""
        checkpoint.save(path, {"model_config": self.model_config()} | (meta or {}), self.trainable_state_dict())

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str | torch.device = "cpu",
                        base_model: str | Path | None = None) -> "VLMPolicy":
        """Return the policy in a file from `save` or a folder from `save_pretrained`, in eval mode.

        Its attribute `meta` is JSON data on its training. `base_model` is the folder or hub name of the base model,
        if it moved. Raises CheckpointError for anything else.
        """
        meta, weights = hub.read_folder(path) if Path(path).is_dir() else checkpoint.load(path)[:2]
        if "model_config" not in meta:
            raise CheckpointError(f"{path} contains no policy: use a file that train_vlm.py wrote")
        try:
            policy = cls.from_config(meta["model_config"], base_model)
        except UserError as error:
            raise CheckpointError(f"{path}: {error}") from None
        policy.load_trainable_state_dict(weights, path)
        policy.meta = meta
        return policy.to(device).eval()

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | torch.device = "cpu",
                        base_model: str | Path | None = None) -> "VLMPolicy":
        """Return `from_checkpoint` of a local file or folder, or of a hub repository from `push_to_hub`."""
        if not Path(name).exists() and Path(name).suffix != ".pt":
            from huggingface_hub import snapshot_download
            try:
                name = snapshot_download(name, **resolve_hub_kwargs(name, agent=True))
            except OSError as error:
                raise CheckpointError(f"no agent at {name!r} ({checkpoint.first_line(error)}): "
                                      "give a local path or a hub name") from None
        return cls.from_checkpoint(name, device, base_model)

    save_pretrained = hub.save_pretrained
    push_to_hub = hub.push_to_hub
