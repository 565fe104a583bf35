"""A robosuite arm as an environment: camera pictures and a sentence in, a named action or a 7-vector out.

Task      goals (the first is the task's own)   what is asked
Lift                lift_cube, push_cube        the cube off the table; 8 cm away from the robot, on the table
PickPlaceCan        place_can, place_can_near   the can in its compartment (the far one); in the one near the robot
NutAssemblySquare   place_nut, lift_nut         the square nut on its peg; 8 cm up

Observation: {"image": uint8 [H,W*n,3], upright, the n cameras side by side; "goal": the sentence; with proprioception
"proprio": float32 [9], the gripper's place (3, metres, world frame), its quaternion (4, xyzw) and its fingers' (2, m)}.
Action, discrete: one of the 8 `ACTIONS`. Continuous: Box float32 [7] in [-1, 1]: displacement (1: 5 cm commanded),
rotation vector (1: 0.5 rad), gripper (sign: + closes, - opens, 0 stays), all in the robot's base frame. An action is
held for `action_repeat` control steps of 1 / `control_freq` s, the named ones of the gripper for `gripper_repeat`:
after 10 the fingers are open, or closed, whatever they were; after fewer, what is seen does not tell how firmly they
hold, and a policy without memory keeps closing them.
Reward, by `reward`: "progress" is the change of how far the goal has come, so an episode's return is at most 1 and
nothing is gained by lingering before the goal; "shaped" that value itself at each step; "sparse" 1 on success. The
value grows as robosuite's own shaped reward does: reach up to 0.1, grasp 0.35, lift up to 0.5, hover up to 0.7,
success 1.
Start: robosuite's own, things and arm at random. Success terminates, `max_steps` actions truncate.

    RobosuiteEnv         Gymnasium's Env, registered as FlexibleWorld/Robosuite-v0
    RobosuiteVectorEnv   several, each in a process of its own; what the trainer asks of an environment

A picture differs from what robosuite renders by the faint mirror image in the floor and by nothing else: the passes
for mirrors and shadows, which robosuite's lights do not cast, cost most of the time and are left out, and what lies
outside of a camera's view is not drawn, which nobody sees.
"""
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState

from simulator.commands import ALLOWED_CHARS, corpus_hash
from simulator.evaluation import evaluate_actors, success_rate
from simulator.registry import EnvError
from simulator.robosuite.commands import COMMANDS_FILE, instructions_by_goal, parse_instruction
from simulator.robosuite.expert import expert_action
from simulator.robosuite.rendering import Camera, import_robosuite, setup_mujoco_gl

ACTIONS = ("backward", "forward", "left", "right", "up", "down", "close gripper", "open gripper")
ACTION_VECTORS = np.zeros((8, 7), np.float32)      # 0.5: 2.5 cm commanded in a control step
ACTION_VECTORS[range(6), [0, 0, 1, 1, 2, 2]] = [-0.5, 0.5, -0.5, 0.5, 0.5, -0.5]
ACTION_VECTORS[[6, 7], 6] = 1, -1
SPLITS = ("seen", "held_out_en", "held_out_ko", "instruction_swap")
STAGES = ("reach", "grasp", "lift", "hover")
PROPRIO_LOW = np.array([-1, -1, 0, -1, -1, -1, -1, -0.05, -0.05], np.float32)
PROPRIO_HIGH = np.array([1, 1, 2, 1, 1, 1, 1, 0.05, 0.05], np.float32)


@dataclass(frozen=True)
class Task:
    """A scene. `thing` is the body that goals are about, `hold` the site that is grasped (default: that body)."""
    goals: tuple
    body: str
    grasp_site: str = ""


TASKS = {"Lift": Task(("lift_cube", "push_cube"), "cube_main"),
         "PickPlaceCan": Task(("place_can", "place_can_near"), "Can_main"),
         "NutAssemblySquare": Task(("place_nut", "lift_nut"), "SquareNut_main", "SquareNut_handle_site")}
CAMERAS = ("robot0_eye_in_hand", "agentview", "frontview", "birdview", "sideview", "robot0_robotview")
ROBOTS = ("Panda", "Sawyer", "IIWA", "Jaco", "Kinova3", "UR5e")
LIFT_HEIGHT = {"lift_cube": 0.04, "lift_nut": 0.08}      # metres above the start; lift_cube is judged by robosuite itself
PUSH_DISTANCE = 0.08
LIMITS = {"resolution": 1024, "control_freq": 500, "action_repeat": 1000, "gripper_repeat": 1000, "max_steps": 10**6}


