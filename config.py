"""Every setting and every preset of FlexibleWorld, scope style.

    python train_vlm.py vlm_tiny                             the preset to begin with
    python train_vlm.py vlm_full vlm_7b train.lr=3e-4        presets compose, and what is typed out wins
    python train_vlm.py vlm_full log.run_name:=first         `:=` takes what follows as a string
    python train_vlm.py manual                               every preset and every key, one line each

ato's Scope composes: defaults, then the presets in the order of this file, whatever order they are typed in,
then the literals. ato accepts any name and any value, so all of it is checked here before it gets there.
"""

import ast
import difflib
import itertools
import shlex
import sys

from ato.adict import ADict
from ato.scope import Scope


class UserError(ValueError):
    """An error that the user can fix. Its message is one line."""


class ConfigError(UserError):
    """A wrong preset, key or value. The message names the nearest right one."""

    def __init__(self, message):
        super().__init__(' '.join(message.split()))


# What a value must be: (type, in words, as a test). The rule of a list is that of its items.
BOOL = (bool, 'True or False', lambda v: True)
STR = (str, 'a string', lambda v: True)
NON_EMPTY_STR = (str, 'a string that is not empty', str.strip)
FLOAT = (float, 'a number', lambda v: True)
POSITIVE = (float, 'a number above 0', lambda v: v > 0)
NON_NEGATIVE = (float, 'a number from 0 up', lambda v: v >= 0)
UNIT = (float, 'a number from 0 to 1', lambda v: 0 <= v <= 1)
BELOW_ONE = (float, 'a number from 0 to below 1', lambda v: 0 <= v < 1)
OPEN_UNIT = (float, 'a number above 0 and below 1', lambda v: 0 < v < 1)
NON_NEGATIVE_INT = (int, 'a whole number from 0 up', lambda v: v >= 0)
ZERO_TO_256 = (int, 'a whole number from 0 to 256', lambda v: 0 <= v <= 256)
POSITIVE_INT = (int, 'a whole number from 1 up', lambda v: v >= 1)
ONE_TO_256 = (int, 'a whole number from 1 to 256', lambda v: 1 <= v <= 256)
PIXELS = (int, 'a whole number from 16 up', lambda v: v >= 16)  # the largest particle is 10 wide
AREA = (int, 'a whole number from 0 to 4194304', lambda v: 0 <= v <= 2**22)
SEED = (int, 'a whole number from 0 to 2**32 - 1', lambda v: 0 <= v < 2**32)  # numpy's bound, below torch's


def one_of(*names):
    """The rule of a string out of a few."""
    return (str, 'one of ' + ', '.join(names), lambda v: v in names)


