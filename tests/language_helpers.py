"""The shipped instructions, loaded once."""
from simulator.particles.commands import load_instructions

ROWS = load_instructions()
