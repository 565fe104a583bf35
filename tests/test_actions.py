"""Each action worked by hand, and ten thousand invalid ones."""
import numpy as np
import pytest

from simulator.particles.actions import USED_PARAMS, Action, ActionOperator, ActionStatus, ActionType, PropertyType
from simulator.particles.kernels import MAX_SPEED
from simulator.particles.physics import ParticleSimulator

STILL = {"em_force_strength": 0, "thermal_radiation_rate": 0, "heat_dissipation": 0, "vibration_scale": 0,
         "thermal_conduction": 0}


BOUNDS = {"charge": (-5, 5), "mass": (0.1, 10), "radius": (1, 5), "temperature": (0, 10)}


def make_sim(physics=STILL):
    """Particle 0 at (20, 32), radius 2, mass 1, temperature 1; particle 1 at (44, 32), mass 2."""
    sim = ParticleSimulator(1, 4, physics=physics)
    sim.count[0] = 2
    sim.position[0, :2], sim.radius[0, :2], sim.mass[0, :2] = [[20, 32], [44, 32]], 2, [1, 2]
    sim.temperature[0, :2] = 1
    return sim, ActionOperator(sim)


def step(operator, actions):
    """Apply actions and advance the simulation by one step; return the status codes."""
    status, field = operator.apply(actions)
    operator.simulator.step(field)
    return status


def act(operator, *action):
    status, field = operator.apply(Action(*action).to_vector()[None])
    return ActionStatus(status[0]), field[0]


def test_noop_and_step():
    sim, operator = make_sim()
    sim.velocity[0, 0] = [1, 0]
    assert step(operator, [[ActionType.NOOP, -1, 0, 0, 0, 1, 0]]).tolist() == [ActionStatus.OK]
    assert sim.time[0] == 1 and sim.position[0, 0, 0] == pytest.approx(21)
    step(operator, [[ActionType.STEP, -1, 0, 0, 0, 1, 0]])
    assert sim.time[0] == 3 and sim.position[0, 0, 0] == pytest.approx(23)


def test_step_fast_forwards_its_own_environment_only():
    sim = ParticleSimulator(3)
    step(ActionOperator(sim), [[0, -1, 0, 0, 0, 1, 0], [7, -1, 0, 0, 0, 1, 0], [0, -1, 0, 0, 0, 1, 0]])
    assert sim.time.tolist() == [1, 2, 1]


def test_add_particle():
    sim, operator = make_sim()
    assert act(operator, ActionType.ADD_PARTICLE, -1, 10, 50, -1.5, 3) == (ActionStatus.OK, pytest.approx(0))
    assert sim.count[0] == 3
    np.testing.assert_allclose(sim.position[0, 2], [10, 50])
    assert (sim.charge[0, 2], sim.radius[0, 2], sim.mass[0, 2], sim.temperature[0, 2]) == (-1.5, 3, 2.25, 0)
    assert act(operator, ActionType.ADD_PARTICLE, -1, 0, 64, 1, 20)[0] == ActionStatus.CLIPPED
    assert sim.radius[0, 3] == 5
    np.testing.assert_allclose(sim.position[0, 3], [5, 59])       # inside the walls
    assert act(operator, ActionType.ADD_PARTICLE, -1, 30, 30, 1, 2)[0] == ActionStatus.WORLD_FULL
    assert sim.count[0] == 4


def test_set_property():
    sim, operator = make_sim()
    where = (sim.position[..., 0], sim.position[..., 1], sim.velocity[..., 0], sim.velocity[..., 1],
             sim.charge, sim.mass, sim.radius, sim.temperature)
    for what, array in zip(PropertyType, where, strict=True):
        assert act(operator, ActionType.SET_PROPERTY, 1, 0, 0, 3.5, 1, what)[0] == ActionStatus.OK
        assert array[0, 1] == 3.5 and array[0, 0] != 3.5
    for name, bounds in BOUNDS.items():
        for value, bound in zip((-99, 99), bounds, strict=True):
            what = PropertyType[name.upper()]
            assert act(operator, ActionType.SET_PROPERTY, 1, 0, 0, value, 1, what)[0] == ActionStatus.CLIPPED
            assert where[what][0, 1] == bound
    assert act(operator, ActionType.SET_PROPERTY, 3, 0, 0, 1, 1, 4)[0] == ActionStatus.NO_TARGET


def test_set_property_of_what_is_at_a_place():
    sim, operator = make_sim()
    sim.position[0, 1] = [25, 32]
    # radius 2 and grace 2: particle 0 covers x from 16 to 24, particle 1 from 21; x = 22.5 is the middle
    assert act(operator, ActionType.SET_PROPERTY, -1, 23, 32, 2, 1, PropertyType.CHARGE)[0] == ActionStatus.OK
    assert sim.charge[0, :2].tolist() == [0, 2]
    for x in (16, 22):
        assert act(operator, ActionType.SET_PROPERTY, -1, x, 32, x / 8, 1, 4)[0] == ActionStatus.OK
        assert sim.charge[0, :2].tolist() == [x / 8, 2]
    assert act(operator, ActionType.SET_PROPERTY, -1, 15.9, 32, 1, 1, 4)[0] == ActionStatus.NO_TARGET