class NamedDiscrete(spaces.Discrete):
    """Discrete(n), with a name for each action."""

    def __init__(self, names):
        super().__init__(len(names))
        self.names = tuple(names)


@dataclass(frozen=True)
class RobosuiteConfig:
    """What a world is made from; WorldError for what cannot be."""
    task: str = "PickPlaceCan"
    robot: str = "Panda"
    cameras: tuple = ("robot0_eye_in_hand",)
    resolution: int = 84            # pixels, of each picture's sides
    control_freq: int = 20          # control steps per second
    action_space: str = "discrete"
    action_repeat: int = 1          # control steps
    gripper_repeat: int = 1         # control steps, of the two named actions of the gripper
    proprioception: bool = False
    reward: str = "progress"
    max_steps: int = 200            # actions
    goals: tuple = ()               # default: the task's own

    def __post_init__(self):
        self._one_of("task", self.task, TASKS)
        several = lambda names: (names,) if isinstance(names, str) else tuple(names)
        object.__setattr__(self, "goals", several(self.goals) or TASKS[self.task].goals[:1])
        object.__setattr__(self, "cameras", several(self.cameras))
        for goal in self.goals:
            self._one_of("goal", goal, TASKS[self.task].goals)
        for camera in self.cameras:
            self._one_of("camera", camera, CAMERAS)
        if not self.cameras:
            raise EnvError(f"cameras names no camera: choose one at least from {', '.join(CAMERAS)}")
        self._one_of("robot", self.robot, ROBOTS)
        self._one_of("action space", self.action_space, ("discrete", "continuous"))
        self._one_of("reward", self.reward, ("progress", "shaped", "sparse"))
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise EnvError(f"{name} takes a whole number from 1 to {most}, not {value!r}")

    def _one_of(self, what, name, names):
        if name not in names:
            raise EnvError(f"no {what} {name!r} in this world: choose from {', '.join(names)}")

    @property
    def discrete(self):
        return self.action_space == "discrete"

    def spaces(self):
        """-> (observation space, action space)."""
        picture = (self.resolution, self.resolution * len(self.cameras), 3)
        seen = {"image": spaces.Box(0, 255, picture, np.uint8), "goal": spaces.Text(500, charset=ALLOWED_CHARS)}
        if self.proprioception:
            seen["proprio"] = spaces.Box(PROPRIO_LOW, PROPRIO_HIGH)
        return spaces.Dict(seen), NamedDiscrete(ACTIONS) if self.discrete else spaces.Box(-1, 1, (7,), np.float32)


