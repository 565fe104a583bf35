"""config.py: what composes, what is refused and how, and that the process around it stays as it was."""

import argparse
import copy
import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from ato.adict import ADict

import config
from config import PRESETS, SETTINGS, ConfigError, from_dict, load

ROOT = Path(config.__file__).parent


def flat(node):
    return dict(config._flatten(node))


def test_the_defaults_are_the_tables():
    for key, value in flat(from_dict({}).to_dict()).items():
        assert key == 'presets' or value == SETTINGS[key][0]
    assert set(flat(config.DEFAULTS)) == set(SETTINGS)


@pytest.mark.parametrize('key', SETTINGS)
def test_every_setting_passes_its_own_rule_and_says_what_it_means(key):
    default, _, canonical = SETTINGS[key]
    assert config._check(key, default, '') == default and canonical
    # an ADict answers `config.update` with its own method, so no part of a key may be the name of one
    assert not any(hasattr(ADict(), part) for part in key.split('.'))


@pytest.mark.parametrize('name', PRESETS)
def test_every_preset_sets_known_keys_to_allowed_values(name):
    saved = load([name]).to_dict()
    assert saved['presets'] == (['vlm_tiny', 'debug'] if name == 'debug' else [name])
    assert from_dict(saved).to_dict() == saved  # raises for an unknown key or a value out of range
    assert set(flat(saved)) == {*SETTINGS, 'presets'}


@pytest.mark.parametrize('argv, expected', [
    ('vlm_full train.lr=3e-4 rl.iterations=100 model.vlm.lora_r=32',
     {'train.lr': 3e-4, 'rl.iterations': 100, 'model.vlm.lora_r': 32, 'bc.epochs': 5}),
    ('vlm_fast debug', {'bc.epochs': 0, 'rl.iterations': 2, 'env.num_envs': 4}),
    ('vlm_full model.vlm.name:=Qwen/Qwen2-VL-7B-Instruct',
     {'model.vlm.name': 'Qwen/Qwen2-VL-7B-Instruct', 'rl.iterations': 50}),
    ('vlm_full vlm_7b', {'model.vlm.name': 'Qwen/Qwen2-VL-7B-Instruct', 'model.vlm.use_lora': True}),
    ('vlm_tiny', {'model.vlm.name': 'vlm_tiny', 'model.vlm.init': 'random', 'model.heads.hidden': [128]}),
    ('vlm_tiny vlm_long', {'model.vlm.name': 'vlm_tiny', 'bc.epochs': 10, 'rl.iterations': 100}),
    ('vlm_tiny gravity elastic strong_em small_sim',
     {'physics.gravity_y': 0.1, 'physics.restitution': 1.0, 'physics.em_force_strength': 20.0,
      'world.width': 32, 'world.height': 32}),
    ('train.batch_size=16 debug vlm_full', {'train.batch_size': 16, 'bc.epochs': 1}),
    ('vlm_tiny train.lr=1 train.lr=2', {'train.lr': 2.0}),
    ('vlm_tiny model.vlm.use_lora=true model.heads.hidden=(64,32)',
     {'model.vlm.use_lora': True, 'model.heads.hidden': [64, 32]}),
    ('vlm_tiny device=cpu model.vlm.name=Qwen/Qwen2-VL-7B log.run_name=7',
     {'device': 'cpu', 'model.vlm.name': 'Qwen/Qwen2-VL-7B', 'log.run_name': '7'}),
    ("vlm_tiny model.vlm.name='local/x' train.resume:=a=b:=c log.run_name:=입자", {
        'model.vlm.name': 'local/x', 'train.resume': 'a=b:=c', 'log.run_name': '입자'}),
])
def test_presets_and_literals_compose(argv, expected):
    got = flat(load(argv.split()).to_dict())
    assert {key: got[key] for key in expected} == expected
    assert all(type(got[key]) is type(expected[key]) for key in expected)


def test_the_order_of_the_words_does_not_matter():
    words = ['vlm_full', 'vlm_7b', 'debug', 'high_res', 'train.lr=3e-4']
    first, *others = [load(list(order)).to_dict() for order in itertools.permutations(words)]
    assert all(other == first for other in others)
    assert first['presets'] == ['vlm_7b', 'vlm_full', 'high_res', 'debug']


def test_debug_composes_with_every_preset():
    for name in PRESETS:
        assert load([name, 'debug']).to_dict() == load(['debug', name]).to_dict()
        assert load([name, 'debug']).env.num_envs == 4


