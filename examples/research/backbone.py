"""Uses a LeViT as the backbone of another module, which predicts a mask of every pixel.

    python examples/research/backbone.py --steps 200

Each digit lies somewhere on a noisy canvas of 56x56 pixels, and the model marks its ink. The script reports the
intersection over union of the predicted and the true mask, on unseen digits.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

import levitax
from levitax import data


CANVAS = 56


class Segmenter(eqx.Module):
    """Maps all feature maps to `width` channels and the size of the first, adds them, and predicts the pixels."""

    backbone: levitax.LeViT
    laterals: list[eqx.nn.Linear]
    readout: eqx.nn.Linear

    def __init__(self, width: int, *, key: PRNGKeyArray):
        backbone_key, readout_key, *keys = jax.random.split(key, 4)
        dim = (64, 96)
        self.backbone = levitax.LeViT(
            image_size=CANVAS, in_channels=1, num_classes=0, patch_size=4, stages=2, dim=dim, depth=1, heads=(2, 3),
            key_dim=16, key=backbone_key,
        )  # fmt: skip
        self.laterals = [eqx.nn.Linear(channels, width, key=key) for channels, key in zip(dim, keys, strict=True)]
        # Each token of the first map predicts 4x4 pixels.
        self.readout = eqx.nn.Linear(width, 16, key=readout_key)

    def __call__(
        self, image: Float[Array, "height width 1"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "height width"], eqx.nn.State]:
        maps, state = self.backbone.features(image, state, key=key)
        rows, columns, _ = maps[0].shape
        joined = jnp.zeros((rows, columns, self.readout.in_features))
        for features, lateral in zip(maps, self.laterals, strict=True):
            mapped = jax.vmap(jax.vmap(lateral))(features)
            joined += jax.image.resize(mapped, joined.shape, "linear")
        pixels = jax.vmap(jax.vmap(self.readout))(jax.nn.relu(joined))
        return pixels.reshape(rows, columns, 4, 4).transpose(0, 2, 1, 3).reshape(4 * rows, 4 * columns), state


def place(
    digits: Float[Array, "batch 28 28 1"], key: PRNGKeyArray
) -> tuple[Float[Array, "batch 56 56 1"], Bool[Array, "batch 56 56"]]:
    """Puts each digit somewhere on a noisy canvas. Also returns the mask of its ink."""
    place_key, noise_key = jax.random.split(key)
    corners = jax.random.randint(place_key, (len(digits), 2), 0, CANVAS - 28 + 1)
    put = lambda digit, corner: jax.lax.dynamic_update_slice(
        jnp.full((CANVAS, CANVAS, 1), digits.min()), digit, (corner[0], corner[1], 0)
    )
    canvases = jax.vmap(put)(digits, corners)
    return canvases + 0.5 * jax.random.normal(noise_key, canvases.shape), canvases[..., 0] > 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    digits = data.digits()
    train, test = jnp.asarray(digits.train_images), jnp.asarray(digits.test_images[::4])
    # One call makes the module and the state of everything in it.
    model, state = eqx.nn.make_with_state(Segmenter)(32, key=jax.random.key(0))
    optimizer = optax.adamw(2e-3)
    optimizer_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    def loss_of(model, state, images, masks):
        logits, state = levitax.batched(model)(images, state)
        return optax.sigmoid_binary_cross_entropy(logits, masks.astype(jnp.float32)).mean(), state

    @eqx.filter_jit
    def step(model, state, optimizer_state, key):
        chosen_key, place_key = jax.random.split(key)
        chosen = jax.random.choice(chosen_key, len(train), (32,), replace=False)
        batch = place(train[chosen], place_key)
        (loss, state), gradients = eqx.filter_value_and_grad(loss_of, has_aux=True)(model, state, *batch)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, optimizer_state, loss

    for number in range(arguments.steps):
        key = jax.random.fold_in(jax.random.key(1), number)
        model, state, optimizer_state, loss = step(model, state, optimizer_state, key)
        if number % 50 == 0 or number == arguments.steps - 1:
            print(f"step {number}: loss {loss:.3f}")

    images, masks = place(test, jax.random.key(2))
    # `fuse` also fuses the LeViT inside the module.
    found = jax.jit(jax.vmap(levitax.fuse(model, state)))(images) > 0
    both, either = (found & masks).sum((1, 2)), (found | masks).sum((1, 2))
    print(f"intersection over union on {len(test)} unseen digits: {jnp.mean(both / either):.2f}")


if __name__ == "__main__":
    main()