# --- one world --------------------------------------------------------------------------------------------------
class RobosuiteEnv(gymnasium.Env):
    """One robot arm; see this file's beginning. `sentences` {goal: its sentences} is what goals are said with.
    `reset(options={"goal": a goal or a sentence})`; without one the goal is drawn. Episode k after a reset(seed) is a
    function of (seed, k) and its actions."""
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    sim_env = None      # until it is made

    def __init__(self, task="PickPlaceCan", *, render_mode=None, instructions=None, pictures=True, **settings):
        self.settings = settings = RobosuiteConfig(task, **settings)
        self.task, self.goals, self.render_mode = TASKS[settings.task], settings.goals, render_mode
        self.instructions = instructions_by_goal() if instructions is None else instructions
        self.observation_space, self.action_space = settings.spaces()
        self.discrete, self.pictures, self.cameras = settings.discrete, pictures, {}
        setup_mujoco_gl(pictures)
        self.sim_env = import_robosuite().make(
            settings.task, robots=settings.robot, has_renderer=False, has_offscreen_renderer=pictures,
            use_camera_obs=False, use_object_obs=False, control_freq=settings.control_freq, reward_shaping=True,
            ignore_done=True, hard_reset=False, seed=0)
        self.xml = self.sim.model.get_xml()         # now: MuJoCo writes the model that was compiled last in a process
        for observable in self.sim_env._observables.values():       # computed at every substep, and read by nobody
            observable.set_enabled(False)
            observable.set_active(False)
        self.seed, self.episode, self.cached_image = None, -1, None

    # --- what is the case -----------------------------------------------------------------------------------------
    @property
    def sim(self):
        sim = self.sim_env and self.sim_env.sim
        if not sim:
            raise EnvError("this world is closed: make another")
        return sim

    @property
    def gripper(self):
        return self.sim_env.robots[0].gripper["right"]

    def eef_pos(self):
        """The place between the fingertips."""
        return self.sim.data.site_xpos[self.sim_env.robots[0].eef_site_id["right"]].copy()

    def object_pos(self):
        """The place of what the goal is about."""
        return self.sim.data.body_xpos[self.sim.model.body_name2id(self.task.body)].copy()

    def grasp_pos(self):
        """The place where it is to be grasped."""
        name = self.task.grasp_site
        return self.sim.data.site_xpos[self.sim.model.site_name2id(name)].copy() if name else self.object_pos()

    def object_model(self):
        """robosuite's model of the thing."""
        model, name = self.sim_env.model, self.task.body.removesuffix("_main")
        return next(thing for thing in model.mujoco_objects if thing.name == name)

    def grasped(self):
        return bool(self.sim_env._check_grasp(gripper=self.gripper, object_geoms=self.object_model()))

    def target(self, goal=None):
        """Where the thing is to be placed, [3]; None for goals that do not place it."""
        env, goal = self.sim_env, goal or self.goal
        if goal.startswith("place_can"):
            return env.target_bin_placements[2 if goal.endswith("near") else 3].copy()
        return env.sim.data.body_xpos[env.peg1_body_id].copy() if goal == "place_nut" else None

    def above_target(self, goal=None):
        """Whether the thing is over its target."""
        target, place = self.target(goal), self.object_pos()
        if target is None:
            return False
        reach = self.sim_env.bin_size[:2] / 4 if "can" in (goal or self.goal) else 0.03
        return bool((np.abs(place - target)[:2] < reach).all())

    def is_success(self, goal=None):
        """Whether the goal is."""
        env, goal, place = self.sim_env, goal or self.goal, self.object_pos()
        if goal == "push_cube":
            on_table = place[2] < self.start[2] + 0.02
            return bool(on_table and place[0] - self.start[0] > PUSH_DISTANCE)
        if goal == "lift_nut":
            return bool(self.grasped() and place[2] - self.start[2] > LIFT_HEIGHT[goal])
        if goal == "place_can_near":        # as robosuite judges of the can's own compartment
            return bool(not env.not_in_bin(place, 2) and 1 - np.tanh(10 * np.linalg.norm(self.eef_pos() - place)) < 0.6)
        return bool(env._check_success())

    def stages(self):
        """Which STAGES hold now; only those that the goal has."""
        raised = self.object_pos()[2] - self.start[2] > 0.04
        now = {"reach": bool(np.linalg.norm(self.eef_pos() - self.grasp_pos()) < 0.03), "grasp": self.grasped(),
               "lift": bool(raised)}
        if self.goal == "push_cube":
            now = {"reach": bool(np.linalg.norm(self.eef_pos() - self.object_pos()) < 0.06)}
        return now | ({"hover": bool(raised and self.above_target())} if self.target() is not None else {})

    def shaped_value(self):
        """How far the goal has come, in [0, 1]: robosuite's shaped reward (`staged_rewards`), for every goal alike."""
        if self.is_success():
            return 1.0
        near = 0.1 * (1 - np.tanh(10 * np.linalg.norm(self.eef_pos() - self.grasp_pos())))
        if self.goal == "push_cube":
            return near + 0.6 * float(np.clip((self.object_pos()[0] - self.start[0]) / PUSH_DISTANCE, 0, 1))
        if not self.grasped():
            # over its target a thing may fall: what was gained by bringing it there stays
            return max(near, 0.5 if self.target() is not None and self.above_target() and self.stages()["lift"] else 0)
        high = 0.25 if self.target() is not None else LIFT_HEIGHT[self.goal]
        lift = 0.35 + 0.15 * (1 - np.tanh(15 * max(self.start[2] + high - self.object_pos()[2], 0)))
        if self.target() is None:
            return float(lift)
        away = np.linalg.norm((self.target() - self.object_pos())[:2])
        return float((0.5 if self.above_target() else lift) + 0.2 * (1 - np.tanh(10 * away)))

    # --- observations -----------------------------------------------------------------------------------------------
    def camera(self, name):
        if name not in self.cameras:
            self.cameras[name] = Camera(self.sim, name)
        return self.cameras[name]

    def picture(self, names=None, size=None):
        """uint8 [H,W*n,3] through the named cameras; black in an environment without pictures."""
        names, size = tuple(names or self.settings.cameras), size or self.settings.resolution
        if not self.pictures:
            return np.zeros((size, size * len(names), 3), np.uint8)
        return np.concatenate([self.camera(name).render(size, size) for name in names], axis=1)

    def proprio(self):
        """float32 [9]: see this file's beginning."""
        robot = self.sim_env.robots[0]
        w, *xyz = self.sim.data.get_body_xquat(robot.robot_model.eef_name["right"])
        fingers = self.sim.data.qpos[robot._ref_gripper_joint_pos_indexes["right"]]
        return np.clip(np.concatenate([self.eef_pos(), [*xyz, w], fingers[:2]]).astype(np.float32),
                       PROPRIO_LOW, PROPRIO_HIGH)

    def image(self):
        """The observation's picture, rendered once in a moment."""
        self.cached_image = self.picture() if self.cached_image is None else self.cached_image
        return self.cached_image

    def observe(self):
        obs = {"image": self.image(), "goal": self.instruction}
        return obs | {"proprio": self.proprio()} if self.settings.proprioception else obs

    def object_xy(self, goal=None):
        """float32 [2,2]: where the first camera sees the thing and its target, shares of the whole picture; NaN for
        what it does not see, and for all in an environment without pictures."""
        if not self.pictures:
            return np.full((2, 2), np.nan, np.float32)
        camera, target = self.camera(self.settings.cameras[0]), self.target(goal)
        points = [self.grasp_pos(), np.full(3, np.nan) if target is None else target]
        return np.array([camera.locate(point) / [len(self.settings.cameras), 1] for point in points], np.float32)

    # --- Gymnasium's API ------------------------------------------------------------------------------------------
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        for option in options or ():
            if option not in ("goal", "text", "monitor_goal"):
                raise EnvError(f"no option {option!r} in this world: choose from goal, text, monitor_goal")
        if seed is not None or self.seed is None:
            self.seed, self.episode = int(self.np_random.integers(2**31)) if seed is None else int(seed), -1
        self.episode += 1
        self.start_episode(**(options or {}))
        return self.observe(), self.reset_info()

    def reset_info(self):
        """What there is to know of an episode that has just begun."""
        return {"success": False, "goal": self.goal if self.scored else None, "note": "" if self.scored else
                f"no goal of this scene recognised, which knows {', '.join(self.task.goals)}"}

    def start_episode(self, goal=None, text=None, monitor_goal=None):
        """The next episode: its start follows from seed and number alone, whatever is asked."""
        rng = np.random.default_rng([self.seed, self.episode])
        self.sim_env.rng.bit_generator.state = rng.spawn(1)[0].bit_generator.state
        drawn = self.goals[rng.integers(len(self.goals))]
        self.goal, said = self.parse_goal(goal) if goal else (drawn, None)
        self.scored = self.goal is not None
        self.goal = self.goal or drawn
        self.instruction = text or said or self.sample_instruction(self.goal, rng)
        self.monitor_goal, self.monitor_success, self.action_history = monitor_goal, False, []
        sim = self.sim      # WorldError where it is closed
        self.sim_env.reset()
        sim.forward()
        self.init_progress()

    def init_progress(self):
        self.cached_image, self.start = None, self.object_pos()
        self.stage, self.before = self.stages(), self.shaped_value()

    def parse_goal(self, request):
        """A goal or a sentence -> (goal or None, sentence or None)."""
        if request in self.task.goals:
            return request, None
        return parse_instruction(str(request), self.task.goals), str(request)

    def sample_instruction(self, goal, rng):
        known = self.instructions.get(goal) or [goal]
        return known[rng.integers(len(known))]

    def apply_action(self, action):
        """Holds an action; nothing is judged."""
        if self.episode < 0:
            raise EnvError("no episode has begun: call reset() first")
        if self.discrete and not self.action_space.contains(action):
            raise EnvError(f"no action {action!r} in this world: choose from 0 to 7, {', '.join(ACTIONS)}")
        if not self.discrete and np.shape(action) != (7,):
            raise EnvError(f"an action in this world is 7 numbers, not an array of shape {np.shape(action)}")
        sim = self.sim      # WorldError where it is closed
        vector = ACTION_VECTORS[int(action)] if self.discrete else np.clip(np.nan_to_num(np.asarray(action, float)), -1, 1)
        self.action_history.append(int(action) if self.discrete else vector.tolist())
        self.cached_image, fingers = None, self.discrete and action >= 6
        for _ in range(self.settings.gripper_repeat if fingers else self.settings.action_repeat):
            self.sim_env.step(vector)
        sim.forward()       # what is seen is what is the case now, not one substep ago

    def step(self, action):
        self.apply_action(action)
        success, value = self.is_success() and self.scored, self.shaped_value()
        for name, holds in self.stages().items():
            self.stage[name] |= holds or success
        self.monitor_success |= bool(self.monitor_goal) and self.is_success(self.monitor_goal)
        reward = {"progress": value - self.before, "shaped": value, "sparse": float(success)}[self.settings.reward]
        self.before = value
        truncated = not success and len(self.action_history) >= self.settings.max_steps
        info = {"success": success, "goal": self.goal if self.scored else None, "note": self.note()}
        if success or truncated:
            stages = {name: float(self.stage.get(name, np.nan)) for name in STAGES}
            info["episode"] = {"success": success, "goal": self.goal} | stages | (
                {"monitor_success": self.monitor_success} if self.monitor_goal else {})
        return self.observe(), float(reward) if self.scored else 0.0, success, truncated, info

    def render(self):
        """For people: the scene beside what the policy sees, 256 high."""
        return self.picture(dict.fromkeys((*self.settings.cameras, "agentview")), 256)

    @staticmethod
    def describe(action):
        """An action in words."""
        return describe(action)

    def note(self):
        """The furthest stage reached so far."""
        return next((name for name in reversed(STAGES) if self.stage.get(name)), "")

    def close(self):
        if self.sim_env and self.sim_env.sim:
            if self.pictures:
                self.sim._render_context_offscreen.gl_ctx.make_current()    # what is freed is this world's
            self.sim_env.close()

    def __del__(self):      # also where it was dropped unclosed
        if not sys.is_finalizing():
            self.close()

    # --- what the trainer asks --------------------------------------------------------------------------------------
    def expert_action(self, goal=None):
        """What the scripted expert does now, for another goal if given."""
        return expert_action(self, goal or self.goal)

    def state(self):
        """From which `restore` makes the same world: an episode is a function of its seed and its actions."""
        return {"seed": self.seed, "episode": self.episode, "goal": self.goal, "text": self.instruction,
                "scored": self.scored, "actions": list(self.action_history)}

    def restore(self, state):
        self.seed, self.episode = int(state["seed"]), int(state["episode"])
        self.start_episode(state["goal"], state["text"])
        self.scored = state["scored"]
        for action in state["actions"]:
            self.apply_action(action)
            for name, holds in self.stages().items():
                self.stage[name] |= holds
        self.before = self.shaped_value()
        return self.observe()

    # --- what a demonstration records -------------------------------------------------------------------------------
    def observation_dict(self):
        """What is seen now, by robomimic's names: uint8 [H,W,3] `<camera>_image`, upright, none without pictures;
        float32 `robot0_eef_pos` [3], `robot0_eef_quat` [4] (xyzw), `robot0_gripper_qpos` [2]."""
        parts = np.split(self.image(), len(self.settings.cameras), axis=1) if self.pictures else []
        observation_dict = {f"{name}_image": part for name, part in zip(self.settings.cameras, parts, strict=self.pictures)}
        names = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
        return observation_dict | dict(zip(names, np.split(self.proprio(), [3, 7]), strict=True))

    def snapshot(self):
        """What an episode records before an action: `state` float64 [S] (time, qpos, qvel); `obs`, see `views`; and
        `labels`, for each goal of the scene the expert's `actions` and the `places`."""
        return {"state": self.sim.get_state().flatten(), "obs": self.observation_dict(), "labels": {
            goal: {"actions": np.asarray(expert_action(self, goal)), "object_xy": self.object_xy(goal)}
            for goal in self.task.goals}}

    def set_state(self, state, first=False):
        """As it was in a `moment`, to look at: what a state does not hold, the controller and the fingers' command,
        stays. From an episode's `first` state on goals are judged. WorldError for another scene's."""
        size = len(self.sim.get_state().flatten())
        if np.shape(state) != (size,):
            raise EnvError(f"a state of {self.settings.task} with {self.settings.robot} has {size} numbers, "
                                 f"not {np.size(state)}: name the scene that was recorded")
        self.sim.set_state_from_flattened(np.asarray(state, float))
        self.sim.forward()
        self.cached_image = None
        if first:
            self.init_progress()

    def model_file(self):
        """The scene in MuJoCo's XML."""
        return self.xml

    def env_args(self):
        """JSON-able: what robosuite.make (and robomimic) makes this world from, and `flexibleworld`, our own settings:
        an action is held for `action_repeat` of robosuite's steps."""
        robosuite, size = import_robosuite(), self.settings.resolution
        kwargs = {"robots": self.settings.robot, "has_renderer": False, "has_offscreen_renderer": self.pictures,
                  "use_camera_obs": self.pictures, "use_object_obs": False, "control_freq": self.settings.control_freq,
                  "reward_shaping": True, "ignore_done": True, "camera_names": list(self.settings.cameras),
                  "camera_heights": size, "camera_widths": size,
                  "controller_configs": robosuite.load_composite_controller_config(robot=self.settings.robot)}
        return {"env_name": self.settings.task, "env_version": robosuite.__version__, "type": 1, "env_kwargs": kwargs,
                "flexibleworld": asdict(self.settings)}