@pytest.mark.parametrize('words, parts', [  # `...` stands for anything in between
    (['vlm_ful'], "unknown preset 'vlm_ful' ... vlm_full"),
    (['qqqq'], "unknown preset 'qqqq': --help lists all"),
    (['--vlm_tiny'], 'presets have no dashes ... did you mean vlm_tiny?'),
    (['vlm_tiny', '--lr', '3'], 'settings are key=value ... did you mean train.lr=3?'),
    (['vlm_tiny', '--train.lr=3'], 'settings are key=value ... did you mean train.lr=3?'),
    (['vlm_tiny', '--lr'], 'did you mean train.lr=0.0001?'),
    (['vlm_tiny', 'none.yaml'], 'cannot read the settings file none.yaml'),
    (['DEBUG'], 'debug?'),
    (['vlm_tiny', 'vlm_7b'], 'vlm_tiny and vlm_7b contradict'),
    (['zero_gravity', 'gravity'], 'contradict'),
    (['vlm_tiny', 'robosuite_lift', 'gravity'], 'physics.gravity_y has no effect with env.world=robosuite'),
    (['vlm_tiny', 'robosuite.task:=Lift'], 'robosuite.task has no effect with env.world=particles'),
    ([], 'vlm_tiny'),
    (['train.lr=1'], 'no preset ... vlm_tiny'),
    (['debug', 'trian.lr=1'], "unknown key 'trian.lr' ... train.lr?"),
    (['debug', 'lora_r=1'], 'model.vlm.lora_r?'),
    (['debug', 'train.hidden=[8]'], 'model.heads.hidden?'),
    (['debug', 'train=3'], "unknown key 'train' ... train.lr?"),
    (['debug', 'train.lr.x=1'], 'train.lr?'),
    (['debug', '=1'], 'unknown key'),
    (['debug', '__class__=1'], 'unknown key'),
    (['debug', 'train.lr', '=', '1'], 'as in train.lr=0.0001'),
    (['debug', 'train.lr'], 'as in train.lr=0.0001'),
    (['debug', 'train.lr='], 'as in train.lr=0.0001'),
    (['debug', 'train.resume:='], 'train.resume=TEXT'),
    (['vlm_tiny', 'bc.episodes=3'], 'bc.episodes has no effect with env.world=particles'),
    (['robosuite_lift', 'env.continue_prob=0.3'], 'env.continue_prob has no effect with env.world=robosuite'),
    (['debug', 'train.lr=abc'], 'train.lr requires a number above 0 ... not train.lr=abc'),
    (['debug', 'train.lr:=3e-4'], 'train.lr requires a number above 0'),
    (['debug', 'train.lr=nan'], 'number'),
    (['debug', 'train.lr=1e999'], 'number'),
    (['debug', 'train.lr=1' + '0' * 400], 'number'),
    (['debug', 'train.lr=' + '-' * 4000 + '1'], 'number'),  # too deep for Python's parser, one way
    (['debug', 'train.lr=' + '-' * 9999 + '1'], 'number'),  # and the other
    (['debug', 'train.lr=True'], 'number'),
    (['debug', 'train.lr=0'], 'above 0'),
    (['debug', 'rl.clip_ratio=1'], 'below 1'),
    (['debug', 'rl.gamma=1.01'], 'from 0 to 1'),
    (['debug', 'train.batch_size=0'], 'from 1 up'),
    (['debug', 'train.batch_size=8.0'], 'a whole number'),
    (['debug', 'seed=-1'], 'from 0'),
    (['debug', 'seed=True'], 'a whole number'),
    (['debug', 'model.vlm.use_lora=1'], 'True or False'),
    (['debug', 'device:=gpu'], 'auto, cpu, cuda, mps'),
    (['debug', "model.vlm.name=' '"], 'not empty'),
    (['debug', 'device=a\nb'], 'not device=a b'),
    (['debug', 'env.goals=[cluster]'], '''"env.goals=['TEXT']"'''),
    (['debug', 'model.heads.hidden=64'], '"model.heads.hidden=[512, 192]"'),
    (['debug', 'model.heads.hidden=[64, 0]'], 'each item a whole number from 1 up'),
    (['debug', 'train.batch_size=33'], 'batch_size is 33 ... num_envs * rl.rollout_steps, which is 32'),
    (['vlm_full', 'bc.samples=4'], 'bc.samples'),
    (['debug', 'world.n_particles=60'], 'world.max_particles'),
    (['vlm_fast', 'model.vlm.lora_targets=[]'], 'model.vlm.lora_targets'),
])
def test_a_wrong_word_is_one_line_that_names_the_right_one(words, parts):
    with pytest.raises(ConfigError) as error:
        load(words)
    message = str(error.value)
    assert '\n' not in message and all(part in message for part in parts.split(' ... ')), message


