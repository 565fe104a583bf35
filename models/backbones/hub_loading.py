"""Where a base model comes from: the hub, a folder, or a known configuration with random weights."""
import hashlib
import json
import tempfile
from pathlib import Path

import torch

from models.checkpoint import first_line

VISION, IMAGE, VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", VISION, VISION_END, IMAGE, "<|video_pad|>"]
# what the official chat template makes of one user turn with text and a picture
CHAT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
TINY_TEMPLATE = (   # one picture, the sentence, the token whose hidden state is read
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "<|im_end|>")


def qwen2_vl_config(width, layers, heads, kv_heads, mlp, vocab_size, vision, patch, dtype, theta=1e6):
    """A Qwen2-VL configuration in short; `vision` is (width, depth, heads, ratio of its MLP)."""
    head = width // heads // 2
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": [head // 4, 3 * head // 8, 3 * head // 8]}
    embed, depth, vision_heads, ratio = vision
    return {"dtype": dtype, "text_config": {
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "rope_parameters": rope, "vocab_size": vocab_size},
        "vision_config": {"depth": depth, "embed_dim": embed, "hidden_size": width, "num_heads": vision_heads,
                          "mlp_ratio": ratio, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2}}


# configurations that can be built with random weights; the first two are those of the hub (config.json there)
MODEL_CONFIGS = {
    "Qwen/Qwen2-VL-2B-Instruct": qwen2_vl_config(1536, 28, 12, 2, 8960, 151936, (1280, 32, 16, 4), 14, "bfloat16"),
    "Qwen/Qwen2-VL-7B-Instruct": qwen2_vl_config(3584, 28, 28, 4, 18944, 152064, (1280, 32, 16, 4), 14, "bfloat16"),
    # of the same proportions, for benchmarks on a CPU
    "qwen2_vl_50m": qwen2_vl_config(384, 13, 6, 2, 1536, 12800, (320, 11, 5, 4), 14, "float32"),
    # a real Qwen2-VL, small enough to train from scratch on a CPU
    "vlm_tiny": qwen2_vl_config(96, 2, 4, 2, 256, None, (64, 1, 4, 2), 8, "float32", 1e4),
}
MODEL_CONFIGS["vlm_tiny"]["text_config"]["rope_parameters"]["mrope_section"] = [4, 4, 4]
MODEL_CONFIGS["vlm_tiny"]["text_config"]["max_position_embeddings"] = 512


