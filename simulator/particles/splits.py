"""The particle world as simulator.registry wants it, and how far an agent's understanding goes in it: the splits of an
evaluation, each k of n episodes with fixed seeds.

    seen                     the simple goals, and amounts if trained; sentences of training
    held_out_en, _ko         the same goals, in phrasing families kept out of training
    perturbed                the same, each held-out sentence with a `language.corrupt_text`
    new_words                held-out sentences whose key words training never shows
    swap                     a world set up for one (true) goal, a sentence for another (spoken) goal
    by_particle              single particles, by their colours; sentences of training
    by_particle_held_out     the same goals, in held-out phrasing families
    pair                     the same, goals that training sees in the other language only
    plans                    two goals at once or in order; sentences of training
    plans_held_out           the same, in held-out phrasing families
    composition              the same, of kinds that training never combines
    chain                    five goals, one after another in one world; sentences of training

In `swap` success at the spoken goal should stay and success at the true goal collapse: an agent that only looks at the
picture would do as well as with the true sentence. `chain` is scored as CALVIN does (Mees et al. 2022,
arXiv:2112.03227): a chain ends at the first goal missed; each goal is one that is fair to ask (`goals.fair`) in the
world as the one before has left it.
"""
import numpy as np
import torch

from simulator.commands import CorpusError, corpus_hash, corrupt_text, load_instructions
from simulator.evaluation import success_rate
from simulator.particles import expert
from simulator.particles import goals as G
from simulator.particles.env import ParticleEnv, ParticleTask, ParticleVectorEnv, instructions_by_goal

SPLITS = ("seen", "held_out_en", "held_out_ko", "perturbed", "unseen_words", "instruction_swap", "per_object", "per_object_held_out",
          "cross_lingual", "multi_goal", "multi_goal_held_out", "compositional", "long_horizon")
TASKS_IN_A_ROW = 5
NUM_ENVS = 128        # side by side


def splits_for(goals):
    """The splits that make sense for an agent that was trained on `goals` (as `env.goals`)."""
    sets = {goal if goal in G.GOAL_GROUPS else G.goal_group(G.parse(goal)) for goal in goals or ["simple"]}
    needs = {"per_object": "per_object", "per_object_held_out": "per_object", "cross_lingual": "per_object",
             "multi_goal": "conjunction", "multi_goal_held_out": "conjunction", "compositional": "conjunction"}
    return [split for split in SPLITS if needs.get(split, "simple") in sets]


def split_spec(split, goals):
    """-> the goals of a split (as of `Worlds`) and its sentences {goal: [text]}, for an agent trained on `goals`."""
    single_goals = ["simple", "quantified"] if "quantified" in goals else ["simple"]
    match split:
        case "held_out_en" | "held_out_ko":
            return single_goals, instructions_by_goal("held_out", split[-2:])
        case "perturbed":
            rng = np.random.default_rng(0)
            return single_goals, {goal: [corrupt_text(text, rng) for text in texts]
                           for goal, texts in instructions_by_goal("held_out").items()}
        case "unseen_words":
            return ["simple"], instructions_by_goal("unseen_words")
        case "per_object" | "cross_lingual":
            return ["per_object"], instructions_by_goal("cross_lingual" if split == "cross_lingual" else "train")
        case "per_object_held_out":
            return ["per_object"], instructions_by_goal("held_out")
        case "multi_goal" | "multi_goal_held_out" | "compositional":
            of = {"multi_goal": "train", "multi_goal_held_out": "held_out"}.get(split, split)
            return ["conjunction", "sequence"], instructions_by_goal(of)
    return single_goals, instructions_by_goal()


def make_actors(policy, seed):
    """{name: act(worlds, running) -> actions [len(running),7]}."""
    rng = np.random.default_rng(seed)

    def agent(deterministic):
        def act(task, running):
            obs = {"image": task.render(running), "goal": tuple(task.texts[b] for b in running)}
            return policy.act(obs, deterministic)[0].cpu().numpy()
        return act

    return {"greedy": agent(True), "sampled": agent(False),
            "no-op": lambda task, running: expert.noop_actions(task)[running],
            "random": lambda task, running: expert.random_actions(task, rng)[running],
            "expert": lambda task, running: expert.expert_actions(task)[running]}


def run_until_done(task, act, running, monitor_goal=None):
    """Lets the `running` worlds (indices) go on until success or their time is up -> bool [B]: success, and whether
    the single-goal Plans `watch` [B], if given, held at some step."""
    success, monitor_success = np.zeros((2, len(task.goals)), bool)
    while len(running):
        actions = expert.noop_actions(task)
        actions[running] = act(task, running)
        _, success_now, truncated, _ = task.step(actions)
        success[running] |= success_now[running]
        for b in running if monitor_goal else ():
            at = task.current[[b]], task.initial[[b]]
            monitor_success[b] |= G.is_success(monitor_goal[b].goals[0], *at, task.size)[0]
        running = running[~(success_now | truncated)[running]]
    return success, monitor_success


def batched(count):
    """The episodes 0..count-1 in blocks of WORLDS."""
    return np.split(np.arange(count), range(NUM_ENVS, count, NUM_ENVS))


