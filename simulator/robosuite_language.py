"""placeholder"""
from pathlib import Path

SENTENCES = Path(__file__)
def sentences_by_goal(split="train"):
    return {"lift_cube": ["lift the cube"], "push_cube": ["push the cube forward"], "place_can": ["캔을 집어서 옮겨줘"], "place_can_near": ["put the can near"], "place_nut": ["nut"], "lift_nut": ["lift nut"]}
