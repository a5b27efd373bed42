"""Records the outputs of timm, transformers and vit-pytorch in `goldens/`, next to this script.

Run it from the root of the repository, in a separate environment (torchvision pulls gigabytes):

    pip install torch torchvision timm transformers vit-pytorch && pip install -e .[train]
    python -m tests.parity.make_goldens [PART OF A NAME]

timm 0.6.13 still uses the authors' names of the arrays, and mmpretrain needs only its files:

    pip install --no-deps -t /tmp/old timm==0.6.13 mmpretrain
    PYTHONPATH=/tmp/old:. python -m tests.parity.make_goldens written-official
    PYTHONPATH=/tmp/old:. python -m tests.parity.make_goldens written-mmpretrain
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import levitax
from levitax.weights import LayoutName

from . import cases, numbers, ours, recipe_cases, recipe_references, records, references


SAMPLES = 1024
SAMPLES_PER_WEIGHT = 32


def record_timm(name: str, variant: str, size: cases.Size) -> None:
    """Records inference of a variant with both heads and with one."""
    images = numbers.images(2, size.height, size.width)
    both = references.timm(variant, size, distilled=True)
    references.fill(both)
    record = references.evaluate(both, images)
    single = references.timm(variant, size, distilled=False)
    references.fill(single)
    record["logits_single"] = references.evaluate(single, images)["logits"]
    if (variant, size) == ("levit_256", cases.SQUARE):
        record["bfloat16_error"] = np.array(references.bfloat16_error(both, images))
    records.save(f"timm-{name}", records.sample(record, SAMPLES))


def record_training(name: str, reference, keywords: dict[str, Any]) -> None:
    """Records the first gradients, and parameters, statistics, losses and logits after some steps."""
    references.fill(reference)
    height, width = keywords["image_size"]
    images = numbers.images(cases.TRAINING_BATCH, height, width)
    labels = numbers.labels(cases.TRAINING_BATCH, keywords["num_classes"])
    gradients, final, results = references.train(reference, images, labels)
    # There are no gradients of statistics; zeros replace them.
    zeros = {name: np.zeros_like(array) for name, array in final.items()}
    gradients = ours.by_path(zeros | gradients, **keywords)
    record = {f"gradient:{path}": array for path, array in gradients.items() if not path.endswith((".mean", ".var"))}
    record |= {f"final:{path}": array for path, array in ours.by_path(final, **keywords).items()}
    records.save(name, records.sample(record, SAMPLES_PER_WEIGHT) | records.sample(results, SAMPLES))


def record_written(layout: LayoutName, make_reference: Callable[[str], Any], variants: Iterable[str]) -> None:
    """Records the arrays that levitax writes in a layout, and the logits of the reference that loaded them strictly."""
    record = {}
    for variant in variants:
        print(f"written-{layout}-{variant}", flush=True)
        arrays = ours.write(layout, variant)
        reference = make_reference(variant)
        reference.load_state_dict({name: references.torch.from_numpy(array) for name, array in arrays.items()})
        kept = {name: value.numpy() for name, value in reference.state_dict().items()}
        assert records.digest(kept) == records.digest(arrays)
        record[f"{variant}:digest"] = np.frombuffer(records.digest(kept), np.uint8)
        logits = references.predict(reference, numbers.images(2, 224, 224))
        record |= records.sample({f"{variant}:logits": logits}, SAMPLES)
    records.save(f"written-{layout}", record)


def record_recipe() -> None:
    """Records clipping, schedules, mixing, distillation, augmentation, and twenty steps of the whole recipe."""
    small = recipe_references.clipped() | recipe_references.schedules() | recipe_references.mixed()
    small |= recipe_references.distilled() | recipe_references.augmented()
    records.save("recipe", small)
    keywords = recipe_cases.TRAINING
    for name, eps in recipe_cases.EPS.items():
        final, average, losses = recipe_references.trained(eps)
        record = {f"final:{path}": array for path, array in ours.by_path(final, **keywords).items()}
        record |= {f"average:{path}": array for path, array in ours.by_path(average, **keywords).items()}
        record = records.sample(record, SAMPLES_PER_WEIGHT) | records.sample({"losses": losses}, recipe_cases.STEPS)
        records.save(f"recipe-{name}", record)


def main(part: str = "") -> None:
    for name, variant, size in cases.evaluation_cases():
        if part in f"timm-{name}":
            print(f"timm-{name}", flush=True)
            record_timm(name, variant, size)
    for name, keywords in (("timm-gradients", cases.TIMM_GRADIENTS), ("timm-training", cases.TIMM_TRAINING)):
        if part in name:
            height, width = keywords["image_size"]
            size = cases.Size(height, width, (height, width))
            options: dict[str, Any] = {
                "num_classes": keywords["num_classes"],
                "act_layer": keywords.get("activation", "hard_swish"),
            }
            reference = references.timm("levit_128s", size, distilled=True, **options)
            reference.set_distilled_training(True)
            record_training(name, reference, keywords)
    for variant in cases.PUBLISHED[:1]:
        if part in f"transformers-{variant}":
            images = numbers.images(2, 224, 224)
            reference = references.transformers(variant, teacher=True)
            references.fill(reference)
            record = references.evaluate(reference, images)
            reference = references.transformers(variant, teacher=False)
            references.fill(reference)
            record["logits_single"] = references.evaluate(reference, images)["logits"]
            records.save(f"transformers-{variant}", records.sample(record, SAMPLES))
    for distilled in (False, True):
        name = "vit_pytorch-distilled" if distilled else "vit_pytorch"
        if part in name:
            reference = references.vit_pytorch(**cases.VIT_PYTORCH_EXAMPLE, distillation=distilled)
            references.fill(reference)
            record = references.evaluate(reference, numbers.images(2, 224, 224))
            records.save(name, records.sample(record, SAMPLES))
    written: dict[LayoutName, tuple[Callable[[str], Any], Iterable[str]]] = {
        "timm": (lambda variant: references.timm(variant, cases.SQUARE, distilled=True), levitax.VARIANTS),
        "timm_conv": (
            lambda variant: references.timm(variant, cases.SQUARE, distilled=True, use_conv=True),
            levitax.VARIANTS,
        ),
        "transformers": (lambda variant: references.transformers(variant, teacher=True), cases.PUBLISHED),
    }
    if part == "written-official":
        written = {"official": (references.official, cases.PUBLISHED)}
    if part == "written-mmpretrain":
        written = {"mmpretrain": (references.mmpretrain, cases.PUBLISHED)}
    for layout, (make_reference, variants) in written.items():
        if part in f"written-{layout}":
            record_written(layout, make_reference, variants)
    if part in "recipe":
        record_recipe()
    if part in "vit_pytorch-training":
        keywords = cases.VIT_PYTORCH_TRAINING
        record_training("vit_pytorch-training", references.vit_pytorch(**keywords), keywords)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
