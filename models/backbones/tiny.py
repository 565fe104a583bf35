"""Model configurations that can be built with random weights, and the small files of their model folders.

`init_model_files` returns the texts of config.json, tokenizer files and preprocessor_config.json. The weights come from
`hub_loading.build_model`. Architecture: Qwen2-VL (Wang et al. 2024, arXiv:2409.12191).
"""
import copy
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_TOKEN = "<|image_pad|>"
VIDEO_TOKEN = "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
PAD_TOKEN, EOS_TOKEN = "<|endoftext|>", "<|im_end|>"
SPECIAL_TOKENS = [PAD_TOKEN, "<|im_start|>", EOS_TOKEN, VISION_START, VISION_END, IMAGE_TOKEN, VIDEO_TOKEN]
# renders like the official chat template for one user turn with text and an image
CHAT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
# the image, the instruction, and the token whose hidden state the heads read
TINY_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "<|im_end|>")
# image sizes (areas in pixels) and normalisation of the official preprocessor, and of vlm_tiny
PREPROCESSOR = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}}
TINY_PREPROCESSOR = PREPROCESSOR | {
    "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
    "size": {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}}


def qwen2_vl_config(width: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab_size: int | None,
                    vision: tuple[int, int, int, int], patch: int, dtype: str, theta: float = 1e6) -> dict:
    """Return the keyword arguments of a Qwen2VLConfig.

    `vision` is (width, depth, heads, MLP ratio) of the vision tower, `patch` its patch size in pixels, `theta` the base
    of the rotary embedding. With `vocab_size` None the tokenizer's size is used.
    """
    half_head = width // heads // 2
    mrope_section = [half_head // 4, 3 * half_head // 8, 3 * half_head // 8]    # (time, height, width)
    vision_width, vision_depth, vision_heads, vision_mlp_ratio = vision
    text_config = {
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta, "mrope_section": mrope_section}}
    vision_config = {
        "depth": vision_depth, "embed_dim": vision_width, "hidden_size": width, "num_heads": vision_heads,
        "mlp_ratio": vision_mlp_ratio, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return {"dtype": dtype, "text_config": text_config, "vision_config": vision_config}


MODEL_CONFIGS = {
    # the same as config.json on the hub
    "Qwen/Qwen2-VL-2B-Instruct": qwen2_vl_config(1536, 28, 12, 2, 8960, 151936, (1280, 32, 16, 4), 14, "bfloat16"),
    "Qwen/Qwen2-VL-7B-Instruct": qwen2_vl_config(3584, 28, 28, 4, 18944, 152064, (1280, 32, 16, 4), 14, "bfloat16"),
    # the proportions of 2B, for benchmarks on a CPU
    "qwen2_vl_50m": qwen2_vl_config(384, 13, 6, 2, 1536, 12800, (320, 11, 5, 4), 14, "float32"),
    # small enough to train from scratch on a CPU
    "vlm_tiny": qwen2_vl_config(96, 2, 4, 2, 256, None, (64, 1, 4, 2), 8, "float32", 1e4),
}
MODEL_CONFIGS["vlm_tiny"]["text_config"]["rope_parameters"]["mrope_section"] = [4, 4, 4]
MODEL_CONFIGS["vlm_tiny"]["text_config"]["max_position_embeddings"] = 512


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> "PreTrainedTokenizerFast":
    """Return a byte-level BPE tokenizer, the kind Qwen2 uses, trained on `texts`. Deterministic."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace("  ", " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD_TOKEN, eos_token=EOS_TOKEN)


def init_model_files(name: str, texts: Iterable[str]) -> dict[str, str]:
    """Return the small files of a model folder, {file name: text}, for a configuration of `MODEL_CONFIGS`.

    The tokenizer is trained on `texts`. Raises ValueError if `name` is not a known configuration.
    """
    from transformers import Qwen2VLConfig

    from models.backbones.hub_loading import read_config_files
    if name not in MODEL_CONFIGS:
        raise ValueError(f"unknown configuration {name!r} for model.vlm.init=random: "
                         f"choose from {', '.join(MODEL_CONFIGS)}")
    is_tiny = name == "vlm_tiny"
    tokenizer = train_tokenizer(texts)
    tokenizer.chat_template = TINY_TEMPLATE if is_tiny else CHAT_TEMPLATE
    config = copy.deepcopy(MODEL_CONFIGS[name])
    config["text_config"] |= {
        "vocab_size": config["text_config"]["vocab_size"] or len(tokenizer), "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    token_id = tokenizer.convert_tokens_to_ids
    config |= {"image_token_id": token_id(IMAGE_TOKEN), "video_token_id": token_id(VIDEO_TOKEN),
               "vision_start_token_id": token_id(VISION_START), "vision_end_token_id": token_id(VISION_END)}
    vision = config["vision_config"]
    preprocessor = (TINY_PREPROCESSOR if is_tiny else PREPROCESSOR) | {
        "patch_size": vision["patch_size"], "merge_size": vision["spatial_merge_size"],
        "temporal_patch_size": vision["temporal_patch_size"]}
    with tempfile.TemporaryDirectory() as folder:
        Qwen2VLConfig(**config, tie_word_embeddings="7B" not in name).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        Path(folder, "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1))
        return read_config_files(folder)
