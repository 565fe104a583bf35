"""Files that are not checkpoints, for the tests of loading and of the programs."""
import pickle

import torch

from models import checkpoint


def one_line(error):
    return len(str(error.value).splitlines()) == 1


class Bomb:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damage(kind, path, saved):
    content = saved.read_bytes()
    match kind:
        case "missing":
            return
        case "folder":
            path.mkdir()
        case "half":
            path.write_bytes(content[:len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "random":
            path.write_bytes(torch.randint(256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
                             .numpy().tobytes())
        case "text":
            path.write_text("not a checkpoint\n")
        case "pickle":
            path.write_bytes(pickle.dumps({"format": checkpoint.FORMAT, "weights": Bomb(path.with_name("bang"))}, 2))
        case "torch pickle":
            torch.save({"format": checkpoint.FORMAT, "weights": Bomb(path.with_name("bang"))}, path)
        case "tensor":
            torch.save(torch.ones(3), path)
        case "weights alone":
            torch.save({"w": torch.ones(3)}, path)
        case "no policy":
            checkpoint.save(path, {}, {"w": torch.ones(3)})


KINDS = ["missing", "folder", "half", "empty", "random", "text", "pickle", "torch pickle",
         "tensor", "weights alone", "no policy"]