# --- many worlds ------------------------------------------------------------------------------------------------
class _Worker(RobosuiteEnv):
    """World `index` of many: it takes its own out of what is said to all."""

    def __init__(self, index, **settings):
        signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is for the trainer, which finishes and saves
        signal.signal(signal.SIGTERM, signal.SIG_DFL)       # whatever the trainer does about it, a worker just ends
        super().__init__(**settings)
        self.index, self.single_episode, self.finished = index, False, False

    def reset(self, *, seed=None, options=None):
        self.finished = self.single_episode and options is None      # Gymnasium's own reset, where an episode has ended
        if self.finished:
            return self.observe(), self.reset_info()
        one, options = {"goals": "goal", "instructions": "text", "monitor_goals": "monitor_goal"}, options or {}
        self.single_episode = options.get("single_episode", self.single_episode)
        mine = {one[key]: options[key][self.index] for key in one if options.get(key) is not None}
        return super().reset(seed=seed, options=mine)

    def step(self, action):
        return (self.observe(), 0.0, False, False, self.reset_info()) if self.finished else super().step(action)

    def restore(self, states):
        self.single_episode = self.finished = False
        return super().restore(states[self.index])

    def expert_labels(self, goals):
        """The expert's action and `places` for this world's one of `goals`, as if it had been asked."""
        goal = goals[self.index] or self.goal
        return expert_action(self, goal), self.object_xy(goal)


