"""Zero-shot control: prompts, parsing of the model's text, and three steps of a robosuite arm."""
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.backbones.tiny import init_model_files
from models.zero_shot import VLMGenerator, ZeroShotPolicy, parse_action
from simulator.registry import EnvError
from simulator.robosuite.env import ACTIONS
from simulator.robosuite.rendering import setup_mujoco_gl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import zero_shot  # noqa: E402
from zero_shot import DEFAULT_ACTION, policy_prompt, zero_shot_prompt  # noqa: E402

TASK = "Pick up the can and place it in a different location."
IMAGE = np.random.default_rng(0).integers(256, size=(84, 84, 3)).astype(np.uint8)


def make_policy(generate):
    return ZeroShotPolicy(generate, ACTIONS, DEFAULT_ACTION, zero_shot_prompt)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Qwen2-VL with a vocabulary head, tiny and untrained."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    folder = tmp_path_factory.mktemp("generator")
    files = init_model_files("vlm_tiny", [TASK, *ACTIONS])
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def test_prompt_of_the_policy():
    assert policy_prompt(TASK, ACTIONS) == (
        "Robot control task: Pick up the can and place it in a different location.\n"
        "Available actions: backward, forward, left, right, up, down, close gripper, open gripper\n"
        "Choose the best action based on the current view.\n"
        "Answer:")


def test_previous_action_and_reward_are_in_the_prompt():
    first, later = zero_shot_prompt(TASK, ACTIONS), zero_shot_prompt(TASK, ACTIONS, ("open gripper", -0.0312))
    assert "Previous" not in first and "Reward" not in first
    assert "Previous action: open gripper\nReward: -0.0312\n" in later
    for prompt in (first, later):
        assert TASK in prompt and all(name in prompt for name in ACTIONS) and prompt.endswith("Answer:")


@pytest.mark.parametrize("text, action", [
    ("left", "left"), ("  UP\n", "up"), ("Close  Gripper", "close gripper"), ("close gripper.", "close gripper"),
    ("Action: right!", "right"), ("open gripper, not close gripper", "close gripper"),
    ("go up, open gripper", "open gripper"),
    ("move down then left", "down"), ("left, then down", "left"), ("lift the cup", None), ("upright", None),
    ("the leftover", None), ("up으로", "up"), ("'forward'", "forward"), ("", None), ("\x00\ufffd!?", None),
    ("gripper", None), ("backwards", None), ("위로", None)])
def test_parsing(text, action):
    assert parse_action(text, ACTIONS) == action
    prediction = make_policy(lambda *_: text).predict_action(IMAGE, TASK)
    assert (prediction.action, prediction.parsed, prediction.error) == (action or "forward", action is not None, "")


def test_errors_are_counted_and_reported():
    texts = iter(["down", RuntimeError("out of memory\nat some place"), "hm", None])

    def generate(image, prompt):
        text = next(texts)
        if isinstance(text, Exception):
            raise text
        return text

    policy = make_policy(generate)
    predictions = [policy.predict_action(IMAGE, TASK) for _ in range(3)]
    assert [prediction.action for prediction in predictions] == ["down", "forward", "forward"]
    assert predictions[1].error.startswith("RuntimeError: out of memory") and "\n" not in predictions[1].error
    assert policy.report().startswith("1 of 3 answers named an action, 1 failed (RuntimeError: out of memory")

    def interrupted(*_):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        make_policy(interrupted).predict_action(IMAGE, TASK)


def test_generator_writes_up_to_ten_greedy_tokens(folder):
    generator = VLMGenerator(folder)
    text = generator(IMAGE, zero_shot_prompt(TASK, ACTIONS))
    assert isinstance(text, str) and text == generator(IMAGE, zero_shot_prompt(TASK, ACTIONS))
    captured = {}
    generate = generator.model.generate
    generator.model.generate = lambda **inputs: captured.update(inputs, out=generate(**inputs)) or captured["out"]
    generator(IMAGE, policy_prompt(TASK, ACTIONS))
    length = captured["input_ids"].shape[1]
    prompt = generator.tokenizer.decode(captured["input_ids"][0], skip_special_tokens=True)
    assert "available actions: backward, forward, left" in prompt.lower() and "pixel_values" in captured
    assert (captured["input_ids"] == generator.model.config.image_token_id).sum() > 1       # the image's tokens
    assert length < captured["out"].shape[1] <= length + 10
    names = {"input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids"} & set(captured)
    with torch.inference_mode():
        best = generator.model(**{name: captured[name] for name in names}).logits[0, -1].argmax()
    assert captured["out"][0, length] == best


def test_an_empty_chat_template_is_replaced(folder):
    generator = VLMGenerator(folder)
    for template in ("", None, "{% if false %}x{% endif %}"):
        generator.processor.chat_template = generator.tokenizer.chat_template = template
        assert generator.build_prompt("hello") == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            "<|vision_start|><|image_pad|><|vision_end|>hello<|im_end|>\n<|im_start|>assistant\n")


def test_three_steps_of_an_arm(folder, tmp_path, capsys, monkeypatch):
    try:
        setup_mujoco_gl()
    except EnvError as error:
        pytest.skip(str(error))
    prompts, call = [], VLMGenerator.__call__
    monkeypatch.setattr(VLMGenerator, "__call__", lambda self, *args: prompts.append(args[1]) or call(self, *args))
    words = ["--model", str(folder), "--task", "Lift", "--goal", "lift_cube", "--steps", "3", "--resolution", "64"]
    output = ["--output", str(tmp_path / "a.gif"), "--save-frames", str(tmp_path), "--frame-every", "2"]
    assert zero_shot.main([*words, *output]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("scored as lift_cube") and [line[:3] for line in out[1:4]] == ["  1", "  2", "  3"]
    assert out[4].startswith("no success after 3 actions, return ") and "of 3 answers named an action" in out[4]
    steps = [(line[3:].split("  ")[1], float(line.split()[-1])) for line in out[1:4]]
    for prompt, (action, reward) in zip(prompts[1:], steps, strict=False):     # each contains the action before
        assert action in ACTIONS and f"Previous action: {action}\nReward: {reward:+.4f}\n" in prompt
    assert len(prompts) == 3 and "Previous" not in prompts[0]
    assert Image.open(tmp_path / "a.gif").n_frames == 4
    assert [path.name for path in tmp_path.glob("*.png")] == ["step002.png"]
    assert np.asarray(Image.open(tmp_path / "step002.png")).std() > 10
    for wrong, why in ((["--task", "Stack"], "Choose from Lift"), (["--steps", "0"], "from 1 up"),
                       (["--output", str(tmp_path / "no" / "a.gif")], "folder that exists"),
                       (["--output", str(tmp_path / "a.mp4")], "end in .gif"),
                       (["--model", str(tmp_path)], "config.json"),
                       (["--model", str(tmp_path / "a.gif")], "not a model's folder")):
        assert zero_shot.main([*words, "--output", str(tmp_path / "b.gif"), *wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and why in error and error.count("\n") == 1
    assert not (tmp_path / "b.gif").exists()


def test_a_model_type_without_a_backbone_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(OSError, match="llama.*choose from qwen2_vl"):
        VLMGenerator(tmp_path)