def test_a_value_is_never_executed(tmp_path):
    made = tmp_path / 'made'
    code = f"__import__('pathlib').Path({str(made)!r}).touch()"
    for key in ('seed', 'env.goals', 'model.vlm.use_lora'):
        with pytest.raises(ConfigError):
            load(['debug', f'{key}={code}'])
    assert load(['debug', f'log.run_name:={code}']).log.run_name == code
    assert load(['debug', f'log.run_name={code}']).log.run_name == code
    assert load(['debug', "log.run_name:=x' + exit() + '"]).log.run_name == "x' + exit() + '"
    assert not made.exists()


def test_a_config_survives_json_and_is_filled_up_from_the_defaults():
    made = load(['vlm_tiny', 'vlm_full', 'env.goals=["cluster", "move_to(id=1, x>90)"]'])
    assert from_dict(json.loads(json.dumps(made.to_dict()))).to_dict() == made.to_dict()
    partial = from_dict({'train': {'lr': 1}})
    assert partial.train.lr == 1.0 and partial.train.batch_size == 8 and partial.presets == []


@pytest.mark.parametrize('saved, part', [
    ({'train': {'lrr': 1}}, 'train.lr?'),
    ({'trian': {'lr': 1}}, 'train.lr?'),
    ({'foo': {}}, "unknown key 'foo'"),
    ({'train': 3}, "unknown key 'train'"),
    ({'train': {'lr': {'x': 1}}}, 'train.lr?'),
    ({'train': {'lr': '1e-3'}}, "not train.lr='1e-3'"),
    ({'train': {'lr': float('nan')}}, 'number'),
    ({'device': None}, 'device requires one of'),
    ({'presets': 'vlm_tiny'}, 'presets requires a list'),
    ([], 'a saved config is a dict'),
])
def test_a_broken_saved_config_is_refused(saved, part):
    with pytest.raises(ConfigError, match=r'^[^\n]*$') as error:
        from_dict(saved)
    assert part in str(error.value)


def test_a_config_is_frozen_plain_and_independent_of_the_next():
    first = load(['vlm_tiny', 'seed=7'])
    before = first.to_dict()
    first.seed = 8
    first.train.lr = 9.0
    first.model.heads.hidden.append(1)
    assert load(['vlm_full']).seed == 0
    assert first.to_dict() == before and config.DEFAULTS['model']['heads']['hidden'] == [512, 192]
    assert first.seed == first['seed'] == 7
    with pytest.raises(AttributeError):
        first.train.nothing  # noqa: B018
    assert pickle.loads(pickle.dumps(first)).to_dict() == copy.deepcopy(first).to_dict() == before


PROGRAM = '''
import argparse, sys
methods = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args
argv, words = sys.argv, list(sys.argv)
import config
config.load(['vlm_tiny', 'seed=3'])
assert config.load(['debug']).seed == 0
try:
    config.load(['nothing'])
except config.ConfigError:
    pass
assert sys.argv is argv and argv == words
assert methods == (argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args)
import ato.scope
assert not ato.scope.Scope.registry and ato.scope.Scope.current_scope is None
parser = argparse.ArgumentParser(prog='someone')
parser.add_argument('--lr', type=float, default=0.0)
parser.add_argument('word', nargs='?')
print('lr', parser.parse_args().lr)
'''


@pytest.mark.parametrize('argv, printed', [
    ([], 'lr 0.0'), (['--lr', '3'], 'lr 3.0'), (['manual'], 'lr 0.0'), (['--help'], 'usage: someone')])
