"""Action, value and goal-parser heads."""
