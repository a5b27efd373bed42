"""Compares levitax with the outputs of the references, as recorded by `make_goldens.py`."""

from collections.abc import Collection

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax.weights import LayoutName
from tests.equality import tree_equal

from . import cases, numbers, ours, records


def test_the_generator_is_the_documented_one():
    # Repeats the generator in integers of unlimited size.
    mask = 2**64 - 1
    seed = 0xCBF29CE484222325
    for byte in b"images":
        seed = (seed ^ byte) * 0x100000001B3 & mask
    for index in range(3):
        z = seed + (index + 1) * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        z = (z ^ z >> 31) >> 40
        assert numbers.uniform("images", (3,), 0.0, 1.0)[index] == z / 2**24


EVALUATION = [
    pytest.param(name, variant, size, id=name, marks=[pytest.mark.slow] * (name != "levit_128s-square"))
    for name, variant, size in cases.evaluation_cases()
]


@pytest.mark.parametrize(("name", "variant", "size"), EVALUATION)
def test_inference_equals_timm(name, variant, size):
    golden = records.load(f"timm-{name}")
    golden.pop("bfloat16_error", None)
    golden.pop("bfloat16_error:scale", None)
    keywords = {**levitax.VARIANTS[variant], "image_size": (size.height, size.width), "distillation": True}
    images = numbers.images(2, size.height, size.width)
    model, state = ours.make("timm", **keywords)
    record = ours.evaluate(model, state, images)
    single = eqx.tree_at(lambda model: model.head, model, model.head.classification)
    record["logits_single"] = ours.classify(single, state, record)
    errors = records.errors(record, golden)
    cases.check_forward(errors)


def only_logits(golden):
    return {name: golden[name] for name in ("logits", "logits:scale")}


@pytest.mark.slow
def test_the_fused_model_equals_timm():
    predict = levitax.fuse(*ours.make("timm", **levitax.VARIANTS["levit_128s"]))
    run = eqx.filter_jit(lambda predict, images: jax.vmap(predict)(images))
    logits = np.asarray(run(predict, jnp.asarray(numbers.images(2, 224, 224))))
    cases.check_forward(records.errors({"logits": logits}, only_logits(records.load("timm-levit_128s-square"))))


@pytest.mark.slow
def test_bfloat16_is_as_close_as_in_timm():
    images = numbers.images(2, 224, 224)
    golden = records.load("timm-levit_256-square")
    keywords = {**levitax.VARIANTS["levit_256"], "dtype": "bfloat16"}
    model, state = ours.make("timm", **keywords)
    record = {"logits": ours.evaluate(model, state, images)["logits"]}
    error = records.errors(record, only_logits(golden))["logits"]
    assert error <= cases.BFLOAT16_RATIO * golden["bfloat16_error"]


@pytest.mark.slow
def test_a_file_in_bfloat16_is_as_close_as_the_reference_in_bfloat16(tmp_path):
    golden = records.load("timm-levit_256-square")
    model, state = ours.make("timm", **levitax.VARIANTS["levit_256"])
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        levitax.save(tmp_path / f"{dtype}.safetensors", model, state, dtype=dtype)
        sizes[dtype] = (tmp_path / f"{dtype}.safetensors").stat().st_size
    assert sizes["bfloat16"] < 0.501 * sizes["float32"]
    model, state = levitax.load(tmp_path / "bfloat16.safetensors")
    record = {"logits": ours.evaluate(model, state, numbers.images(2, 224, 224))["logits"]}
    error = records.errors(record, only_logits(golden))["logits"]
    assert error <= golden["bfloat16_error"]


@pytest.mark.slow
@pytest.mark.parametrize("image_size", (288, (320, 192), (448, 800)))
def test_a_model_for_224_pixels_runs_at_others(image_size):
    model, state = ours.make("timm", **levitax.VARIANTS["levit_256"])
    model, state = levitax.weights.adapt(model, state, image_size=image_size)
    logits = ours.evaluate(model, state, numbers.images(1, *np.broadcast_to(image_size, 2)))["logits"]
    assert logits.shape == (1, 1000) and np.isfinite(logits).all()


