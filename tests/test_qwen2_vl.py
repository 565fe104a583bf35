"""Models shaped as Qwen's own, built here: against transformers, its processor and peft; their sizes, settings, files,
and what is said where one cannot be loaded."""
import json
import pickle
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import LORA, save_model
from PIL import Image
from safetensors.torch import load_file, save_file
from test_checkpoint import Bomb

import config
import inference
import train_vlm
from models.backbones import hub_loading as base_model
from models.backbones.qwen2_vl import Backbone
from models.checkpoint import CheckpointError
from models.heads.attention import spec_from_space
from models.vlm_policy import VLMPolicy
from simulator.particles.env import ParticleVectorEnv, action_space
from simulator.registry import make_env

NAME, WIDTH, EMBED = "qwen2_vl_small", 64, 32
SMALL = base_model.qwen2_vl_config(WIDTH, 2, 4, 2, 128, None, (EMBED, 2, 2, 4), 14, "float32")
GOALS = ["입자들을 왼쪽으로 이동시켜", "heat", "push everything up to the very top of the world, please, if you can",
         "모아줘", "align them in a horizontal line"]
B2, B7 = "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"


@pytest.fixture(scope="module", autouse=True)
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(base_model.MODEL_CONFIGS, NAME, SMALL)
        yield


def save_strong_model(folder, seed=0):
    """Fresh weights hardly attend to anything, which would hide where they look: five times as large ones do."""
    path = save_model(NAME, folder, seed) / "model.safetensors"
    save_file({name: 5 * tensor if tensor.ndim > 1 else tensor for name, tensor in load_file(path).items()}, path,
              {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folder(known, tmp_path_factory):
    """The small model as a repository on the hub."""
    return save_strong_model(tmp_path_factory.mktemp("qwen") / "base")


@pytest.fixture(scope="module")
def other(known, tmp_path_factory):
    """The same configuration, other weights."""
    return save_strong_model(tmp_path_factory.mktemp("qwen") / "param_mean", seed=1)


def build_model(folder, lora=LORA, hidden=(32,), **options):
    """A policy on a model folder, the same every time; its adapters have an effect, and its heads decide."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = VLMPolicy(Backbone.from_pretrained(folder, lora=lora, **options),
                           spec_from_space(action_space(64, 64, 50)), hidden=hidden,
                           goal_vocab=("1 cluster", "1 left", "1 push", "2 push", "THEN"))
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or "_head." in name:
                parameter.data += 0.2 * torch.randn(parameter.shape)
    return policy.eval()


@pytest.fixture(scope="module")
def plain(folder):
    """Shared, as `adapted`: do not change their weights, and leave them in eval()."""
    return build_model(folder, lora=None)


@pytest.fixture(scope="module")
def adapted(folder):
    return build_model(folder)


@pytest.fixture(scope="module")
def agent(adapted, tmp_path_factory):
    """`adapted` as a folder for the hub."""
    path = tmp_path_factory.mktemp("agents") / "agent"
    adapted.save_pretrained(path, {"seed": 3}, "| goal | success |\n|---|---|\n| left | 40 % |")
    return path


@pytest.fixture(scope="module")
def obs():
    return ParticleVectorEnv(8).reset(seed=0)[0]


def pictures(count, height=64, width=64, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def pil(images):
    return [Image.fromarray(image.numpy()) for image in images]


def goals(count):
    return [GOALS[i % len(GOALS)] for i in range(count)]


def transformers_model(folder):
    from transformers import Qwen2VLModel
    return Qwen2VLModel.from_pretrained(folder).eval()


def officially(model, folder, images, instructions, side="right"):
    """What stock transformers makes of a batch, from chat template to hidden states: for each sample those of the
    image tokens [S,D] and of the text after them [T,D]."""
    from transformers import AutoProcessor
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = side
    texts = [processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}],
        add_generation_prompt=True) for instruction in instructions]
    inputs = processor(text=texts, images=pil(images), padding=True, return_tensors="pt")
    assert "mm_token_type_ids" in inputs
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    rows = []
    for ids, mask, hidden in zip(inputs["input_ids"], inputs["attention_mask"].bool(), states, strict=True):
        ids, hidden = ids[mask], hidden[mask]
        image = (ids == processor.image_token_id).nonzero().flatten()
        rows.append((hidden[image], hidden[image[-1] + 1:]))
    return rows


def assert_states(patch_features, rows, atol):
    """A backbone's output against `officially`."""
    text, ends, image, _ = patch_features
    assert text.dtype == image.dtype == torch.float32 and len(text) == len(rows)
    for b, (tokens, after) in enumerate(rows):
        torch.testing.assert_close(text[b, :ends[b] + 1], after, rtol=0, atol=atol)
        torch.testing.assert_close(image[b, :, :WIDTH], tokens.repeat_interleave(4, 0), rtol=0, atol=atol)


def outputs(policy, obs):
    """Everything a policy says of `obs`, [B,...]."""
    with torch.no_grad():
        output = policy(obs["image"], obs["goal"])
    d = output.distribution
    return torch.cat([output.value[:, None], output.slot_logits, d.type_logits, d.class_logits, d.point.flatten(1),
                      d.param_mean.flatten(1)], 1)


def one_line(error):
    return len(str(error.value).splitlines()) == 1


# --- sizes, on the meta device ----------------------------------------------------------------------------------
def on_meta(words):
    """The policy that a command line describes, without its weights."""
    c = config.load([*words.split(), "model.vlm.init:=random"])
    return train_vlm.build_policy(c, make_env(c, 1), device="meta"), c


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize(("words", "base", "full_tensor", "least", "most"), [
    ("vlm_full", 2_208_985_600, 2_208_985_600, 5.6e6, 5.8e6),
    # 8.29 billion with the vocabulary head (152064 x 3584), which is not built here; that of 2B is its embedding
    ("vlm_full vlm_7b", 7_746_378_240, 8_291_375_616, 11e6, 14e6)])
def test_sizes_are_those_of_qwen(words, base, full_tensor, least, most):
    from transformers import Qwen2VLForConditionalGeneration
    policy, _ = on_meta(words)
    assert all(tensor.is_meta for tensor in policy.state_dict().values())
    assert count(p for name, p in policy.backbone.named_parameters() if "lora_" not in name) == base
    with torch.device("meta"):
        assert count(Qwen2VLForConditionalGeneration(policy.backbone.vlm.config).parameters()) == full_tensor
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert least < count(trained.values()) < most
    assert all("lora_" in name or "_head." in name for name in trained)
    # what a checkpoint to act from holds, where the base's weights come from the hub
    policy.backbone.config_files = None
    kept = VLMPolicy(policy.backbone, policy.spec, goal_vocab=policy.goal_vocab)._saved_names
    assert {name for name in kept if "backbone" in name} == {name for name in trained if "backbone" in name}
    assert sum(p.numel() * p.element_size() for p in trained.values()) < (30e6 if base < 3e9 else 50e6)


def test_from_files_on_meta_allocates_nothing():
    """Also without adapters."""
    built = Backbone.from_files(base_model.init_model_files(B2, GOALS), B2, device="meta")
    assert count(built.parameters()) == 2_208_985_600 and built.dtype == "bfloat16" and built.device.type == "meta"


# --- the documented presets and settings ------------------------------------------------------------------------
WIDTHS = {B2: 1536, B7: 3584, "vlm_tiny": 96}
SETTINGS = [f"model.vlm.name:={B2}", "model.vlm.use_lora=True", "model.vlm.lora_r=16", "model.vlm.lora_alpha=32",
            "train.batch_size=8", "train.lr=1e-4", "rl.iterations=50", "rl.rollout_steps=256", "rl.clip_ratio=0.2",
            "rl.gamma=0.99", "physics.gravity_y=0", "physics.restitution=0.8", "physics.em_force_strength=5",
            "physics.em_force_radius=15", "physics.substeps=3", "physics.vibration_scale=0.5",
            "physics.heat_dissipation=0.02", "physics.thermal_radiation_rate=0.01",
            "physics.thermal_radiation_radius=10"]
DOCUMENTED = [
    ("vlm_fast", {"bc.epochs": 0, "rl.iterations": 10}),
    ("vlm_full", {"bc.epochs": 5, "rl.iterations": 50}),
    ("vlm_long", {"bc.epochs": 10, "rl.iterations": 100}),
    ("vlm_full vlm_7b", {"model.vlm.name": B7, "rl.iterations": 50}),
    ("vlm_long vlm_7b debug", {"model.vlm.name": B7, "rl.iterations": 2}),
    ("vlm_fast debug", {"rl.iterations": 2}),
    ("vlm_tiny", {"model.vlm.name": "vlm_tiny"}),
    ("vlm_tiny debug", {"rl.iterations": 2}),
    ("vlm_full train.lr=3e-4 rl.iterations=100 model.vlm.lora_r=32",
     {"train.lr": 3e-4, "rl.iterations": 100, "model.vlm.lora_r": 32}),
    (f"vlm_full model.vlm.name:={B7}", {"model.vlm.name": B7}),
    ("vlm_full zero_gravity high_res", {"physics.gravity_y": 0.0, "world.width": 128, "world.height": 128}),
    ("vlm_full gravity elastic strong_em small_sim",
     {"physics.gravity_y": 0.1, "physics.restitution": 1.0, "physics.em_force_strength": 20.0, "world.width": 32}),
    (" ".join(["vlm_fast", *SETTINGS]), dict(config._parse(word) for word in SETTINGS))]


@pytest.mark.parametrize(("words", "wanted"), DOCUMENTED, ids=lambda value: value if isinstance(value, str) else "")
def test_everything_documented_builds_its_model(words, wanted):
    policy, c = on_meta(words)
    got = dict(config._flatten(c.to_dict()))
    assert {key: got[key] for key in wanted} == wanted
    assert policy.backbone.name == c.model.vlm.name and policy.backbone.width == WIDTHS[c.model.vlm.name]
    ranks = {p.shape[0] for name, p in policy.named_parameters() if "lora_A" in name}
    assert ranks == ({c.model.vlm.lora_r} if c.model.vlm.use_lora else set())
    assert policy.spec.high[2:4] == (c.world.width, c.world.height)


# --- against transformers ---------------------------------------------------------------------------------------
SIZES = [(64, 64), (224, 224), (20, 20), (40, 400), (400, 40), (100, 70), (9, 1000)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_official_processor(plain, folder, size):
    """Enlarged, made smaller, as they are, below the least size, far from square."""
    from transformers import AutoImageProcessor
    assert_pixels(plain.backbone, AutoImageProcessor.from_pretrained(folder), pictures(3, *size))


def assert_pixels(backbone, processor, images):
    patches, grid = backbone.pixels(images)
    official = processor(pil(images), return_tensors="pt")
    assert official["image_grid_thw"].tolist() == [[1, *grid]] * len(images)
    wanted = official["pixel_values"].view(*patches.shape[:2], 3, 2, -1)      # two equal frames of a still picture
    torch.testing.assert_close(wanted[:, :, :, 0], wanted[:, :, :, 1], rtol=0, atol=0)
    torch.testing.assert_close(patches.view(*patches.shape[:2], 3, -1), wanted[:, :, :, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (100, 70), (300, 280)])
def test_min_pixels_is_that_of_the_official_processor(folder, size):
    from transformers import AutoImageProcessor
    processor = AutoImageProcessor.from_pretrained(folder, min_pixels=50176)
    assert processor.size["shortest_edge"] == 50176
    backbone = Backbone.from_pretrained(folder, min_pixels=50176)
    assert_pixels(backbone, processor, pictures(2, *size))
    assert backbone.pixels(pictures(1))[1] == (16, 16) and backbone.init_kwargs()["min_pixels"] == 50176


def test_preprocessor_file_as_the_hub_has_it(folder, tmp_path):
    """`min_pixels` and `max_pixels` in the place of `size`."""
    from transformers import AutoImageProcessor
    shutil.copytree(folder, tmp_path / "base")
    path = tmp_path / "base" / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    del settings["size"]
    for low, high, grid in ((3136, 12845056, (4, 4)), (50176, 12845056, (16, 16)), (784, 1568, (2, 2))):
        path.write_text(json.dumps(settings | {"min_pixels": low, "max_pixels": high}))
        backbone = Backbone.from_pretrained(tmp_path / "base")
        assert backbone.pixels(pictures(1))[1] == grid
        assert_pixels(backbone, AutoImageProcessor.from_pretrained(tmp_path / "base"), pictures(2))


def test_a_picture_too_long_is_refused(plain, folder):
    """As the official processor does, beyond 200 to 1."""
    from transformers import AutoImageProcessor
    images = pictures(1, 5, 1001)
    with pytest.raises(ValueError, match="ratio"):
        AutoImageProcessor.from_pretrained(folder)(pil(images))
    with pytest.raises(ValueError, match="images.*200"):
        plain(images, ["heat"])


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("size", [64, 224])
def test_hidden_states_are_those_of_transformers(plain, folder, size, batch):
    """On one batch padded left or right, prompts of all lengths, from the sentences on."""
    model, images, instructions = transformers_model(folder), pictures(batch, size, size), goals(batch)
    with torch.no_grad():
        patch_features = plain.backbone(images, instructions)
    assert patch_features[2].shape == (batch, (4 if size == 64 else 16)**2, WIDTH + EMBED)
    for side in ("left", "right"):
        assert_states(patch_features, officially(model, folder, images, instructions, side), atol=1e-4)


@pytest.mark.parametrize("size", [(20, 20), (40, 400)])
def test_hidden_states_of_odd_pictures(plain, folder, size):
    images = pictures(5, *size)
    with torch.no_grad():
        assert_states(plain.backbone(images, GOALS),
                      officially(transformers_model(folder), folder, images, GOALS, "left"), atol=1e-4)


def test_reading_is_the_language_model_alone(plain, folder):
    """Without a picture, against transformers' own forward on the same tokens."""
    model = transformers_model(folder)
    with torch.no_grad():
        text, ends = plain.backbone.encode_text(GOALS)
        for b, goal in enumerate(GOALS):
            before, after = plain.backbone.prompt(goal)
            wanted = model(input_ids=torch.tensor([before + after])).last_hidden_state[0, len(before):]
            torch.testing.assert_close(text[b, :ends[b] + 1], wanted, rtol=0, atol=1e-4)


def test_eager_equals_sdpa(plain, folder):
    eager = Backbone.from_pretrained(folder, attention="eager")
    images, instructions = pictures(8), goals(8)
    assert eager.vlm.config._attn_implementation == "eager"
    with torch.no_grad():
        for ours, wanted in zip(eager(images, instructions), plain.backbone(images, instructions), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)


def test_adapters_are_those_of_stock_peft(adapted, plain, folder):
    """Put on by peft itself, with the same weights."""
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(transformers_model(folder), LoraConfig(
        r=LORA["r"], lora_alpha=LORA["alpha"], lora_dropout=LORA["dropout"],
        target_modules=r"language_model\.layers\.\d+\.self_attn\.[qkvo]_proj"))
    ours = adapted.backbone.model.state_dict()
    assert set(model.state_dict()) == set(ours)
    model.load_state_dict(ours)
    images, instructions = pictures(6), goals(6)
    with torch.no_grad():
        patch_features, without = adapted.backbone(images, instructions), plain.backbone(images, instructions)
    assert (patch_features[0] - without[0]).abs().max() > 1e-2
    assert_states(patch_features, officially(model.eval(), folder, images, instructions), atol=1e-4)


def test_weights_as_the_hub_has_them(folder, tmp_path):
    """The whole model with its vocabulary head, in several files, in bfloat16."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    torch.manual_seed(5)
    full_tensor = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_pretrained(folder, tie_word_embeddings=False)).bfloat16()
    for file, text in base_model.read_config_files(folder).items():
        (tmp_path / file).write_text(text)
    full_tensor.save_pretrained(tmp_path, max_shard_size="200KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    backbone = Backbone.from_pretrained(tmp_path)
    assert backbone.dtype == "bfloat16" and backbone.base_hash == base_model.compute_base_hash(full_tensor.model)
    for name, tensor in full_tensor.model.state_dict().items():
        assert torch.equal(backbone.vlm.state_dict()[name], tensor), name


# --- precision --------------------------------------------------------------------------------------------------
def test_bfloat16_decides_in_float32(folder, obs):
    """In other batches hidden states may round otherwise, to 8 bits: log-probabilities, of some nats, within 0.05.
    (On a CPU they hardly do; other kernels and a GPU may.)"""
    policy = build_model(folder, dtype="bfloat16")
    assert {p.dtype for name, p in policy.named_parameters() if "_head." in name} == {torch.float32}
    assert policy.backbone.vlm.dtype == torch.bfloat16
    torch.manual_seed(0)
    actions, before, output = policy.sample_action(obs["image"], obs["goal"])
    for index, atol in ((np.arange(8), 1e-5), (np.array([5, 0, 3]), 0.05), (np.array([6]), 0.05)):
        part = {"image": obs["image"][index], "goal": [obs["goal"][i] for i in index]}
        log_probs, entropy, values = policy.evaluate_actions(part, actions[index])
        assert {t.dtype for t in (actions, before, log_probs, entropy, values)} == {torch.float32}
        torch.testing.assert_close(log_probs, before[index], rtol=0, atol=atol)
        torch.testing.assert_close(values, output.value[index], rtol=0, atol=atol)


def test_under_autocast_the_heads_stay_in_float32(adapted, obs):
    """Bit by bit what they make of the same features without it, in reading too."""
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            patch_features = adapted.backbone(torch.from_numpy(obs["image"]), obs["goal"])
            text = adapted.backbone.encode_text(GOALS)
            inside, said, output = adapted.forward_heads(*patch_features), adapted.parse_goal(GOALS), adapted(obs["image"], obs["goal"])
            actions, log_probs, _ = adapted.sample_action(obs["image"], obs["goal"])
            others = adapted.evaluate_actions(obs, actions)
        outside = adapted.forward_heads(*patch_features)
        assert torch.equal(said, adapted.parser_head(*text))
    assert {t.dtype for t in (output.value, output.slot_logits, said, actions, log_probs, *others)} == {torch.float32}
    torch.testing.assert_close(others[0], log_probs, rtol=0, atol=1e-5)
    for name in ("type_logits", "mode_logits", "point", "param_mean", "class_logits", "std", "attention", "subgoal"):
        assert torch.equal(getattr(inside.distribution, name), getattr(outside.distribution, name)), name
    assert torch.equal(inside.value, outside.value) and torch.equal(inside.slot_logits, outside.slot_logits)


# --- what the tower has seen ------------------------------------------------------------------------------------
@pytest.fixture
def rows(monkeypatch):
    """How many pictures each call of the vision tower was given."""
    patch_features, vision = [], Backbone.run_vision_tower
    monkeypatch.setattr(Backbone, "run_vision_tower", lambda self, patches, grid: (
        patch_features.append(len(patches)), vision(self, patches, grid))[1])
    return patch_features


def test_within_keeping_the_tower_sees_every_picture_once(adapted, rows):
    backbone, images = adapted.backbone, pictures(3)
    batch, instructions = images[[0, 1, 0, 2, 1, 0]], goals(6)
    with torch.no_grad():
        wanted = backbone(batch, instructions)
        assert rows == [6]
        with backbone.cache_vision_features():
            for _ in range(3):
                for ours, theirs in zip(backbone(batch, instructions), wanted, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
            backbone(images, GOALS[:3])
            assert rows == [6, 3]
            backbone(pictures(4), GOALS[:4])                # one more, and the three again
            assert rows == [6, 3, 1] and len(backbone._feature_cache) == 4
        assert backbone._feature_cache is None
        backbone(batch, instructions)
    assert rows == [6, 3, 1, 6]


def test_pictures_kept_are_told_apart_by_their_shape(adapted):
    """All black, so equal byte by byte."""
    wide, high = torch.zeros(1, 56, 112, 3, dtype=torch.uint8), torch.zeros(1, 112, 56, 3, dtype=torch.uint8)
    with torch.no_grad(), adapted.backbone.cache_vision_features():
        patch_features = [adapted.backbone(images, ["heat"])[3] for images in (wide, high, wide)]
    assert torch.equal(patch_features[0], patch_features[2]) and torch.equal(patch_features[1], Backbone.patch_centers(8, 4, 2, "cpu"))


def test_nothing_is_kept_after_an_error(adapted):
    with pytest.raises(RuntimeError, match="stop"), adapted.backbone.cache_vision_features():
        adapted(pictures(1), ["heat"])
        raise RuntimeError("stop")
    assert adapted.backbone._feature_cache is None


def test_gradients_within_keeping_are_those_without(folder, obs):
    found = []
    for keep in (False, True):
        policy, actions = build_model(folder), torch.zeros(8, 7)
        with policy.backbone.cache_vision_features() if keep else torch.enable_grad():
            policy.act(obs)
            policy.evaluate_actions(obs, actions)[0].sum().backward()
        found.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_a_tower_that_trains_keeps_nothing(plain, rows):
    images = pictures(2)
    with torch.no_grad(), plain.backbone.cache_vision_features():
        for _ in range(2):
            plain(images, GOALS[:2])
    assert rows == [2, 2] and plain.backbone._feature_cache is None


@pytest.mark.parametrize("lora", [True, False])
def test_gradient_checkpointing_changes_no_gradient(folder, obs, lora):
    """It computes every layer twice."""
    found, calls = [], []
    for on in (False, True):
        c = config.load(["vlm_full", f"model.vlm.name:={folder}", f"model.vlm.use_lora={lora}",
                         f"model.vlm.gradient_checkpointing={on}", "model.heads.hidden=[32]"])
        policy = train_vlm.build_policy(c, make_env(c, 1))
        generator = torch.Generator().manual_seed(0)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or "value_head.out" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        calls.append([])
        layer = policy.backbone.vlm.language_model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, patch_features=calls[-1]: patch_features.append(1))
        log_probs, entropy, values = policy.train().evaluate_actions(obs, torch.zeros(8, 7))
        forward = len(calls[-1])
        (log_probs.sum() + entropy.sum() + values.square().sum()).backward()
        assert len(calls[-1]) == (2 if on else 1) * forward > 0
        found.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1]) and any("backbone" in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-5)


# --- folders for the hub ----------------------------------------------------------------------------------------
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "policy.json", "policy.pt"]


def test_stock_peft_reads_the_adapters(adapted, agent, folder):
    from peft import PeftModel
    model = PeftModel.from_pretrained(transformers_model(folder), agent).eval()
    images, instructions = pictures(6), goals(6)
    with torch.no_grad():
        patch_features = adapted.backbone(images, instructions)
    assert_states(patch_features, officially(model, folder, images, instructions, "left"), atol=1e-5)
    assert json.loads((agent / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)


def test_an_agent_comes_back_and_acts_equally(adapted, agent, obs):
    assert sorted(path.name for path in agent.iterdir()) == FILES
    back = VLMPolicy.from_pretrained(agent)
    assert torch.equal(outputs(back, obs), outputs(adapted, obs)) and back.meta["seed"] == 3
    assert torch.equal(outputs(VLMPolicy.from_checkpoint(str(agent)), obs), outputs(adapted, obs))


def test_the_model_card(agent, folder):
    card = (agent / "README.md").read_text(encoding="utf-8")
    front = json.loads(card.split("---\n")[1])
    assert front["base_model"] == str(folder) and "| left | 40 % |" in card and '"seed": 3' in card
    assert huggingface_hub.ModelCard(card).data.base_model == str(folder)


def test_without_adapters_everything_is_in_one_file(folder, obs, tmp_path):
    policy = build_model(folder, lora=None)
    policy.save_pretrained(tmp_path / "agent")
    assert sorted(path.name for path in (tmp_path / "agent").iterdir()) == ["README.md", "policy.json", "policy.pt"]
    assert torch.equal(outputs(VLMPolicy.from_pretrained(tmp_path / "agent"), obs), outputs(policy, obs))


def test_adapters_on_a_random_base_name_it(obs, tmp_path, monkeypatch):
    """Its weights are the checkpoint's own; the hub is not asked for it."""
    def never(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", never)
    torch.manual_seed(0)
    backbone = Backbone.from_files(base_model.init_model_files(NAME, GOALS), NAME, lora=LORA)
    policy = VLMPolicy(backbone, spec_from_space(action_space(64, 64, 50)), goal_vocab=("1 left", "THEN")).eval()
    policy.save_pretrained(tmp_path / "agent")
    settings = json.loads((tmp_path / "agent" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == NAME
    assert torch.equal(outputs(VLMPolicy.from_pretrained(tmp_path / "agent"), obs), outputs(policy, obs))


def test_a_second_save_replaces_the_first_and_nothing_else(folder, agent, obs, tmp_path):
    path = tmp_path / "agent"
    shutil.copytree(agent, path)
    (path / "thesis.txt").write_text("mine")
    (tmp_path / "agent.old").mkdir()
    policy = build_model(folder)
    torch.nn.init.normal_(policy.action_head.action_type.bias)
    policy.save_pretrained(path)
    assert sorted(file.name for file in path.iterdir()) == [*FILES, "thesis.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["agent", "agent.old"]
    assert len({file.stat().st_mode for file in path.iterdir()}) == 1
    assert torch.equal(outputs(VLMPolicy.from_pretrained(path), obs), outputs(policy, obs))
    assert "Not measured." in (path / "README.md").read_text()
    with pytest.raises(OSError):
        policy.save_pretrained(path / "thesis.txt")
    assert (path / "thesis.txt").read_text() == "mine"


def test_half_of_a_save_is_noticed(folder, agent, tmp_path):
    """The adapters of one agent, the heads of another."""
    shutil.copytree(agent, tmp_path / "agent")
    policy = build_model(folder)
    torch.nn.init.normal_(next(p for name, p in policy.named_parameters() if "lora_B" in name))
    policy.save_pretrained(tmp_path / "param_mean")
    shutil.copy(tmp_path / "param_mean" / "adapter_model.safetensors", tmp_path / "agent")
    with pytest.raises(CheckpointError, match="adapters of another agent"):
        VLMPolicy.from_pretrained(tmp_path / "agent")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "policy.pt"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "cut", "missing"])
def test_a_damaged_agent_is_refused_in_a_line(agent, tmp_path, file, kind):
    path = tmp_path / "agent" / file
    shutil.copytree(agent, path.parent)
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"weights": Bomb(tmp_path / "bang")}))
    elif kind == "torch":
        torch.save({"weights": Bomb(tmp_path / "bang")}, path)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match="pickle" if kind in ("pickle", "torch") else str(path.parent)) as error:
        VLMPolicy.from_pretrained(path.parent)
    assert one_line(error) and file in str(error.value) and not (tmp_path / "bang").exists()


def test_another_base_is_refused_by_name(agent, adapted, folder, other, tmp_path):
    adapted.save(tmp_path / "agent.pt")
    for path in (agent, tmp_path / "agent.pt"):
        with pytest.raises(CheckpointError) as error:
            VLMPolicy.from_checkpoint(path, base_model=other)
        assert one_line(error) and str(folder) in str(error.value) and str(other) in str(error.value)


def test_the_base_may_move(adapted, folder, obs, tmp_path):
    shutil.copytree(folder, tmp_path / "here")
    policy = build_model(tmp_path / "here")
    policy.save(tmp_path / "agent.pt")
    policy.save_pretrained(tmp_path / "agent")
    (tmp_path / "here").rename(tmp_path / "there")
    for path in (tmp_path / "agent.pt", tmp_path / "agent"):
        back = VLMPolicy.from_checkpoint(path, base_model=tmp_path / "there")
        assert torch.equal(outputs(back, obs), outputs(adapted, obs))
        with pytest.raises(CheckpointError, match="here.*give the folder it is in as `base`") as error:
            VLMPolicy.from_checkpoint(path)
        assert one_line(error)


def test_push_to_hub_uploads_the_whole_folder(adapted, obs, monkeypatch, tmp_path):
    asked = []

    def create(self, repo_id, **options):
        asked.append((repo_id, options))
        return f"https://huggingface.co/{repo_id}"

    def upload(self, *, repo_id, folder_path, **_):
        asked.append(repo_id)
        shutil.copytree(folder_path, tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert adapted.push_to_hub("me/agent", private=True, results="40 %") == "https://huggingface.co/me/agent"
    assert asked == [("me/agent", {"private": True, "exist_ok": True}), "me/agent"]
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == FILES
    assert "40 %" in (tmp_path / "hub" / "README.md").read_text()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: tmp_path / "hub")
    assert torch.equal(outputs(VLMPolicy.from_pretrained("me/agent"), obs), outputs(adapted, obs))


# --- from the command line --------------------------------------------------------------------------------------
def test_trains_from_a_folder_and_acts(folder, tmp_path, capsys):
    """The documented quick test, on the small model: train, then infer, then from Python."""
    words = ["vlm_fast", "debug", f"model.vlm.name:={folder}", "device:=cpu", f"train.output_dir:={tmp_path / 'run'}",
             "eval.episodes=4", "train.threads=1"]
    assert train_vlm.main(words) == 0
    best = tmp_path / "run" / "vlm_best.pt"
    assert inference.main(["--goal", "입자들을 모아줘", "--model", str(best), "--output", str(tmp_path / "a.gif"),
                           "--steps", "3"]) == 0
    assert (tmp_path / "a.gif").is_file() and (tmp_path / "run" / "vlm_final.pt").is_file()
    assert "Traceback" not in "".join(capsys.readouterr())
    policy = VLMPolicy.from_checkpoint(best)
    actions, _, _ = policy.sample_action(pil(pictures(1)), ["입자들을 왼쪽으로 이동시켜"])
    assert policy.backbone.lora["r"] == 16 and policy.meta["config"]["model"]["vlm"]["name"] == str(folder)
    assert actions.shape == (1, 7) and torch.isfinite(actions).all()


# --- models that cannot be loaded -------------------------------------------------------------------------------
@pytest.fixture
def offline(monkeypatch):
    """A hub that cannot be reached; asking for anything but whether it is there fails the test."""
    import transformers
    asked = []

    def unreachable(self, name, **_):
        asked.append(name)
        raise TimeoutError          # as some clients' timeouts, without a word

    def never(*_, **__):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    for kind in (transformers.Qwen2VLModel, transformers.AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", never)
    return asked


def refused(capsys, name, tmp_path):
    """What train_vlm.py says of a model: one line, exit code 2, nothing written."""
    capsys.readouterr()
    assert train_vlm.main(["vlm_fast", "debug", "device:=cpu", f"model.vlm.name:={name}",
                           f"train.output_dir:={tmp_path / 'out'}"]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and lines[0] == err.splitlines()[-1] and "Traceback" not in out + err
    assert str(name) in lines[0] and "give a hub name" in lines[0] and not (tmp_path / "out").exists()
    return lines[0]


def test_a_hub_name_without_network(offline, capsys, tmp_path, adapted):
    assert "hub cannot be reached" in refused(capsys, "nobody/model", tmp_path)
    with pytest.raises(CheckpointError, match="nobody/agent.*hub cannot be reached.*local path") as error:
        VLMPolicy.from_pretrained("nobody/agent")
    assert one_line(error) and offline == ["nobody/model", "nobody/agent"]


def test_a_name_that_the_hub_does_not_know(offline, monkeypatch, capsys, tmp_path):
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(*_, **__):
        import httpx
        raise RepositoryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unknown)
    assert "no such model on the hub" in refused(capsys, "nobody/model", tmp_path)
    assert "no such folder" in refused(capsys, "/nowhere/at/all", tmp_path)


def damage(folder, kind):
    weights = folder / "model.safetensors"
    match kind:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:5000])
        case "empty":
            weights.write_bytes(b"")
        case "text":
            weights.write_text("version https://git-lfs.github.com/spec/v1\n")      # cloned without git lfs
        case "a weight less":
            tensors = load_file(weights)
            del tensors[next(name for name in tensors if name.endswith("q_proj.weight"))]
            save_file(tensors, weights, {"format": "pt"})
        case "another model":
            path = folder / "config.json"
            path.write_text(path.read_text().replace('"qwen2_vl"', '"qwen2_5_vl"'))
        case "no JSON":
            (folder / "config.json").write_text("{")
        case "other widths":
            path = folder / "config.json"
            path.write_text(path.read_text().replace('"intermediate_size": 128', '"intermediate_size": 256'))
        case file:
            (folder / file).unlink()


