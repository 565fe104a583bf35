"""The particle environments: 2-D particles in a box, goals in a small language, instructions in Korean and English."""