LORA_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
SETTINGS = {  # key: (default, rule, meaning); the defaults are those of the GPU runs with Qwen2-VL-2B
    'seed': (0, SEED, 'every random number of a run follows from it'),
    'device': ('auto', one_of('auto', 'cpu', 'cuda', 'mps'), 'where the model runs'),
    'model.vlm.name': ('Qwen/Qwen2-VL-2B-Instruct', NON_EMPTY_STR, 'hub name, local folder or known configuration'),
    'model.vlm.init': ('pretrained', one_of('pretrained', 'random'), 'where the weights come from'),
    'model.vlm.dtype': ('auto', one_of('auto', 'float32', 'bfloat16', 'float16'), 'type of its weights'),
    'model.vlm.attention': ('sdpa', one_of('sdpa', 'eager', 'flash_attention_2'), 'how attention is computed'),
    'model.vlm.min_pixels': (0, AREA, 'smaller pictures are enlarged to this area; 0: as the model says'),
    'model.vlm.load_in_4bit': (False, BOOL, 'frozen weights in 4 bits (QLoRA); wants bitsandbytes'),
    'model.vlm.gradient_checkpointing': (False, BOOL, 'less memory: activations are computed again going backward'),
    'model.vlm.use_lora': (True, BOOL, 'train low-rank adapters in place of the whole backbone'),
    'model.vlm.lora_r': (16, POSITIVE_INT, 'rank of the adapters'),
    'model.vlm.lora_alpha': (32, POSITIVE_INT, 'scale of the adapters; they count alpha / r'),
    'model.vlm.lora_dropout': (0.05, BELOW_ONE, 'dropout before the adapters, share'),
    'model.vlm.lora_targets': (LORA_TARGETS, NON_EMPTY_STR, 'names of the adapted layers'),
    'model.heads.hidden': ([512, 192], POSITIVE_INT, 'widths of the action trunk\'s layers'),
    'model.heads.init_std': (0.135, POSITIVE, 'first std of a continuous parameter, share of its range'),
    'train.lr': (1e-4, POSITIVE, 'learning rate of the backbone or its adapters in PPO, the peak'),
    'train.head_lr': (1e-3, POSITIVE, 'learning rate of the action head in PPO, the peak'),
    'train.value_lr': (1e-3, POSITIVE, 'learning rate of the critic in PPO, the peak'),
    'train.batch_size': (8, POSITIVE_INT, 'samples per update, of all processes'),
    'train.grad_accum_steps': (1, POSITIVE_INT, 'parts that a batch is computed in, one after the other, to save memory'),
    'train.weight_decay': (0.0, NON_NEGATIVE, 'decoupled weight decay'),
    'train.max_grad_norm': (1.0, POSITIVE, 'gradients are clipped to this norm'),
    'train.lr_schedule': ('linear', one_of('constant', 'linear', 'cosine'), 'how learning rates fall to 0'),
    'train.output_dir': ('checkpoints', NON_EMPTY_STR, 'folder of checkpoints and logs'),
    'train.resume': ('', STR, 'state file to go on from'),
    'train.save_every': (10, POSITIVE_INT, 'chunks of cloning, or PPO iterations, between resumable saves'),
    'train.keep_checkpoints': (2, POSITIVE_INT, 'how many of these saves are kept'),
    'train.threads': (0, ZERO_TO_256, 'torch threads; 0: as torch chooses'),
    'parser.samples': (0, NON_NEGATIVE_INT, 'sentences read, without pictures, before cloning'),
    'bc.epochs': (0, NON_NEGATIVE_INT, 'behaviour cloning: passes over the demonstrations'),
    'bc.samples': (20000, POSITIVE_INT, 'demonstration pairs per pass, made fresh from the simulator'),
    'bc.lr': (1e-3, POSITIVE, 'learning rate of behaviour cloning, the peak'),
    'bc.action_noise': (0.3, UNIT, 'share of demonstration steps preceded by random actions'),
    'bc.relabel': (0.5, UNIT, 'share of pairs that ask for another goal in the same state'),
    'bc.episodes': (0, NON_NEGATIVE_INT, 'demonstrations kept in the run\'s folder; 0: fresh ones, each seen once'),
    'bc.data': ('', STR, 'demonstrations to clone, a file or folder, in place of making some'),
    'bc.dagger_fraction': (0.0, UNIT, 'share of the later demonstrations that the policy acts and the expert labels'),
    'bc.bpe_dropout': (0.0, BELOW_ONE, 'cloning and reading: share of places where words are cut at random'),
    'rl.iterations': (10, NON_NEGATIVE_INT, 'rollout-and-update iterations'),
    'rl.rollout_steps': (256, POSITIVE_INT, 'steps per environment and rollout'),
    'rl.clip_ratio': (0.2, OPEN_UNIT, 'PPO clips the probability ratio to 1 -/+ this'),
    'rl.gamma': (0.99, UNIT, 'discount per step'),
    'rl.gae_lambda': (0.95, UNIT, 'decay of GAE\'s sum of errors per step'),
    'rl.update_epochs': (4, POSITIVE_INT, 'passes over one rollout'),
    'rl.value_coef': (0.5, NON_NEGATIVE, 'weight of the value loss'),
    'rl.entropy_coef': (0.01, NON_NEGATIVE, 'weight of the entropy bonus'),
    'rl.target_kl': (0.02, POSITIVE, 'an update ends early when approx_kl passes this, nats'),
    'rl.critic_warmup': (2, NON_NEGATIVE_INT, 'first iterations, which train the value head only, in four times the passes'),
    'env.world': ('particles', one_of('particles', 'robosuite'), 'what the agent acts in'),
    'env.num_envs': (8, POSITIVE_INT, 'environments side by side, of all processes'),
    'env.max_steps': (32, POSITIVE_INT, 'time limit of an episode, actions for each of its goals'),
    'env.goals': ([], NON_EMPTY_STR, 'goals, or groups: simple, quantified, per_object, conjunction, sequence; empty: the env\'s own'),
    'env.instructions': ([], NON_EMPTY_STR, 'files of more sentences to train on, as scripts/generate_training_data.py writes'),
    'env.continue_prob': (0.0, BELOW_ONE, 'share of training episodes that go on in the world as the one before has left it'),
    'world.width': (64, PIXELS, 'pixels'),
    'world.height': (64, PIXELS, 'pixels'),
    'world.n_particles': (8, (int, 'a whole number from 2 to 256', lambda v: 2 <= v <= 256), 'particles at the start'),
    'world.max_particles': (50, ONE_TO_256, 'particles at most'),
    'physics.gravity_y': (0.0, FLOAT, 'acceleration downwards, pixels per dt^2'),
    'physics.restitution': (0.8, UNIT, 'speed kept in a collision, share'),
    'physics.em_force_strength': (5.0, NON_NEGATIVE, 'strength of the force between charges'),
    'physics.em_force_radius': (15.0, POSITIVE, 'reach of the force between charges, pixels'),
    'physics.substeps': (3, POSITIVE_INT, 'substeps per step'),
    'physics.dt': (1.0, (float, 'a number from 0.01 to 100', lambda v: 0.01 <= v <= 100), 'time per step'),
    'physics.vibration_scale': (0.5, NON_NEGATIVE, 'how far temperature shakes positions'),
    'physics.heat_dissipation': (0.02, UNIT, 'temperature lost to the surroundings per step, share'),
    'physics.thermal_radiation_rate': (0.01, NON_NEGATIVE, 'heat radiated to near particles per step'),
    'physics.thermal_conduction': (1.0, NON_NEGATIVE, 'heat conducted between touching particles per step'),
    'physics.thermal_radiation_radius': (10.0, POSITIVE, 'reach of that radiation, pixels'),
    'robosuite.task': ('PickPlaceCan', one_of('Lift', 'PickPlaceCan', 'NutAssemblySquare'), 'the scene'),
    'robosuite.robot': ('Panda', NON_EMPTY_STR, 'the arm'),
    'robosuite.cameras': (['robot0_eye_in_hand'], NON_EMPTY_STR, 'cameras, whose pictures are seen side by side'),
    'robosuite.resolution': (84, PIXELS, 'sides of each picture, pixels'),
    'robosuite.control_freq': (20, POSITIVE_INT, 'control steps per second'),
    'robosuite.action_space': ('discrete', one_of('discrete', 'continuous'), '8 named actions, or a 7-vector'),
    'robosuite.action_repeat': (1, POSITIVE_INT, 'control steps that an action is held for'),
    'robosuite.gripper_repeat': (1, POSITIVE_INT, 'the same of opening and closing the gripper, of the named actions'),
    'robosuite.proprioception': (False, BOOL, 'the policy also knows where its hand and fingers are'),
    'robosuite.reward': ('progress', one_of('progress', 'shaped', 'sparse'), 'see simulator/robosuite/env.py'),
    'eval.episodes': (512, POSITIVE_INT, 'episodes per evaluation'),
    'eval.seed': (1000000, SEED, 'seed of the first evaluation episode'),
    'eval.baselines': (True, BOOL, 'the report has no-op, random and expert too, as scripts/evaluate.py does'),
    'eval.every': (10, NON_NEGATIVE_INT, 'PPO iterations between evaluations; 0: never'),
    'log.wandb': ('disabled', one_of('disabled', 'online', 'offline'), 'Weights & Biases'),
    'log.project': ('flexibleworld', NON_EMPTY_STR, 'its project'),
    'log.run_name': ('', STR, 'its run; empty: as it chooses'),
}
# The spelling of older checkpoints and scripts, still accepted: there, vlm.ppo_epochs counted iterations.
OLD_KEYS = {
    'vlm.reading_samples': 'parser.samples', 'vlm.bc_epochs': 'bc.epochs', 'vlm.bc_samples': 'bc.samples',
    'vlm.bc_lr': 'bc.lr', 'vlm.bc_perturb': 'bc.action_noise', 'vlm.bc_relabel': 'bc.relabel',
    'vlm.bc_episodes': 'bc.episodes', 'vlm.bc_data': 'bc.data', 'vlm.bc_policy': 'bc.dagger_fraction',
    'vlm.bc_subword_dropout': 'bc.bpe_dropout', 'vlm.ppo_epochs': 'rl.iterations',
    'vlm.rollout_steps': 'rl.rollout_steps', 'rl.ppo_epochs': 'rl.update_epochs',
    'train.accumulate': 'train.grad_accum_steps', 'train.keep_last': 'train.keep_checkpoints',
    'env.chain': 'env.continue_prob', 'env.sentences': 'env.instructions',
}
OLD_GOAL_GROUPS = {'amounts': 'quantified', 'by_particle': 'per_object', 'at_once': 'conjunction', 'in_order': 'sequence'}
DEFAULTS = {}
for _key, (_default, *_) in SETTINGS.items():
    *_groups, _leaf = _key.split('.')
    _node = DEFAULTS
    for _group in _groups:
        _node = _node.setdefault(_group, {})
    _node[_leaf] = _default


