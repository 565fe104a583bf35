"""The choice of a graphics backend, and the messages if none works or robosuite is missing."""
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from simulator.robosuite import rendering as R

ROOT = Path(__file__).resolve().parent.parent
# a module of this name is not found, as if it were not installed
WITHOUT = """
import sys
class Blocker:
    def find_spec(name, *_):
        if name.split(".")[0] == {name!r}:
            raise ModuleNotFoundError("No module named " + name)
sys.meta_path.insert(0, Blocker)
"""


def python(*words, **variables):
    """Return (exit code, lines of stdout, lines of stderr). A variable of None is unset."""
    env = {key: value for key, value in (os.environ | variables).items() if value is not None}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.fixture(scope="module")
def renders():
    """Return {backend: whether it renders here}."""
    try:
        R.check_installed()
    except R.EnvError as error:
        pytest.skip(str(error))
    return {name: not R.try_backend(name) for name in R.BACKENDS}


@pytest.mark.parametrize("requested", [None, "egl", "osmesa", "bogus"])
def test_check_rendering(renders, requested):
    code, out, err = python("-m", "simulator.robosuite.rendering", MUJOCO_GL=requested, PYOPENGL_PLATFORM=None)
    assert code == (0 if any(renders.values()) else 1), err
    for line, (name, good) in zip(out, renders.items(), strict=False):
        assert line == f"{name}: renders" if good else line.startswith(f"{name}: ") and R.BACKENDS[name] in line
    assert len(out) == 3
    if any(renders.values()):
        used = requested if renders.get(requested) else next(name for name, good in renders.items() if good)
        assert out[2].startswith(f"in use: {used}, with robosuite 1.")
        notice = f"MUJOCO_GL={requested} does not render here: using {used}"
        assert err == ([] if requested in (None, used) else [notice])
    else:
        assert out[2].startswith("cannot render without a screen: install EGL")


@pytest.mark.parametrize("name", ["robosuite", pytest.param("mujoco", marks=pytest.mark.skipif(
    find_spec("robosuite") is None, reason="robosuite is not installed: it is named first"))])
def test_a_missing_package_is_named_with_the_extra(name):
    code, out, err = python("-c", WITHOUT.format(name=name) + """
from simulator.robosuite import rendering
from simulator.robosuite import env as robosuite_env
try:
    robosuite_env.RobosuiteEnv(instructions={})
except rendering.EnvError as error:
    print(error)
sys.exit(rendering.check_rendering())
""")
    assert (code, err) == (1, []) and len(out) == 2 and out[0] == out[1]
    assert out[0].startswith(f"{name} is not installed: make robosuite, or pip install 'flexibleworld[robosuite]'")


def test_nothing_renders(monkeypatch, renders, capsys):
    monkeypatch.setattr(R, "try_backend", lambda name: f"no {name}")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert R.check_rendering() == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "egl: no egl; Debian: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
    assert out[2].startswith("cannot render without a screen: install EGL") and len(out) == 3
    with pytest.raises(R.EnvError, match="libosmesa6"):
        R.choose_backend()
    assert os.environ["MUJOCO_GL"] == "egl"


def test_without_images_no_backend_is_needed(renders):
    code, out, err = python("-c", "from simulator.robosuite import env as robosuite_env, rendering\n"
                            "rendering.try_backend = lambda name: 'none'\n"
                            "env = robosuite_env.RobosuiteEnv(task='Lift', instructions={}, render_images=False)\n"
                            "print(env.reset(seed=0)[0]['image'].any(), env.step(4)[1])", MUJOCO_GL="bogus")
    assert code == 0 and out[0].startswith("False "), err


def test_models_can_be_imported_after_rendering(renders):
    """Mesa and triton (imported by transformers) both load an LLVM. In the wrong order the process crashes."""
    if not any(renders.values()):
        pytest.skip("nothing renders here")
    code, out, err = python("-c", "from simulator.robosuite.env import RobosuiteEnv\n"
                            "env = RobosuiteEnv(task='Lift', instructions={})\nenv.reset(seed=0)\n"
                            "from transformers import Qwen2VLForConditionalGeneration\nprint('good')")
    assert (code, out) == (0, ["good"]), err


def test_a_dropped_env_leaves_the_images_of_others_alone(renders):
    """It must free its own OpenGL objects only."""
    if not any(renders.values()):
        pytest.skip("nothing renders here")
    code, out, err = python("-c", "import gc\nfrom simulator.robosuite.env import RobosuiteEnv\n"
                            "make = lambda: RobosuiteEnv(task='Lift', instructions={})\n"
                            "make()\nenv = make()\ngc.collect()\nmake()\ngc.collect()\n"
                            "a, b = (env.reset(seed=0)[0]['image'] for _ in range(2))\n"
                            "print(a.mean() > 180, (a == b).all())")
    assert (code, out) == (0, ["True True"]), err
