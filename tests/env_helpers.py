"""Actions for the tests of the particle environments."""
import numpy as np

NOOP = np.array([0, -1, 0, 0, 0, 1, 0], np.float32)