class _Make:
    """Makes a worker's world in the worker; in the process that starts the workers, a stand-in which has the spaces
    only: Gymnasium asks it for them, and a process that has rendered must not fork."""

    def __init__(self, index, settings):
        self.index, self.settings, self.parent = index, settings, os.getpid()

    def __call__(self):
        if os.getpid() != self.parent:
            return _Worker(self.index, **self.settings)
        own = {key: value for key, value in self.settings.items() if key not in ("instructions", "pictures")}
        stand_in = gymnasium.Env()
        stand_in.observation_space, stand_in.action_space = RobosuiteConfig(**own).spaces()
        return stand_in


class RobosuiteVectorEnv(AsyncVectorEnv):
    """Several robot arms, each in a process of its own; autoreset mode SAME_STEP.

    `reset(seed=int or list, options={"goals": [...], "texts": [...]})` fixes seeds, and goals and sentences of the
    first episode (None entries are drawn); with the option `once` a world whose episode has ended rests until the next
    reset. `infos` reports `success` at every step, and at an episode's end `final_obs` and `episode`: success, goal, 1
    or 0 for each of STAGES, NaN for one that the goal has not, and `watched`, whether another goal, named by the option
    `watch`, was reached at some step."""

    def __init__(self, num_envs, instructions=None, pictures=True, **settings):
        self.settings, self.pictures = RobosuiteConfig(**settings), pictures
        self.instructions = instructions_by_goal() if instructions is None else instructions
        setup_mujoco_gl(pictures)
        settings = settings | {"instructions": self.instructions, "pictures": pictures}
        super().__init__([_Make(i, settings) for i in range(num_envs)], shared_memory=False,
                         autoreset_mode=AutoresetMode.SAME_STEP)
        self.goals = self.settings.goals
        self.goal_vocab = tuple(f"1 {goal}" for goal in sorted(self.goals))
        self._current_goals = [self.settings.goals[0]] * num_envs

    def reset(self, *, seed=None, options=None):
        seed = None if seed is None else [int(s) for s in np.atleast_1d(seed)] if np.ndim(seed) else int(seed)
        obs, infos = super().reset(seed=seed, options={"single_episode": False} | (options or {}))
        self._current_goals = list(infos["goal"])
        return obs, infos

    def step(self, actions):
        obs, rewards, terminated, truncated, infos = self._alive(super().step, actions)
        if "final_info" in infos:
            infos["episode"] = infos.pop("final_info")["episode"]
            infos["success"] = infos["success"] | terminated        # Gymnasium tells of the next episode's start
        self._current_goals = list(infos["goal"])
        return obs, rewards.astype(np.float32), terminated, truncated, infos

    def render(self):
        return self.call("render")

    def call(self, name, *args, **kwargs):
        return self._alive(super().call, name, *args, **kwargs)

    @staticmethod
    def _alive(function, *args, **kwargs):
        """WorldError where a worker has ended, of which Gymnasium's pipes say nothing but that they are broken."""
        try:
            return function(*args, **kwargs)
        except (EOFError, ConnectionError) as error:
            raise EnvError("the process of a robot arm has ended, for want of memory perhaps: have fewer at once "
                             "(env.num_envs, --workers); training goes on with train.resume") from error

    def close_extras(self, timeout=None, terminate=False):
        """Ends every worker, also where one has died or was interrupted in a step: Gymnasium would wait for ever."""
        busy, self._state = self._state != AsyncState.DEFAULT, AsyncState.DEFAULT
        dead = not all(process.is_alive() for process in self.processes)
        super().close_extras(timeout, terminate or busy or dead)

    # --- what the trainer asks ------------------------------------------------------------------------------------
    def _expert_labels(self, goals):
        actions, object_xy = zip(*self.call("expert_labels", list(goals)), strict=True)
        return np.stack([np.asarray(a, self.single_action_space.dtype) for a in actions]), np.stack(object_xy)

    def expert_actions(self):
        """What the scripted expert does now [E,...]; it sees the true state."""
        return self._expert_labels([None] * self.num_envs)[0]

    def relabel_goals(self, rng, fraction):
        """As if something else had been asked here and now, of a `share` of the worlds -> what is asked (`goal`, E
        sentences; float32 `words` [E,V]; int `due` [E], all 0; `places` [E,2,2], see RobosuiteEnv.places), and the
        expert's actions for it [E,...]."""
        other = rng.random(self.num_envs) < fraction
        goals = [self.settings.goals[rng.integers(len(self.settings.goals))] if change else goal
                 for goal, change in zip(self._current_goals, other, strict=True)]
        actions, object_xy = self._expert_labels(goals)
        return {"goal": tuple(self.sample_instruction(goal, rng) for goal in goals), "goal_slots": self._slot_labels(goals),
                "active_goal": np.zeros(self.num_envs, np.int64), "object_xy": object_xy}, actions

    def sample_instructions(self, rng, n):
        """n sentences as this environment asks, and which of its `words` they say, float32 [n,V]."""
        goals = [self.settings.goals[i] for i in rng.integers(len(self.settings.goals), size=n)]
        return tuple(self.sample_instruction(goal, rng) for goal in goals), self._slot_labels(goals)

    sample_instruction = RobosuiteEnv.sample_instruction

    def _slot_labels(self, goals):
        return np.array([[slot == f"1 {goal}" for slot in self.goal_vocab] for goal in goals], np.float32)

    def noop_actions(self):
        """Staying where it is [E,...]; of the named actions, "open gripper" does."""
        return np.full(self.num_envs, 7) if self.settings.discrete else np.zeros((self.num_envs, 7), np.float32)

    def random_actions(self, rng):
        if self.settings.discrete:
            return rng.integers(8, size=self.num_envs)
        return rng.uniform(-1, 1, (self.num_envs, 7)).astype(np.float32)

    def round_robin_goals(self, n):
        """n goals that go round through all that this environment asks for."""
        return [self.settings.goals[i % len(self.settings.goals)] for i in range(n)]

    def state(self):
        return {"envs": [json.dumps(state) for state in self.call("state")]}

    def restore(self, state):
        """Back to a `state()`; returns its observation."""
        states = [json.loads(text) for text in state["envs"]]
        parts = self.call("restore", states)
        self._current_goals = [one["goal"] for one in states]
        return {key: np.stack([part[key] for part in parts]) if key != "goal" else tuple(p["goal"] for p in parts)
                for key in parts[0]}