@pytest.mark.slow
def test_inference_equals_transformers():
    images = numbers.images(2, 224, 224)
    model, state = ours.make("transformers", **levitax.VARIANTS["levit_128s"])
    record = ours.evaluate(model, state, images)
    single = eqx.tree_at(lambda model: model.head, model, model.head.classification)
    record["logits_single"] = ours.classify(single, state, record)
    errors = records.errors(record, records.load("transformers-levit_128s"))
    cases.check_forward(errors)


@pytest.mark.parametrize("distillation", (False, pytest.param(True, marks=pytest.mark.slow)))
def test_inference_equals_vit_pytorch(distillation):
    golden = records.load("vit_pytorch-distilled" if distillation else "vit_pytorch")
    keywords = {**cases.VIT_PYTORCH_EXAMPLE, "network": "vit_pytorch", "distillation": distillation}
    model, state = ours.make("vit_pytorch", **keywords)
    errors = records.errors(ours.evaluate(model, state, numbers.images(2, 224, 224)), golden)
    cases.check_forward(errors)


def train(layout, keywords):
    model, state = ours.make(layout, **keywords)
    images = numbers.images(cases.TRAINING_BATCH, *model.config.image_size)
    labels = numbers.labels(cases.TRAINING_BATCH, model.config.num_classes)
    gradients, final, results = ours.train(model, state, images, labels)
    gradients = {f"gradient:{path}": array for path, array in gradients.items()}
    return gradients, {f"final:{path}": array for path, array in final.items()} | results


@pytest.mark.slow
def test_gradients_equal_timm():
    golden = records.load("timm-gradients")
    gradients, _ = train("timm", cases.TIMM_GRADIENTS)
    golden = {name: array for name, array in golden.items() if name.startswith("gradient:")}
    cases.check_training(records.errors(gradients, golden))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "keywords"),
    [
        ("timm", cases.TIMM_TRAINING),
        ("vit_pytorch", cases.VIT_PYTORCH_TRAINING),
    ],
    ids=("timm", "vit_pytorch"),
)
def test_ten_steps_follow(layout, keywords):
    gradients, results = train(layout, keywords)
    cases.check_training(records.errors(gradients | results, records.load(f"{layout}-training")))


WRITTEN: dict[LayoutName, Collection[str]] = {
    "timm": levitax.VARIANTS,
    "timm_conv": levitax.VARIANTS,
    "official": cases.PUBLISHED,
    "transformers": cases.PUBLISHED,
    "mmpretrain": cases.PUBLISHED,
}


@pytest.mark.parametrize(
    "variant",
    [pytest.param(variant, marks=[pytest.mark.slow] * (variant != "levit_128s")) for variant in levitax.VARIANTS],
)
def test_written_arrays_are_those_the_references_loaded_and_read_back_exactly(variant):
    model, state = ours.make("timm", **{**levitax.VARIANTS[variant], "distillation": True})
    golden = only_logits(records.load(f"timm-{variant}-square"))
    for layout, variants in WRITTEN.items():
        if variant not in variants:
            continue
        written = records.load(f"written-{layout}")
        arrays = levitax.weights.state_dict(model, state, layout=layout)
        assert records.digest(arrays) == written[f"{variant}:digest"].tobytes(), layout
        # The reference's logits from the written arrays, and from the original numbers.
        theirs = {name: written[f"{variant}:{name}"] for name in ("logits", "logits:scale")}
        assert np.abs(theirs["logits"] - golden["logits"]).max() <= cases.FORWARD * golden["logits:scale"]
        loaded = levitax.load(arrays)
        assert tree_equal(loaded, (model, state), typematch=True), layout
        again = levitax.weights.state_dict(*loaded, layout=layout)
        assert records.digest(again) == records.digest(arrays), layout
