"""Settings, presets and the command line of FlexibleWorld.

    python train_vlm.py vlm_tiny                             the preset to begin with
    python train_vlm.py vlm_full vlm_7b train.lr=3e-4        presets compose, a typed value overrides them
    python train_vlm.py vlm_tiny my.yaml                     a file of settings, like an own preset
    python train_vlm.py checkpoints/config.yaml              the settings of an earlier run
    python train_vlm.py --help                               every preset and every key

The order of composition is fixed: defaults, presets (in the order of this file), settings files, typed values.
ato's Scope applies presets and values. It accepts any name and value, so this module checks both first.
"""

import ast
import difflib
import itertools
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ato.adict import ADict
from ato.scope import Scope

MAX_INSTRUCTION_LENGTH = 500  # characters, in every environment and policy


class UserError(ValueError):
    """An error that the user can fix. Its message is one line."""


class ConfigError(UserError):
    """A wrong preset, key or value. The message names the nearest right one."""

    def __init__(self, message: str):
        super().__init__(' '.join(message.split()))


# A rule is (type, description, test). The rule of a list applies to its items.
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
PIXELS = (int, 'a whole number from 16 up', lambda v: v >= 16)  # the largest particle is 10 pixels wide
AREA = (int, 'a whole number from 0 to 4194304', lambda v: 0 <= v <= 2**22)
SEED = (int, 'a whole number from 0 to 2**32 - 1', lambda v: 0 <= v < 2**32)  # numpy's bound, below torch's


def one_of(*names: str) -> tuple:
    """Return the rule of a string that must be one of `names`."""
    return (str, 'one of ' + ', '.join(names), lambda v: v in names)


