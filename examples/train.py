"""Trains a small LeViT on 4,000 real handwritten digits, in two and a half minutes on two cores.

    python examples/train.py

This page holds all of training: data, model, loss, optimiser, a step, a loop. It writes
`runs/digits/model.safetensors` and two figures. For your own images, teachers, checkpoints and many devices, use
`levitax train`, or `levitax.train.fit` in a notebook.
"""

from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import levitax
from levitax import plot
from levitax.data import open_data, steps_per_epoch, train_batches, TrainTransform
from levitax.train import decay_mask, evaluate_split, one_hot, predict_split, random_affine


EPOCHS, BATCH = 26, 100
OUT = Path("runs/digits")

data = open_data("digits")
preprocessing = data.preprocessing


def compute_loss(model, state, images, labels, key):
    """The cross-entropy of a batch, with smoothed labels, and the new running statistics."""
    logits, state = levitax.batched(model)(images, state, key=key)
    targets = optax.smooth_labels(one_hot(labels, 10), 0.1)
    return optax.losses.softmax_cross_entropy(logits, targets).mean(), state


@partial(eqx.filter_jit, donate="all-except-first")
def train_step(batch, model, state, opt_state, optimizer, key):
    """One step on a batch of pixels from 0 to 255, each image shifted, rotated and scaled at random."""
    pixels, labels = batch
    augment_key, model_key = jax.random.split(key)
    augment = jax.vmap(lambda image, key: random_affine(image, max_shift=2, max_rotation=12, max_scale=0.1, key=key))
    pixels = augment(pixels.astype(jnp.float32), jax.random.split(augment_key, len(pixels)))
    images = preprocessing.normalise(pixels)
    value_and_grad = eqx.filter_value_and_grad(compute_loss, has_aux=True)
    (loss, state), gradient = value_and_grad(model, state, images, labels, model_key)
    updates, opt_state = optimizer.update(gradient, opt_state, eqx.filter(model, eqx.is_inexact_array))
    return loss, eqx.apply_updates(model, updates), state, opt_state


def main() -> None:
    init_key, train_key = jax.random.split(jax.random.key(0))
    model, state = eqx.nn.make_with_state(levitax.LeViT)(
        image_size=28,
        in_channels=1,
        num_classes=10,
        patch_size=4,
        dim=(96, 128, 160),
        depth=1,
        heads=(3, 4, 5),
        key_dim=16,
        distillation=False,
        key=init_key,
    )
    steps = steps_per_epoch(data.train, BATCH)
    schedule = optax.warmup_cosine_decay_schedule(2e-4, 5e-3, 2 * steps, EPOCHS * steps, end_value=5e-5)
    optimizer = optax.adamw(schedule, weight_decay=0.1, mask=decay_mask)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    print(f"{levitax.count_parameters(model):,} parameters, {len(data.train.labels):,} training images")

    # The loader shuffles each epoch. The augmentation is in the step, on the device.
    as_stored = TrainTransform(image_size=28, crop_scale=None, flip_probability=0.0, rand_augment=0.0)
    losses, history = [], []
    with train_batches(data.train, as_stored, batch_size=BATCH, steps=EPOCHS * steps, seed=0) as batches:
        for number, batch in enumerate(batches, 1):
            key = jax.random.fold_in(train_key, number)
            pixels_and_labels = batch.images, batch.labels
            loss, model, state, opt_state = train_step(pixels_and_labels, model, state, opt_state, optimizer, key)
            losses.append(loss)
            if number % steps == 0:
                result = evaluate_split(levitax.Predictor(model, state), data.validation, preprocessing)
                epoch, train_loss, losses = number // steps, float(jnp.stack(losses).mean()), []
                validation = {"validation_loss": result.loss, "validation_accuracy": result.accuracy}
                history.append({"epoch": epoch, "train_loss": train_loss, **validation})
                print(f"epoch {epoch}: loss {train_loss:.4f}, validation accuracy {result.accuracy:.2%}")

    predict = levitax.fuse(model, state)
    fused = evaluate_split(predict, data.validation, preprocessing)
    OUT.mkdir(parents=True, exist_ok=True)
    levitax.save(OUT / "model.safetensors", model, state, preprocessing=preprocessing)
    plot.training_curves(history).savefig(OUT / "curves.png", dpi=120)
    classified = predict_split(predict, data.validation, preprocessing)
    plot.predictions(classified, class_names=data.classes).savefig(OUT / "predictions.png", dpi=120)
    print(f"validation accuracy {history[-1]['validation_accuracy']:.2%}, fused {fused.accuracy:.2%}")
    print(f"saved; next: levitax evaluate {OUT / 'model.safetensors'}")


if __name__ == "__main__":
    main()