# --- as simulator.registry wants it ---------------------------------------------------------------------------------
def describe(action):
    if np.ndim(action) == 0:
        return ACTIONS[int(action)]
    return "move ({:+.2f}, {:+.2f}, {:+.2f}), turn ({:+.2f}, {:+.2f}, {:+.2f}), gripper {:+.1f}".format(*action)


def instructions(config):
    return instructions_by_goal("train", None, tuple(config["env"]["instructions"]))


def instructions_hash(config):
    return corpus_hash(config["env"]["instructions"], COMMANDS_FILE)


def _settings(config, max_steps=None):
    return dict(config["robosuite"]) | {"goals": tuple(config["env"]["goals"]),
                                        "max_steps": max_steps or config["env"]["max_steps"]}


def make_env(config, num_envs):
    return RobosuiteVectorEnv(num_envs, instructions=instructions(config), **_settings(config))


def eval_splits(config):
    """What an agent can be measured in; `measure_split` says how."""
    return SPLITS if len(config.env.goals) > 1 else SPLITS[:-1]


def evaluate_split(split, config, policy, episodes, seed, baselines=True):
    """As simulator.particles.splits.measure: {actor: share}; of `swap`, where the sentence asks for another goal of the scene
    than the (true) one, {actor: {"true", "spoken", "gap"}}: success at the spoken goal should stay, at the true one
    collapse."""
    known = instructions_by_goal("train") if split in ("seen", "instruction_swap") else instructions_by_goal("held_out", split[-2:])
    env = make_env(config, config.env.num_envs)
    goals, rngs = env.round_robin_goals(episodes), [np.random.default_rng([seed, i]) for i in range(episodes)]
    sample_instruction = lambda goal, rng: known[goal][rng.integers(len(known[goal]))]
    if split != "instruction_swap":
        texts = [sample_instruction(goal, rng) for goal, rng in zip(goals, rngs, strict=True)]
        results = evaluate_actors(env, policy, episodes, seed, goals, texts, baselines=baselines)
        env.close()
        return {name: success_rate(result["success"].sum(), episodes) for name, result in results.items()}
    others = [[other for other in config.env.goals if other != goal] for goal in goals]
    instructed = [other[rng.integers(len(other))] for other, rng in zip(others, rngs, strict=True)]
    original = evaluate_actors(env, policy, episodes, seed, goals, baselines=baselines)
    results = evaluate_actors(env, policy, episodes, seed, instructed, monitor_goal=goals, baselines=baselines)
    env.close()
    figures = {}
    for name, result in results.items():
        of = {"instructed": result["success"], "original": result["monitor_success"], "original_if_instructed": original[name]["success"]}
        figures[name] = {key: success_rate(np.nansum(values), episodes) for key, values in of.items()}
        figures[name]["gap"] = figures[name]["original_if_instructed"]["rate"] - figures[name]["original"]["rate"]
    return figures


def make_single(config, max_steps=None, instructions=None):
    return RobosuiteEnv(instructions=instructions, **_settings(config, max_steps))


gymnasium.register("FlexibleWorld/Robosuite-v0", entry_point="simulator.robosuite.env:RobosuiteEnv")