def test_heat():
    sim, operator = make_sim()
    act(operator, ActionType.APPLY_HEAT, -1, 20, 42, 3, 20)      # 10 px away: 3 * (1 - 10/20)
    np.testing.assert_allclose(sim.temperature[0, :2], [2.5, 1])
    act(operator, ActionType.APPLY_HEAT, -1, 20, 32, -5, 20)
    np.testing.assert_allclose(sim.temperature[0, :2], [0, 1])


def test_force_and_attraction():
    sim, operator = make_sim()
    # both 12 px from (32, 32): 4 * (1 - 12/24) = 2, over masses 1 and 2
    act(operator, ActionType.APPLY_FORCE, -1, 32, 32, 4, 24)
    np.testing.assert_allclose(sim.velocity[0, :2], [[-2, 0], [1, 0]])
    act(operator, ActionType.APPLY_ATTRACTION, -1, 32, 32, 4, 24)
    np.testing.assert_allclose(sim.velocity[0, :2], 0)
    act(operator, ActionType.APPLY_FORCE, -1, 32, 32, -4, 24)
    np.testing.assert_allclose(sim.velocity[0, :2], [[2, 0], [-1, 0]])
    act(operator, ActionType.APPLY_FORCE, -1, 20, 32, 4, 10)     # at particle 0, out of reach of 1
    np.testing.assert_allclose(sim.velocity[0, :2], [[2, 0], [-1, 0]])


def test_no_action_makes_it_too_fast():
    sim, operator = make_sim()
    sim.mass[0, 0] = 0.1
    act(operator, ActionType.APPLY_FORCE, -1, 20, 26, 5, 12)     # 5 * (1 - 6/12) / 0.1 = 25
    np.testing.assert_allclose(sim.velocity[0, 0], [0, MAX_SPEED])
    act(operator, ActionType.SET_PROPERTY, 0, 0, 0, 10, 1, PropertyType.VELOCITY_X)
    np.testing.assert_allclose(sim.velocity[0, 0], MAX_SPEED / np.sqrt(2))


def test_repulsion_is_a_field_during_the_step():
    sim, operator = make_sim(STILL | {"substeps": 1})
    status, field = act(operator, ActionType.APPLY_REPULSION, -1, 32, 32, 4, 24)
    assert status == ActionStatus.OK and not sim.velocity.any()
    sim.step(field[None])
    np.testing.assert_allclose(sim.velocity[0, :2], [[-2, 0], [1, 0]])      # as above, over one step
    np.testing.assert_allclose(sim.position[0, :2], [[18, 32], [45, 32]])
    sim.step()
    np.testing.assert_allclose(sim.velocity[0, :2], [[-2, 0], [1, 0]])      # and no longer


def test_type_target_and_property_are_rounded():
    sim, operator = make_sim()
    status, _ = operator.apply([[2.4, 0.6, 0, 0, 2, 1, 4.3]])
    assert status[0] == ActionStatus.OK and sim.charge[0, 1] == 2
    status, _ = operator.apply([[99, -1, 0, 0, 0, 1, 0]])
    assert status[0] == ActionStatus.CLIPPED and sim.time[0] == 1            # 99 is clipped to STEP


@pytest.mark.parametrize("wrong", [np.zeros(7), np.zeros((2, 7)), np.zeros((1, 6)), []])
def test_a_wrong_shape_is_refused(wrong):
    with pytest.raises(ValueError, match=r"\[1,7\]"):
        make_sim()[1].apply(wrong)


def test_ten_thousand_bad_actions():
    rng = np.random.default_rng(0)
    sim = ParticleSimulator(100, 12, physics={"gravity_y": 0.2})
    sim.count[:] = 5
    sim.position[:, :5], sim.radius[:, :5], sim.mass[:, :5] = rng.uniform(5, 59, (100, 5, 2)), 3, 1
    operator, seen = ActionOperator(sim), set()
    for _ in range(100):
        actions = rng.uniform([-2, -3, -20, -20, -8, -5, -2], [9, 15, 84, 84, 8, 80, 9], (100, 7))
        wild = rng.random((100, 7)) < 0.03
        actions[wild] = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e300, 1e18, -0.5], wild.sum())
        seen |= set(step(operator, actions).tolist())
        exists = np.arange(12) < sim.count[:, None]
        for name, (low, high) in BOUNDS.items():
            values = getattr(sim, name)[exists]
            assert ((low <= values) & (values <= high)).all(), name
        assert (np.linalg.norm(sim.velocity[exists], axis=-1) <= MAX_SPEED * (1 + 1e-12)).all()
        position, radius = sim.position[exists], sim.radius[exists, None]
        assert ((radius <= position) & (position <= 64 - radius)).all()
    assert seen == set(ActionStatus) and (sim.count == 12).any()


def test_the_action_by_name():
    action = Action(ActionType.APPLY_FORCE, -1, 54, 32, 2.0, 64)
    assert action.to_vector().dtype == np.float32 and action.to_vector().tolist() == [4, -1, 54, 32, 2, 64, 0]
    assert Action.from_vector(action.to_vector()) == action
    assert action.describe() == "push outwards at (54, 32), strength 2.0, radius 64"
    assert Action(ActionType.SET_PROPERTY, 3, value=2.0, property_type=2).describe() == (
        "set velocity_x of particle 3 to 2.0")
    assert set(USED_PARAMS) == set(ActionType) and USED_PARAMS[ActionType.NOOP] == USED_PARAMS[ActionType.STEP] == ()
    assert all(Action(kind).describe() for kind in ActionType)
