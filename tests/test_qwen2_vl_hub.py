"""Agents as folders for the hub, base models from the cache and the hub, and models that cannot be loaded."""
import json
import pickle
import shutil

import huggingface_hub
import pytest
import torch
from checkpoint_helpers import Bomb
from conftest import LORA
from qwen2_vl_helpers import (
    INSTRUCTIONS,
    NAME,
    assert_states,
    build_model,
    make_instructions,
    one_line,
    outputs,
    random_images,
    reference_states,
    to_pil,
    transformers_model,
)
from safetensors.torch import load_file, save_file

import inference
import train_vlm
from models.backbones.hub_loading import resolve_hub_kwargs
from models.backbones.qwen2_vl import Qwen2VLBackbone
from models.backbones.tiny import init_model_files
from models.checkpoint import CheckpointError
from models.heads import spec_from_space
from models.vlm_policy import VLMPolicy
from simulator.particles.task import action_space

pytest_plugins = ["qwen2_vl_fixtures"]

# --- folders for the hub ----------------------------------------------------------------------------------------
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "policy.json", "policy.pt"]


def test_stock_peft_reads_the_adapters(adapted, agent, folder):
    from peft import PeftModel
    model = PeftModel.from_pretrained(transformers_model(folder), agent).eval()
    images, instructions = random_images(6), make_instructions(6)
    with torch.no_grad():
        features = adapted.backbone(images, instructions)
    assert_states(features, reference_states(model, folder, images, instructions, "left"), atol=1e-5)
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
    backbone = Qwen2VLBackbone.from_files(init_model_files(NAME, INSTRUCTIONS), NAME, lora=LORA)
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
    policy.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "adapter_model.safetensors", tmp_path / "agent")
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


def test_another_base_is_refused_by_name(agent, adapted, folder, other_folder, tmp_path):
    adapted.save(tmp_path / "agent.pt")
    for path in (agent, tmp_path / "agent.pt"):
        with pytest.raises(CheckpointError) as error:
            VLMPolicy.from_checkpoint(path, base_model=other_folder)
        assert one_line(error) and str(folder) in str(error.value) and str(other_folder) in str(error.value)


def test_the_base_may_move(adapted, folder, obs, tmp_path):
    shutil.copytree(folder, tmp_path / "here")
    policy = build_model(tmp_path / "here")
    policy.save(tmp_path / "agent.pt")
    policy.save_pretrained(tmp_path / "agent")
    (tmp_path / "here").rename(tmp_path / "there")
    for path in (tmp_path / "agent.pt", tmp_path / "agent"):
        back = VLMPolicy.from_checkpoint(path, base_model=tmp_path / "there")
        assert torch.equal(outputs(back, obs), outputs(adapted, obs))
        with pytest.raises(CheckpointError, match="here.*give its folder or hub name as `base_model`") as error:
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
    overrides = ["vlm_fast", "debug", f"model.vlm.name:={folder}", "device:=cpu",
                 f"train.output_dir:={tmp_path / 'run'}", "eval.episodes=4", "train.threads=1"]
    assert train_vlm.main(overrides) == 0
    best = tmp_path / "run" / "vlm_best.pt"
    assert inference.main(["--goal", "입자들을 모아줘", "--model", str(best), "--output", str(tmp_path / "a.gif"),
                           "--steps", "3"]) == 0
    assert (tmp_path / "a.gif").is_file() and (tmp_path / "run" / "vlm_final.pt").is_file()
    assert "Traceback" not in "".join(capsys.readouterr())
    policy = VLMPolicy.from_checkpoint(best)
    actions, _, _ = policy.sample_action(to_pil(random_images(1)), ["입자들을 왼쪽으로 이동시켜"])
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
    """Return the one line with which train_vlm.py refuses a model: exit code 2, nothing written."""
    capsys.readouterr()
    assert train_vlm.main(["vlm_fast", "debug", "device:=cpu", f"model.vlm.name:={name}",
                           f"train.output_dir:={tmp_path / 'out'}"]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and lines[0] == err.splitlines()[-1] and "Traceback" not in out + err
    assert str(name) in lines[0] and "on the Hub or a local model" in lines[0] and not (tmp_path / "out").exists()
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


@pytest.mark.parametrize(("kind", "message"), [
    ("config.json", "config.json"), ("preprocessor_config.json", "preprocessor_config.json"),
    ("model.safetensors", "model.safetensors"), ("tokenizer.json", "token"), ("cut", "weights"), ("empty", "weights"),
    ("text", "weights"), ("another model", "qwen2_5_vl"), ("no JSON", "config.json"),
    ("a weight less", "1 of its weights"), ("other widths", "weights")])
def test_a_broken_folder_is_refused_in_a_line(folder, agent, capsys, tmp_path, kind, message):
    shutil.copytree(folder, tmp_path / "base")
    damage(tmp_path / "base", kind)
    assert message in refused(capsys, tmp_path / "base", tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        VLMPolicy.from_checkpoint(agent, base_model=tmp_path / "base")
    assert one_line(error) and str(tmp_path / "base") in str(error.value)


def cached(folder, name, cache, without=()):
    """Copy `folder` into the hub cache as the repository `name`."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / "abc", ignore=lambda *_: without)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_in_the_cache_needs_no_network(offline, folder, agent, cache):
    cached(folder, "me/base", cache)
    cached(agent, "me/agent", cache)
    assert resolve_hub_kwargs("me/base") == {"local_files_only": True}
    assert resolve_hub_kwargs("me/agent", agent=True) == {"local_files_only": True}
    assert not offline


def test_an_agent_out_of_the_cache(agent, adapted, obs, cache, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    cached(agent, "me/agent", cache)
    assert torch.equal(outputs(VLMPolicy.from_pretrained("me/agent"), obs), outputs(adapted, obs))


def test_an_incomplete_download_is_continued(offline, folder, cache):
    """The small files are there, the weights or one of their parts are not: the hub is asked, not given up on."""
    cached(folder, "me/base", cache, ["model.safetensors"])
    cached(folder, "me/parts", cache, ["model.safetensors"])
    parts = cache / "models--me--parts" / "snapshots" / "abc"
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a.st", "b": "b.st"}}))
    (parts / "a.st").touch()
    for name in ("me/base", "me/parts"):
        with pytest.raises(OSError, match="hub cannot be reached"):
            resolve_hub_kwargs(name)
    assert offline == ["me/base", "me/parts"]
    (parts / "b.st").touch()
    assert resolve_hub_kwargs("me/parts") == {"local_files_only": True}
