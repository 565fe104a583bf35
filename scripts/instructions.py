"""Decide what an instruction asks for: the reading of the rules, the reading of the model, and what to do about both.

`env.reset` reports the goal that the env's rules find. The model's reading is the goal slots of its parser head.
"""
import difflib
from dataclasses import dataclass

import numpy as np

from config import UserError, from_dict
from simulator.registry import get_env_family

MIN_CONFIDENCE = 0.5
# Similarity (difflib's ratio) to the nearest training instruction. It was below 0.58 for all of 11 sentences about
# something else or nothing, and above for most held-out instructions that the rules do not know.
MIN_SIMILARITY = 0.58


@dataclass
class Reading:
    """The model's reading of an instruction.

    slots: words of the policy's goal_vocab; plan: the Plan that they make, None for an incoherent set.
    confidence: the product over all slots of max(p, 1 - p), where p is the sigmoid of the slot's logit; 0 of no slots.
    """
    slots: list[str]
    plan: object | None
    confidence: float

    def __str__(self) -> str:
        return f"{self.plan or ', '.join(self.slots) or 'nothing'} (confidence {self.confidence:.2f})"


@dataclass
class Episode:
    """A started episode: its env, its first observation, and the goal that scores it (None: it is not scored).

    reading: the model's; note: how the goal was found, or why there is none.
    """
    env: object
    obs: dict
    goal: str | None
    reading: Reading
    note: str


def read_instruction(policy: object, image: np.ndarray, instruction: str, proprio: np.ndarray | None = None,
                     is_particles: bool = True) -> Reading:
    """Return the model's Reading of an instruction beside an image uint8 [H,W,3] (and proprio [Q])."""
    import torch

    from simulator.particles.goals import plan_from_slots
    with torch.no_grad():
        output = policy(np.asarray(image)[None], [instruction], None if proprio is None else proprio[None])
    probability = torch.sigmoid(output.slot_logits[0])                             # [V]
    slots = policy.parsed_goal(output)[0]
    confidence = torch.maximum(probability, 1 - probability).prod().item() if slots else 0.0
    return Reading(slots, plan_from_slots(slots) if is_particles else None, confidence)


def nearest_instructions(instruction: str, known: dict[str, list[str]]) -> dict[str, str]:
    """Return {goal: its most similar known instruction} in the same language, the most similar first.

    known: {goal: instructions}.
    """
    goals = {text: goal for goal, texts in known.items() for text in texts if is_korean(text) == is_korean(instruction)}
    nearest = {}
    for text in difflib.get_close_matches(instruction, goals, 50, 0):
        nearest.setdefault(goals[text], text)
    return nearest


def is_korean(text: str) -> bool:
    """Return whether a text has a Hangul syllable."""
    return any("가" <= character <= "힣" for character in text)


def why_not_understood(instruction: str, reading: Reading, nearest: dict[str, str], is_particles: bool) -> str | None:
    """Return why the model's reading may not replace that of the rules, which found no goal, or None if it may."""
    reason = rejection(instruction) if is_particles else None
    if reason:
        return reason
    if not reading.plan or reading.confidence < MIN_CONFIDENCE:
        return f"the model reads {reading}"
    similarity = difflib.SequenceMatcher(None, next(iter(nearest.values()), ""), instruction).ratio()
    if similarity < MIN_SIMILARITY:
        return f"the model reads {reading}, but knows no similar instruction"
    color = named_color(instruction)
    if color and not any(goal.ids for goal in reading.plan.goals):
        return f"{reading.plan} acts on all particles, so it cannot be asked of {color!r} alone"
    return None


def rejection(instruction: str) -> str | None:
    """Return why the rules refuse an instruction, or None if they only do not know it."""
    from simulator.particles.env import REJECTION_NOTES
    from simulator.particles.parser import parse_instruction
    reason = parse_instruction(instruction)[1]
    return None if reason in ("understood", "unknown") else REJECTION_NOTES.get(reason, reason)


def named_color(instruction: str) -> str | None:
    """Return the first color of a particle that an instruction names, or None."""
    from simulator.particles.physics import PALETTE
    words = instruction.lower().split()
    names = [(english, korean) for english, korean, _ in PALETTE]
    return next((name for english, korean in names for name in (english, korean)
                 if name in words or is_korean(name) and name in instruction), None)


def start_episode(policy: object, config: dict, goal: str, seed: int, max_steps: int | None = None,
                  force: bool = False, image: np.ndarray | None = None) -> Episode:
    """Start and return an Episode of a checkpoint's config. goal: an instruction, or text in the goal language.

    image uint8 [H,W,3]: the model reads the instruction beside this image, instead of the env's.
    Raise UserError, which names similar instructions, where it is not understood. `force` prevents that.
    """
    family, is_particles = get_env_family(config), config.get("env", {}).get("world", "particles") == "particles"
    env = family.make_single(config, max_steps)
    obs, info = env.reset(seed=seed, options={"goal": goal})
    image = obs["image"] if image is None else image
    reading = read_instruction(policy, image, obs["goal"], obs.get("proprio"), is_particles)
    if info["goal"]:
        return Episode(env, obs, info["goal"], reading, compare(info["goal"], reading) if is_particles else "")
    nearest = nearest_instructions(goal, family.instructions(from_dict(config)))
    reason = why_not_understood(goal, reading, nearest, is_particles)
    if reason is None:      # start again, in a state in which the model's goal is not yet reached
        start, info = env.reset(seed=seed, options={"goal": str(reading.plan)})
        return Episode(env, start | {"goal": obs["goal"]}, info["goal"], reading, "as the model understood it")
    if not force:
        env.close()
        examples = ", ".join(f'"{text}" ({name})' for name, text in list(nearest.items())[:3])
        raise UserError(f'"{goal}" is not understood ({reason}): try {examples}, or --force to act anyway')
    return Episode(env, obs, None, reading, info["note"])


def compare(goal: str, reading: Reading) -> str:
    """Return a note where the model reads another goal than the rules."""
    from simulator.particles.goals import parse
    same = reading.plan is not None and reading.plan.canonical == parse(goal).canonical
    return "" if same else "as the rules understand it, the model differs"
