"""The compiled simulator against a plain one, physics worked by hand, conserved quantities, images."""
import numpy as np
import pytest
from reference_simulator import ReferenceWorld

from simulator.particles import kernels
from simulator.particles.actions import Action, ActionOperator
from simulator.particles.kernels import CELL_LIST_ABOVE, HEAT_CAPACITY
from simulator.particles.physics import BACKGROUND, PALETTE, PHYSICS, ParticleSimulator

PARTICLE = ("position", "velocity", "radius", "mass", "charge", "temperature", "conductivity")
STILL = {"em_force_strength": 0, "thermal_radiation_rate": 0, "heat_dissipation": 0, "vibration_scale": 0,
         "thermal_conduction": 0}


def fill(sim, seed, n=8):
    """Write n random particles into each environment: moving, charged, warm, of all sizes."""
    rng, b = np.random.default_rng(seed), sim.batch_size
    sim.clear(slice(None), rng.integers(2**63, size=b))
    sim.count[:] = n
    sim.position[:, :n] = rng.uniform(5, [sim.width - 5, sim.height - 5], (b, n, 2))
    sim.velocity[:, :n] = rng.normal(0, 1.5, (b, n, 2))
    for name, low, high in (("radius", 1, 4), ("mass", 0.5, 3), ("charge", -3, 3), ("temperature", 0, 5),
                            ("conductivity", 0, 1)):
        getattr(sim, name)[:, :n] = rng.uniform(low, high, (b, n))


def one_env(physics=None, position=(), max_particles=8, **state):
    """Return a simulator of one environment. Default: radius 2, mass 1, at rest, neutral and cold."""
    sim = ParticleSimulator(1, max_particles, physics=physics)
    n = len(position)
    sim.count[0], sim.position[0, :n] = n, np.reshape(position, (n, 2))
    sim.radius[0, :n], sim.mass[0, :n] = 2, 1
    for name, values in state.items():
        getattr(sim, name)[0, :n] = values
    return sim


def energy(sim):
    """Return kinetic energy + heat of each environment [B]."""
    kinetic = 0.5 * sim.mass * (sim.velocity**2).sum(-1)
    return (kinetic + HEAT_CAPACITY * sim.mass * sim.temperature).sum(1)


def difference(reference, sim, b=0):
    """The largest difference of any number of any particle."""
    n = sim.count[b]
    return max(np.abs(np.array([getattr(particle, name) for particle in reference.particles])
                      - getattr(sim, name)[b, :n]).max() for name in PARTICLE)


@pytest.mark.parametrize(("seed", "n", "width", "height", "physics"), [
    (0, 8, 64, 64, {}), (1, 8, 64, 64, {"gravity_y": 0.1}), (2, 3, 32, 32, {"restitution": 1.0}),
    (3, 12, 96, 48, {"substeps": 5, "dt": 0.7}), (4, 20, 64, 64, {"em_force_strength": 20})])
def test_compiled_equals_reference(seed, n, width, height, physics):
    sim = ParticleSimulator(1, 50, width, height, physics)
    fill(sim, seed, n)
    reference = ReferenceWorld(sim)
    operator, rng = ActionOperator(sim), np.random.default_rng(seed)
    for _ in range(50):
        action = Action(rng.choice([0, 3, 4, 5, 6]), -1, *rng.uniform(0, [width, height]), rng.normal(), 20)
        _, field = operator.apply(action.to_vector()[None])
        for i, particle in enumerate(reference.particles):     # actions have tests of their own
            particle.velocity, particle.temperature = sim.velocity[0, i].copy(), sim.temperature[0, i]
        sim.step(field)
        reference.step(field[0])
        assert difference(reference, sim) < 1e-4
    assert sim.time[0] == 50


def test_cell_list_equals_brute_force():
    sim = ParticleSimulator(1, 300, 128, 96)
    fill(sim, 0, 300)
    assert sim.count[0] > CELL_LIST_ABOVE
    reference = ReferenceWorld(sim)
    for _ in range(3):
        sim.step()
        reference.step()
        assert difference(reference, sim) < 1e-9


def test_a_trajectory_is_its_seeds_alone(monkeypatch):
    run_local, batch = ParticleSimulator(1), ParticleSimulator(64)
    fill(batch, 5)
    for name in batch.STATE:
        getattr(run_local, name)[0] = getattr(batch, name)[37]
    start = {name: getattr(batch, name).copy() for name in batch.STATE}
    runs = []
    monkeypatch.setattr(kernels, "ENVS_PER_THREAD", 8)
    for threads in (1, 2, 5):
        monkeypatch.setattr(kernels, "THREADS", threads)
        for name in batch.STATE:
            getattr(batch, name)[:] = start[name]
        for _ in range(30):
            batch.step()
        runs.append((batch.position.copy(), batch.temperature.copy(), batch.render()))
    for _ in range(30):
        run_local.step()
    for position, temperature, images in runs:
        np.testing.assert_array_equal(position, runs[0][0])
        np.testing.assert_array_equal(temperature, runs[0][1])
        np.testing.assert_array_equal(images, runs[0][2])
        np.testing.assert_array_equal(position[37], run_local.position[0])
    run_local.clear(np.array([0]), 1)
    assert run_local.count[0] == run_local.time[0] == 0 and run_local.seed[0] == 1 and not run_local.position.any()


