"""Run inference.py, and find what it drew."""
import numpy as np
from PIL import Image

import inference

RED, WHITE = (220, 20, 60), (255, 255, 255)


def act(capsys, folder, *words, goal="go left"):
    """-> exit code, stdout, stderr of the program; its GIF would be folder/a.gif."""
    capsys.readouterr()
    code = inference.main(["--goal", goal, "--output", str(folder / "a.gif"), *map(str, words)])
    return code, *capsys.readouterr()


def refuses(capsys, folder, *words):
    """What it says in one line, nothing written."""
    code, out, err = act(capsys, folder, *words)
    assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1
    assert not [path for path in folder.iterdir() if path.name.startswith("a.gif")]
    return err


def frames(path):
    with Image.open(path) as gif:
        for i in range(gif.n_frames):
            gif.seek(i)
            yield np.asarray(gif.convert("RGB"))


def ring_of(frame):
    """The middle of what is drawn in red."""
    there = np.abs(frame.astype(int) - RED).sum(-1) < 30
    return np.argwhere(there).mean(0)[::-1] if there.any() else None