LORA_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
SETTINGS = {  # key: (default, rule, meaning); the defaults are those of the GPU runs with Qwen2-VL-2B
    'seed': (0, SEED, 'seed of every random number of a run'),
    'device': ('auto', one_of('auto', 'cpu', 'cuda', 'mps'), 'where the model runs'),
    'model.vlm.name': ('Qwen/Qwen2-VL-2B-Instruct', NON_EMPTY_STR, 'hub name, local folder or known configuration'),
    'model.vlm.init': ('pretrained', one_of('pretrained', 'random'), 'where the weights come from'),
    'model.vlm.dtype': ('auto', one_of('auto', 'float32', 'bfloat16', 'float16'), 'type of its weights'),
    'model.vlm.attention': ('sdpa', one_of('sdpa', 'eager', 'flash_attention_2'), 'how attention is computed'),
    'model.vlm.min_pixels': (0, AREA, 'smaller images are enlarged to this area, pixels; 0: model default'),
    'model.vlm.load_in_4bit': (False, BOOL, 'frozen weights in 4 bits (QLoRA); requires bitsandbytes'),
    'model.vlm.gradient_checkpointing': (False, BOOL, 'save memory: compute activations again in the backward pass'),
    'model.vlm.use_lora': (True, BOOL, 'train low-rank adapters instead of the whole backbone'),
    'model.vlm.lora_r': (16, POSITIVE_INT, 'rank of the adapters'),
    'model.vlm.lora_alpha': (32, POSITIVE_INT, 'scale of the adapters; their output is multiplied by alpha / r'),
    'model.vlm.lora_dropout': (0.05, BELOW_ONE, 'dropout before the adapters, fraction'),
    'model.vlm.lora_targets': (LORA_TARGETS, NON_EMPTY_STR, 'names of the adapted layers'),
    'model.heads.hidden': ([512, 192], POSITIVE_INT, 'layer widths of the action trunk'),
    'model.heads.init_std': (0.135, POSITIVE, 'initial std of a continuous parameter, fraction of its range'),
    'train.lr': (1e-4, POSITIVE, 'learning rate of the backbone or its adapters in PPO, the peak'),
    'train.head_lr': (1e-3, POSITIVE, 'learning rate of the action head in PPO, the peak'),
    'train.value_lr': (1e-3, POSITIVE, 'learning rate of the critic in PPO, the peak'),
    'train.batch_size': (8, POSITIVE_INT, 'samples per update, of all processes'),
    'train.grad_accum_steps': (1, POSITIVE_INT, 'parts a batch is computed in, one by one, to save memory'),
    'train.weight_decay': (0.0, NON_NEGATIVE, 'decoupled weight decay'),
    'train.max_grad_norm': (1.0, POSITIVE, 'gradients are clipped to this norm'),
    'train.lr_schedule': ('linear', one_of('constant', 'linear', 'cosine'), 'decay of learning rates, to 0'),
    'train.output_dir': ('checkpoints', NON_EMPTY_STR, 'folder of checkpoints and logs'),
    'train.resume': ('', STR, 'training state to resume'),
    'train.save_every': (10, POSITIVE_INT, 'iterations between two saved training states'),
    'train.keep_checkpoints': (2, POSITIVE_INT, 'how many training states are kept'),
    'train.threads': (0, ZERO_TO_256, 'torch threads; 0: torch\'s default'),
    'parser.samples': (0, NON_NEGATIVE_INT, 'instructions parsed, without images, before behaviour cloning'),
    'bc.epochs': (0, NON_NEGATIVE_INT, 'behaviour cloning: passes over the demonstrations'),
    'bc.samples': (20000, POSITIVE_INT, 'demonstration pairs per pass'),
    'bc.lr': (1e-3, POSITIVE, 'learning rate of behaviour cloning, the peak'),
    'bc.attention_coef': (5.0, NON_NEGATIVE, 'weight of the attention loss in behaviour cloning'),
    'bc.parser_coef': (4.0, NON_NEGATIVE, 'weight of the goal parser\'s loss in behaviour cloning'),
    'bc.action_noise': (0.3, UNIT, 'fraction of demonstration steps preceded by a random action (DART)'),
    'bc.relabel': (0.5, UNIT, 'fraction of pairs relabelled with another goal in the same state'),
    'bc.episodes': (0, NON_NEGATIVE_INT, 'episodes recorded in the output folder; 0: new ones each iteration'),
    'bc.data': ('', STR, 'file or folder of recorded demonstrations; empty: record new ones'),
    'bc.dagger_fraction': (0.0, UNIT, 'fraction of later episodes in which the policy acts (DAgger)'),
    'bc.bpe_dropout': (0.0, BELOW_ONE, 'BPE dropout in parser training and behaviour cloning, fraction'),
    'rl.iterations': (10, NON_NEGATIVE_INT, 'rollout-and-update iterations'),
    'rl.rollout_steps': (256, POSITIVE_INT, 'steps per environment and rollout'),
    'rl.clip_ratio': (0.2, OPEN_UNIT, 'PPO clips the probability ratio to 1 -/+ this'),
    'rl.gamma': (0.99, UNIT, 'discount per step'),
    'rl.gae_lambda': (0.95, UNIT, 'lambda of GAE'),
    'rl.update_epochs': (4, POSITIVE_INT, 'passes over one rollout'),
    'rl.value_coef': (0.5, NON_NEGATIVE, 'weight of the value loss'),
    'rl.entropy_coef': (0.01, NON_NEGATIVE, 'weight of the entropy bonus'),
    'rl.target_kl': (0.02, POSITIVE, 'an update ends early when approx_kl passes this, nats'),
    'rl.critic_warmup': (2, NON_NEGATIVE_INT, 'first iterations; they train the value head only, with 4x the passes'),
    'env.world': ('particles', NON_EMPTY_STR, 'environment family: a name of simulator/registry.py'),
    'env.num_envs': (8, POSITIVE_INT, 'parallel environments, of all processes'),
    'env.max_steps': (32, POSITIVE_INT, 'time limit of an episode, actions for each of its goals'),
    'env.goals': ([], NON_EMPTY_STR, 'goals or groups (simple, quantified, per_object, conjunction, sequence); '
                  'empty: those of the environment'),
    'env.instructions': ([], NON_EMPTY_STR,
                         'more files of training instructions, as scripts/generate_training_data.py writes'),
    'env.continue_prob': (0.0, BELOW_ONE, 'fraction of training episodes that start where the last one ended'),
    'world.width': (64, PIXELS, 'pixels'),
    'world.height': (64, PIXELS, 'pixels'),
    'world.n_particles': (8, (int, 'a whole number from 2 to 256', lambda v: 2 <= v <= 256), 'particles at the start'),
    'world.max_particles': (50, ONE_TO_256, 'particles at most'),
    'physics.gravity_y': (0.0, FLOAT, 'acceleration downwards, pixels per dt^2'),
    'physics.restitution': (0.8, UNIT, 'fraction of speed kept in a collision'),
    'physics.em_force_strength': (5.0, NON_NEGATIVE, 'strength of the force between charges'),
    'physics.em_force_radius': (15.0, POSITIVE, 'reach of the force between charges, pixels'),
    'physics.substeps': (3, POSITIVE_INT, 'substeps per step'),
    'physics.dt': (1.0, (float, 'a number from 0.01 to 100', lambda v: 0.01 <= v <= 100), 'time per step'),
    'physics.vibration_scale': (0.5, NON_NEGATIVE, 'size of the position noise per temperature'),
    'physics.heat_dissipation': (0.02, UNIT, 'fraction of temperature lost to the surroundings per step'),
    'physics.thermal_radiation_rate': (0.01, NON_NEGATIVE, 'heat radiated to near particles per step'),
    'physics.thermal_conduction': (1.0, NON_NEGATIVE, 'heat conducted between touching particles per step'),
    'physics.thermal_radiation_radius': (10.0, POSITIVE, 'reach of that radiation, pixels'),
    'robosuite.task': ('PickPlaceCan', one_of('Lift', 'PickPlaceCan', 'NutAssemblySquare'), 'the scene'),
    'robosuite.robot': ('Panda', NON_EMPTY_STR, 'the arm'),
    'robosuite.cameras': (['robot0_eye_in_hand'], NON_EMPTY_STR, 'cameras; their images are placed side by side'),
    'robosuite.resolution': (84, PIXELS, 'side of each camera image, pixels'),
    'robosuite.control_freq': (20, POSITIVE_INT, 'control steps per second'),
    'robosuite.action_space': ('discrete', one_of('discrete', 'continuous'), '8 named actions, or a 7-vector'),
    'robosuite.action_repeat': (1, POSITIVE_INT, 'control steps per action'),
    'robosuite.gripper_repeat': (1, POSITIVE_INT, 'control steps per gripper action (discrete action space)'),
    'robosuite.proprioception': (False, BOOL, 'the policy also observes its end effector and gripper'),
    'robosuite.reward': ('progress', one_of('progress', 'shaped', 'sparse'),
                         'reward function, described in simulator/robosuite/env.py'),
    'eval.episodes': (512, POSITIVE_INT, 'episodes per evaluation'),
    'eval.seed': (1000000, SEED, 'seed of the first evaluation episode'),
    'eval.baselines': (True, BOOL, 'the report includes the no-op, random and expert actors'),
    'eval.every': (10, NON_NEGATIVE_INT, 'PPO iterations between evaluations; 0: never'),
    'log.wandb': ('disabled', one_of('disabled', 'online', 'offline'), 'Weights & Biases'),
    'log.project': ('flexibleworld', NON_EMPTY_STR, 'W&B project'),
    'log.run_name': ('', STR, 'W&B run name; empty: chosen by W&B'),
}
# Keys of older checkpoints, still accepted. There, vlm.ppo_epochs counted iterations.
OLD_KEYS = {
    'vlm.reading_samples': 'parser.samples', 'vlm.bc_epochs': 'bc.epochs', 'vlm.bc_samples': 'bc.samples',
    'vlm.bc_lr': 'bc.lr', 'vlm.bc_perturb': 'bc.action_noise', 'vlm.bc_relabel': 'bc.relabel',
    'vlm.bc_episodes': 'bc.episodes', 'vlm.bc_data': 'bc.data', 'vlm.bc_policy': 'bc.dagger_fraction',
    'vlm.bc_subword_dropout': 'bc.bpe_dropout', 'vlm.ppo_epochs': 'rl.iterations',
    'vlm.rollout_steps': 'rl.rollout_steps', 'rl.ppo_epochs': 'rl.update_epochs',
    'train.accumulate': 'train.grad_accum_steps', 'train.keep_last': 'train.keep_checkpoints',
    'env.chain': 'env.continue_prob', 'env.sentences': 'env.instructions',
}
OLD_GOAL_GROUPS = {'amounts': 'quantified', 'by_particle': 'per_object', 'at_once': 'conjunction',
                   'in_order': 'sequence'}
