"""Control without training: a VLM reads an image and the actions' names, and writes the name of one.

`ZeroShotPolicy` turns the written text into an action. It knows the model only as `generate(image uint8 [H,W,3],
prompt) -> text`; `VLMGenerator` is a vision-language model behind this interface. The caller, who knows the
environment, gives the actions, the default action and the prompt.
"""
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.backbones.hub_loading import load_pretrained, resolve_hub_kwargs
from models.backbones.prompt import render_chat
from models.backbones.tiny import CHAT_TEMPLATE
from models.checkpoint import first_line

MAX_NEW_TOKENS = 10
PreviousAction = tuple[str, float]      # (name, reward)
PromptBuilder = Callable[[str, Sequence[str], PreviousAction | None], str]


def parse_action(text: str, actions: Sequence[str]) -> str | None:
    """Return the action that `text` names, or None.

    Names must be whole words. Of several names the longest counts, of equally long ones the first in the text.
    """
    text = " ".join(text.lower().split())
    if text in actions:
        return text
    matches = {name: re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z])", text) for name in actions}
    starts = {name: match.start() for name, match in matches.items() if match}
    return max(starts, default=None, key=lambda name: (len(name), -starts[name]))


@dataclass
class ActionPrediction:
    """One predicted action."""
    action: str         # its name
    parsed: bool        # False: `text` names no action, so this is the default
    text: str           # what the model wrote
    error: str = ""     # the model's error, one line


class ZeroShotPolicy:
    """Acts by the text that a model writes. `predictions` lists all predictions so far.

    Args:
        generate: (image uint8 [H,W,3], prompt) -> text.
        actions: the actions' names, lower case.
        default_action: the action if the text names none.
        build_prompt: (instruction, actions, previous action or None) -> the prompt.
    """

    def __init__(self, generate: Callable[[np.ndarray, str], str], actions: Sequence[str], default_action: str,
                 build_prompt: PromptBuilder):
        self.generate = generate
        self.actions = tuple(actions)
        self.default_action = default_action
        self.build_prompt = build_prompt
        self.predictions: list[ActionPrediction] = []

    def predict_action(self, image: np.ndarray, instruction: str,
                       previous: PreviousAction | None = None) -> ActionPrediction:
        """Return the prediction for an image (uint8 [H,W,3]). After an error of the model, the default action."""
        text = error = ""
        try:
            text = self.generate(image, self.build_prompt(instruction, self.actions, previous))
        except Exception as problem:        # the episode goes on after any error; `report` counts it
            error = f"{type(problem).__name__}: {first_line(problem)}"
        action = parse_action(text, self.actions)
        self.predictions.append(ActionPrediction(action or self.default_action, action is not None, text, error))
        return self.predictions[-1]

    def report(self) -> str:
        """Return how many answers named an action, as text."""
        parsed = sum(prediction.parsed for prediction in self.predictions)
        errors = [prediction.error for prediction in self.predictions if prediction.error]
        summary = f"{parsed} of {len(self.predictions)} answers named an action"
        return f"{summary}, {len(errors)} failed ({errors[-1]})" if errors else summary


class VLMGenerator:
    """A vision-language model with its vocabulary head, from a folder or the hub.

    `generator(image uint8 [H,W,3], prompt)` returns its greedy answer, up to 10 tokens. Raises OSError (one line) if
    the model cannot be loaded.
    """

    def __init__(self, name: str | Path, device: str | torch.device = "cpu"):
        from transformers import AutoProcessor
        model, self.tokenizer, _ = load_pretrained(name, with_lm_head=True)
        self.model = model.to(device).eval()
        self.processor = AutoProcessor.from_pretrained(name, **resolve_hub_kwargs(name))

    def build_prompt(self, prompt: str) -> str:
        """Return `prompt` as a user turn with an image, in the model's own chat template if that renders anything."""
        own_template = self.processor.chat_template or self.tokenizer.chat_template
        rendered = render_chat(self.tokenizer, prompt, own_template) if own_template else ""
        return rendered if rendered.strip() else render_chat(self.tokenizer, prompt, CHAT_TEMPLATE)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, prompt: str) -> str:
        from PIL import Image
        inputs = self.processor(text=[self.build_prompt(prompt)], images=[Image.fromarray(image)], return_tensors="pt")
        tokens = self.model.generate(           # [1,prompt + answer]
            **inputs.to(self.model.device), max_new_tokens=MAX_NEW_TOKENS, do_sample=False, temperature=None,
            top_p=None, top_k=None, pad_token_id=self.tokenizer.pad_token_id)
        answer = tokens[0, inputs["input_ids"].shape[1]:]
        return self.tokenizer.decode(answer, skip_special_tokens=True)