def train_tokenizer(texts, vocab_size=1024):
    """A byte-level BPE tokenizer (the kind Qwen2 uses) trained on `sentences`; deterministic."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace("  ", " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token="<|im_end|>")


def init_model_files(name, texts):
    """The small files of a model folder for the known configuration `name`, {file name: text}: config.json, the
    tokenizer's (trained on `sentences`), chat template and preprocessor_config.json. Weights: `build`."""
    from transformers import Qwen2VLConfig
    if name not in MODEL_CONFIGS:
        raise ValueError(f"model.vlm.init=random knows {', '.join(MODEL_CONFIGS)}, not {name!r}")
    tokenizer, tiny = train_tokenizer(texts), name == "vlm_tiny"
    tokenizer.chat_template = TINY_TEMPLATE if tiny else CHAT_TEMPLATE
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in (
        ("image_token_id", IMAGE), ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", VISION), ("vision_end_token_id", VISION_END))}
    qwen2_vl_config = json.loads(json.dumps(MODEL_CONFIGS[name]))
    text, vision = qwen2_vl_config["text_config"], qwen2_vl_config["vision_config"]
    text |= {"vocab_size": text["vocab_size"] or len(tokenizer), "bos_token_id": None,
             "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2VLConfig(**qwen2_vl_config, **ids, tie_word_embeddings="7B" not in name)
    pixels = {"shortest_edge": 32 * 32, "longest_edge": 256 * 256} if tiny else {
        "shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
    scale = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3} if tiny else {
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        Path(folder, "preprocessor_config.json").write_text(json.dumps(scale | {
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", "size": pixels,
            "patch_size": vision["patch_size"], "merge_size": vision["spatial_merge_size"],
            "temporal_patch_size": vision["temporal_patch_size"]}, indent=1))
        return read_config_files(folder)


def is_cached(name, agent=False):
    """Whether the hub's client has the whole of a model, or of an `agent`: a download may have been cut short."""
    from huggingface_hub import try_to_load_from_cache
    place = lambda file: try_to_load_from_cache(name, file)
    has = lambda file: isinstance(place(file), str)
    if agent:
        return has("policy.pt") and (has("adapter_model.safetensors") or not has("adapter_config.json"))
    index = "model.safetensors.index.json"
    parts = json.loads(Path(place(index)).read_text())["weight_map"].values() if has(index) else ["model.safetensors"]
    return has("config.json") and all(map(has, parts))


def resolve_hub_kwargs(name, agent=False):
    """How `from_pretrained` gets at a hub name or folder, keyword arguments; OSError at once where it cannot, and not
    after the minute of retries that the hub's client makes without a network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    if Path(name).is_file():
        raise OSError("a file, not a model's folder")
    if Path(name).is_dir():
        has = {path.name for path in Path(name).iterdir()}
        missing = sorted({"config.json", "preprocessor_config.json"} - has)
        if missing or not has & {"tokenizer.json", "vocab.json"}:
            raise OSError(f"the folder has no {[*missing, 'tokenizer.json'][0]}")
        return {}
    try:
        if is_cached(name, agent):
            return {"local_files_only": True}
        HfApi().model_info(name, timeout=10)
        return {}
    except HFValidationError:
        raise OSError("no such folder") from None
    except RepositoryNotFoundError:
        raise OSError("the hub knows no such model, or wants a token for it: `hf auth login`") from None
    except Exception as error:      # whatever the hub's client makes of a missing network
        raise OSError(f"not in the cache, and the hub cannot be reached: {first_line(error)[:80]}") from None


def read_config_files(folder):
    """The texts of everything in a model folder but the weights: {file name: text}."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())
            if path.suffix in (".json", ".jinja", ".txt") and ".index." not in path.name}


def build_model(files, dtype="auto", attention="sdpa", device="cpu"):
    """What `random_files` or `small_files` describe -> a Qwen2VLModel with random weights, tokenizer, preprocessor."""
    from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLModel
    with tempfile.TemporaryDirectory() as folder:
        for file, text in files.items():
            Path(folder, Path(file).name).write_text(text, encoding="utf-8")
        config, tokenizer = Qwen2VLConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    dtype = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    with torch.device(device):
        model = Qwen2VLModel._from_config(config, dtype=dtype, attn_implementation=attention)
    return model, tokenizer, json.loads(files["preprocessor_config.json"])


def load_pretrained(name, dtype="auto", attention="sdpa", load_in_4bit=False, with_lm_head=False):
    """A hub name or folder -> its Qwen2VLModel, tokenizer and preprocessor (dict). OSError, one line, at once, where it
    cannot be had, is of another kind, or lacks weights. One that `speaks` is a Qwen2VLForConditionalGeneration."""
    from safetensors import SafetensorError
    from transformers import (
        AutoTokenizer,
        BitsAndBytesConfig,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLModel,
    )
    from transformers.image_processing_base import ImageProcessingMixin
    hub_kwargs = resolve_hub_kwargs(name)
    kind = Qwen2VLConfig.get_config_dict(name, **hub_kwargs)[0].get("model_type")
    if kind != "qwen2_vl":      # transformers would fill what another kind lacks with random numbers
        raise OSError(f"its config.json says it is a {kind}, not a qwen2_vl")
    options = {"quantization_config": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["visual"])} if load_in_4bit else {}
    preprocessor, _ = ImageProcessingMixin.get_image_processor_dict(name, **hub_kwargs)
    tokenizer = AutoTokenizer.from_pretrained(name, **hub_kwargs)
    try:
        model, loaded = (Qwen2VLForConditionalGeneration if with_lm_head else Qwen2VLModel).from_pretrained(
            name, dtype=dtype, attn_implementation=attention, ignore_mismatched_sizes=True, output_loading_info=True,
            **options, **hub_kwargs)
    except SafetensorError as error:
        raise OSError(f"its weights are damaged or cut short: {first_line(error)[:80]}") from None
    wrong = [*sorted(loaded["missing_keys"]), *sorted(key for key, *_ in loaded["mismatched_keys"])]
    if wrong:
        raise OSError(f"{len(wrong)} of its weights are missing or do not fit its config.json, as {wrong[0]}")
    return model, tokenizer, preprocessor


def compute_base_hash(model):
    """Which base model this is, 16 hex digits, however it was loaded: of its first token embeddings and its norms,
    which no quantisation touches, rounded to bfloat16. "" on the meta device."""
    parts = {name: parameter[:16] for name, parameter in model.named_parameters()
             if name.endswith("embed_tokens.weight") or "norm" in name.rsplit(".", 2)[-2]}
    if any(part.is_meta for part in parts.values()):
        return ""
    digest = hashlib.sha256(str([(name, tuple(part.shape)) for name, part in parts.items()]).encode())
    for part in parts.values():
        digest.update(part.detach().bfloat16().cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
