"""The particle world."""
