"""The splits of an evaluation, goals in sets, environments that go on, the mark of a phase that is done."""
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from simulator import evaluation
from simulator.commands import corrupt_text
from simulator.particles import expert
from simulator.particles import goals as G
from simulator.particles import splits as particles
from simulator.particles.actions import ActionType
from simulator.particles.commands import corpus_hash, instructions_by_goal
from simulator.particles.env import ParticleVectorEnv
from simulator.particles.parser import normalise
from simulator.particles.task import ParticleTask

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import evaluate  # noqa: E402


# --- sets of goals ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text, name", [
    ("push(direction=left)", "simple"), ("push(direction=left, distance=10)", "quantified"),
    ("heat(by=2)", "quantified"),
    ("cluster(ids=[0,1])", "per_object"), ("move_toward(0, 1)", "per_object"),
    ("cluster() AND heat()", "conjunction"), ("cluster() THEN heat() AND cool()", "sequence")])
def test_sets(text, name):
    assert G.goal_group(G.parse(text)) == name


@pytest.mark.parametrize("text, slots", [
    ("push(direction=left) THEN heat()", {"THEN", "1 push", "1 left", "2 heat"}),
    ("cluster() AND cool(by=2)", {"AND", "1 cluster", "2 cool", "2 by=2"}),
    ("push(direction=up, distance=7.5)", {"1 push", "1 up", "1 distance=7.5"}),
    ("vibrate() AND heat() THEN spread() AND move_to(region=center)",
     {"AND", "THEN", "1 vibrate", "2 heat", "3 spread", "4 move_to", "4 center"}),
    ("move_to(id=3, x<16, y>48)", {"1 move_to", "1 particle 3", "1 x<16", "1 y>48"}),
    ("move_toward(1, 2)", {"1 move_toward", "1 particle 1", "1 to 2"}),
    ("cluster(ids=[0,5])", {"1 cluster", "1 particle 0", "1 particle 5"})])
def test_what_a_plan_says(text, slots):
    assert G.goal_slots(G.parse(text)) == slots


def test_demonstrations_say_what_is_asked():
    env = ParticleVectorEnv(8, goals=["cluster()", "push(direction=left)"])
    env.reset(seed=0)
    asked, _ = env.relabel_goals(np.random.default_rng(0), 0.5)
    assert env.goal_vocab == ("1 cluster", "1 left", "1 push") and asked["goal_slots"].dtype == np.float32
    known = {text: goal for goal, texts in instructions_by_goal().items() for text in texts}
    wanted = [[1, 0, 0] if known[text] == "cluster()" else [0, 1, 1] for text in asked["goal"]]
    assert asked["goal_slots"].tolist() == wanted and np.isnan(asked["object_xy"]).all()


def test_demonstrations_tell_where_the_particles_are_that_are_meant():
    env = ParticleVectorEnv(2)
    env.reset(seed=0, options={"goals": ["move_toward(2, 0)", "move_to(id=5, x>48)"]})
    places, at = env.relabel_goals(np.random.default_rng(0), 0)[0]["object_xy"], env.task.sim.position / 64
    np.testing.assert_allclose(places[0], at[0, [2, 0]], rtol=1e-6)
    np.testing.assert_allclose(places[1, 0], at[1, 5], rtol=1e-6)
    assert np.isnan(places[1, 1]).all()


def test_the_expert_says_which_goal_is_due():
    """Heating first, while that lacks; then pushing, whatever it has reached; in order: by phase."""
    task = ParticleTask(3)
    task.start_episode(range(3), [G.parse("push(direction=left) AND heat()"), G.parse("cluster()"),
                            G.parse("heat() THEN cluster() AND cool() THEN spread()")])
    assert expert.active_goal_index(task).tolist() == [1, 0, 0]
    task.sim.temperature[:] = 9
    task.current = G.StateSummary.from_sim(task.sim, task.num_scored)
    task.stage[2] = 1
    assert expert.active_goal_index(task).tolist() == [0, 0, 2]
    assert expert.expert_actions(task)[:, 0].tolist() == [
        ActionType.APPLY_ATTRACTION, ActionType.APPLY_ATTRACTION, ActionType.APPLY_HEAT]
    task.sim.temperature[:], task.stage[2] = 0, 2
    task.current = G.StateSummary.from_sim(task.sim, task.num_scored)
    assert expert.active_goal_index(task).tolist() == [1, 0, 3]
    env = ParticleVectorEnv(3)
    env.task = task
    assert env.relabel_goals(np.random.default_rng(0), 0)[0]["active_goal"].tolist() == [1, 0, 3]


