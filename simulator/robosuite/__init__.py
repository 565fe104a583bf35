"""The robosuite arm: an environment with camera images, instructions and named or continuous actions."""
