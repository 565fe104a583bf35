"""The particle world as simulator.worlds wants it, and how far an agent's understanding goes in it: the splits of an
evaluation, each k of n episodes with fixed seeds.

    seen                     the simple goals, and amounts if trained; sentences of training
    held_out_en, _ko         the same goals, in phrasing families kept out of training
    perturbed                the same, each held-out sentence with a `language.perturb`
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

from simulator import expert
from simulator import goals as G
from simulator.evaluation import share
from simulator.goal_env import ParticleEnv, ParticleVectorEnv, Worlds, sentences_by_goal
from simulator.language import SentencesError, corpus_hash, load_sentences, perturb

SPLITS = ("seen", "held_out_en", "held_out_ko", "perturbed", "new_words", "swap", "by_particle", "by_particle_held_out",
          "pair", "plans", "plans_held_out", "composition", "chain")
LINKS = 5
WORLDS = 128        # side by side


def trained(goals):
    """The splits that make sense for an agent that was trained on `goals` (as `env.goals`)."""
    sets = {goal if goal in G.SETS else G.set_of(G.parse(goal)) for goal in goals or ["simple"]}
    needs = {"by_particle": "by_particle", "by_particle_held_out": "by_particle", "pair": "by_particle",
             "plans": "at_once", "plans_held_out": "at_once", "composition": "at_once"}
    return [split for split in SPLITS if needs.get(split, "simple") in sets]


def case(split, goals):
    """-> the goals of a split (as of `Worlds`) and its sentences {goal: [text]}, for an agent trained on `goals`."""
    plain = ["simple", "amounts"] if "amounts" in goals else ["simple"]
    match split:
        case "held_out_en" | "held_out_ko":
            return plain, sentences_by_goal("held_out", split[-2:])
        case "perturbed":
            rng = np.random.default_rng(0)
            return plain, {goal: [perturb(text, rng) for text in texts]
                           for goal, texts in sentences_by_goal("held_out").items()}
        case "new_words":
            return ["simple"], sentences_by_goal("new_words")
        case "by_particle" | "pair":
            return ["by_particle"], sentences_by_goal("pair" if split == "pair" else "train")
        case "by_particle_held_out":
            return ["by_particle"], sentences_by_goal("held_out")
        case "plans" | "plans_held_out" | "composition":
            of = {"plans": "train", "plans_held_out": "held_out"}.get(split, split)
            return ["at_once", "in_order"], sentences_by_goal(of)
    return plain, sentences_by_goal()


def actors(policy, seed):
    """{name: act(worlds, running) -> actions [len(running),7]}."""
    rng = np.random.default_rng(seed)

    def agent(deterministic):
        def act(worlds, running):
            obs = {"image": worlds.render(running), "goal": tuple(worlds.texts[b] for b in running)}
            return policy.act(obs, deterministic)[0].cpu().numpy()
        return act

    return {"deterministic": agent(True), "sampled": agent(False),
            "no-op": lambda worlds, running: expert.noop_actions(worlds)[running],
            "random": lambda worlds, running: expert.random_actions(worlds, rng)[running],
            "expert": lambda worlds, running: expert.expert_actions(worlds)[running]}


def run(worlds, act, running, watch=None):
    """Lets the `running` worlds (indices) go on until success or their time is up -> bool [B]: success, and whether
    the single-goal Plans `watch` [B], if given, held at some step."""
    success, watched = np.zeros((2, len(worlds.goals)), bool)
    while len(running):
        actions = expert.noop_actions(worlds)
        actions[running] = act(worlds, running)
        _, reached, truncated, _ = worlds.step(actions)
        success[running] |= reached[running]
        for b in running if watch else ():
            at = worlds.now[[b]], worlds.start[[b]]
            watched[b] |= G.reached(watch[b].goals[0], *at, worlds.size)[0]
        running = running[~(reached | truncated)[running]]
    return success, watched


def blocks(count):
    """The episodes 0..count-1 in blocks of WORLDS."""
    return np.split(np.arange(count), range(WORLDS, count, WORLDS))


def measure(split, settings, policy, episodes, seed, trained_on=(), names=None):
    """One split -> {actor: share}; of `swap` {actor: {"true", "spoken", "gap"}}, of `chain` {actor: {"links": shares of
    1..5 goals in a row, "mean": average number of goals reached}}.

    `settings` are those of `Worlds` but for goals and sentences; `names` are the actors' (default: all)."""
    goals, sentences = case(split, trained_on)
    make = lambda count: Worlds(count, goals=goals, sentences=sentences, **settings)
    measure_one = {"swap": _swap, "chain": _chain}.get(split, _plain)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: measure_one(make, act, episodes, seed) for name, act in actors(policy, seed).items()
                if names is None or name in names}