# Groups of settings that only one environment family reads, and other keys that have an effect in it only.
SETTINGS_GROUPS = {'particles': ('world', 'physics'), 'robosuite': ('robosuite',)}
FAMILY_KEYS = {'particles': ('env.continue_prob',), 'robosuite': ('bc.episodes', 'bc.data')}
DEFAULTS = {}
for _key, (_default, *_) in SETTINGS.items():
    *_groups, _leaf = _key.split('.')
    _node = DEFAULTS
    for _group in _groups:
        _node = _node.setdefault(_group, {})
    _node[_leaf] = _default


class _Scope(Scope):
    """ato's Scope without its side effects: it does not patch argparse and does not read sys.argv."""

    def register(self) -> None:  # the parent's version replaces ArgumentParser.parse_args and parse_known_args
        type(self).registry = {self.name: self}

    def apply(self) -> None:  # the parent's version exits when sys.argv[1] is `manual` or `--help`
        argv, sys.argv = sys.argv, sys.argv[:1]
        try:
            super().apply()
        finally:
            sys.argv = argv


scope = _Scope()
PRESETS = {}  # name: kind. Two presets of one kind contradict each other.


def preset(kind: str) -> Callable:
    """Return a decorator that registers a function of the config as a preset, named and documented by the function."""
    def register(function: Callable) -> Callable:
        PRESETS[function.__name__] = kind
        return scope.observe()(function)
    return register


