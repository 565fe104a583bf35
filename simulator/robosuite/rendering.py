"""Headless rendering of robosuite: the choice of a graphics backend, and a fast camera.

    python -m simulator.robosuite.rendering       checks the backends and says which packages are missing
"""
import importlib.util
import itertools
import logging
import os
import subprocess
import sys
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from simulator.registry import EnvError

# backend: its Debian packages
BACKENDS = {"egl": "libegl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}
INSTALL_HINT = "make robosuite, or pip install 'flexibleworld[robosuite]'"
HIDDEN_GROUP = 5        # a MuJoCo geom group that `Camera` does not draw


@cache
def try_backend(name: str) -> str:
    """Return '' if MuJoCo can render with this backend, else the reason.

    A separate process tries it, because a failing backend may crash its process.
    """
    code = "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); context.free()"
    variables = os.environ | {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
    result = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return ""
    return (result.stderr.strip().splitlines() or ["it crashed without a message"])[-1]


def choose_backend() -> str:
    """Set MUJOCO_GL to a working headless backend and return its name. EnvError if there is none.

    A working choice of the user stays. Else EGL comes before OSMesa.
    """
    requested = os.environ.get("MUJOCO_GL", "").lower()
    for name in sorted(BACKENDS, key=lambda name: name != requested):
        if not try_backend(name):
            if requested and name != requested:
                print(f"MUJOCO_GL={requested} does not render here: using {name}", file=sys.stderr)
            os.environ |= {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
            return name
    raise EnvError(f"cannot render without a screen: install EGL (Debian: apt-get install {BACKENDS['egl']}) or "
                   f"OSMesa (apt-get install {BACKENDS['osmesa']})")


def check_installed() -> None:
    """Raise EnvError if robosuite or MuJoCo is missing. Import neither: MuJoCo reads its variables on import."""
    for name in ("robosuite", "mujoco"):
        try:
            found = importlib.util.find_spec(name)
        except ImportError:
            found = None
        if not found:
            raise EnvError(f"{name} is not installed: {INSTALL_HINT}")


def import_robosuite() -> ModuleType:
    """Return the module robosuite, imported without its warnings. Call `choose_backend` first. EnvError if it fails."""
    log_level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import robosuite
    except ImportError as error:
        reason = str(error) or "no reason given"
        raise EnvError(f"robosuite cannot be imported ({reason}): reinstall it with {INSTALL_HINT}") from None
    finally:
        logging.disable(log_level)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    return robosuite


def setup_mujoco_gl(render_images: bool = True) -> None:
    """Choose a backend, then import robosuite. EnvError if images are required and no backend works."""
    check_installed()
    if importlib.util.find_spec("triton"):      # if Mesa loads its LLVM first, importing triton later crashes
        importlib.import_module("triton")
    os.environ.setdefault("LP_NUM_THREADS", "0")    # render in one thread: the workers run in parallel
    try:
        choose_backend()
    except EnvError:
        if render_images:
            raise
        os.environ["MUJOCO_GL"] = "disable"
    import_robosuite()


def check_rendering() -> int:
    """Print the state of every backend. Return the exit code: 0 if images can be rendered, else 1."""
    try:
        check_installed()
        for name, packages in BACKENDS.items():
            reason = try_backend(name)
            status = f"{reason}; Debian: apt-get install {packages}" if reason else "renders"
            print(f"{name}: {status}", flush=True)
        print(f"in use: {choose_backend()}, with robosuite {import_robosuite().__version__}")
    except EnvError as error:
        print(error)
        return 1
    return 0


class Camera:
    """One camera of a robosuite simulation."""

    def __init__(self, sim: Any, name: str):
        """`sim`: robosuite's MjSim. Without a render context only `project` and `locate` work."""
        import mujoco
        self.sim, self.name = sim, name
        self.model, self.data = sim.model._model, sim.data._data
        self.id = sim.model.camera_name2id(name)
        self.context = sim._render_context_offscreen
        if self.context:
            for flag in ("SHADOW", "REFLECTION"):       # these passes cost most of the time
                self.context.scn.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
            self.context.vopt.geomgroup[HIDDEN_GROUP] = 0
        signs = np.array(list(itertools.product((-1, 1), repeat=3)))
        boxes = self.model.geom_aabb                                            # [G,6]: center, half size
        self.corners = boxes[:, None, :3] + signs * boxes[:, None, 3:]          # [G,8,3] in each geom's frame
        self.is_plane = self.model.geom_rbound == 0                             # planes are infinite

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (x, y, depth) of world points [...,3] in the camera's frame, each [...].

        x and y are scaled so that |x|, |y| < depth inside a square image. y points up.
        """
        rotation = self.data.cam_xmat[self.id].reshape(3, 3)
        x, y, z = np.moveaxis((points - self.data.cam_xpos[self.id]) @ rotation, -1, 0)
        half = np.tan(np.radians(self.model.cam_fovy[self.id]) / 2)
        return x / half, y / half, -z

    def locate(self, point: np.ndarray) -> np.ndarray:
        """Return (x, y) of a world point in a square image, in [0, 1] from its top left; NaN outside."""
        x, y, depth = self.project(point)
        xy = np.array([1 + x / depth, 1 - y / depth]) / 2
        is_inside = depth > 0 and (abs(2 * xy - 1) < 1).all()
        return xy if is_inside else np.full(2, np.nan)

    def _outside_view(self, aspect: float) -> np.ndarray:
        """Return bool [G]: the geoms whose bounding box is outside the view. `aspect`: width / height."""
        corners = np.einsum("gij,gcj->gci", self.data.geom_xmat.reshape(-1, 3, 3), self.corners)
        x, y, depth = self.project(corners + self.data.geom_xpos[:, None])      # [G,8] each
        x = x / aspect
        outside = [depth < 0, x > depth, x < -depth, y > depth, y < -depth]
        return np.any([side.all(1) for side in outside], axis=0) & ~self.is_plane

    def render(self, width: int, height: int) -> np.ndarray:
        """Return uint8 [H,W,3], upright. Geoms outside the view are not drawn, which saves time."""
        groups = self.model.geom_group.copy()
        self.context.gl_ctx.make_current()      # robosuite does so once, then draws in the newest env's context
        self.model.geom_group[self._outside_view(width / height)] = HIDDEN_GROUP
        try:
            image = self.sim.render(width, height, camera_name=self.name)
        finally:
            self.model.geom_group[:] = groups
        return np.ascontiguousarray(image[::-1])      # OpenGL's first row is the lowest


if __name__ == "__main__":
    sys.exit(check_rendering())
