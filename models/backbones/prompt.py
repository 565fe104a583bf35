"""Prompts of chat models with one image: token ids before and after the image, BPE-dropout."""
import itertools
from typing import TYPE_CHECKING

import torch

from models.backbones.tiny import CHAT_TEMPLATE, IMAGE_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHE_SIZE = 20_000     # instructions


def render_chat(tokenizer: "PreTrainedTokenizerBase", text: str, template: str) -> str:
    """Return the chat prompt of one user turn, an image and `text`, up to where the assistant begins."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)


class PromptEncoder:
    """Encodes instructions with the model's own chat template. Token ids are cached."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self._cache: dict[str, tuple[list[int], ...]] = {}

    def encode(self, instruction: str, bpe_dropout: float = 0.0) -> tuple[list[int], list[int]]:
        """Return the token ids before the image and those after it, which include the instruction.

        With `bpe_dropout`, the instruction's words are split at this fraction of places, differently each time.
        """
        if instruction not in self._cache:
            if len(self._cache) > CACHE_SIZE:
                self._cache.clear()
            self._cache[instruction] = self._encode(instruction)
        before_image, after_image, before_text, after_text = self._cache[instruction]
        if bpe_dropout:
            after_image = [*before_text, *self._encode_with_dropout(instruction, bpe_dropout), *after_text]
        return before_image, after_image

    def _encode(self, instruction: str) -> tuple[list[int], ...]:
        """Return token ids before the image, after it, and of the latter those around the instruction."""
        template = self.tokenizer.chat_template or CHAT_TEMPLATE
        before_image, after_image = render_chat(self.tokenizer, instruction, template).split(IMAGE_TOKEN, 1)
        before_text, after_text = after_image, ""
        if instruction:
            before_text, _, after_text = after_image.partition(instruction)
        parts = before_image, after_image, before_text, after_text
        return tuple(self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)

    def _encode_with_dropout(self, text: str, bpe_dropout: float) -> list[int]:
        """Return the token ids of `text`, whose words are split at random.

        The idea of BPE-dropout (Provilkov et al. 2020, arXiv:1910.13267): the model then learns to read unknown and
        misspelt words. The splits follow from torch's seed.
        """
        tokenizer = self.tokenizer.backend_tokenizer
        if tokenizer.normalizer:
            text = tokenizer.normalizer.normalize_str(text)
        ids = []
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text):
            split_here = torch.rand(len(word) - 1) < bpe_dropout
            splits = (split_here.nonzero().flatten() + 1).tolist()
            for start, end in itertools.pairwise([0, *splits, len(word)]):
                ids += [token.id for token in tokenizer.model.tokenize(word[start:end])]
        return ids
