"""Episodes as GIFs and MP4s: frames, marks, and text."""
import unicodedata

import numpy as np
import pytest
import torch
from inference_helpers import act, frames, ring_of

import config
import inference
from simulator import recording
from simulator.particles.actions import Action, ActionType
from simulator.particles.splits import FAMILY


# --- episodes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (40, 96), (128, 128)])
def test_records_episodes_in_a_world_of_any_size(size, policy, tmp_path):
    settings = config.load(["vlm_tiny", "env.max_steps=3", f"world.width={size[0]}", f"world.height={size[1]}"])
    asked = [("push(direction=left)", 7), ("cluster()", 8), ("heat() THEN spread()", 9)]
    recording.save_video(recording.record_episodes(policy, settings, asked), tmp_path / "a.gif")
    drawn = list(frames(tmp_path / "a.gif"))
    assert len(drawn) == 4 + 4 + 7                              # the start and three steps for each goal
    assert len({frame.shape for frame in drawn}) == 1 and 512 <= drawn[0].shape[1] <= 520
    recording.save_video(recording.record_episodes(policy, settings, asked), tmp_path / "b.gif")
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_play_says_what_happens(policy):
    env = FAMILY.make_single(config.load(["vlm_tiny", "env.max_steps=3"]))
    obs, _ = env.reset(seed=1, options={"goal": "cluster()"})
    steps = list(recording.run_episode(env, policy, obs))
    assert [step.outcome for step in steps] == ["", "", "not reached in 3 steps"]
    assert all(step.decision_seconds > 0 and step.note == "" and step.action_text for step in steps)


def test_long_instructions_are_wrapped_and_nothing_is_lost():
    instruction = "입자들을 모두 왼쪽 위 구석으로 옮긴 다음에 " * 12
    font, lines = recording.wrap(instruction.strip(), 18, 500)
    assert " ".join(lines) == instruction.strip() and max(map(font.getlength, lines)) <= 500 and font.size == 12
    font, lines = recording.wrap("가" * 500, 18, 500)                # no space to break at
    assert "".join(lines) == "가" * 500 and max(map(font.getlength, lines)) <= 500
    assert recording.wrap("go left", 18, 500)[1] == ["go left"]


# --- frames and videos ------------------------------------------------------------------------------------------
def test_frames_are_legible_and_compose_their_text():
    image = np.zeros((84, 84, 3), np.uint8)
    frame = np.asarray(recording.draw_frame(image, "왼쪽으로", "1: left"))
    assert (np.abs(frame.astype(int)).sum(-1) == 0).sum() >= 256 * 256
    decomposed = recording.draw_frame(image, unicodedata.normalize("NFD", "왼쪽으로"), "1: left")
    assert np.array_equal(frame, np.asarray(decomposed))


@pytest.mark.parametrize("goal, xy", [
    ("move_to(region=top_left)", (0.22 + 0.1, 0.22)), ("move_to(id=0, x>48)", (0.75, 0.5)),
    ("push(direction=right)", (0.6, 0.5)), ("cluster() THEN move_to(region=center)", (0.5 + 0.06, 0.5))])
def test_the_target_of_a_goal_is_outlined(goal, xy):
    from simulator.particles.overlay import COLOR
    black, draw = np.zeros((512, 512, 3), np.uint8), recording.draw_frame
    frame = np.asarray(draw(black, "go", "1", target=goal, size=(64, 64)))
    x, y = round(xy[0] * 512), 32 + round(xy[1] * 512)
    assert (np.abs(frame[y - 3:y + 4, x - 3:x + 4].astype(int) - COLOR).sum(-1) == 0).any()
    plain = np.asarray(draw(black, "go", "1"))
    assert not (np.abs(plain.astype(int) - COLOR).sum(-1) == 0).any()
    assert np.array_equal(plain, np.asarray(draw(black, "go", "1", target="lift_cube")))      # of another env


def test_the_place_of_an_action_is_marked_in_an_episode(policy, monkeypatch):
    env = FAMILY.make_single(config.load(["vlm_tiny", "env.max_steps=1"]))
    obs, _ = env.reset(seed=1, options={"goal": "cluster()"})
    action = torch.from_numpy(Action(ActionType.APPLY_HEAT, x=16, y=48, value=1).to_vector())[None]
    monkeypatch.setattr(policy, "sample_action", lambda *_, **__: (action, None, None), raising=False)
    [step] = recording.run_episode(env, policy, obs)
    ring = ring_of(np.asarray(step.frame)[:540])        # the line below is red too where the goal is missed
    assert np.abs(ring - (16 * 8, 32 + 48 * 8)).max() < 3 and step.outcome == "not reached in 1 steps"


def test_notes_are_words(policy, monkeypatch):
    env = FAMILY.make_single(config.load(["vlm_tiny", "env.max_steps=1"]))
    obs, _ = env.reset(seed=1, options={"goal": "cluster()"})
    vector = Action(ActionType.SET_PROPERTY, x=0, y=0, value=1).to_vector()
    monkeypatch.setattr(policy, "sample_action", lambda *_, **__: (torch.from_numpy(vector)[None], None, None))
    [step] = recording.run_episode(env, policy, obs)
    assert step.note == "no particle there"


def test_an_episode_as_mp4(saved, capsys, tmp_path):
    import av
    path = tmp_path / "a.mp4"
    assert inference.main(["--goal", "go left", "--model", str(saved), "--output", str(path)]) == 0
    with av.open(str(path)) as video:
        assert 12 < sum(1 for _ in video.decode(video=0)) < 20      # four frames, the last one for 1.5 s


def test_a_full_disk_does_not_cost_the_result(saved, capsys, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inference, "save_video", full)
    code, out, err = act(capsys, tmp_path, "--model", saved)
    assert code == 2 and "reached in " in out and "No space left on device" in err
