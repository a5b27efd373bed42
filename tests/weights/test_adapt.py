import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax.weights import adapt, load, state_dict
from tests.equality import tree_equal


@pytest.fixture
def trained(make, randomise):
    """A model and its state, in which all arrays are random."""
    return randomise(*make(image_size=32))


def tables(model):
    return [block.attention.bias.table for stage in model.stages for block in stage.blocks]


def with_tables(model, new):
    return eqx.tree_at(tables, model, [new(table) for table in tables(model)])


SIZES = (16, 31, 64, (20, 33))


@pytest.mark.parametrize("image_size", SIZES)
def test_constant_tables_stay_constant(trained, image_size):
    model = with_tables(trained[0], lambda table: jnp.full_like(table, 0.7))
    resized, _ = adapt(model, trained[1], image_size=image_size)
    assert all((table == jnp.float32(0.7)).all() for table in tables(resized))


@pytest.mark.parametrize("image_size", SIZES)
def test_the_smallest_and_largest_offsets_keep_their_biases(trained, image_size):
    resized, _ = adapt(*trained, image_size=image_size)
    assert [table.shape[1:] for table in tables(resized)] == [
        resized.config.block_sizes(stage)[block].grid for stage, block in ((0, 0), (1, 0), (1, 1))
    ]
    for old, new in zip(tables(trained[0]), tables(resized), strict=True):
        assert jnp.array_equal(new[:, [0, 0, -1, -1], [0, -1, 0, -1]], old[:, [0, 0, -1, -1], [0, -1, 0, -1]])


def test_interpolation_is_linear_between_offsets(trained):
    ramp = jnp.asarray(2.0 * np.arange(8)[:, None] + np.arange(8), jnp.float32)[None]
    model = eqx.tree_at(lambda model: tables(model)[0], trained[0], ramp)
    resized, _ = adapt(model, trained[1], image_size=(60, 32))
    table = tables(resized)[0]
    assert table.shape == (1, 15, 8)
    assert np.allclose(table[0], np.arange(15)[:, None] + np.arange(8))


@pytest.mark.parametrize("image_size", (32, 31, 30, 29))
def test_the_same_grid_is_left_as_it_is(trained, image_size):
    resized, state = adapt(*trained, image_size=image_size)
    assert resized.config.image_size == (image_size, image_size)
    assert tree_equal(tables(resized), tables(trained[0]))
    assert tree_equal(state, trained[1])


def test_up_and_down_again_returns_smooth_tables(trained):
    def smooth(table):
        rows, columns = table.shape[1:]
        wave = np.outer(np.cos(np.linspace(0, 2, rows)), np.linspace(1, 2, columns))
        return jnp.asarray(np.stack([wave] * len(table)), jnp.float32)

    model = with_tables(trained[0], smooth)
    back, _ = adapt(*adapt(model, trained[1], image_size=56), image_size=32)
    # The error of linear interpolation is an eighth of the squared step, (2 / 7)**2 or (2 / 3)**2, times the largest
    # curvature, 2. There are two interpolations.
    for table, old, step in zip(tables(back), tables(model), (2 / 7, 2 / 7, 2 / 3), strict=True):
        assert jnp.abs(table - old).max() <= 2 * step**2 / 8 * 2
    # At twice the resolution less one, the new offsets include all old ones.
    back, _ = adapt(*adapt(model, trained[1], image_size=60), image_size=32)
    assert jnp.allclose(tables(back)[0], tables(model)[0], atol=1e-6)


def test_a_resized_model_runs_and_knows_its_offsets(trained, images):
    resized, state = adapt(*trained, image_size=(20, 48))
    predict = levitax.Predictor(resized, state)
    assert jax.jit(jax.vmap(predict))(images(2, 20, 48, 3)).shape == (2, 5)
    matrix = resized.stages[0].blocks[0].attention.bias()
    assert jnp.array_equal(matrix[:, 0, 12 + 2], tables(resized)[0][:, 1, 2])


def test_other_classes_get_new_classifiers_behind_the_old_normalisations(trained, key):
    model, state = adapt(*trained, num_classes=9, key=key)
    old, new = state_dict(*trained, layout="levitax"), state_dict(model, state, layout="levitax")
    changed = {name for name in new if new[name].shape != old[name].shape}
    assert changed == {
        f"head.{head}.{leaf}" for head in ("classification", "distillation") for leaf in ("weight", "bias")
    }
    assert all(np.array_equal(new[name], old[name]) for name in new.keys() - changed)
    assert 0.01 < new["head.distillation.weight"].std() < 0.03
    assert not np.array_equal(new["head.distillation.weight"], new["head.classification.weight"])


