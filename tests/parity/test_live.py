"""Runs levitax, transformers and vit-pytorch side by side and compares whole arrays, for all published variants.

Needs the extra `parity`, and vit-pytorch for its one file: `pip install --no-deps vit-pytorch`. Comparisons with
packages that are not installed are skipped.
"""

from importlib.util import find_spec

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax.data import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

from . import cases, numbers, ours, records


if find_spec("torch") is None:
    pytest.skip("torch not installed", allow_module_level=True)

# Imported here because it imports torch.
from . import references


def needs(*packages):
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


needs_transformers = needs("transformers")
needs_vit_pytorch = needs("vit_pytorch", "einops")


def assert_taken_back(reference, arrays):
    """Asserts that the arrays equal the reference's bit by bit, and that it loads them strictly."""
    kept = {name: value.numpy().copy() for name, value in reference.state_dict().items()}
    assert records.digest(arrays) == records.digest(kept)
    references.fill(
        reference, {name: np.zeros_like(array) for name, array in kept.items() if array.dtype == np.float32}
    )
    reference.load_state_dict({name: references.torch.from_numpy(array) for name, array in arrays.items()}, strict=True)


def assert_goes_both_ways(reference, model, state, layout):
    """Asserts that both compute the same, also after the reference has loaded the arrays that levitax writes."""
    images = numbers.images(2, 224, 224)
    theirs = references.evaluate(reference, images)
    cases.check_forward(records.errors(ours.evaluate(model, state, images), theirs))
    assert_taken_back(reference, levitax.weights.state_dict(model, state, layout=layout))
    assert np.array_equal(references.evaluate(reference, images)["logits"], theirs["logits"])


def assert_equal_training(reference, arrays, keywords, *, steps=True):
    model, state = ours.load(references.fill(reference, arrays), **keywords)
    images = numbers.images(cases.TRAINING_BATCH, *model.config.image_size)
    labels = numbers.labels(cases.TRAINING_BATCH, model.config.num_classes)
    gradients, final, results = references.train(reference, images, labels)
    zeros = {name: np.zeros_like(array) for name, array in final.items()}
    theirs = {f"gradient:{k}": v for k, v in ours.by_path(zeros | gradients, **keywords).items()}
    theirs = {name: array for name, array in theirs.items() if not name.endswith((".mean", ".var"))}
    our_gradients, our_final, our_results = ours.train(model, state, images, labels)
    cases.check_training(records.errors({f"gradient:{k}": v for k, v in our_gradients.items()}, theirs))
    if steps:
        theirs = {f"final:{k}": v for k, v in ours.by_path(final, **keywords).items()} | results
        cases.check_training(records.errors({f"final:{k}": v for k, v in our_final.items()} | our_results, theirs))


def timm_numbers(**keywords):
    """Returns the numbers of timm's names under transformers' names; with them, rounding does not change training."""
    arrays = levitax.weights.state_dict(
        *ours.make("timm", **{**keywords, "activation": "hard_swish"}), layout="transformers"
    )
    return {name: array for name, array in arrays.items() if array.dtype == np.float32}


@needs_transformers
@pytest.mark.parametrize(
    ("variant", "teacher"), [*((variant, True) for variant in cases.PUBLISHED), (cases.PUBLISHED[0], False)]
)
def test_inference_equals_transformers(variant, teacher):
    reference = references.transformers(variant, teacher=teacher)
    references.fill(reference)
    model, state = levitax.load(reference.state_dict())
    assert model.config == levitax.LeViTConfig(**{**levitax.VARIANTS[variant], "distillation": teacher})
    assert_goes_both_ways(reference, model, state, "transformers")


@needs_transformers
def test_preprocessing_equals_transformers():
    preprocessing = Preprocessing(crop_offset="floor")
    for shape in np.random.default_rng(0).integers(50, 400, (150, 2)):
        image = numbers.uniform("picture", (*map(int, shape), 3), 0.0, 256.0).astype(np.uint8)
        theirs = references.preprocess(image)
        cases.check_forward(records.errors({"pixels": preprocessing(image)}, {"pixels": theirs}))


@needs_transformers
def test_a_bare_backbone_goes_to_transformers_and_back():
    reference = references.transformers("levit_128s", teacher=False).levit
    references.fill(reference)
    model, state = levitax.load(reference.state_dict())
    expected: levitax.LeViTKeywords = {**levitax.VARIANTS["levit_128s"], "num_classes": 0, "distillation": False}
    assert model.config == levitax.LeViTConfig(**expected)
    images = numbers.images(2, 224, 224)
    features = ours.evaluate(model, state, images)["logits"]
    theirs = references.pooled(reference, images)
    cases.check_forward(records.errors({"features": features}, {"features": theirs}))
    assert_taken_back(reference, levitax.weights.state_dict(model, state, layout="transformers_backbone"))
    assert np.array_equal(references.pooled(reference, images), theirs)