class _Scope(Scope):
    """ato's Scope without its hold on the process: argparse stays as it is, and sys.argv is not read."""

    def register(self):  # the parent's replaces ArgumentParser.parse_args and parse_known_args
        type(self).registry = {self.name: self}

    def apply(self):  # the parent's prints ato's manual and exits where sys.argv[1] is `manual` or `--help`
        argv, sys.argv = sys.argv, sys.argv[:1]
        try:
            super().apply()
        finally:
            sys.argv = argv


scope = _Scope()
PRESETS = {}  # name: kind. Presets of one kind contradict each other; a later one overrides an earlier one.


def preset(kind):
    """Make a function of the config a preset: its name is the name, its docstring the meaning."""
    def register(function):
        PRESETS[function.__name__] = kind
        return scope.observe()(function)
    return register


@preset('model')
def vlm_tiny(config):
    """a tiny Qwen2-VL from scratch, on a CPU in minutes: the one to begin with"""
    config.model.vlm.update(name='vlm_tiny', init='random', use_lora=False, dtype='float32')
    config.model.heads.update(hidden=[128], init_std=0.1)
    config.train.update(batch_size=64, lr=2e-5, head_lr=1e-4, value_lr=3e-3, threads=1)  # a second one makes it slower
    config.parser.samples = 30000
    config.bc.update(epochs=1, samples=60000, lr=1.5e-3, bpe_dropout=0.05)
    config.rl.update(iterations=14, rollout_steps=32, update_epochs=1, entropy_coef=0.001, gamma=0.9, gae_lambda=0.8)
    config.env.num_envs = 64


