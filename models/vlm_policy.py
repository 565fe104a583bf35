"""VLMPolicy: a vision-language model that acts. Backbone, action head and value head in one module.

    policy = VLMPolicy.from_checkpoint("checkpoints/vlm_best.pt")
    actions, log_probs, output = policy.sample_action([image], ["입자들을 모아줘"])
"""
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from models.backbone import Backbone
from models.checkpoint import CheckpointError, load, save
from models.heads import ActionSpec, HybridDistribution, HybridHead, ReadingHead, ValueHead, last_of


@dataclass
class PolicyOutput:
    """What one forward pass knows: `value` [B], the action `distribution`, and `said` [B,V], logits of which of the
    policy's `words` the sentence says."""
    value: torch.Tensor
    distribution: HybridDistribution
    said: torch.Tensor


class VLMPolicy(nn.Module):
    """pi(a | picture, sentence) and V(picture, sentence). Legend: B samples, A numbers in an action, H W image.

    Dropout (LoRA's, and of subwords) is off by default, also in `.train()`: PPO's ratio must compare the same function
    before and after an update. Behaviour cloning turns it on with `use_dropout(True)`.

    `words` are what plans are made of (`simulator.goals.words_of`). The policy says which of them it reads in the
    sentence, chooses the goal that is due, and acts on that alone: taught directly, it understands a sentence long
    before it can do what was asked. Without words it acts on the hidden state of the sentence's last token.
    """

    def __init__(self, backbone, spec, hidden=(512, 256), init_std=0.135, words=()):
        super().__init__()
        self.backbone, self.spec, self.words = backbone, spec, tuple(words)
        self.head_settings = {"hidden": list(hidden), "init_std": init_std, "words": list(words)}
        self.reading_head = ReadingHead(backbone.width, self.words)
        known = self.reading_head.by_goal(torch.zeros(1, len(words))).shape[-1] if words else backbone.width
        self.action_head = HybridHead(spec, known, backbone.image_width, hidden, init_std)
        self.value_head = ValueHead(backbone.width, [hidden[-1]])
        self._dropout = False

    def use_dropout(self, on, subwords=0.0):
        self._dropout, self.backbone.subword_dropout = on, subwords if on else 0.0
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

    def forward(self, images, goals):
        """images: uint8 [B,H,W,3] (array or tensor) or B PIL images; goals: B strings -> PolicyOutput."""
        images, goals = self._images(images), [goals] if isinstance(goals, str) else list(goals)
        if len(goals) != len(images) or not all(isinstance(goal, str) and goal.strip() for goal in goals):
            raise ValueError(f"goals must be as many sentences as there are images, {len(images)}, not {goals!r}")
        return self.decide(*self.backbone(images, goals))

    def decide(self, text, ends, image, centres):
        """What the heads make of a backbone's output -> PolicyOutput."""
        last, said = last_of(text, ends), self.reading_head(text, ends)
        understood = self.reading_head.by_goal(said) if self.words else last[:, None]
        # the critic learns from the features without pulling at them: its loss must not move the policy
        return PolicyOutput(self.value_head(last.detach()), self.action_head(understood, image, centres), said)

    def _images(self, images):
        wrong = "images must be uint8 [B,H,W,3] or PIL images of one size, not "
        if isinstance(images, (list, tuple)):
            images = [np.asarray(image.convert("RGB") if hasattr(image, "convert") else image) for image in images]
            if len({image.shape for image in images}) != 1:
                raise ValueError(wrong + str([image.shape for image in images]))
            images = np.stack(images)
        fits = images.ndim == 4 and images.shape[-1] == 3 and min(images.shape) > 0
        if images.dtype not in (np.uint8, torch.uint8) or not fits:
            raise ValueError(f"{wrong}{images.dtype} {tuple(images.shape)}")
        images = torch.as_tensor(np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images)
        return images.to(self.device)

    @torch.no_grad()
    def sample_action(self, images, goals, deterministic=False):
        """-> (actions float32 [B,A], log_probs float32 [B], PolicyOutput). Deterministic: the mode of each part."""
        output = self(images, goals)
        actions = output.distribution.sample(deterministic)
        return actions, output.distribution.log_prob(actions), output

    def read(self, goals):
        """Logits [B,V] of which `words` B sentences say, read without a picture."""
        return self.reading_head(*self.backbone.read(list(goals)))

    def understood(self, output):
        """What the policy takes B sentences to say, from their PolicyOutput: B lists of `words`."""
        said = (output.said > 0).tolist()
        return [[word for word, is_said in zip(self.words, row, strict=True) if is_said] for row in said]

    def evaluate_actions(self, obs, actions):
        """obs {"image": uint8 [B,H,W,3], "goal": B strings}, actions [B,A] -> log_probs, entropy, values, all [B]."""
        output = self(obs["image"], obs["goal"])
        return output.distribution.log_prob(actions.to(self.device)), output.distribution.entropy(), output.value

    def act(self, obs, deterministic=False):
        """The Policy protocol of simulator.rollout: obs -> actions [B,A], log_probs [B], values [B]."""
        actions, log_probs, output = self.sample_action(obs["image"], obs["goal"], deterministic)
        return actions, log_probs, output.value

    # --- checkpoints ------------------------------------------------------------------------------------------
    def trainable_state(self):
        """What a checkpoint must hold: the weights that training changes, and the base's too if it is nowhere else."""
        own_base = getattr(self.backbone, "files", None)
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad or own_base}
        return {name: tensor.detach().cpu().clone() for name, tensor in self.state_dict().items() if name in trained}

    def parameter_groups(self):
        """Parameters by their learning rates: {"backbone", "action", "value"}."""
        reads = [*self.backbone.parameters(), *self.reading_head.parameters()]
        return {"backbone": [p for p in reads if p.requires_grad],
                "action": list(self.action_head.parameters()), "value": list(self.value_head.parameters())}

    def architecture(self):
        """Plain data from which `from_architecture` builds the same policy, without the weights."""
        return {"spec": asdict(self.spec), "heads": self.head_settings, "base": self.backbone.name,
                "lora": self.backbone.lora, "files": getattr(self.backbone, "files", None)}

    @classmethod
    def from_architecture(cls, a):
        if a["files"]:
            backbone = Backbone.from_files(a["files"], a["base"], lora=a["lora"])
            backbone.files = a["files"]
        else:
            backbone = Backbone.from_pretrained(a["base"], lora=a["lora"])
        return cls(backbone, ActionSpec.from_dict(a["spec"]), **a["heads"])

    def save(self, path, meta=None):
        """Writes a checkpoint to act from; `meta` is JSON-able data on what made it."""
        save(path, {"architecture": self.architecture()} | (meta or {}), self.trainable_state())

    @classmethod
    def from_checkpoint(cls, path, device="cpu"):
        """Loads what `save` wrote; CheckpointError (one line) for anything else. `.meta` says what made it."""
        meta, weights, _ = load(path)
        if "architecture" not in meta:
            raise CheckpointError(f"{path} does not say which policy it holds; use a file that train_vlm.py wrote")
        try:
            policy = cls.from_architecture(meta["architecture"])
        except OSError as error:
            base = meta["architecture"]["base"]
            raise CheckpointError(f"{path} needs its base model {base!r}, which cannot be loaded "
                                  f"({str(error).splitlines()[0]})") from None
        policy.load_weights(weights, path)
        policy.meta = meta
        return policy.to(device).eval()

    def load_weights(self, weights, path="checkpoint"):
        wanted = self.trainable_state()
        wrong = sorted(set(wanted) ^ set(weights)) or [
            name for name in wanted if wanted[name].shape != weights[name].shape]
        if wrong:
            raise CheckpointError(f"{path} is of another architecture: {len(wrong)} weights do not fit, "
                                  f"the first is {wrong[0]}")
        broken = next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None)
        if broken:
            raise CheckpointError(f"{path} holds weights that are not finite, as {broken}: use an earlier one")
        self.load_state_dict(weights, strict=False)
