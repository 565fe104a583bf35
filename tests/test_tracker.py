"""What a run leaves behind: the words of warning, and W&B's own file read back."""
import json
import struct
import sys
import types

import pytest

import config
import train_vlm
from models.training import tracker
from models.training.tracker import training_warnings


def ppo(success, kl=0.01):
    return {"stage": "ppo", "rollout/success_rate": success, "train/approx_kl": kl}


def test_a_healthy_run_is_not_warned_of():
    rows = [{"stage": "bc", "train/bc_loss": 3.0}] + [ppo(0.5 + 0.01 * i) for i in range(30)]
    assert all(training_warnings(rows[:n], 0.02) == [] for n in range(1, len(rows)))
    assert training_warnings([], 0.02) == [] and training_warnings([ppo(0.0)] * 20, 0.02) == []


def test_kl_that_explodes():
    [line] = training_warnings([ppo(0.5), ppo(0.5, kl=0.25)], 0.02)
    assert "KL explodes: 0.250" in line and "train.lr" in line
    assert training_warnings([ppo(0.5), ppo(0.5, kl=0.19)], 0.02) == []
    assert "KL explodes: 0.300" in training_warnings([ppo(0.5), ppo(0.5) | {"train/kl_early_stop": 0.3}], 0.02)[0]


def test_a_real_run_says_that_its_kl_explodes(capsys, tmp_path):
    assert train_vlm.main(["vlm_tiny", "debug", "parser.samples=0", "bc.epochs=0", "rl.critic_warmup=0",
                           "train.lr=0.1", "train.head_lr=0.1", "eval.episodes=4", "train.batch_size=4",
                           f"train.output_dir:={tmp_path}"]) in (0, 2)
    assert "warning: KL explodes" in capsys.readouterr().err
    assert "train/kl_early_stop" in (tmp_path / "metrics.jsonl").read_text()


def test_reward_that_collapses_is_said_once():
    """Means of five: 0.8, 0.64, 0.48, 0.32 (below the half of 0.8), 0.16, 0."""
    rows = [ppo(0.8)] * 5 + [ppo(0.0)] * 5
    said = [n for n in range(1, 11) if training_warnings(rows[:n], 0.02)]
    assert said == [8]
    assert "32 % of the rollouts' episodes, after 80 %" in training_warnings(rows[:8], 0.02)[0]


def test_the_run_prints_them(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker, "training_warnings",
                        lambda rows, target: [f"row {len(rows)}"] if len(rows) == 2 else [])
    assert train_vlm.main(["vlm_tiny", "debug", "rl.iterations=1", "parser.samples=0", "eval.episodes=4",
                           f"train.output_dir:={tmp_path}"]) == 0
    assert capsys.readouterr().err.count("warning: row 2") == 1


def test_without_wandb_it_is_one_line_before_anything_is_built(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(train_vlm, "make_env", None)
    out = tmp_path / "out"
    assert train_vlm.main(["vlm_tiny", "log.wandb=offline", f"train.output_dir={out}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "pip install 'flexibleworld[wandb]'" in line and not out.exists()


def test_a_resumed_run_keeps_its_wandb_run(tmp_path, monkeypatch):
    started = []
    fake = types.ModuleType("wandb")
    fake.Error = RuntimeError
    fake.init = lambda **options: started.append(options) or types.SimpleNamespace(id=options.get("id") or "abc123")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    settings = config.load(["vlm_tiny", "log.wandb=offline"]).log
    first = tracker.MetricsLogger(tmp_path, settings, {})
    assert first.wandb_id == "abc123" and "id" not in started[0]
    again = tracker.MetricsLogger(tmp_path, settings, {}, wandb_id=first.wandb_id)
    assert (started[1]["id"], started[1]["resume"], again.wandb_id) == ("abc123", "allow", "abc123")


def records(path):
    """W&B's offline file, read by its format alone: LevelDB's log (blocks of 32 KiB; checksum, length, kind) of
    protocol buffers."""
    from wandb.proto import wandb_internal_pb2
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at:at + 7])
        whole, at = whole + data[at + 7:at + 7 + size], at + 7 + size
        if kind in (1, 4):              # all of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wandb")
    assert train_vlm.main(["vlm_tiny", "debug", "train.threads=1", "eval.episodes=4", "log.wandb:=offline",
                           "log.run_name:=첫 실행", f"train.output_dir:={folder}"]) == 0
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    return folder, list(records(path))


def test_wandb_offline_holds_what_metrics_jsonl_holds(recorded):
    folder, kept = recorded
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    history = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
               for record in kept if record.WhichOneof("record_type") == "history"]
    logged = [row for row in history if "stage" in row]
    assert len(logged) == len(rows) == 6
    for row, wanted in zip(logged, rows, strict=True):
        assert {key: row[key] for key in wanted} == wanted


def test_wandb_offline_holds_a_video_of_evaluation_episodes(recorded):
    folder, _ = recorded
    [video] = folder.glob("wandb/offline-run-*/files/media/videos/eval/episodes*.gif")
    assert video.read_bytes() == (folder / "episodes.gif").read_bytes()


def test_wandb_offline_holds_config_and_system_figures(recorded):
    _, kept = recorded
    kinds = {record.WhichOneof("record_type") for record in kept}
    [run] = [record.run for record in kept if record.WhichOneof("record_type") == "run"]
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert run.display_name == "첫 실행" and config["train"]["batch_size"] == 8
    assert config["presets"] == ["vlm_tiny", "debug"]
    assert {"stats", "exit"} <= kinds