def test_an_environment_draws_the_items_of_its_goals_in_equal_shares():
    env = ParticleVectorEnv(300, goals=["cluster()", "per_object", "sequence"])
    env.reset(seed=0)
    drawn = [G.goal_group(plan) for plan in env.task.goals]
    assert {"simple", "per_object", "sequence"} == set(drawn)
    assert all(80 <= drawn.count(name) <= 120 for name in set(drawn))
    assert len(set(map(str, env.task.goals))) > 100
    asked = [G.goal_group(plan) for plan in env.round_robin_goals(9)]
    assert asked == ["simple", "per_object", "sequence"] * 3
    known = instructions_by_goal()
    assert all(text in known[str(plan)] for text, plan in zip(env.task.texts, env.task.goals, strict=True))


def test_a_set_without_instructions_is_refused():
    with pytest.raises(ValueError, match="no instructions for the goals 'sequence'"):
        ParticleTask(1, goals=["simple", "sequence"], instructions={"cluster()": ["gather"]})


# --- environments that go on ---------------------------------------------------------------------------------------
def test_a_share_of_the_episodes_goes_on_in_the_same_world():
    env = ParticleVectorEnv(64, continue_prob=0.5, max_steps=40)
    env.reset(seed=1)
    stayed = ended = 0
    for _ in range(60):
        before = env.task.sim.radius.copy()
        _, _, terminated, truncated, _ = env.step(env.expert_actions())
        for b in np.flatnonzero(terminated | truncated):
            ended += 1
            same = np.array_equal(env.task.sim.radius[b], before[b])
            stayed += same
            plan, start = env.task.goals[b], env.task.initial[[b]]
            assert env.task.steps[b] == 0 and G.is_feasible_start(plan, start, env.task.size)
            assert not G.is_success(plan.goals[0], start, start, env.task.size)[0]
    assert ended > 150 and 0.3 < stayed / ended < 0.6


def test_ask_measures_from_here_on():
    task = ParticleTask(2, goals=["push(direction=left)"])
    task.start_episode([0, 1])
    for _ in range(3):
        task.step(expert.expert_actions(task))
    at = task.current.centroid.copy()
    task.set_goals([1], [G.parse("push(direction=up)")], ["go up"])
    assert task.texts[1] == "go up" and task.steps.tolist() == [3, 0]
    np.testing.assert_array_equal(task.initial.centroid[1], at[1])
    assert (task.initial.centroid[0] != at[0]).any()


# --- the mark ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [1, 4])
def test_a_mark_tells_that_the_first_phase_is_done(scale):
    task = ParticleTask(2, goals=["heat() THEN cluster() THEN push(direction=left)"])
    task.start_episode([0, 1])
    task.stage[1] = 2
    plain, marked = task.sim.render(scale), task.render(scale=scale)
    np.testing.assert_array_equal(marked[0], plain[0])
    corner = marked[1, scale:5 * scale]
    assert (corner[:, scale:5 * scale] == 255).all() and (corner[:, 7 * scale:11 * scale] == 255).all()
    marked[1, scale:5 * scale, scale:11 * scale] = plain[1, scale:5 * scale, scale:11 * scale]
    np.testing.assert_array_equal(marked, plain)
    np.testing.assert_array_equal(task.render([1], scale)[0], task.render(scale=scale)[1])


def test_time_counts_for_each_goal():
    task = ParticleTask(2, max_steps=3)
    task.start_episode([0, 1], [G.parse("push(direction=left)"), G.parse("heat() THEN push(direction=left)")])
    ends = [task.step(expert.noop_actions(task))[2].tolist() for _ in range(6)]
    assert ends == [[False, False]] * 2 + [[True, False]] * 3 + [[True, True]]


# --- instructions -----------------------------------------------------------------------------------------------
def test_perturbed_instructions_stay_near_the_instruction():
    rng, kinds = np.random.default_rng(0), set()
    for text in ("push everything left", "입자들을 왼쪽으로 밀어 줘"):
        for _ in range(200):
            other = corrupt_text(text, rng)
            assert other != text
            if other == text + ".":
                kinds.add("stop")
            elif other == text.upper():
                kinds.add("capitals")
            elif other.replace("  ", " ") == text:
                kinds.add("spaces")
            elif other.endswith(text):
                kinds.add("prefix")
            else:       # a typing mistake: the letters differ by one at most, or two are swapped
                kinds.add("typo")
                assert abs(len(other) - len(text)) <= 1 and other[0] in text[:2]
    assert kinds == {"stop", "capitals", "spaces", "prefix", "typo"}


def test_the_splits_share_no_instruction_with_training():
    seen = {normalise(text) for texts in instructions_by_goal("train").values() for text in texts}
    goals = ["simple", "quantified", "per_object", "conjunction", "sequence"]
    for split in particles.splits_for(goals):
        if split not in ("seen", "instruction_swap", "long_horizon", "per_object", "multi_goal"):
            _, instructions = particles.split_spec(split, goals)
            assert not seen & {normalise(text) for texts in instructions.values() for text in texts}, split