def test_the_process_around_it_stays_as_it_was(argv, printed):
    done = subprocess.run([sys.executable, '-c', PROGRAM, *argv], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.startswith(printed)


def test_argparse_here_is_pythons_own():
    assert argparse.ArgumentParser.parse_args.__module__ == 'argparse'
    assert not hasattr(argparse.ArgumentParser, 'stored_methods')


@pytest.mark.parametrize('argv, code, out, err', [
    (['vlm_tiny', 'seed=3'], 0, '3\n', ''),
    (['vlm_tiny', 'train.lrr=3'], 2, '', "error: unknown key 'train.lrr': did you mean train.lr?\n"),
    ([], 2, '', 'error: no preset given: begin with vlm_tiny (--help lists the others)\n'),
])
def test_a_script_ends_with_one_line_and_exit_code_2(tmp_path, argv, code, out, err):
    run = [sys.executable, '-c', 'import config; print(config.main_config().seed)', *argv]
    done = subprocess.run(run, cwd=tmp_path, env={'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('word', ['manual', '--help', '-h'])
def test_the_manual_has_a_line_for_everything(capsys, word):
    with pytest.raises(SystemExit) as end:
        config.main_config(['vlm_tiny', word])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name in PRESETS:
        assert sum(line.startswith(f'  {name} ') for line in lines) == 1
    for key, (default, _, canonical) in SETTINGS.items():
        line, = (line for line in lines if line.startswith((f'  {key}=', f'  {key}:=')))
        assert str(default) in line and canonical in line
    assert lines[0] == 'usage: python train_vlm.py PRESET... [FILE.yaml] [key=value...]'
    assert lines[2] == 'examples:' and lines[3].startswith('  python train_vlm.py vlm_tiny ')


def test_keys_of_older_versions_are_accepted():
    """There, vlm.ppo_epochs counted iterations and rl.ppo_epochs passes."""
    made = load(['vlm_tiny', 'vlm.ppo_epochs=7', 'rl.ppo_epochs=3', 'vlm.rollout_steps=16', "env.goals=['at_once']"])
    assert (made.rl.iterations, made.rl.update_epochs, made.rl.rollout_steps) == (7, 3, 16)
    assert made.env.goals == ['conjunction']


def test_debug_alone_is_tiny():
    made = load(['debug'])
    assert made.model.vlm.name == 'vlm_tiny' and made.presets == ['vlm_tiny', 'debug']
    assert load(['vlm_7b', 'debug']).model.vlm.init == 'pretrained'
    assert load(['debug', 'model.vlm.name=Qwen/Qwen2-VL-2B-Instruct']).model.vlm.init == 'pretrained'


def test_a_settings_file_composes_like_a_preset(tmp_path):
    """Nested and dotted keys; it overrides presets, and typed values override it."""
    own = tmp_path / 'my.yaml'
    own.write_text('train:\n  lr: 3e-4\n  head_lr: 0.5\nbc.epochs: 3\nenv:\n  goals: [cluster]\nlog.run_name: 1e3\n')
    made = load(['vlm_tiny', str(own), 'train.head_lr=0.25'])
    assert (made.train.lr, made.train.head_lr, made.bc.epochs) == (3e-4, 0.25, 3)
    assert made.env.goals == ['cluster'] and made.log.run_name == '1e3' and made.model.vlm.name == 'vlm_tiny'
    own.write_text('presets: [vlm_tiny]\ntrain.lr: 0.5\n')
    assert load([str(own)]).model.vlm.name == 'vlm_tiny' and load([str(own)]).train.lr == 0.5


@pytest.mark.parametrize('text, parts', [
    ('train.lrr: 3', "unknown key 'train.lrr': did you mean train.lr?"),
    ('train: {lr: fast}', 'train.lr requires a number above 0'),
    ('presets: [vlm_tinny]', "unknown preset 'vlm_tinny': did you mean vlm_tiny?"),
    ('train: [', 'is not a YAML file'),
    ('just text', 'a saved config is a dict'),
    ('3: 4', "unknown key '3'"),
    ('presets: [vlm_full]', 'names its presets: leave out'),
])
def test_a_wrong_settings_file_is_one_line_with_its_name(tmp_path, text, parts):
    own = tmp_path / 'my.yaml'
    own.write_text(text)
    with pytest.raises(ConfigError, match=r'^[^\n]*$') as error:
        load(['vlm_tiny', str(own)])
    assert 'my.yaml' in str(error.value) and parts in str(error.value)


def test_saved_settings_can_be_given_back(tmp_path):
    made = load(['vlm_tiny', 'vlm_long', 'train.lr=3e-5', "env.goals=['cluster']", 'log.run_name=이름'])
    config.save_file(made, tmp_path / 'config.yaml')
    assert load([str(tmp_path / 'config.yaml')]).to_dict() == made.to_dict()
    assert load([str(tmp_path / 'config.yaml'), 'seed=4']).seed == 4
