"""The chat messages that ask a language model for instructions."""
import json
import random
from functools import cache

from commands.goals import LANGUAGES, SIDES, Task
from simulator.particles.commands import load_instructions
from simulator.particles.goals import Goal, parse
from simulator.particles.physics import PALETTE

SYSTEM = """You write down what people say to a program that moves small coloured particles (dots) in a picture.
For a goal you write sentences as different people would really say them, spontaneously, to have exactly this done: \
nothing left out, nothing added. Vary the words, the order and the tone. Keep every number, in digits, and every \
colour that the goal names. All particles may be called particles, dots, balls, them or everything (in Korean 입자, \
알갱이, 점, 공, 전부); a single particle is called by its colour. At most 120 characters each.
Answer with a JSON list of strings and nothing else."""
TONES = ("polite requests", "plain orders", "questions", "indirect requests", "wishes", "colloquial speech",
         "formal requests", "very short phrases", "a reason or an aside in the same sentence", "unusual verbs")


def messages(task: Task) -> list[dict]:
    """Return the conversation for a task: system prompt, two examples, request. It is a function of the task alone."""
    rng = random.Random(f"{task.seed}/{task.number}/{task.language}")
    examples = _examples(task.language)
    conversation = [{"role": "system", "content": SYSTEM}]
    for goal in rng.sample([goal for goal in examples if goal != task.goal], 2):
        instructions = rng.sample(examples[goal], min(task.variations, 4, len(examples[goal])))
        answer = json.dumps(instructions, ensure_ascii=False)
        conversation += [_request(goal, task.language, len(instructions)), {"role": "assistant", "content": answer}]
    tones = ", among them " + ", ".join(rng.sample(TONES, 3))
    return [*conversation, _request(task.goal, task.language, task.variations, tones)]


def _request(goal: str, language: str, count: int, tones: str = "") -> dict:
    return {"role": "user", "content": f"Goal: {describe(goal, language)}.\n"
                                       f"Language: {LANGUAGES[language]}.\nWrite {count} different sentences{tones}."}


@cache
def _examples(language: str) -> dict[str, list[str]]:
    """Return {goal: its instructions} of the training rows in data/goal_commands.jsonl."""
    examples = {}
    for row in load_instructions():
        if (row["language"], row["split"]) == (language, "train"):
            examples.setdefault(row["goal"], []).append(row["text"])
    return examples


def describe(goal: str, language: str = "en") -> str:
    """Return a goal in plain English; with language "ko", colours are also given in Korean."""
    phases = [", and at the same time ".join(_describe_goal(part, language) for part in phase)
              for phase in parse(goal).phases]
    return ("first " if len(phases) > 1 else "") + "; then, after that, ".join(phases)


def _describe_goal(goal: Goal, language: str) -> str:
    amount = f"{goal.amount or 0:g} {'pixel' if goal.kind == 'push' else 'degree'}" + "s" * (goal.amount != 1)
    particles = [_describe_particle(i, language) for i in goal.ids]
    region = (goal.argument or "").replace("_", " ")
    match goal.kind:
        case "push":
            return f"move all particles {goal.argument}" + (f" by {amount}" if goal.amount else "")
        case "cluster":
            group = f"only {', '.join(particles[:-1])} and {particles[-1]}" if particles else "all particles"
            return f"gather {group} close together in one group"
        case "spread":
            return "spread all particles apart, away from each other"
        case "vibrate":
            return "make all particles vibrate (shake) on the spot"
        case "heat" | "cool":
            verb = "make all particles " + ("hotter" if goal.kind == "heat" else "colder")
            return verb + {"to": f", until they have exactly {amount}", "by": f" by {amount}"}.get(goal.argument, "")
        case "align":
            return "line all particles up in " + ("a horizontal row, side by side" if goal.argument == "horizontal"
                                                  else "a vertical column, one above the other")
        case "move_toward":
            return f"move {particles[0]} to {particles[1]}, so that it is next to it"
        case _ if goal.ids:
            sides = " and ".join(SIDES[bound] for bound in goal.bounds)
            return f"move only {particles[0]} to {sides} of the picture"
        case _:
            return f"move all particles to the {region}" + (" corner" if " " in region else "") + " of the picture"


def _describe_particle(i: int, language: str) -> str:
    english, korean, _ = PALETTE[i % len(PALETTE)]
    korean += "" if korean[-1] in "간란색" else "색"
    return f"the {english} particle" + (f" ({korean} 입자)" if language == "ko" else "")