@needs_transformers
@pytest.mark.parametrize("variant", cases.PUBLISHED)
def test_bfloat16_is_as_close_as_in_transformers(variant):
    reference = references.transformers(variant, teacher=True)
    keywords = {**levitax.VARIANTS[variant], "dtype": "bfloat16"}
    model, state = ours.load(references.fill(reference), **keywords)
    images = numbers.images(2, 224, 224)
    record = {"logits": ours.evaluate(model, state, images)["logits"]}
    error = records.errors(record, {"logits": references.evaluate(reference, images)["logits"]})["logits"]
    assert error <= cases.BFLOAT16_RATIO * references.bfloat16_error(reference, images)


@needs_transformers
def test_gradients_equal_transformers():
    keywords = {**cases.TIMM_GRADIENTS, "image_size": (128, 128)}
    reference = references.transformers("levit_128s", teacher=True, image_size=128, num_labels=100)
    assert_equal_training(reference, timm_numbers(**keywords), keywords, steps=False)


@needs_vit_pytorch
@pytest.mark.parametrize("distillation", (False, True), ids=("one head", "two heads"))
def test_inference_equals_vit_pytorch(distillation):
    keywords = {**cases.VIT_PYTORCH_EXAMPLE, "network": "vit_pytorch", "distillation": distillation}
    reference = references.vit_pytorch(**keywords)
    references.fill(reference)
    model, state = levitax.load(reference.state_dict())
    assert model.config == levitax.LeViTConfig(**keywords)
    assert_goes_both_ways(reference, model, state, "vit_pytorch")


@needs_vit_pytorch
@pytest.mark.parametrize("distillation", (False, True), ids=("one head", "two heads"))
def test_ten_steps_follow_vit_pytorch(distillation):
    keywords = {**cases.VIT_PYTORCH_TRAINING, "distillation": distillation}
    assert_equal_training(references.vit_pytorch(**keywords), None, keywords)


@needs_transformers
def test_ten_steps_follow_transformers():
    # With SiLU, as in the comparison with timm: see `cases.TIMM_TRAINING`. transformers has the activation built in.
    keywords = {**cases.TIMM_TRAINING, "image_size": (128, 128)}
    reference = references.transformers("levit_128s", teacher=True, image_size=128, num_labels=100)
    references.replace_activation(reference, references.torch.nn.SiLU())
    assert_equal_training(reference, timm_numbers(**keywords), keywords)


@needs_transformers
def test_fused_model_equals_transformers():
    reference = references.transformers("levit_256", teacher=True)
    model, state = ours.load(references.fill(reference), **levitax.VARIANTS["levit_256"])
    images = numbers.images(2, 224, 224)
    predict = levitax.fuse(model, state)
    logits = eqx.filter_jit(eqx.filter_vmap(predict))(jnp.asarray(images))
    theirs = {"logits": references.evaluate(reference, images)["logits"]}
    cases.check_forward(records.errors({"logits": np.asarray(logits)}, theirs))


# The value of most pixels, from 0 to 1, and the index of outliers in images `(batch, height, width, channels)`.
OUTLIERS = {
    "a white pixel on grey": (0.5, np.s_[:, 0, 0]),
    "a white corner on black": (0.0, np.s_[:, :8, :8]),
    "a white border on black": (0.0, np.s_[:, :16]),
    "a white image among grey ones": (0.5, np.s_[2]),
}


@needs_transformers
def test_batch_statistics_are_as_exact_as_in_transformers_wherever_outliers_stand():
    reference = references.transformers("levit_128s", teacher=True)
    references.replace_activation(reference, references.torch.nn.SiLU())
    keywords = {**levitax.VARIANTS["levit_128s"], "activation": "silu"}
    model, state = ours.load(references.fill(reference), **keywords)
    train = eqx.filter_jit(levitax.batched(model))

    def by_path(after):
        found = ours.by_path(after, **keywords)
        return {name: array for name, array in found.items() if name.endswith((".norm.mean", ".norm.var"))}

    for grey, white in OUTLIERS.values():
        pixels = grey + np.random.default_rng(0).normal(size=(4, 224, 224, 3)) / 255
        pixels[white] = 1
        images = ((pixels - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)
        exact_logits, exact = references.training_outputs(reference, images, np.float64)
        their_logits, theirs = references.training_outputs(reference, images, np.float32)
        outputs, new = train(jnp.asarray(images), state)
        our_logits = np.stack([np.asarray(head) for head in outputs])
        exact, theirs = by_path(exact), by_path(theirs)
        statistics = levitax.weights.state_dict(model, new, layout="levitax")
        statistics = {name: statistics[name] for name in exact}
        # It is chance which of the two is closer, because products cause an error that is as large.
        worst = lambda found, of: max(records.errors(found, of).values())
        assert worst({"": our_logits}, {"": exact_logits}) < 4 * worst({"": their_logits}, {"": exact_logits})
        assert worst(statistics, exact) < 4 * worst(theirs, exact)
