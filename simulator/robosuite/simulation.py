"""`RobosuiteSim`: one robosuite simulation, its true state, its camera images and its MuJoCo state."""
import sys
from dataclasses import asdict
from typing import Any

import numpy as np

from simulator.registry import EnvError
from simulator.robosuite.env_config import PROPRIO, PROPRIO_HIGH, PROPRIO_LOW, RobosuiteConfig
from simulator.robosuite.rendering import Camera, import_robosuite, setup_mujoco_gl
from simulator.robosuite.tasks import TASKS


class RobosuiteSim:
    """A robosuite simulation of one task.

    Positions are float64 [3], metres, in the world frame. `render_images=False` needs no graphics backend; images are
    black then. EnvError if the simulation is closed.
    """
    sim_env = None      # `__del__` also runs if the constructor fails

    def __init__(self, settings: RobosuiteConfig, render_images: bool):
        self.settings = settings
        self.task = TASKS[settings.task]
        self.render_images = render_images
        self.cameras: dict[str, Camera] = {}
        self.cached_image: np.ndarray | None = None
        setup_mujoco_gl(render_images)
        self.sim_env = import_robosuite().make(
            settings.task, robots=settings.robot, has_renderer=False, has_offscreen_renderer=render_images,
            use_camera_obs=False, use_object_obs=False, control_freq=settings.control_freq, reward_shaping=True,
            ignore_done=True, hard_reset=False, seed=0)
        self.xml = self.sim.model.get_xml()         # here: MuJoCo writes the last model compiled in a process
        for observable in self.sim_env._observables.values():       # robosuite computes them at every substep
            observable.set_enabled(False)
            observable.set_active(False)

    # --- true state ---------------------------------------------------------------------------------------------
    @property
    def sim(self) -> Any:
        """robosuite's MjSim."""
        sim = self.sim_env and self.sim_env.sim
        if not sim:
            raise EnvError("this env is closed: make another one")
        return sim

    @property
    def gripper(self) -> Any:
        """robosuite's gripper model."""
        return self.sim_env.robots[0].gripper["right"]

    def eef_pos(self) -> np.ndarray:
        """Return the position of the end effector, between the fingertips."""
        return self.sim.data.site_xpos[self.sim_env.robots[0].eef_site_id["right"]].copy()

    def object_pos(self) -> np.ndarray:
        """Return the position of the task's object."""
        return self.sim.data.body_xpos[self.sim.model.body_name2id(self.task.body)].copy()

    def object_rotation(self) -> np.ndarray:
        """Return the rotation matrix [3,3] of the task's object."""
        return self.sim.data.body_xmat[self.sim.model.body_name2id(self.task.body)].reshape(3, 3)

    def grasp_pos(self) -> np.ndarray:
        """Return the position where the gripper should grasp the object."""
        if not self.task.grasp_site:
            return self.object_pos()
        return self.sim.data.site_xpos[self.sim.model.site_name2id(self.task.grasp_site)].copy()

    def object_model(self) -> Any:
        """Return robosuite's model of the object."""
        name = self.task.body.removesuffix("_main")
        return next(model for model in self.sim_env.model.mujoco_objects if model.name == name)

    def grasped(self) -> bool:
        """Return whether both fingers touch the object."""
        return bool(self.sim_env._check_grasp(gripper=self.gripper, object_geoms=self.object_model()))

    def proprio(self) -> np.ndarray:
        """Return float32 [9]: the parts of PROPRIO, clipped to PROPRIO_LOW and PROPRIO_HIGH."""
        robot = self.sim_env.robots[0]
        w, *xyz = self.sim.data.get_body_xquat(robot.robot_model.eef_name["right"])
        fingers = self.sim.data.qpos[robot._ref_gripper_joint_pos_indexes["right"]]
        proprio = np.concatenate([self.eef_pos(), [*xyz, w], fingers[:2]]).astype(np.float32)
        return np.clip(proprio, PROPRIO_LOW, PROPRIO_HIGH)

    # --- images -------------------------------------------------------------------------------------------------
    def camera(self, name: str) -> Camera:
        """Return the camera of this name."""
        if name not in self.cameras:
            self.cameras[name] = Camera(self.sim, name)
        return self.cameras[name]

    def render_cameras(self, names: tuple[str, ...] | None = None, size: int | None = None) -> np.ndarray:
        """Return uint8 [H,W*n,3]: the images of n cameras side by side. Black with `render_images=False`."""
        names = tuple(names or self.settings.cameras)
        size = size or self.settings.resolution
        if not self.render_images:
            return np.zeros((size, size * len(names), 3), np.uint8)
        return np.concatenate([self.camera(name).render(size, size) for name in names], axis=1)

    def image(self) -> np.ndarray:
        """Return the observation's image. It is rendered once per state."""
        if self.cached_image is None:
            self.cached_image = self.render_cameras()
        return self.cached_image

    def locate_in_image(self, points: list[np.ndarray]) -> np.ndarray:
        """Return float32 [n,2]: (x, y) of n world points in the first camera's part of the image, in [0, 1] of the
        whole image. NaN for points outside, and for all with `render_images=False`."""
        if not self.render_images:
            return np.full((len(points), 2), np.nan, np.float32)
        camera = self.camera(self.settings.cameras[0])
        scale = [len(self.settings.cameras), 1]
        return np.array([camera.locate(point) / scale for point in points], np.float32)

    # --- records ------------------------------------------------------------------------------------------------
    def observation_dict(self) -> dict[str, np.ndarray]:
        """Return the observation under robomimic's names: uint8 [H,W,3] `<camera>_image` (absent with
        `render_images=False`) and float32 parts of PROPRIO."""
        observation = {}
        if self.render_images:
            images = np.split(self.image(), len(self.settings.cameras), axis=1)
            observation = {f"{name}_image": image for name, image in zip(self.settings.cameras, images, strict=True)}
        parts = np.split(self.proprio(), np.cumsum(list(PROPRIO.values()))[:-1])
        return observation | dict(zip(PROPRIO, parts, strict=True))

    def load_state(self, state: np.ndarray) -> None:
        """Set the MuJoCo state, float64 [S] (time, qpos, qvel). EnvError for a state of another scene.

        The controller and the gripper command are not part of it and stay as they are.
        """
        size = len(self.sim.get_state().flatten())
        if np.shape(state) != (size,):
            raise EnvError(f"a state of {self.settings.task} with {self.settings.robot} has {size} numbers, "
                           f"not {np.size(state)}: choose the task and robot that were recorded")
        self.sim.set_state_from_flattened(np.asarray(state, float))
        self.sim.forward()
        self.cached_image = None

    def model_file(self) -> str:
        """Return the scene as MuJoCo XML."""
        return self.xml

    def env_args(self) -> dict[str, Any]:
        """Return robomimic's `env_args`: the arguments of robosuite.make, as plain data.

        The key `flexibleworld` holds our own configuration: `action_repeat` control steps make one of our actions.
        """
        robosuite = import_robosuite()
        size = self.settings.resolution
        kwargs = {"robots": self.settings.robot, "has_renderer": False, "has_offscreen_renderer": self.render_images,
                  "use_camera_obs": self.render_images, "use_object_obs": False,
                  "control_freq": self.settings.control_freq, "reward_shaping": True, "ignore_done": True,
                  "camera_names": list(self.settings.cameras), "camera_heights": size, "camera_widths": size,
                  "controller_configs": robosuite.load_composite_controller_config(robot=self.settings.robot)}
        return {"env_name": self.settings.task, "env_version": robosuite.__version__, "type": 1, "env_kwargs": kwargs,
                "flexibleworld": asdict(self.settings)}

    def close(self) -> None:
        """Free the simulation. A second call does nothing."""
        if self.sim_env and self.sim_env.sim:
            if self.render_images:      # robosuite frees in the current OpenGL context: make it this simulation's
                self.sim._render_context_offscreen.gl_ctx.make_current()
            self.sim_env.close()

    def __del__(self):      # also frees an env that was dropped without close()
        if not sys.is_finalizing():
            self.close()
