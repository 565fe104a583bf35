"""Control without training: a VLM is shown the picture, told the actions' names, and what it says is taken as one.

What is said is parsed: the name itself, else the longest name in it, else the default. `ZeroShot` knows the model as
`generate(picture uint8 [H,W,3], prompt) -> text` only; `Speaker` is a Qwen2-VL as one.
"""
import re
from dataclasses import dataclass

import torch

from models.backbones import hub_loading as base_model
from models.checkpoint import first_line

DEFAULT = "forward"


def policy_prompt(task, actions):
    """What a policy with an action head is asked: `task` is a sentence, `actions` are names."""
    return (f"Robot control task: {task}\nAvailable actions: {', '.join(actions)}\n"
            "Choose the best action based on the current view.\nAnswer:")


def zero_shot_prompt(task, actions, previous=None):
    """As `policy_prompt`, for a model that is to write a name; `previous` is the last action's and its reward."""
    feedback = "" if previous is None else f"Previous action: {previous[0]}\nReward: {previous[1]:+.4f}\n"
    return (f"Robot control task: {task}\nAvailable actions: {', '.join(actions)}\n{feedback}"
            "Choose exactly ONE action; each moves the robot a little. Reply with its name and nothing else.\nAnswer:")


def parse(text, actions):
    """-> the action that a text names, None if none: as whole words, of several the longest, of these the first."""
    text = " ".join(text.lower().split())
    if text in actions:
        return text
    found = {name: re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z])", text) for name in actions}
    return max((name for name in found if found[name]), default=None,
               key=lambda name: (len(name), -found[name].start()))


@dataclass
class ActionPrediction:
    """An action's name, whether it was `parsed` from the `text` or is the default, and what went wrong, if anything."""
    action: str
    parsed: bool
    text: str
    error: str = ""


class ZeroShotPolicy:
    """`answers` are all that were given."""

    def __init__(self, generate, actions):
        self.generate, self.actions, self.predictions = generate, tuple(actions), []

    def predict_action(self, image, task, previous=None):
        """-> Answer; an error of the model's is one, with the default action."""
        text = error = ""
        try:
            text = self.generate(image, zero_shot_prompt(task, self.actions, previous))
        except Exception as problem:        # whatever it is, the robot goes on, and `report` tells
            error = f"{type(problem).__name__}: {first_line(problem)}"
        action = parse(text, self.actions)
        self.predictions.append(ActionPrediction(action or DEFAULT, action is not None, text, error))
        return self.predictions[-1]

    def report(self):
        """How many answers named an action, in words."""
        count, errors = len(self.predictions), [prediction.error for prediction in self.predictions if prediction.error]
        return f"{sum(prediction.parsed for prediction in self.predictions)} of {count} answers named an action" + (
            f", {len(errors)} failed ({errors[-1]})" if errors else "")


class VLMGenerator:
    """A Qwen2-VL with its vocabulary head, from a folder or the hub: `speaker(picture, prompt)` is what it writes,
    at most 10 tokens, the likeliest each. OSError as of `base_model.load`."""

    def __init__(self, name, device="cpu"):
        from transformers import AutoProcessor
        model, self.tokenizer, _ = base_model.load_pretrained(name, with_lm_head=True)
        self.model = model.to(device).eval()
        self.processor = AutoProcessor.from_pretrained(name, **base_model.resolve_hub_kwargs(name))

    def build_prompt(self, prompt):
        """The prompt as a user's turn with a picture, by the model's own template if that says anything."""
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
        render = lambda template: self.tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True)
        own = self.processor.chat_template or self.tokenizer.chat_template
        rendered = render(own) if own else ""
        return rendered if rendered.strip() else render(base_model.CHAT_TEMPLATE)

    @torch.inference_mode()
    def __call__(self, image, prompt):
        from PIL import Image
        inputs = self.processor(text=[self.build_prompt(prompt)], images=[Image.fromarray(image)], return_tensors="pt")
        written = self.model.generate(
            **inputs.to(self.model.device), max_new_tokens=10, do_sample=False, temperature=None, top_p=None,
            top_k=None, pad_token_id=self.tokenizer.pad_token_id)
        return self.tokenizer.decode(written[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