@preset('model')
def vlm_tiny_long(config):
    """vlm_tiny for the whole goal language, in about an hour"""
    vlm_tiny(config)
    goals = ['simple', 'per_object', 'conjunction'] * 3 + ['sequence'] * 2 + ['quantified']
    config.env.update(goals=goals, continue_prob=0.3)
    config.parser.samples, config.bc.samples, config.rl.iterations = 100000, 1000000, 20


@preset('model')
def vlm_7b(config):
    """Qwen2-VL-7B in place of 2B"""
    config.model.vlm.name = 'Qwen/Qwen2-VL-7B-Instruct'


@preset('length')
def vlm_fast(config):
    """quick test: 10 PPO iterations, no behaviour cloning"""
    config.bc.epochs, config.rl.iterations = 0, 10


@preset('length')
def vlm_full(config):
    """5 epochs of behaviour cloning, then 50 PPO iterations"""
    config.bc.epochs, config.rl.iterations = 5, 50


@preset('length')
def vlm_long(config):
    """10 epochs of behaviour cloning, then 100 PPO iterations"""
    config.bc.epochs, config.rl.iterations = 10, 100


def _robosuite(config, task, *goals):
    """The second world, with PPO as the system it comes from has it; a tiny model learns in its own way."""
    config.env.update(world='robosuite', goals=list(goals), num_envs=4, max_steps=100)
    config.robosuite.update(task=task, action_repeat=5, gripper_repeat=10, proprioception=True)
    config.parser.samples = min(config.parser.samples, 10000)
    config.bc.update(samples=200000, episodes=800, dagger_fraction=0.5, action_noise=0.1)
    config.rl.update(rollout_steps=128, clip_ratio=0.2, gamma=0.99, gae_lambda=0.95, update_epochs=4, value_coef=0.5, entropy_coef=0.01)
    config.eval.update(episodes=100, baselines=False)
    if config.model.vlm.name != 'vlm_tiny':
        config.train.update(batch_size=4, lr=3e-5, head_lr=3e-5, value_lr=3e-5)
    else:
        config.train.update(lr=6e-6, head_lr=3e-5)      # larger steps end most updates at the KL stop