@preset('model')
def vlm_tiny(config: ADict) -> None:
    """a tiny Qwen2-VL from scratch, on a CPU in minutes: begin with this one"""
    config.model.vlm.update(name='vlm_tiny', init='random', use_lora=False, dtype='float32')
    config.model.heads.update(hidden=[128], init_std=0.1)
    config.train.update(batch_size=64, lr=2e-5, head_lr=1e-4, value_lr=3e-3, threads=1)  # two threads are slower
    config.parser.samples = 30000
    config.bc.update(epochs=1, samples=60000, lr=1.5e-3, bpe_dropout=0.05)
    config.rl.update(iterations=14, rollout_steps=32, update_epochs=1, entropy_coef=0.001, gamma=0.9, gae_lambda=0.8)
    config.env.num_envs = 64


@preset('model')
def vlm_tiny_long(config: ADict) -> None:
    """vlm_tiny for the whole goal language, in about an hour"""
    vlm_tiny(config)
    goals = ['simple', 'per_object', 'conjunction'] * 3 + ['sequence'] * 2 + ['quantified']
    config.env.update(goals=goals, continue_prob=0.3)
    config.parser.samples, config.bc.samples, config.rl.iterations = 100000, 1000000, 20


@preset('model')
def vlm_7b(config: ADict) -> None:
    """Qwen2-VL-7B instead of 2B"""
    config.model.vlm.name = 'Qwen/Qwen2-VL-7B-Instruct'


@preset('length')
def vlm_fast(config: ADict) -> None:
    """quick test: 10 PPO iterations, no behaviour cloning"""
    config.bc.epochs, config.rl.iterations = 0, 10