def test_no_classes_leave_the_backbone(trained, images):
    model, state = adapt(*trained, num_classes=0)
    assert model.head is None
    batch = images(2, 32, 32, 3)
    maps, _ = eqx.filter_jit(levitax.batched(eqx.nn.inference_mode(trained[0]).features))(batch, trained[1])
    pooled = jax.jit(jax.vmap(levitax.Predictor(model, state)))(batch)
    assert jnp.allclose(pooled, maps[-1].mean((1, 2)), atol=1e-6)


def test_a_backbone_gets_a_whole_head(trained, key):
    backbone = adapt(*trained, num_classes=0)
    model, state = adapt(*backbone, num_classes=4, key=key)
    arrays = state_dict(model, state, layout="levitax")
    assert arrays["head.distillation.weight"].shape == (4, 24)
    assert (arrays["head.distillation.norm.var"] == 1).all()


@pytest.mark.parametrize("network", ("paper", pytest.param("vit_pytorch", marks=pytest.mark.slow)))
def test_two_heads_are_merged_into_the_mean_of_their_logits(make, randomise, images, error, network):
    model, state = randomise(*make(network=network, distillation=True, heads=(1, 1)))
    merged, merged_state = adapt(model, state, distillation=False)
    assert isinstance(merged.head, levitax.nn.NormLinear)
    batch = images(4, 16, 16, 3)
    ours = jax.jit(jax.vmap(levitax.Predictor(merged, merged_state)))(batch)
    assert error(ours, jax.jit(jax.vmap(levitax.Predictor(model, state)))(batch)) < 1e-6
    # The merged model can be trained.
    logits, _ = eqx.filter_jit(levitax.batched(merged))(batch, merged_state)
    assert isinstance(logits, jax.Array) and jnp.isfinite(logits).all()


def test_one_head_becomes_two_with_equal_logits(make, randomise, images):
    model, state = randomise(*make(distillation=False))
    double, double_state = adapt(model, state, distillation=True)
    batch = images(2, 16, 16, 3)
    ours = jax.jit(jax.vmap(levitax.Predictor(double, double_state)))(batch)
    assert jnp.array_equal(ours, jax.jit(jax.vmap(levitax.Predictor(model, state)))(batch))


@pytest.mark.parametrize("channels", (1, 2, 3, 4, 6, 7))
def test_images_of_equal_channels_give_what_they_gave(trained, images, error, channels):
    model, state = adapt(*trained, in_channels=channels)
    grey = images(32, 32, 1)
    first = lambda model, state: levitax.Predictor(model.stem.convolutions[0], state)
    assert error(first(model, state)(grey.repeat(channels, -1)), first(*trained)(grey.repeat(3, -1))) < 2e-6


def test_colours_keep_their_old_filters(trained):
    old = trained[0].stem.convolutions[0].weight
    new = adapt(*trained, in_channels=4)[0].stem.convolutions[0].weight
    assert jnp.array_equal(new[:, 1:3], old[:, 1:3])
    assert jnp.array_equal(new[:, [0, 3]], old[:, [0, 0]] / 2)


def test_the_given_model_is_unchanged_and_its_mode_is_kept(trained):
    before = jax.tree.map(lambda leaf: leaf.copy() if eqx.is_array(leaf) else leaf, trained)
    model, _ = adapt(eqx.nn.inference_mode(trained[0]), trained[1], image_size=48, in_channels=1)
    assert tree_equal(before, trained)
    flags = [leaf for leaf in jax.tree.leaves(model) if isinstance(leaf, bool)]
    assert flags and all(flags)
    model, _ = adapt(*trained, image_size=48)
    assert not any(leaf for leaf in jax.tree.leaves(model) if isinstance(leaf, bool))


def test_fields_that_change_no_array_are_changed(trained):
    model, _ = adapt(*trained, drop_path=0.3, dropout=0.2, dtype="bfloat16", remat=True, activation="silu")
    config = model.config
    assert (config.drop_path, config.dropout, config.dtype, config.remat) == (0.3, 0.2, "bfloat16", True)
    assert tree_equal(tables(model), tables(trained[0]))


def test_loading_adapts_in_the_same_way(trained, key):
    changes = {"image_size": (48, 20), "num_classes": 7, "in_channels": 1, "distillation": False}
    arrays = state_dict(*trained, layout="levitax")
    assert tree_equal(load(arrays, key=key, **changes), adapt(*trained, key=key, **changes), typematch=True)