def evaluate(split, settings, policy, episodes, seed, trained_on=(), names=None):
    """One split -> {actor: share}; of `swap` {actor: {"true", "spoken", "gap"}}, of `chain` {actor: {"links": shares of
    1..5 goals in a row, "mean": average number of goals reached}}.

    `settings` are those of `Worlds` but for goals and sentences; `names` are the actors' (default: all)."""
    goals, instructions = split_spec(split, trained_on)
    make = lambda count: ParticleTask(count, goals=goals, instructions=instructions, **settings)
    evaluate_one = {"instruction_swap": _instruction_swap, "long_horizon": _long_horizon}.get(split, _success)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: evaluate_one(make, act, episodes, seed) for name, act in make_actors(policy, seed).items()
                if names is None or name in names}


def _start_episodes(make, block, seed):
    """Worlds for the episodes of a block, whose goals go round all that is asked in equal shares."""
    task = make(len(block))
    task.seeds[:] = seed + block
    task.start_episode(np.arange(len(block)), task.round_robin(block))
    return task


def _success(make, act, episodes, seed):
    done = [run_until_done(_start_episodes(make, block, seed), act, np.arange(len(block)))[0] for block in batched(episodes)]
    return success_rate(np.concatenate(done).sum(), episodes)


def _instruction_swap(make, act, episodes, seed):
    instructed_success, original_success, instructed = [], [], []
    for block in batched(episodes):
        all_envs = np.arange(len(block))
        instructed.append(run_until_done(_start_episodes(make, block, seed), act, all_envs)[0])
        task = _start_episodes(make, block, seed)
        right = list(task.goals)
        rngs = [np.random.default_rng([seed, b]) for b in block]
        wrong = [_other(task, b, rng) for b, rng in enumerate(rngs)]
        task.set_goals(all_envs, wrong, [task.sample_instruction(goal, rng) for goal, rng in zip(wrong, rngs, strict=True)])
        success, monitor_success = run_until_done(task, act, all_envs, monitor_goal=right)
        instructed_success.append(success)
        original_success.append(monitor_success)
    throughput = {name: success_rate(np.concatenate(done).sum(), episodes)
             for name, done in (("instructed", instructed_success), ("original", original_success), ("original_if_instructed", instructed))}
    return throughput | {"gap": throughput["original_if_instructed"]["rate"] - throughput["original"]["rate"]}


def _other(task, b, rng):
    """Another goal than world b's own; one that is fair to ask there, if any is found."""
    alike = lambda plan: (plan.goals[0].kind, plan.goals[0].argument) == own
    own = task.goals[b].goals[0].kind, task.goals[b].goals[0].argument
    drawn = [plan for _ in range(50) if (plan := task.sample_goal(rng)) and not alike(plan)]
    return next((plan for plan in drawn if G.is_feasible_start(plan, task.current[[b]], task.size)), drawn[0])


def _long_horizon(make, act, episodes, seed):
    length = np.zeros(episodes, int)
    for block in batched(episodes):
        task, running = _start_episodes(make, block, seed), np.arange(len(block))
        for i in range(TASKS_IN_A_ROW):
            if i:
                rngs = [np.random.default_rng([seed, block[b], i]) for b in running]
                asked = [task.sample_goal(rng, b) or task.sample_goal(rng) for b, rng in zip(running, rngs, strict=True)]
                task.set_goals(running, asked, [task.sample_instruction(goal, rng) for goal, rng in zip(asked, rngs, strict=True)])
            success, _ = run_until_done(task, act, running)
            running = running[success[running]]
            length[block[running]] += 1
    return {"tasks_in_a_row": [success_rate((length >= n).sum(), episodes) for n in range(1, TASKS_IN_A_ROW + 1)], "mean": float(length.mean())}


# --- as simulator.registry wants it ---------------------------------------------------------------------------------
describe = ParticleEnv.describe


def instructions(config):
    for path in config.env.instructions:
        if not any(row["split"] == "train" for row in load_instructions(path)):
            raise CorpusError(f"{path} has no sentence for training: its rows need \"split\": \"train\"")
    return instructions_by_goal("train", None, tuple(config.env.instructions))


def instructions_hash(config):
    return corpus_hash(config.env.instructions)


def make_env(config, num_envs):
    settings = {"goals": config.env.goals, "continue_prob": config.env.continue_prob, "instructions": instructions(config),
                "max_steps": config.env.max_steps, "physics": dict(config.physics), **config.world}
    trial = ParticleVectorEnv(64, **settings)      # worlds that cannot be started are refused now
    trial.reset(seed=0, options={"goals": trial.round_robin_goals(64)})
    return ParticleVectorEnv(num_envs, **settings)


def eval_splits(config):
    return splits_for(config.env.goals)


def evaluate_split(split, config, policy, episodes, seed, baselines=True):
    task = {"max_steps": config.env.max_steps, "physics": dict(config.physics), **config.world}
    names = None if baselines else ("greedy", "sampled")
    return evaluate(split, task, policy, episodes, seed, config.env.goals, names)


def make_single(config, max_steps=None, instructions=None, side=512):
    """`config` may lack what an older checkpoint did not have; the picture for people is about `side` pixels wide."""
    world = config.get("world", {})
    scale = max(1, side // max(world.get("width", 64), world.get("height", 64)))
    return ParticleEnv(render_scale=scale, max_steps=max_steps or config.get("env", {}).get("max_steps", 32),
                       physics=dict(config.get("physics", {})), instructions=instructions, **world)
