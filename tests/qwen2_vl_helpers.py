"""A small Qwen2-VL for tests, and the states of stock transformers to compare it with."""
import numpy as np
import torch
from conftest import LORA, save_model
from PIL import Image
from safetensors.torch import load_file, save_file

from models.backbones.qwen2_vl import Qwen2VLBackbone
from models.backbones.tiny import MODEL_CONFIGS, qwen2_vl_config
from models.heads import spec_from_space
from models.vlm_policy import VLMPolicy
from simulator.particles.task import action_space

NAME, WIDTH, EMBED = "qwen2_vl_small", 64, 32
SMALL = qwen2_vl_config(WIDTH, 2, 4, 2, 128, None, (EMBED, 2, 2, 4), 14, "float32")
INSTRUCTIONS = ["입자들을 왼쪽으로 이동시켜", "heat",
                "push everything up to the very top of the world, please, if you can",
                "모아줘", "align them in a horizontal line"]
MODEL_CONFIGS[NAME] = SMALL


def save_strong_model(folder, seed=0):
    """Save a model whose weights are five times larger: fresh ones attend almost uniformly, which would hide errors."""
    path = save_model(NAME, folder, seed) / "model.safetensors"
    save_file({name: 5 * tensor if tensor.ndim > 1 else tensor for name, tensor in load_file(path).items()}, path,
              {"format": "pt"})
    return folder


def build_model(folder, lora=LORA, hidden=(32,), **options):
    """Return the same policy every time; its adapters have an effect, and its heads prefer some actions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = VLMPolicy(Qwen2VLBackbone.from_pretrained(folder, lora=lora, **options),
                           spec_from_space(action_space(64, 64, 50)), hidden=hidden,
                           goal_vocab=("1 cluster", "1 left", "1 push", "2 push", "THEN"))
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or "_head." in name:
                parameter.data += 0.2 * torch.randn(parameter.shape)
    return policy.eval()


def random_images(count, height=64, width=64, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def to_pil(images):
    return [Image.fromarray(image.numpy()) for image in images]


def make_instructions(count):
    return [INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(count)]


def transformers_model(folder):
    from transformers import Qwen2VLModel
    return Qwen2VLModel.from_pretrained(folder).eval()


def reference_states(model, folder, images, instructions, side="right"):
    """Return the hidden states of stock transformers, from the chat template on.

    For each sample: those of the image tokens [S,D] and of the text after them [T,D].
    """
    from transformers import AutoProcessor
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = side
    texts = [processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}],
        add_generation_prompt=True) for instruction in instructions]
    inputs = processor(text=texts, images=to_pil(images), padding=True, return_tensors="pt")
    assert "mm_token_type_ids" in inputs
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    rows = []
    for ids, mask, hidden in zip(inputs["input_ids"], inputs["attention_mask"].bool(), states, strict=True):
        ids, hidden = ids[mask], hidden[mask]
        image = (ids == processor.image_token_id).nonzero().flatten()
        rows.append((hidden[image], hidden[image[-1] + 1:]))
    return rows


def assert_states(features, rows, atol):
    """Compare a backbone's output with `reference_states`."""
    text, last_index, image, _ = features
    assert text.dtype == image.dtype == torch.float32 and len(text) == len(rows)
    for b, (tokens, after) in enumerate(rows):
        torch.testing.assert_close(text[b, :last_index[b] + 1], after, rtol=0, atol=atol)
        torch.testing.assert_close(image[b, :, :WIDTH], tokens.repeat_interleave(4, 0), rtol=0, atol=atol)


def outputs(policy, obs):
    """Return all outputs of a policy for `obs`, [B,...]."""
    with torch.no_grad():
        output = policy(obs["image"], obs["goal"])
    d = output.distribution
    return torch.cat([output.value[:, None], output.slot_logits, d.type_logits, d.class_logits, d.point.flatten(1),
                      d.param_mean.flatten(1)], 1)


def one_line(error):
    return len(str(error.value).splitlines()) == 1