def test_another_seed_shakes_otherwise():
    sim = ParticleSimulator(2)
    fill(sim, 0)
    for name in PARTICLE:
        getattr(sim, name)[1] = getattr(sim, name)[0]
    sim.step()
    shift = sim.position[0, :8] - sim.position[1, :8]
    assert sim.seed[0] != sim.seed[1] and (shift != 0).all()
    assert np.abs(shift).max() <= 2 * 0.5 * np.sqrt(sim.temperature[0, :8].max())    # twice 0.5 sqrt(T)


def test_momentum_is_conserved_without_walls_and_fields():
    sim = ParticleSimulator(16, 20, 512, 512, {"heat_dissipation": 0})
    fill(sim, 0, 20)
    sim.position[:] = 200 + sim.position * 0.2       # far from the walls, close to each other
    before = (sim.mass[..., None] * sim.velocity).sum(1)
    for _ in range(10):
        sim.step()
    assert np.abs(sim.velocity).max() < 10           # nothing was clamped
    np.testing.assert_allclose((sim.mass[..., None] * sim.velocity).sum(1), before, atol=1e-9)


def test_energy_never_grows_in_collisions():
    sim = ParticleSimulator(16, 30, physics=STILL | {"thermal_conduction": 1.0})
    fill(sim, 0, 30)
    for _ in range(30):
        before = energy(sim)
        sim.step()
        assert (energy(sim) <= before * (1 + 1e-12)).all()


def test_a_head_on_collision_by_hand():
    # closing at 2 px/step, 0.5 px apart: they meet in the second substep. Equal masses, restitution e = 0.8:
    # they part at e * 2 = 1.6, each at 0.8. Kinetic energy 2 * 1/2 * 1 = 1 -> 2 * 1/2 * 0.64 = 0.64; each
    # takes half of the lost 0.36 as heat: 0.18 / (5 * 1) = 0.036 of temperature
    sim = one_env(STILL, [[30, 32], [34.5, 32]], velocity=[[1, 0], [-1, 0]])
    sim.step()
    np.testing.assert_allclose(sim.velocity[0, :2], [[-0.8, 0], [0.8, 0]], atol=1e-12)
    np.testing.assert_allclose(sim.temperature[0, :2], 0.18 / HEAT_CAPACITY, atol=1e-12)
    assert energy(sim)[0] == pytest.approx(1.0)
    # one of mass 3 strikes one of mass 1 at rest, at 1: impulse 1.8 * 3/4 = 1.35 -> 1 - 0.45 = 0.55 and 1.35
    sim = one_env(STILL, [[30, 32], [33.5, 32]], velocity=[[1, 0], [0, 0]], mass=[3, 1])
    sim.step()
    np.testing.assert_allclose(sim.velocity[0, :2], [[0.55, 0], [1.35, 0]], atol=1e-12)


def test_overlap_is_pushed_apart_by_mass():
    sim = one_env(STILL, [[30, 32], [32, 32]], mass=[3, 1])      # 2 px deep
    sim.step()
    np.testing.assert_allclose(sim.position[0, :2], [[29.5, 32], [33.5, 32]], atol=1e-12)
    sim = one_env(STILL, [[30, 32], [30, 32]])                   # in one place
    sim.step()
    np.testing.assert_allclose(sim.position[0, :2], [[32, 32], [28, 32]], atol=1e-6)


def test_forces_by_hand():
    # d = 10: 5 * 1 * -1 / 100 * (1 - 10/15) = -1/60, so they attract; one substep of 1/3
    physics = STILL | {"em_force_strength": 5, "substeps": 1}
    sim = one_env(physics, [[30, 32], [40, 32]], charge=[1, -1])
    sim.step()
    np.testing.assert_allclose(sim.velocity[0, :2, 0], [1 / 60, -1 / 60], atol=1e-12)
    sim = one_env(physics, [[30, 32], [40, 32]], charge=[1, 1], mass=[1, 2])
    sim.step()
    np.testing.assert_allclose(sim.velocity[0, :2, 0], [-1 / 60, 1 / 120], atol=1e-12)
    sim = one_env(physics, [[30, 32], [45.1, 32]], charge=[5, 5])
    sim.step()
    assert not sim.velocity.any()                                  # out of reach
    sim = one_env(STILL | {"gravity_y": 0.5}, [[30, 32]])
    sim.step()     # after substeps of 1/3: v = 1/6, 2/6, 3/6; y += (1 + 2 + 3)/6 * 1/3
    np.testing.assert_allclose([sim.velocity[0, 0, 1], sim.position[0, 0, 1]], [0.5, 32 + 1 / 3], atol=1e-12)


