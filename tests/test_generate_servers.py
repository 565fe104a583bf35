"""start_vllm.sh, and the generator with a real server."""
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from generate_helpers import ROOT, finish, lines, start

pytest_plugins = ["generate_fixtures"]
pytestmark = pytest.mark.usefixtures("short_backoff")


def vllm(*argv, **env):
    return subprocess.run([ROOT / "scripts" / "start_vllm.sh", *argv], env={"PATH": "/usr/bin:/bin"} | env, text=True,
                          capture_output=True)


@pytest.mark.parametrize("preset, model, gpus", [
    ("qwen72b", "Qwen/Qwen2.5-72B-Instruct", 4), ("qwen32b", "Qwen/Qwen2.5-32B-Instruct", 2),
    ("qwen14b", "Qwen/Qwen2.5-14B-Instruct", 1), ("llama70b", "meta-llama/Llama-3.3-70B-Instruct", 4),
    ("llama8b", "meta-llama/Llama-3.1-8B-Instruct", 1), ("qwen_vl", "Qwen/Qwen2-VL-7B-Instruct", 1)])
def test_presets_of_start_vllm(preset, model, gpus):
    shown = vllm(preset, "--dry-run", "--dtype", "half")
    assert shown.returncode == 0 and shown.stdout == (
        f"vllm serve {model} --port 8000 --tensor-parallel-size {gpus} --max-model-len 8192 --dtype half\n")


def test_start_vllm_starts_vllm_or_says_what_is_wrong(tmp_path):
    for argv in ((), ("gpt",)):
        answer = vllm(*argv)
        assert answer.returncode == 2 and answer.stderr.count("\n") == 1 and "qwen72b, qwen32b" in answer.stderr
    answer = vllm("llama8b")
    assert answer.returncode == 2 and answer.stderr == "error: vllm is not installed: pip install '.[vllm]'\n"
    (tmp_path / "vllm").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "vllm").chmod(0o755)
    answer = vllm("llama8b", "--seed", "1", PATH=f"{tmp_path}:/usr/bin:/bin", PORT="9000", TP="2")
    assert answer.stdout == ("serve meta-llama/Llama-3.1-8B-Instruct --port 9000 --tensor-parallel-size 2 "
                             "--max-model-len 8192 --seed 1\n")


@pytest.mark.slow
def test_garbage_of_a_real_server_is_refused(tmp_path):
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([], vocab_size=300, special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|im_end|>",
                                        pad_token="<|im_end|>")
    tokenizer.chat_template = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
                               "<|im_end|>\n{% endfor %}<|im_start|>assistant\n")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "tiny")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                        "CUDA_VISIBLE_DEVICES": ""}
    command = [Path(sys.executable).parent / "transformers", "serve", tmp_path / "tiny", "--port", str(port)]
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5)
                break
            assert server.poll() is None
            time.sleep(0.2)
        output = tmp_path / "out.jsonl"
        code, out, err = finish(start(f"http://localhost:{port}/v1", output, "--n-goals=3", "--n-variations=1",
                                      "--concurrency=2", "--retries=0", "--model", tmp_path / "tiny"))
        assert (code, err) == (0, [])
        assert out == [f"6 requests: 0 rows in {output}", "refused: 6 not_json"]
        assert lines(output) == [] and len(lines(tmp_path / "out.jsonl.journal.jsonl")) == 6
    finally:
        server.terminate()
        server.wait(20)