@pytest.mark.parametrize(("kind", "says"), [
    ("config.json", "config.json"), ("preprocessor_config.json", "preprocessor_config.json"),
    ("model.safetensors", "model.safetensors"), ("tokenizer.json", "token"), ("cut", "weights"), ("empty", "weights"),
    ("text", "weights"), ("another model", "qwen2_5_vl"), ("no JSON", "config.json"),
    ("a weight less", "1 of its weights"), ("other widths", "weights")])
def test_a_broken_folder_is_refused_in_a_line(folder, agent, capsys, tmp_path, kind, says):
    shutil.copytree(folder, tmp_path / "base")
    damage(tmp_path / "base", kind)
    assert says in refused(capsys, tmp_path / "base", tmp_path)
    with pytest.raises(CheckpointError, match=says) as error:
        VLMPolicy.from_checkpoint(agent, base_model=tmp_path / "base")
    assert one_line(error) and str(tmp_path / "base") in str(error.value)


def cached(folder, name, cache, without=()):
    """`folder` as the hub's client keeps the repository `name`."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / "abc", ignore=lambda *_: without)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_in_the_cache_needs_no_network(offline, folder, agent, cache):
    cached(folder, "me/base", cache)
    cached(agent, "me/agent", cache)
    assert base_model.resolve_hub_kwargs("me/base") == {"local_files_only": True}
    assert base_model.resolve_hub_kwargs("me/agent", agent=True) == {"local_files_only": True}
    assert not offline


def test_an_agent_out_of_the_cache(agent, adapted, obs, cache, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    cached(agent, "me/agent", cache)
    assert torch.equal(outputs(VLMPolicy.from_pretrained("me/agent"), obs), outputs(adapted, obs))


def test_half_a_download_is_gone_on_with(offline, folder, cache):
    """The small files are there, the weights or one of their parts are not: the hub is asked, not given up on."""
    cached(folder, "me/base", cache, ["model.safetensors"])
    cached(folder, "me/parts", cache, ["model.safetensors"])
    parts = cache / "models--me--parts" / "snapshots" / "abc"
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a.st", "b": "b.st"}}))
    (parts / "a.st").touch()
    for name in ("me/base", "me/parts"):
        with pytest.raises(OSError, match="hub cannot be reached"):
            base_model.resolve_hub_kwargs(name)
    assert offline == ["me/base", "me/parts"]
    (parts / "b.st").touch()
    assert base_model.resolve_hub_kwargs("me/parts") == {"local_files_only": True}