def test_heat_by_hand():
    sim = one_env(STILL | {"heat_dissipation": 0.02}, [[30, 32]], temperature=3)
    sim.step()
    assert sim.temperature[0, 0] == pytest.approx(3 * np.exp(-0.02))
    # radiation at d = 5: 0.01 * (1 - 5/10) * (4 - 0) * reduced mass 0.5 = 0.01
    radiating = STILL | {"thermal_radiation_rate": 0.01, "substeps": 1}
    sim = one_env(radiating, [[30, 32], [35, 32]], temperature=[0, 4])
    sim.step()
    np.testing.assert_allclose(sim.temperature[0, :2], [0.01, 3.99], atol=1e-12)
    # conduction: at most half of the way to the common temperature 3 * 4 / (1 + 3) = 3, with any conductivity
    conducting = STILL | {"thermal_conduction": 100, "substeps": 1}
    sim = one_env(conducting, [[30, 32], [33, 32]], temperature=[0, 4], mass=[1, 3], conductivity=1)
    sim.step()
    np.testing.assert_allclose(sim.temperature[0, :2], [1.5, 3.5], atol=1e-12)


def test_walls_reflect():
    sim = one_env(STILL, [[3, 32], [62, 32], [32, 2], [32, 62]],
                    velocity=[[-3, 1], [1, 0], [0, -1], [0, 1]])
    sim.step()     # the first: x = 3, at the wall at 2, reflected there, 2 + 3 * 0.8 / 3
    np.testing.assert_allclose(sim.velocity[0, :4], [[2.4, 1], [-0.8, 0], [0, 0.8], [0, -0.8]], atol=1e-12)
    np.testing.assert_allclose(sim.position[0, 0], [2.8, 33], atol=1e-12)
    fill(sim, 0)
    sim.velocity *= 10
    for _ in range(50):
        sim.step()
        radius = sim.radius[..., None]
        assert ((radius <= sim.position) & (sim.position <= 64 - radius))[:, :8].all()
        assert (sim.velocity**2).sum(-1).max() <= 100 * (1 + 1e-12)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="restitution"):
        ParticleSimulator(physics={"restituton": 1})
    for name, value in (("substeps", 0), ("restitution", 1.2), ("dt", 0), ("em_force_radius", -1),
                        ("gravity_y", np.nan), ("vibration_scale", np.inf)):
        with pytest.raises(ValueError, match=name):
            ParticleSimulator(physics={name: value})
    assert ParticleSimulator(physics={"dt": 0.5}).physics == PHYSICS | {"dt": 0.5}


def test_each_property_shows_in_the_image():
    def render(position=((20.5, 30.5),), **state):
        return one_env(None, position, **({"radius": 3, "temperature": 1, "charge": 1} | state)).render()[0]

    image = render()
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert tuple(image[0, 0]) == BACKGROUND and tuple(image[30, 18]) == PALETTE[0][2]      # row y, column x
    assert tuple(image[30, 20]) == (255, 255, 255)
    others = [render(((21.5, 30.5),)), render(radius=2), render(charge=-1), render(charge=0),
              render(charge=3), render(temperature=0), render(temperature=4), render(velocity=[[2, 0]]),
              render(((20.5, 30.5),) * 2)]     # the last: particle 1 covers particle 0
    for i, other in enumerate(others):
        assert (other != image).any()
        assert all((other != one).any() for one in others[:i])
    assert tuple(others[2][30, 20]) == (0, 0, 0) and tuple(others[-1][30, 18]) == PALETTE[1][2]
    assert len({rgb for *_, rgb in PALETTE}) == 8


def test_a_small_body_shows_its_colour_and_its_charge_everywhere():
    for x in np.arange(30, 31, 0.1):
        image = one_env(None, [[x, 30.3]], radius=1, charge=-1).render()[0].reshape(-1, 3)
        assert (image == 0).all(1).sum() == 1 and (image == PALETTE[0][2]).all(1).sum() >= 1


def test_a_larger_image_is_the_same_anti_aliased():
    sim = ParticleSimulator(3)
    fill(sim, 1)
    small, large = sim.render(), sim.render(scale=4)
    assert large.shape == (3, 256, 256, 3) and large.dtype == np.uint8
    hard = {tuple(colour) for colour in sim.render(scale=1).reshape(-1, 3)}
    assert any(tuple(colour) not in hard for colour in large.reshape(-1, 3))
    box = large.reshape(3, 64, 4, 64, 4, 3).mean((2, 4))
    assert np.abs(box - small).mean() < 8 and np.abs(box.mean((1, 2)) - small.mean((1, 2))).max() < 3
    out = np.zeros((2, 64, 64, 3), np.uint8)
    assert sim.render(envs=[2, 0], out=out) is out
    np.testing.assert_array_equal(out, small[[2, 0]])