@preset('world')
def robosuite_can(config):
    """a robot arm puts a can into one of two compartments"""
    _robosuite(config, 'PickPlaceCan', 'place_can', 'place_can_near')
    config.bc.update(episodes=500, samples=250000)


@preset('world')
def robosuite_lift(config):
    """a robot arm lifts a cube or pushes it away"""
    _robosuite(config, 'Lift', 'lift_cube', 'push_cube')
    config.robosuite.action_repeat = 4


@preset('world')
def robosuite_square(config):
    """a robot arm puts a nut on its peg or lifts it: the hand turns, so the action is a vector"""
    _robosuite(config, 'NutAssemblySquare', 'place_nut', 'lift_nut')
    config.robosuite.update(action_space='continuous', action_repeat=4)


@preset('length')
def robosuite_quick(config):
    """2,000 steps of PPO after a little cloning, in ten minutes"""
    config.rl.update(rollout_steps=64, iterations=-(-2000 // (64 * config.env.num_envs)))
    config.bc.update(samples=14000, episodes=min(config.bc.episodes, 40))
    config.eval.update(episodes=12, every=8)


@preset('length')
def robosuite_full(config):
    """100,000 steps of PPO"""
    config.rl.update(rollout_steps=128, iterations=-(-100000 // (128 * config.env.num_envs)))
    config.eval.every = 50


@preset('gravity')
def zero_gravity(config):
    """nothing falls"""
    config.physics.gravity_y = 0.0


@preset('gravity')
def gravity(config):
    """particles fall"""
    config.physics.gravity_y = 0.1


@preset('bounce')
def elastic(config):
    """collisions keep all of their energy"""
    config.physics.restitution = 1.0


@preset('charge')
def strong_em(config):
    """four times the force between charges"""
    config.physics.em_force_strength = 20.0


@preset('size')
def high_res(config):
    """a world of 128 x 128"""
    config.world.update(width=128, height=128)


@preset('size')
def small_sim(config):
    """a world of 32 x 32"""
    config.world.update(width=32, height=32)


@preset('scale')
def debug(config):
    """everything small, whatever else is given: does it run at all?"""
    config.train.update(batch_size=8, save_every=1)
    config.parser.samples = min(config.parser.samples, 64)
    config.bc.update(epochs=min(config.bc.epochs, 1), episodes=min(config.bc.episodes, 8), samples=64)
    config.rl.update(iterations=2, rollout_steps=8)
    config.env.update(num_envs=4, max_steps=8)
    config.eval.update(episodes=16, every=1)


def load(argv: list[str]) -> ADict:
    """Presets, `key=value` and `key:=string` in any order -> the config, frozen, with `config.presets`."""
    words = [word for word in argv if '=' not in word]
    for word in words:
        if word in SETTINGS:
            raise _misfit(word, word)
        if word not in PRESETS:
            raise ConfigError(f'unknown preset {word!r}: did you mean {_nearest(word, PRESETS)}?')
    literals = dict(_parse(word) for word in argv if '=' in word)
    presets = [name for name in PRESETS if name in words]
    if not presets:
        raise ConfigError('no preset given: begin with vlm_tiny (manual lists the others)')
    for one, other in itertools.pairwise(presets):
        if PRESETS[one] == PRESETS[other]:
            raise ConfigError(f'the presets {one} and {other} contradict each other: give one of them')
    return _compose(presets, literals, presets)


def from_dict(saved: dict, argv: list[str] = ()) -> ADict:
    """What `to_dict()` gave, out of a checkpoint's JSON -> the config; missing keys take their defaults.

    `argv`: literals that change it (a resumed run with more iterations, say)."""
    for word in argv:
        if '=' not in word:
            raise ConfigError(f'a saved run keeps its presets: leave out {word!r}, change keys by key=value')
    if not isinstance(saved, dict):
        raise ConfigError(f'a saved config is a dict of groups, not {saved!r}')
    literals = dict(_flatten(saved))
    presets = literals.pop('presets', [])
    if not isinstance(presets, list) or not all(isinstance(name, str) for name in presets):
        raise ConfigError(f'presets wants a list of names, not {presets!r}')
    literals = {_known(key): _check(key, value, f'{key}={value!r}') for key, value in literals.items()}
    literals |= dict(_parse(word) for word in argv)
    return _compose([], literals, presets)


def main_config(argv: list[str] | None = None) -> ADict:
    """What a script calls: `load`, or the manual and exit code 0, or one line of error and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    if {'manual', '--help', '-h'} & set(argv):
        manual()
        sys.exit(0)
    try:
        return load(argv)
    except ConfigError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


def manual():
    """Print every preset and every key, one aligned line each."""
    print('PRESET... key=value... key:=string...\n')
    print('Presets compose; one further down overrides those above it:')
    for name in PRESETS:
        print(f'  {name:12}  {scope.views[name]["fn"].__doc__}')
    print('\nKeys, at their defaults; a preset overrides a default, and what is typed overrides both:')
    for key, (default, (_, words, _), meaning) in SETTINGS.items():
        typed = f'{key}:={default}' if isinstance(default, str) else f'{key}={default}'
        print(f'  {typed:62}  {meaning} ({words})')


def _compose(presets, literals, recorded):
    """Defaults, presets, literals -> the config. ato executes literals: it gets the repr of plain data."""
    scope.reset_user_inputs()
    scope.config = config = ADict(DEFAULTS)
    scope.assign(presets + [f'{key}={value!r}' for key, value in literals.items()])
    scope.apply()
    _reject_contradictions(config)
    config.presets = recorded
    return config.freeze()


def _reject_contradictions(c):
    """Refuse values that are each fine and together are not."""
    limits = [('world.n_particles', c.world.n_particles, 'world.max_particles', c.world.max_particles)]
    if c.rl.iterations:
        steps = c.env.num_envs * c.rl.rollout_steps
        limits.append(('train.batch_size', c.train.batch_size, 'env.num_envs * rl.rollout_steps', steps))
    if c.bc.epochs:
        limits.append(('train.batch_size', c.train.batch_size, 'bc.samples', c.bc.samples))
    for key, value, bound, most in limits:
        if value > most:
            raise ConfigError(f'{key} is {value}, more than {bound}, which is {most}')
    if not c.model.heads.hidden:
        raise ConfigError('model.heads.hidden is empty: give the width of one layer at least, as in [128]')
    for key, value in (('bc.episodes', c.bc.episodes), ('bc.data', c.bc.data)):
        if value and c.env.world == 'particles':
            raise ConfigError(f'{key} is for the robot arm: leave it out, demonstrations of particles are made fresh')
    for group in {'particles': ['robosuite'], 'robosuite': ['world', 'physics']}[c.env.world]:
        for key, value in c[group].items():
            if value != DEFAULTS[group][key]:
                raise ConfigError(f'{group}.{key} says nothing in the world {c.env.world}: leave it out, or the preset '
                                  'that sets it')
    if c.env.continue_prob and c.env.world != 'particles':
        raise ConfigError('env.continue_prob is for the particle world: leave it out')
    if c.model.vlm.load_in_4bit and (c.model.vlm.init == 'random' or not c.model.vlm.use_lora):
        raise ConfigError('model.vlm.load_in_4bit is for pretrained weights that stay as they are: '
                          'give model.vlm.init:=pretrained and model.vlm.use_lora=True with it')
    if c.model.vlm.use_lora and not c.model.vlm.lora_targets:
        raise ConfigError('model.vlm.use_lora is True and model.vlm.lora_targets is empty: name the layers')


def _flatten(node, prefix=''):
    """Nested groups -> pairs of a dotted key and its value."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def _known(key):
    """The key itself, if there is one of this name; of an older spelling today's."""
    key = OLD_KEYS.get(key, key)
    if key not in SETTINGS:
        raise ConfigError(f'unknown key {key!r}: did you mean {_nearest(key, SETTINGS)}?')
    return key


def _nearest(word, names):
    """The name most like the word, in full or by its last part: `train.hidden` finds model.heads.hidden."""
    def likeness(name):
        return max(difflib.SequenceMatcher(None, word.lower(), form).ratio()
                   for form in (name, name.rpartition('.')[2]))
    return max(names, key=likeness)


def _parse(word):
    """`key=value` or `key:=string` -> the key and the value, which is never executed."""
    key, _, text = word.partition('=')
    as_string = key.endswith(':')
    key = _known(key.removesuffix(':'))
    if isinstance(SETTINGS[key][0], str):
        quoted = len(text) > 1 and text[0] == text[-1] in '\'"'
        value = _check(key, text[1:-1] if quoted else text, word)
        if not text or not (as_string or quoted):
            raise _misfit(key, word, text)
        return key, value
    try:
        value = None if as_string else ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all it may raise
        value = None
    return key, _check(key, value, word)


def _check(key, value, given):
    """The value as plain data of its key's type."""
    default, (kind, _, holds), _ = SETTINGS[key]
    items = value if isinstance(default, list) else [value]
    if not isinstance(items, (list, tuple)) or not all(_is(kind, item) and holds(item) for item in items):
        raise _misfit(key, given)
    items = [kind(item) for item in items]
    if key == 'env.goals':
        items = [OLD_GOAL_GROUPS.get(item, item) for item in items]
    return items if isinstance(default, list) else items[0]


def _is(kind, value):
    if kind is float:  # a whole number is fine; nan and inf are not
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is kind  # True is no number


def _misfit(key, given, text=''):
    """The error of a value that does not fit its key: it shows one that does, `text` for a string's key."""
    default, (_, words, _), _ = SETTINGS[key]
    example = f'{key}={default}'
    if isinstance(default, str):
        example = shlex.quote(f'{key}:={text or default or "TEXT"}')
        words = f':= and {words}' if text else words
    elif isinstance(default, list):
        words = f'a list, each item {words}'
        example = f'"{key}={default or ["TEXT"]}"'  # quoted, for the shell would strip the inner quotes
    return ConfigError(f'{key} wants {words}, as in {example}, not {given}')