@preset('length')
def vlm_full(config: ADict) -> None:
    """5 epochs of behaviour cloning, then 50 PPO iterations"""
    config.bc.epochs, config.rl.iterations = 5, 50


@preset('length')
def vlm_long(config: ADict) -> None:
    """10 epochs of behaviour cloning, then 100 PPO iterations"""
    config.bc.epochs, config.rl.iterations = 10, 100


def _robosuite(config: ADict, task: str, *goals: str) -> None:
    """Set the robosuite environment and its PPO settings; the tiny model gets smaller learning rates."""
    config.env.update(world='robosuite', goals=list(goals), num_envs=4, max_steps=100)
    config.robosuite.update(task=task, action_repeat=5, gripper_repeat=10, proprioception=True)
    config.parser.samples = min(config.parser.samples, 10000)
    config.bc.update(samples=200000, episodes=800, dagger_fraction=0.5, action_noise=0.1)
    config.rl.update(rollout_steps=128, clip_ratio=0.2, gamma=0.99, gae_lambda=0.95, update_epochs=4,
                     value_coef=0.5, entropy_coef=0.01)
    config.eval.update(episodes=100, baselines=False)
    if config.model.vlm.name != 'vlm_tiny':
        config.train.update(batch_size=4, lr=3e-5, head_lr=3e-5, value_lr=3e-5)
    else:
        config.train.update(lr=6e-6, head_lr=3e-5)      # larger steps end most updates by rl.target_kl


@preset('world')
def robosuite_can(config: ADict) -> None:
    """a robot arm puts a can into one of two compartments"""
    _robosuite(config, 'PickPlaceCan', 'place_can', 'place_can_near')
    config.bc.update(episodes=500, samples=250000)


@preset('world')
def robosuite_lift(config: ADict) -> None:
    """a robot arm lifts a cube or pushes it away"""
    _robosuite(config, 'Lift', 'lift_cube', 'push_cube')
    config.robosuite.action_repeat = 4


@preset('world')
def robosuite_square(config: ADict) -> None:
    """a robot arm puts a nut on its peg or lifts it, with continuous actions"""
    _robosuite(config, 'NutAssemblySquare', 'place_nut', 'lift_nut')
    config.robosuite.update(action_space='continuous', action_repeat=4)


