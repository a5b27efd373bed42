"""Checks the code and the claims of the guide "With other libraries". A test is skipped without its library."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import levitax
from levitax.nn import BatchNorm, LinearNorm, NormLinear
from levitax.train import adamw, cross_entropy, freeze_norms, head_only, make_step, trainable, TrainState


pytestmark = pytest.mark.slow

# For the 5 classes of the small model.
LABELS = jnp.arange(16) % 5


@pytest.fixture
def images(images) -> jax.Array:
    return images(16, 16, 16, 3)


def losses(train_state: TrainState, images: jax.Array, *, steps: int) -> tuple[TrainState, list[float]]:
    step, values = make_step(), []
    for _ in range(steps):
        train_state, metrics = step(train_state, images, LABELS)
        values.append(float(metrics.loss))
    return train_state, values


def test_optimistix_fits_the_head(make, images):
    optx = pytest.importorskip("optimistix")
    model, state = make()

    predict = levitax.fuse(model, state)
    head = lambda model: (model.head.weight, model.head.bias)
    maps = jax.vmap(lambda image: predict.model.features(image, predict.state)[0][-1])(images)

    def residuals(arrays, args):
        model = eqx.tree_at(head, predict.model, arrays)
        logits = jax.vmap(lambda features: model.classify(features, predict.state)[0])(maps)
        return logits - jax.nn.one_hot(LABELS, 5)

    solver = optx.LevenbergMarquardt(rtol=1e-4, atol=1e-4)
    solution = optx.least_squares(residuals, solver, head(predict.model))
    fitted = eqx.tree_at(lambda predict: head(predict.model), predict, solution.value)

    inputs = np.pad(np.asarray(maps.mean((1, 2)), np.float64), ((0, 0), (0, 1)), constant_values=1)
    targets = np.eye(5)[LABELS]
    expected = inputs @ np.linalg.lstsq(inputs, targets, rcond=None)[0] - targets
    found = jax.vmap(fitted)(images) - targets
    assert np.square(found).sum() == pytest.approx(np.square(expected).sum(), abs=1e-2)
    assert np.square(residuals(head(predict.model), None)).sum() > 10
    with pytest.raises(TypeError, match="hard_swish"):
        optx.least_squares(lambda model, args: residuals(head(model), args), solver, predict.model)


def test_lbfgs_needs_its_own_loop(make, images, key):
    model, state = make()

    model = eqx.nn.inference_mode(model)
    optimizer, params = optax.lbfgs(), head_only(model)

    def loss(params):
        logits, _ = levitax.batched(eqx.combine(params, model))(images, state)
        return cross_entropy(logits, LABELS)

    @jax.jit
    def step(params, opt_state):
        value, grad = optax.value_and_grad_from_state(loss)(params, state=opt_state)
        updates, opt_state = optimizer.update(grad, opt_state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state, values = optimizer.init(params), []
    for _ in range(40):
        params, opt_state, value = step(params, opt_state)
        values.append(float(value))
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 0.1
    model, state = make()

    with pytest.raises(TypeError, match="missing 3 required keyword-only arguments: 'value', 'grad', and 'value_fn'"):
        make_step()(TrainState(model, state, optax.lbfgs(), key=key), images, LABELS)
    _, values = losses(TrainState(model, state, optax.lbfgs(linesearch=None), key=key), images, steps=4)
    assert values[-1] < values[0] / 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quax_trains_lora_weights(make, images, key, dtype, error):
    quax = pytest.importorskip("quax")
    lora = pytest.importorskip("quax.examples.lora")
    model, state = make(dtype=dtype)

    is_layer = lambda node: isinstance(node, LinearNorm | NormLinear)
    is_lora = lambda node: isinstance(node, lora.LoraArray)
    keys = iter(jax.random.split(key, 100))

    def adapt(node):
        if not is_layer(node):
            return node
        weight = lora.LoraArray(node.weight, rank=2, allow_materialise=True, key=next(keys))
        return quax.quaxify(eqx.tree_at(lambda layer: layer.weight, node, weight))

    def adapters(model):
        part = lambda node: eqx.tree_at(lambda weight: weight._w, node, None) if is_lora(node) else None
        return jax.tree.map(part, model, is_leaf=is_lora)

    adapted = jax.tree.map(adapt, model, is_leaf=is_layer)
    train_state = TrainState(adapted, state, optax.adam(1e-2), parameters=adapters, key=key)

    train_state, values = losses(train_state, images, steps=10)
    assert values[-1] < values[0] - 0.1
    assert sum(leaf.size for leaf in jax.tree.leaves(adapters(adapted))) < levitax.count_parameters(model) / 4

    weights = lambda model: [layer.weight for layer in jax.tree.leaves(model, is_leaf=is_layer) if is_layer(layer)]
    trained = [node for node in jax.tree.leaves(train_state.model, is_leaf=is_lora) if is_lora(node)]
    merged = eqx.tree_at(weights, model, [weight.materialise() for weight in trained])
    predict = levitax.fuse(merged, train_state.state)

    expected = jax.vmap(levitax.Predictor(train_state.model, train_state.state))(images)
    assert all(map(eqx.tree_equal, (weight._w for weight in trained), weights(model)))
    assert error(jax.vmap(predict)(images), expected) < (1e-4 if dtype == "float32" else 5e-2)

    assert eqx.tree_equal(lora.loraify(model, rank=2, key=key), model)
    assert len(levitax.fuse(adapted, state).unfused) == len(trained) and not predict.unfused
    model = eqx.nn.inference_mode(model)
    strict = lora.LoraArray(model.stages[0].blocks[0].mlp.expand.weight, rank=2, key=key)
    model = eqx.tree_at(lambda model: model.stages[0].blocks[0].mlp.expand.weight, model, strict)
    with pytest.raises(RuntimeError, match="Refusing to materialise"):
        quax.quaxify(model)(images[0], state)
    if dtype == "bfloat16":
        with pytest.raises(RuntimeError, match="Refusing to materialise"):
            quax.quaxify(model.stages[0].blocks[0].mlp.expand)(jnp.zeros((16, 16), jnp.bfloat16), state)


def test_paramax_freezes_the_stem(make, images, key):
    paramax = pytest.importorskip("paramax")
    model, state = make()

    class Unwrapped(eqx.Module):
        model: levitax.LeViT

        def __call__(self, image, state, *, key=None):
            return paramax.unwrap(self.model)(image, state, key=key)

    def without_frozen(model):
        is_frozen = lambda node: isinstance(node, paramax.NonTrainable)
        return trainable(jax.tree.map(lambda node: None if is_frozen(node) else node, model, is_leaf=is_frozen))

    frozen = eqx.tree_at(lambda model: model.stem, model, replace_fn=paramax.non_trainable)
    train_state = TrainState(Unwrapped(frozen), state, adamw(1e-2), parameters=without_frozen, key=key)

    train_state, values = losses(train_state, images, steps=5)
    predict = levitax.fuse(paramax.unwrap(train_state.model.model), train_state.state)

    assert values[-1] < values[0]
    assert jax.vmap(predict)(images).shape == (16, 5) and not predict.unfused
    assert eqx.tree_equal(train_state.model.model.stem, frozen.stem)
    assert not eqx.tree_equal(train_state.model.model.head, frozen.head)
    statistics = model.stem.convolutions[0].norm.statistics
    assert not eqx.tree_equal(train_state.state.get(statistics), state.get(statistics))
    # Without `parameters`, the gradient is 0, but weight decay is not.
    train_state, _ = losses(TrainState(Unwrapped(frozen), state, adamw(1e-2), key=key), images, steps=1)
    assert not eqx.tree_equal(train_state.model.model.stem, frozen.stem)
    with pytest.raises(AttributeError, match="'NonTrainable' object has no attribute 'shape'"):
        levitax.batched(frozen)(images, state)


def test_distreqx_takes_the_logits(make, images, key):
    distributions = pytest.importorskip("distreqx.distributions")
    predict = levitax.fuse(*make())

    def describe(image, label):
        classes = distributions.Categorical(predict(image))
        return classes.log_prob(label), classes.entropy(), classes.mode()

    log_likelihoods, entropies, modes = jax.vmap(describe)(images, LABELS)

    logs = jax.nn.log_softmax(jax.vmap(predict)(images))
    np.testing.assert_allclose(log_likelihoods, np.asarray(logs)[np.arange(16), LABELS], rtol=1e-5)
    np.testing.assert_allclose(entropies, -(np.exp(logs) * logs).sum(1), rtol=1e-5)
    assert (modes == logs.argmax(1)).all()


# Treescope reads all names of JAX, also deprecated ones.
@pytest.mark.filterwarnings("ignore:jax.* is deprecated:DeprecationWarning")
def test_treescope_renders_a_model(make, tmp_path):
    treescope = pytest.importorskip("treescope")
    (model, _), folder = make(), tmp_path

    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        page = treescope.render_to_html(model)
    (folder / "model.html").write_text(page)

    # With arrays as images, it is longer.
    assert len(page) > 2 * len(treescope.render_to_html(model))
    assert "expand=LinearNorm(" in treescope.render_to_text(model)


def test_penzai_selects_layers(make):
    pz = pytest.importorskip("penzai.pz")
    model, _ = make()

    layers = pz.select(model).at_instances_of(LinearNorm)
    smaller = layers.at(lambda layer: layer.weight).apply(lambda weight: weight / 2)
    frozen = pz.select(model).at_instances_of(BatchNorm).apply(eqx.nn.inference_mode)

    expand = lambda model: model.stages[0].blocks[0].mlp.expand.weight
    assert layers.count() == 13 and eqx.tree_equal(expand(smaller), expand(model) / 2)
    assert eqx.tree_equal(smaller.stem, model.stem) and eqx.tree_equal(frozen, freeze_norms(model))


def test_flax_holds_a_frozen_predictor(make, images):
    nnx, linen = pytest.importorskip("flax.nnx"), pytest.importorskip("flax.linen")
    predict = levitax.fuse(*make())

    class Probe(nnx.Module):
        def __init__(self, predict, rngs):
            self.predict = nnx.data(predict)
            self.head = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, images):
            return self.head(jax.vmap(self.predict)(images))

    probe = Probe(predict, nnx.Rngs(0))
    gradient = nnx.jit(nnx.grad(lambda probe, images: jnp.square(probe(images)).mean()))(probe, images)

    assert sorted(leaf.shape for leaf in jax.tree.leaves(gradient)) == [(2,), (5, 2)]
    assert len(jax.tree.leaves(nnx.state(probe))) > 30

    class LinenProbe(linen.Module):
        predict: levitax.Predictor

        @linen.compact
        def __call__(self, images):
            return linen.Dense(2)(jax.vmap(self.predict)(images))

    module = LinenProbe(predict)
    variables = module.init(jax.random.key(0), images)
    outputs = jax.jit(module.apply)(variables, images)

    assert outputs.shape == (16, 2) and len(jax.tree.leaves(variables)) == 2

    class Plain(nnx.Module):
        def __init__(self, predict):
            self.predict = predict

    with pytest.raises(ValueError, match="static attribute 'predict'"):
        Plain(predict)


def test_flax_trains_a_model(make, images, key):
    nnx = pytest.importorskip("flax.nnx")
    model, state = make()

    class Classifier(nnx.Module):
        def __init__(self, model, state):
            arrays, self.rest = eqx.partition(model, eqx.is_inexact_array)
            leaves, self.structure = jax.tree.flatten(arrays)
            self.leaves, self.state = nnx.List(map(nnx.Param, leaves)), nnx.BatchStat(state)

        def __call__(self, images):
            arrays = jax.tree.unflatten(self.structure, [leaf.get_value() for leaf in self.leaves])
            model = eqx.combine(arrays, self.rest)
            logits, state = levitax.batched(model)(images, self.state.get_value())
            self.state.set_value(state)
            return logits

    @nnx.jit
    def step(classifier, optimizer, images, labels):
        compute_loss = lambda classifier: cross_entropy(classifier(images), labels)
        loss, gradient = nnx.value_and_grad(compute_loss)(classifier)
        optimizer.update(classifier, gradient)
        return loss

    classifier = Classifier(model, state)
    optimizer = nnx.Optimizer(classifier, optax.adam(1e-2), wrt=nnx.Param)
    values = [float(step(classifier, optimizer, images, LABELS)) for _ in range(4)]

    train_state, expected = losses(TrainState(model, state, optax.adam(1e-2), key=key), images, steps=4)
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    assert eqx.tree_equal(classifier.state.get_value(), train_state.state, rtol=1e-3, atol=1e-3)

    # A `Param` with a whole PyTree.
    class Wrapped(nnx.Module):
        def __init__(self, layer):
            self.layer = nnx.Param(layer)

    wrapped = Wrapped(eqx.nn.LayerNorm(3))
    optimizer = nnx.Optimizer(wrapped, optax.adam(1e-2), wrt=nnx.Param)
    gradient = nnx.grad(lambda wrapped: wrapped.layer.get_value()(jnp.arange(3.0)).sum())(wrapped)
    optimizer.update(wrapped, gradient)
    with pytest.raises(ValueError, match="LayerNorm"):
        optimizer.update(wrapped, gradient)


def test_orbax_saves_the_arrays(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # For the relative path below.
    ocp = pytest.importorskip("orbax.checkpoint")
    model, state = make()
    folder = tmp_path / "levit"

    arrays, rest = eqx.partition((model, state), eqx.is_array)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, arrays)

    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = eqx.combine(checkpointer.restore(folder, shapes), rest)

    assert eqx.tree_equal(restored, (model, state))
    with pytest.raises(ValueError, match="absolute"), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save("relative", arrays)


def test_jax_export_serialises_a_predictor(make, images, tmp_path):
    predict = levitax.fuse(*make())

    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 16, 16, 3), jnp.float32)
    serialised = jax.export.export(jax.jit(jax.vmap(predict)))(shape).serialize()
    logits = jax.export.deserialize(serialised).call(images)

    np.testing.assert_allclose(logits, jax.jit(jax.vmap(predict))(images), rtol=1e-5, atol=1e-6)
    assert jax.export.deserialize(serialised).call(images[:3]).shape == (3, 5)