def test_an_agent_is_measured_on_what_it_was_trained_for():
    simple = ["seen", "held_out_en", "held_out_ko", "perturbed", "unseen_words", "instruction_swap"]
    assert particles.splits_for([]) == [*simple, "long_horizon"]
    assert particles.splits_for(["simple", "per_object"]) == [
        *simple, "per_object", "per_object_held_out", "cross_lingual", "long_horizon"]


# --- scoring ----------------------------------------------------------------------------------------------------
def test_the_expert_does_every_split():
    for split in particles.SPLITS:
        measured = particles.evaluate(split, {}, None, 64, 5, list(G.GOAL_GROUPS), names=["no-op", "expert"])
        done, idle = measured["expert"], measured["no-op"]
        if split == "instruction_swap":
            assert done["instructed"]["rate"] > 0.95 and done["original"]["rate"] < 0.15 and done["gap"] > 0.8
            assert idle["original"]["k"] == idle["instructed"]["k"] == 0
        elif split == "long_horizon":
            assert done["mean"] > 4.6 and idle["mean"] == 0
        else:
            assert done["rate"] > 0.93 and idle["k"] == 0, split


def test_a_chain_ends_at_the_first_goal_missed():
    """An expert that stands still from the third goal of every second chain on: 5 and 2 goals in a row."""
    env, num_tasks = ParticleVectorEnv(8), np.zeros(8, int)

    def act(obs, envs):
        actions = env.expert_actions()
        num_tasks[envs] += env.task.steps[envs] == 0
        idle = (np.arange(8) % 2 == 1) & (num_tasks > 2)
        actions[idle] = env.noop_actions()[idle]
        return actions[envs]

    chain = particles.tasks_in_a_row(env, act, 8 + np.arange(8), env.round_robin_goals(8), 8)
    assert chain["mean"] == 3.5 and [rate["k"] for rate in chain["tasks_in_a_row"]] == [8, 8, 4, 4, 4]


def test_swap_counts_the_true_goal_at_any_step():
    """An agent that ignores the instruction and heats: of two environments set up for heating, both are heated."""
    instructions = {"heat()": ["heat up"], "push(direction=left)": ["go left"]}
    env = ParticleVectorEnv(10, goals=list(instructions), instructions=instructions)

    def act(obs, envs):
        actions = env.noop_actions()[envs]
        actions[:, 0], actions[:, 2:4], actions[:, 4:6] = ActionType.APPLY_HEAT, 32, (5, 64)
        return actions

    seeds, goals = np.arange(10), env.round_robin_goals(10)
    instructed, texts = particles.sample_swaps(env, seeds, goals, 0)
    assert all(text in instructions[str(goal)] for text, goal in zip(texts, instructed, strict=True))
    measured = evaluation.instruction_swap(env, act, seeds, goals, instructed, texts)
    assert measured["original"]["k"] == measured["original_if_instructed"]["k"] == 5     # every second goal is heat()
    assert measured["instructed"]["k"] == 5 and measured["gap"] == 0


def test_evaluate_all_splits_of_an_agent(saved, capsys, tmp_path):
    assert evaluate.main(["--model", str(saved), "--split", "held_out", "long_horizon", "--episodes", "3",
                          "--json", str(tmp_path / "a.json")]) == 0
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["held_out_en"]["sampled"]["n"] == 3 and len(figures["long_horizon"]["expert"]["tasks_in_a_row"]) == 5
    out = capsys.readouterr().out
    assert "held_out_ko" in out and "long_horizon: 5 in a row" in out
    assert evaluate.main(["--model", str(saved), "--split", "heldout"]) == 2
    assert "unknown split 'heldout': choose from held_out," in capsys.readouterr().err


def test_the_shipped_agent_is_up_to_date():
    """It loads, knows the corpus that ships, says how it did, and still does so."""
    from models.vlm_policy import VLMPolicy
    path = Path(__file__).resolve().parent.parent / "checkpoints/vlm_tiny.pt"
    policy, about = VLMPolicy.from_checkpoint(path), json.loads(path.with_suffix(".json").read_text())
    assert path.stat().st_size <= 4_000_000 and policy.meta["corpus"] == about["corpus"] == corpus_hash()
    assert about["presets"] and about["training_seconds"] > 0 and about["seed"] == 0
    reached = particles.evaluate("seen", {}, policy, 48, 7, names=["greedy"])["greedy"]
    assert reached["rate"] > about["results"]["seen"]["greedy"]["rate"] - 0.08