@preset('length')
def robosuite_quick(config: ADict) -> None:
    """2,000 environment steps of PPO after short behaviour cloning, in ten minutes"""
    config.rl.update(rollout_steps=64, iterations=-(-2000 // (64 * config.env.num_envs)))
    config.bc.update(samples=14000, episodes=min(config.bc.episodes, 40))
    config.eval.update(episodes=12, every=8)


@preset('length')
def robosuite_full(config: ADict) -> None:
    """100,000 environment steps of PPO"""
    config.rl.update(rollout_steps=128, iterations=-(-100000 // (128 * config.env.num_envs)))
    config.eval.every = 50


@preset('gravity')
def zero_gravity(config: ADict) -> None:
    """no gravity"""
    config.physics.gravity_y = 0.0


@preset('gravity')
def gravity(config: ADict) -> None:
    """particles fall"""
    config.physics.gravity_y = 0.1


@preset('bounce')
def elastic(config: ADict) -> None:
    """collisions conserve energy"""
    config.physics.restitution = 1.0


@preset('charge')
def strong_em(config: ADict) -> None:
    """four times the force between charges"""
    config.physics.em_force_strength = 20.0


@preset('size')
def high_res(config: ADict) -> None:
    """an environment of 128 x 128 pixels"""
    config.world.update(width=128, height=128)


@preset('size')
def small_sim(config: ADict) -> None:
    """an environment of 32 x 32 pixels"""
    config.world.update(width=32, height=32)


@preset('scale')
def debug(config: ADict) -> None:
    """a very small run that tests the installation; uses vlm_tiny unless a model preset is given"""
    config.train.update(batch_size=8, save_every=1)
    config.parser.samples = min(config.parser.samples, 64)
    config.bc.update(epochs=min(config.bc.epochs, 1), episodes=min(config.bc.episodes, 8), samples=64)
    config.rl.update(iterations=2, rollout_steps=8)
    config.env.update(num_envs=4, max_steps=8)
    config.eval.update(episodes=16, every=1)


def load(argv: list[str]) -> ADict:
    """Return the frozen config of presets, settings files and `key=value` words in any order.

    `config.presets` lists the presets. Raises ConfigError.
    """
    names, files, pairs = _sort_words(argv)
    values = {}
    for path in files:
        file_presets, file_values = load_file(path)
        if file_presets and names:
            raise ConfigError(f'{path} names its presets: leave out {names[0]!r}, or `presets` in the file')
        names += file_presets
        values |= file_values
    values |= dict(map(_parse, pairs))
    presets = _order_presets(names, values)
    return _compose(presets, values, presets)


def load_file(path: str | Path) -> tuple[list[str], dict[str, Any]]:
    """Return the presets and the {key: value} of a YAML file with nested or dotted keys.

    Raises ConfigError with the name of the file.
    """
    import yaml
    try:
        saved = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
        presets, values = _read_saved({} if saved is None else saved, yaml_floats=True)
    except OSError as error:
        raise ConfigError(f'cannot read the settings file {path} ({error.strerror}): name an existing file') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path} is not a YAML file: {error}') from None
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from None
    for name in presets:
        if name not in PRESETS:
            raise ConfigError(f'{path}: unknown preset {name!r}: {_suggest(name, PRESETS)}')
    return presets, values


def save_file(config: ADict, path: str | Path) -> None:
    """Write every setting of a config to a YAML file that `load_file` reads."""
    import yaml
    text = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    title = '# give this file to train_vlm.py to run with these settings again\n'
    Path(path).write_text(title + text, encoding='utf-8')


def from_dict(saved: dict, argv: Iterable[str] = ()) -> ADict:
    """Return the config of a checkpoint, from what `to_dict()` gave; missing keys get their defaults.

    `argv` holds `key=value` words that change it. Raises ConfigError.
    """
    for word in argv:
        if '=' not in word:
            raise ConfigError(f'a saved run keeps its presets: leave out {word!r}, change keys by key=value')
    presets, values = _read_saved(saved)
    return _compose([], values | dict(map(_parse, argv)), presets)


def main_config(argv: list[str] | None = None) -> ADict:
    """Return the config of a script's arguments; exit with code 0 after the manual, with 2 after one line of error."""
    argv = sys.argv[1:] if argv is None else argv
    if {'manual', '--help', '-h'} & set(argv):
        manual()
        sys.exit(0)
    try:
        return load(argv)
    except ConfigError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


def manual() -> None:
    """Print the usage, examples, every preset and every key."""
    print('usage: python train_vlm.py PRESET... [FILE.yaml] [key=value...]\n\nexamples:')
    for line in __doc__.splitlines():
        if line.startswith('    python'):
            print(line[2:])
    print('\nPresets compose. A preset further down overrides those above it:')
    for name in PRESETS:
        print(f'  {name:17}  {scope.views[name]["fn"].__doc__}')
    print('\nKeys with their defaults. A preset overrides a default; a typed value overrides both:')
    for key, (default, (_, words, _), meaning) in SETTINGS.items():
        print(f'  {f"{key}={default}":62}  {meaning} ({words})')


def _sort_words(argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the preset names, the settings files and the `key=value` words of the command line."""
    names, files, pairs = [], [], []
    for i, word in enumerate(argv):
        if word.startswith('-'):
            raise _dashes(word, argv[i + 1:])
        if '=' in word:
            pairs.append(word)
        elif word.endswith(('.yaml', '.yml')):
            files.append(word)
        elif word in SETTINGS:
            raise _invalid_value(word, word)
        elif word not in PRESETS:
            raise ConfigError(f'unknown preset {word!r}: {_suggest(word, PRESETS)}')
        else:
            names.append(word)
    return names, files, pairs


def _dashes(word: str, following: list[str]) -> ConfigError:
    """Return the error for an option like `--lr 3`; it shows the setting or preset of that name."""
    name, _, value = word.lstrip('-').partition('=')
    if name in PRESETS:
        return ConfigError(f'presets have no dashes, unlike {word!r}: did you mean {name}?')
    key = _nearest(name, SETTINGS)
    value = value or (following[0] if following else SETTINGS[key][0])
    return ConfigError(f'settings are key=value, without dashes, not {word!r}: did you mean {key}={value}?')


def _order_presets(names: list[str], values: dict[str, Any]) -> list[str]:
    """Return the presets in the order of this file. Raises ConfigError where two contradict each other."""
    needs_model = 'debug' in names and 'model.vlm.name' not in values
    if needs_model and not any(PRESETS[name] == 'model' for name in names):
        names = [*names, 'vlm_tiny']
    presets = [name for name in PRESETS if name in names]
    if not presets:
        raise ConfigError('no preset given: begin with vlm_tiny (--help lists the others)')
    for one, other in itertools.pairwise(presets):
        if PRESETS[one] == PRESETS[other]:
            raise ConfigError(f'the presets {one} and {other} contradict each other: give one of them')
    return presets


def _read_saved(saved: dict, yaml_floats: bool = False) -> tuple[list[str], dict[str, Any]]:
    """Return the presets and the checked {key: value} of nested plain data.

    `yaml_floats` accepts numbers such as 3e-4, which YAML 1.1 reads as strings.
    """
    if not isinstance(saved, dict):
        raise ConfigError(f'a saved config is a dict of groups, not {saved!r}')
    values = {str(key): value for key, value in _flatten(saved)}
    presets = values.pop('presets', [])
    if not isinstance(presets, list) or not all(isinstance(name, str) for name in presets):
        raise ConfigError(f'presets requires a list of names, not {presets!r}')
    checked = {}
    for name, value in values.items():
        key = _known(name)
        if yaml_floats and isinstance(value, str) and isinstance(SETTINGS[key][0], float):
            value = _literal(value)
        checked[key] = _check(key, value, f'{name}={value!r}')
    return presets, checked


def _compose(presets: list[str], values: dict[str, Any], recorded: list[str]) -> ADict:
    """Return the config of defaults, presets and values. ato executes values, so it gets the repr of plain data."""
    scope.reset_user_inputs()
    scope.config = config = ADict(DEFAULTS)
    scope.assign(presets + [f'{key}={value!r}' for key, value in values.items()])
    scope.apply()
    _reject_contradictions(config)
    config.presets = recorded
    return config.freeze()


def _reject_contradictions(c: ADict) -> None:
    """Raise ConfigError for values that are valid alone and invalid together."""
    limits = [('world.n_particles', c.world.n_particles, 'world.max_particles', c.world.max_particles)]
    if c.rl.iterations:
        steps = c.env.num_envs * c.rl.rollout_steps
        limits.append(('train.batch_size', c.train.batch_size, 'env.num_envs * rl.rollout_steps', steps))
    if c.bc.epochs:
        limits.append(('train.batch_size', c.train.batch_size, 'bc.samples', c.bc.samples))
    for key, value, bound, most in limits:
        if value > most:
            raise ConfigError(f'{key} is {value}, more than {bound}, which is {most}')
    _reject_other_families(c)
    if not c.model.heads.hidden:
        raise ConfigError('model.heads.hidden is empty: give the width of at least one layer, as in [128]')
    if c.model.vlm.load_in_4bit and (c.model.vlm.init == 'random' or not c.model.vlm.use_lora):
        raise ConfigError('model.vlm.load_in_4bit requires frozen pretrained weights: '
                          'also give model.vlm.init=pretrained and model.vlm.use_lora=True')
    if c.model.vlm.use_lora and not c.model.vlm.lora_targets:
        raise ConfigError('model.vlm.use_lora is True and model.vlm.lora_targets is empty: name the layers')


def _reject_other_families(c: ADict) -> None:
    """Raise ConfigError for a setting that the chosen environment family does not read."""
    values = dict(_flatten(c.to_dict()))
    for family, groups in SETTINGS_GROUPS.items():
        keys = [key for key in SETTINGS if key.split('.')[0] in groups or key in FAMILY_KEYS[family]]
        for key in keys:
            if family != c.env.world and values[key] != SETTINGS[key][0]:
                raise ConfigError(f'{key} has no effect with env.world={c.env.world}: leave it out, or the preset '
                                  'that sets it')


def _flatten(node: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every entry of nested groups."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def _known(key: str) -> str:
    """Return the current spelling of a key. Raises ConfigError for an unknown key."""
    key = OLD_KEYS.get(key, key)
    if key not in SETTINGS:
        raise ConfigError(f'unknown key {key!r}: {_suggest(key, SETTINGS)}')
    return key


def _similarity(word: str, name: str) -> float:
    """Return the similarity of a word to a name or to its last part: `train.hidden` is near model.heads.hidden."""
    return max(difflib.SequenceMatcher(None, str(word).lower(), form).ratio()
               for form in (name, name.rpartition('.')[2]))


def _nearest(word: str, names: Iterable[str]) -> str:
    """Return the most similar name."""
    return max(names, key=lambda name: _similarity(word, name))


def _suggest(word: str, names: Iterable[str]) -> str:
    """Return a hint for an unknown word: the most similar name, if one is similar."""
    nearest = _nearest(word, names)
    return f'did you mean {nearest}?' if _similarity(word, nearest) > 0.5 else '--help lists all'


def _parse(word: str) -> tuple[str, Any]:
    """Return the key and the checked value of `key=value` or `key:=text`. The value is never executed."""
    key, _, text = word.partition('=')
    as_string = key.endswith(':')
    key = _known(key.removesuffix(':'))
    if isinstance(SETTINGS[key][0], str):
        if not text:
            raise _invalid_value(key, word)
        quoted = len(text) > 1 and text[0] == text[-1] in '\'"'
        return key, _check(key, text[1:-1] if quoted else text, word)
    return key, _check(key, None if as_string else _literal(text), word)


def _literal(text: str) -> Any:
    """Return the Python value that a text spells, or None."""
    try:
        return ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all that literal_eval may raise
        return None


def _check(key: str, value: Any, given: str) -> Any:
    """Return the value as plain data of its key's type. Raises ConfigError, which quotes `given`."""
    default, (kind, _, is_valid), _ = SETTINGS[key]
    items = value if isinstance(default, list) else [value]
    if not isinstance(items, (list, tuple)) or not all(_is(kind, item) and is_valid(item) for item in items):
        raise _invalid_value(key, given)
    items = [kind(item) for item in items]
    if key == 'env.goals':
        items = [OLD_GOAL_GROUPS.get(item, item) for item in items]
    return items if isinstance(default, list) else items[0]


def _is(kind: type, value: Any) -> bool:
    """Return whether the value has the type; a float may be given as an int, but not as nan, inf or a bool."""
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is kind


def _invalid_value(key: str, given: str) -> ConfigError:
    """Return the error for a value that its key does not accept; it shows a value that is accepted."""
    default, (_, words, _), _ = SETTINGS[key]
    example = f'{key}={default}'
    if isinstance(default, str):
        example = shlex.quote(f'{key}={default or "TEXT"}')
    elif isinstance(default, list):
        words = f'a list, each item {words}'
        example = f'"{key}={default or ["TEXT"]}"'  # quoted, because the shell removes the inner quotes
    return ConfigError(f'{key} requires {words}, as in {example}, not {given}')
