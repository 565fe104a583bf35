"""The robosuite arm."""
