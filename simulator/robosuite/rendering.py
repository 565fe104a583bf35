"""Pictures of a robosuite simulation without a screen: which graphics backend works here, and a fast camera.

    python -m simulator.robosuite.rendering       says whether pictures can be rendered here, and what is missing if not
"""
import importlib.util
import itertools
import logging
import os
import subprocess
import sys
from functools import cache

import numpy as np

from simulator.registry import EnvError

BACKENDS = {"egl": "libegl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}      # Debian's packages


@cache
def try_backend(name):
    """'' if MuJoCo can render here through this graphics backend, else the reason. A process of its own tries it, for
    a backend that fails may take its process with it."""
    code = "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); context.free()"
    environment = os.environ | {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
    tried = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else (tried.stderr.strip().splitlines() or ["it ended without a word"])[-1]


def choose_backend():
    """Sets MUJOCO_GL to a backend that renders without a screen, EGL before OSMesa; a working choice of the user's
    stays. WorldError where there is none."""
    requested = os.environ.get("MUJOCO_GL", "").lower()
    for name in sorted(BACKENDS, key=lambda name: name != requested):
        if not try_backend(name):
            if requested and name != requested:
                print(f"MUJOCO_GL={requested} does not render here: using {name}", file=sys.stderr)
            os.environ |= {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
            return name
    raise EnvError("cannot render without a screen: install EGL (Debian: apt-get install "
                         f"{BACKENDS['egl']}) or OSMesa (apt-get install {BACKENDS['osmesa']})")


def check_installed():
    """WorldError where robosuite or MuJoCo is missing. Imports neither: MuJoCo reads its variables when it is."""
    for name in ("robosuite", "mujoco"):
        try:
            found = importlib.util.find_spec(name)
        except ImportError:
            found = None
        if not found:
            raise EnvError(f"{name} is not installed: make robosuite, or pip install 'flexibleworld[robosuite]'")


def import_robosuite():
    """The package, without its advice about other packages. After `choose_backend`, or MUJOCO_GL may be a wrong one."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import robosuite
    except ImportError as error:
        raise EnvError(f"robosuite cannot be imported ({str(error) or 'it does not say why'}): install it anew with "
                         "make robosuite, or pip install 'flexibleworld[robosuite]'") from None
    finally:
        logging.disable(before)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    return robosuite


def setup_mujoco_gl(pictures=True):
    """What has to be done before robosuite is imported: MuJoCo looks at the environment variables then."""
    check_installed()
    if importlib.util.find_spec("triton"):      # torch's: where Mesa's LLVM is loaded first, importing it later crashes
        importlib.import_module("triton")
    os.environ.setdefault("LP_NUM_THREADS", "0")    # software rendering in this thread: workers are what is parallel
    try:
        choose_backend()
    except EnvError:
        if pictures:
            raise
        os.environ["MUJOCO_GL"] = "disable"
    import_robosuite()


def check_rendering():
    """Prints the state of every backend -> exit code: 0 if pictures can be rendered, 1 if not."""
    try:
        check_installed()
        for name, packages in BACKENDS.items():
            why = try_backend(name)
            print(f"{name}: " + (f"{why}; Debian: apt-get install {packages}" if why else "renders"), flush=True)
        print(f"in use: {choose_backend()}, with robosuite {import_robosuite().__version__}")
    except EnvError as error:
        print(error)
        return 1
    return 0


class Camera:
    """Pictures of a robosuite simulation through one of its cameras."""

    def __init__(self, sim, name):
        import mujoco
        self.sim, self.name = sim, name
        self.model, self.data = sim.model._model, sim.data._data
        self.id = sim.model.camera_name2id(name)
        self.context = context = sim._render_context_offscreen
        if context:         # without one, `place` still knows what is where
            for flag in ("SHADOW", "REFLECTION"):
                context.scn.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
            context.vopt.geomgroup[5] = 0       # where `render` puts what is not to be drawn
        signs = np.array(list(itertools.product((-1, 1), repeat=3)))
        box = self.model.geom_aabb
        self.corners = box[:, None, :3] + signs * box[:, None, 3:]          # [G,8,3] in each geom's frame
        self.endless = self.model.geom_rbound == 0                          # planes

    def project(self, points):
        """Points [...,3] -> (x, y, depth) in the camera's frame: x and y in [-1, 1] within the picture, y up."""
        rotation = self.data.cam_xmat[self.id].reshape(3, 3)
        x, y, z = np.moveaxis((points - self.data.cam_xpos[self.id]) @ rotation, -1, 0)
        half = np.tan(np.radians(self.model.cam_fovy[self.id]) / 2)
        return x / half, y / half, -z

    def locate(self, point):
        """Where a point is seen, (x, y) as shares of a square picture from its top left; NaN outside of it."""
        x, y, depth = self.project(point)
        place_ = np.array([1 + x / depth, 1 - y / depth]) / 2
        return place_ if depth > 0 and (abs(2 * place_ - 1) < 1).all() else np.full(2, np.nan)

    def render(self, width, height):
        """uint8 [H,W,3], upright."""
        world = np.einsum("gij,gcj->gci", self.data.geom_xmat.reshape(-1, 3, 3), self.corners)
        x, y, depth = self.project(world + self.data.geom_xpos[:, None])                      # [G,8] each
        x = x * height / width
        beyond = [(depth < 0), (x > depth), (x < -depth), (y > depth), (y < -depth)]
        unseen = np.any([outside.all(1) for outside in beyond], axis=0) & ~self.endless
        groups = self.model.geom_group.copy()
        self.context.gl_ctx.make_current()      # robosuite does so once, and then draws wherever the newest world does
        self.model.geom_group[unseen] = 5
        try:
            picture = self.sim.render(width, height, camera_name=self.name)
        finally:
            self.model.geom_group[:] = groups
        return np.ascontiguousarray(picture[::-1])      # OpenGL's first row is the lowest


if __name__ == "__main__":
    sys.exit(check_rendering())
