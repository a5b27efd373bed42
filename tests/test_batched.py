import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from tests.equality import tree_equal


BATCH = 6


class Noisy(eqx.Module):
    """A module with a normalisation, noise from the key, and a count in the state."""

    norm: levitax.nn.BatchNorm
    calls: eqx.nn.StateIndex[jax.Array]

    def __init__(self):
        self.norm = levitax.nn.BatchNorm(3)
        self.calls = eqx.nn.StateIndex(jnp.int32(0))

    def __call__(self, x, state, *, key=None):
        y, state = self.norm(x, state)
        noise = jnp.zeros_like(x) if key is None else jax.random.normal(key, x.shape, x.dtype)
        state = state.set(self.calls, state.get(self.calls) + 1)
        return {"sum": y + noise, "noise": noise}, state


@pytest.fixture
def model_and_state():
    model, state = eqx.nn.make_with_state(Noisy)()
    running = levitax.nn.RunningStatistics(jnp.float32([0.1, -0.7, 3.3]), jnp.float32([0.3, 1.1, 7.0]))
    return model, state.set(model.norm.statistics, running)


@pytest.fixture
def x(images):
    # Groups that differ, so that their statistics differ.
    return images(BATCH, 4, 3) * jnp.linspace(0.5, 3, BATCH, dtype=jnp.float32)[:, None, None]


@pytest.fixture
def keys():
    return jax.random.split(jax.random.key(5), BATCH)


@eqx.filter_jit
def run(model, x, state, key=None, *, group_size=None):
    return levitax.batched(model, group_size=group_size)(x, state, key=key)


@pytest.mark.parametrize("group_size", (1, 2, BATCH))
def test_each_group_is_normalised_as_if_alone(group_size, model_and_state, x, keys, error):
    model, state = model_and_state
    outputs, new = run(model, x, state, keys, group_size=group_size)
    groups = [slice(start, start + group_size) for start in range(0, BATCH, group_size)]
    alone = [run(model, x[rows], state, keys[rows]) for rows in groups]
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(outputs for outputs, _ in alone))
    assert error(outputs, joined) < 1e-6
    mean = jax.tree.map(lambda *parts: np.mean(parts, axis=0), *(model.norm.running(own) for _, own in alone))
    assert error(model.norm.running(new), mean) < 1e-6
    # The model counts one call, still as an integer.
    count = new.get(model.calls)
    assert count.dtype == jnp.int32 and count == 1


def test_groups_make_a_difference(model_and_state, x, keys):
    model, state = model_and_state
    whole, _ = run(model, x, state, keys)
    grouped, _ = run(model, x, state, keys, group_size=2)
    assert jnp.abs(whole["sum"] - grouped["sum"]).max() > 0.1


@pytest.mark.parametrize("group_size", (None, 2), ids=("whole", "groups"))
def test_keys_given_one_for_each_are_those_that_one_key_is_split_into(group_size, model_and_state, x):
    model, state = model_and_state
    key = jax.random.key(3)
    ours = run(model, x, state, jax.random.split(key, BATCH), group_size=group_size)
    expected = run(model, x, state, key, group_size=group_size)
    assert tree_equal(ours, expected)
    assert len(np.unique(expected[0]["noise"])) == x.size


# A raw key is an array of two numbers, which must not be taken for one key for each of two images.
@pytest.mark.parametrize("size", (2, BATCH))
def test_raw_keys_are_keys_too(size, model_and_state, x):
    model, state = model_and_state
    ours, _ = run(model, x[:size], state, jax.random.PRNGKey(3))
    expected, _ = run(model, x[:size], state, jax.random.key(3))
    assert tree_equal(ours, expected)


# For 6, 3 and 2 groups. The mean of three equal floats is not always that float.
@pytest.mark.parametrize("group_size", (1, 2, 3))
def test_groups_make_no_difference_in_inference(group_size, model_and_state, x):
    model, state = model_and_state
    model = eqx.nn.inference_mode(model)
    expected, _ = run(model, x, state)
    ours, new = run(model, x, state, group_size=group_size)
    assert tree_equal(ours, expected, rtol=1e-6, atol=1e-6)
    # Equal to the bit: otherwise they would drift in a training run with frozen normalisations.
    assert tree_equal(model.norm.running(new), model.norm.running(state))


def test_a_batch_that_the_groups_do_not_divide(model_and_state, x):
    model, state = model_and_state
    with pytest.raises(ValueError, match="`group_size` is 4, which does not divide a batch of 6 images"):
        levitax.batched(model, group_size=4)(x, state)


@pytest.mark.parametrize("group_size", (0, -2))
def test_groups_have_at_least_one_image(group_size, model_and_state):
    with pytest.raises(ValueError, match=f"`group_size` is {group_size}; expected an integer of at least 1"):
        levitax.batched(model_and_state[0], group_size=group_size)


@pytest.mark.usefixtures("unchecked")
def test_the_size_of_a_group_is_an_integer(model_and_state):
    with pytest.raises(TypeError, match=r"`group_size` is 2\.0; expected an integer of at least 1"):
        levitax.batched(model_and_state[0], group_size=2.0)  # type: ignore[arg-type]


def test_inputs_may_be_any_pytree_of_arrays(model_and_state, x):
    model, state = model_and_state
    pair = lambda inputs, state, *, key: model(inputs["a"] + inputs["b"], state, key=key)
    ours, _ = run(pair, {"a": x, "b": jnp.ones_like(x)}, state, group_size=3)
    expected, _ = run(model, x + 1, state, group_size=3)
    assert tree_equal(ours, expected, rtol=1e-6, atol=1e-6)


def test_a_predictor_is_refused_with_a_hint_to_vmap(make):
    with pytest.raises(TypeError, match=r"`Predictor`, which takes no state: for a batch, use `jax.vmap\(predict\)"):
        levitax.batched(levitax.fuse(*make()))


@pytest.mark.parametrize("group_size", (None, 2), ids=("whole", "groups"))
def test_an_empty_batch_has_no_statistics(group_size, model_and_state, x):
    model, state = model_and_state
    with pytest.raises(ValueError, match=r"more than one value per channel.*the batch holds none\. Use a larger batch"):
        levitax.batched(model, group_size=group_size)(x[:0], state)
    outputs, new = levitax.batched(eqx.nn.inference_mode(model), group_size=group_size)(x[:0], state)
    assert outputs["sum"].shape == (0, 4, 3) and tree_equal(model.norm.running(new), model.norm.running(state))


def test_images_without_tokens_have_no_statistics(model_and_state, x):
    model, state = model_and_state
    with pytest.raises(ValueError, match="the batch holds none"):
        levitax.batched(model)(x[:, :0], state)


@pytest.mark.parametrize(
    ("batch", "shapes"),
    [
        ({"a": np.zeros((6, 3)), "b": np.zeros((5, 3))}, r"\(6, 3\), \(5, 3\)"),
        ({"a": np.zeros((6, 3)), "b": np.float32(1)}, r"\(6, 3\), \(\)"),
    ],
    ids=("lengths", "scalar"),
)
def test_a_batch_has_a_leading_axis(batch, shapes, model_and_state):
    model, state = model_and_state
    with pytest.raises(ValueError, match=f"`images` has arrays of shapes {shapes}; expected a leading axis"):
        levitax.batched(model)(batch, state)