def _begin(make, block, seed):
    """Worlds for the episodes of a block, whose goals go round all that is asked in equal shares."""
    worlds = make(len(block))
    worlds.seeds[:] = seed + block
    worlds.begin(np.arange(len(block)), worlds.balanced(block))
    return worlds


def _plain(make, act, episodes, seed):
    done = [run(_begin(make, block, seed), act, np.arange(len(block)))[0] for block in blocks(episodes)]
    return share(np.concatenate(done).sum(), episodes)


def _swap(make, act, episodes, seed):
    spoken, true, told = [], [], []
    for block in blocks(episodes):
        everyone = np.arange(len(block))
        told.append(run(_begin(make, block, seed), act, everyone)[0])
        worlds = _begin(make, block, seed)
        right = list(worlds.goals)
        rngs = [np.random.default_rng([seed, b]) for b in block]
        wrong = [_other(worlds, b, rng) for b, rng in enumerate(rngs)]
        worlds.ask(everyone, wrong, [worlds.say(goal, rng) for goal, rng in zip(wrong, rngs, strict=True)])
        success, watched = run(worlds, act, everyone, watch=right)
        spoken.append(success)
        true.append(watched)
    rates = {name: share(np.concatenate(done).sum(), episodes)
             for name, done in (("spoken", spoken), ("true", true), ("true_if_told", told))}
    return rates | {"gap": rates["true_if_told"]["rate"] - rates["true"]["rate"]}


def _other(worlds, b, rng):
    """Another goal than world b's own; one that is fair to ask there, if any is found."""
    alike = lambda plan: (plan.goals[0].kind, plan.goals[0].argument) == own
    own = worlds.goals[b].goals[0].kind, worlds.goals[b].goals[0].argument
    drawn = [plan for _ in range(50) if (plan := worlds.draw(rng)) and not alike(plan)]
    return next((plan for plan in drawn if G.fair(plan, worlds.now[[b]], worlds.size)), drawn[0])


def _chain(make, act, episodes, seed):
    length = np.zeros(episodes, int)
    for block in blocks(episodes):
        worlds, running = _begin(make, block, seed), np.arange(len(block))
        for link in range(LINKS):
            if link:
                rngs = [np.random.default_rng([seed, block[b], link]) for b in running]
                asked = [worlds.draw(rng, b) or worlds.draw(rng) for b, rng in zip(running, rngs, strict=True)]
                worlds.ask(running, asked, [worlds.say(goal, rng) for goal, rng in zip(asked, rngs, strict=True)])
            success, _ = run(worlds, act, running)
            running = running[success[running]]
            length[block[running]] += 1
    return {"links": [share((length >= n).sum(), episodes) for n in range(1, LINKS + 1)], "mean": float(length.mean())}


# --- as simulator.worlds wants it ---------------------------------------------------------------------------------
describe = ParticleEnv.describe


def sentences(config):
    for path in config.env.sentences:
        if not any(row["split"] == "train" for row in load_sentences(path)):
            raise SentencesError(f"{path} has no sentence for training: its rows need \"split\": \"train\"")
    return sentences_by_goal("train", None, tuple(config.env.sentences))


def corpus(config):
    return corpus_hash(config.env.sentences)


def make_env(config, num_envs):
    settings = {"goals": config.env.goals, "chain": config.env.chain, "sentences": sentences(config),
                "max_steps": config.env.max_steps, "physics": dict(config.physics), **config.world}
    trial = ParticleVectorEnv(64, **settings)      # worlds that cannot be started are refused now
    trial.reset(seed=0, options={"goals": trial.balanced_goals(64)})
    return ParticleVectorEnv(num_envs, **settings)


def splits(config):
    return trained(config.env.goals)


def measure_split(split, config, policy, episodes, seed, baselines=True):
    worlds = {"max_steps": config.env.max_steps, "physics": dict(config.physics), **config.world}
    names = None if baselines else ("deterministic", "sampled")
    return measure(split, worlds, policy, episodes, seed, config.env.goals, names)


def make_world(config, max_steps=None, sentences=None, side=512):
    """`config` may lack what an older checkpoint did not have; the picture for people is about `side` pixels wide."""
    world = config.get("world", {})
    scale = max(1, side // max(world.get("width", 64), world.get("height", 64)))
    return ParticleEnv(render_scale=scale, max_steps=max_steps or config.get("env", {}).get("max_steps", 32),
                       physics=dict(config.get("physics", {})), sentences=sentences, **world)
