import json
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

import levitax

from .._checks import as_choice
from ._errors import usage
from ._options import AsJson, ImageSize, sizes_of
from ._timing import median_seconds


def benchmark(
    *models: Annotated[str, Parameter(help="Variants, such as levit_256. By default the five of the paper.")],
    batch: Annotated[int, Parameter(help="Images at a time.", validator=Number(gte=1))] = 16,
    image_size: ImageSize = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Parameter(help="Of the computation.")] = "float32",
    train: Annotated[bool, Parameter(help="Time training steps instead of inference.", negative=())] = False,
    seconds: Annotated[
        float, Parameter(help="Time spent on each model, after compiling.", validator=Number(gt=0, lte=86_400))
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Times fused inference, or a training step, on this machine, with random weights and images.

    The table shows the seconds of the first call, in which JAX compiles, and the median of the calls after it.
    """
    with usage():
        names = [as_choice("MODELS", name, levitax.VARIANTS) for name in models or levitax.PRETRAINED]
    import jax

    sizes = sizes_of(image_size)
    make = _training if train else _inference
    if not as_json:
        device = jax.devices()[0]
        print(f"{'training steps' if train else 'fused inference'} in {dtype}, batch {batch}, {device.device_kind}")
        print(f"{'model':14}{'first call':>12}{'milliseconds':>14}{'images/s':>10}")
    for name in names:
        call = make(name, batch, {**sizes, "dtype": dtype})
        start = time.perf_counter()
        call()
        first, median = time.perf_counter() - start, median_seconds(call, seconds)
        if as_json:
            row = {"model": name, "training": train, "batch": batch, "dtype": dtype, "first_call_seconds": first}
            print(json.dumps({**row, "seconds": median, "images_per_second": batch / median}), flush=True)
        else:
            print(f"{name:14}{first:>10.1f} s{1000 * median:>14.1f}{batch / median:>10.1f}", flush=True)


def _inference(name: str, batch: int, keywords: dict[str, Any]) -> Callable[[], Any]:
    import jax

    model, state = levitax.create_model(name, key=jax.random.key(0), **keywords)
    config = model.config
    images = jax.random.normal(jax.random.key(1), (batch, *config.image_size, config.in_channels))
    predict = jax.jit(jax.vmap(levitax.fuse(model, state)))
    return lambda: jax.block_until_ready(predict(images))


def _training(name: str, batch: int, keywords: dict[str, Any]) -> Callable[[], Any]:
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    key = jax.random.key(0)
    recipe = levitax.train.RECIPES["paper"]
    model, state = levitax.create_model(name, key=key, distillation=False, **keywords)
    config = model.config
    images = jax.random.normal(jax.random.key(1), (batch, *config.image_size, config.in_channels))
    labels = jnp.arange(batch) % config.num_classes
    train_state, step = levitax.train.TrainState(model, state, recipe.optimizer(1), key=key), levitax.train.make_step()

    def call() -> None:
        nonlocal train_state
        train_state, _ = step(train_state, images, labels)
        jax.block_until_ready(eqx.filter(train_state, eqx.is_array))

    return call
