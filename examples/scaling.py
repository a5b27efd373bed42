"""Measures the time per image in inference, by batch, image size, depth and width, and the operations it takes.

    python examples/scaling.py
    python examples/scaling.py --model levit_384 --dtype bfloat16 --batch 64

The script changes one thing at a time in a published variant, fused for inference. All sizes take turns in one process;
times are medians over the rounds. XLA counts the operations before it optimises: two for each multiplication with
addition, and the element-wise ones.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import levitax


KINDS = ("batch", "size", "depth", "width")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="levit_256", choices=sorted(levitax.VARIANTS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--only", nargs="+", default=KINDS, choices=KINDS, help="the changes to measure, by default all"
    )
    arguments = parser.parse_args()

    published = levitax.LeViTConfig(**levitax.VARIANTS[arguments.model])
    measured = []
    chosen = [change for change in changes(published, arguments.batch) if change[0] in arguments.only]
    for what, value, batch, overrides in chosen:
        call, operations = prepared(arguments.model, batch, dtype=arguments.dtype, **overrides)
        measured.append((what, value, batch, operations, call, []))
    for _, (*_, call, seconds) in itertools.product(range(arguments.rounds), measured):
        call()  # The caches hold another size.
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)

    print(f"{arguments.model}, {arguments.dtype}, jax {jax.__version__} on {jax.devices()[0].device_kind}")
    for what, rows in itertools.groupby(measured, key=lambda row: row[0]):
        print(f"\n{what:>24}  ms/image  GFLOP/image  GFLOP/s")
        for _, value, batch, operations, _, seconds in rows:
            time_each, operations_each = statistics.median(seconds) / batch, operations / batch / 1e9
            rate = operations_each / time_each
            print(f"{value:>24}  {1e3 * time_each:8.2f}  {operations_each:11.2f}  {rate:7.0f}")


def changes(published: levitax.LeViTConfig, batch: int):
    """The changes: their kind, the value, the batch size, and keywords of the model."""
    for size in sorted({1, 4, 16, 64, 128, batch}):
        yield "batch", str(size), size, {}
    for pixels in (160, 224, 288, 384, 448):
        yield "size", str(pixels), batch, {"image_size": pixels}
    for depth in ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8)):
        yield "depth", str(depth), batch, {"depth": depth}
    for share in (0.5, 1, 1.5, 2):
        # Wider by more heads, as between the published variants.
        heads = tuple(max(1, round(share * heads)) for heads in published.heads)
        dim = tuple(round(share * dim) // 8 * 8 for dim in published.dim)
        yield "width", str(dim), batch, {"dim": dim, "heads": heads}


def prepared(name: str, batch: int, **overrides: Any) -> tuple[Callable[[], Any], float]:
    """A call of a fused model, and the number of operations in it."""
    keywords = {**levitax.VARIANTS[name], **overrides}
    model, state = eqx.nn.make_with_state(levitax.LeViT)(**keywords, key=jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (batch, *model.config.image_size, 3), jnp.float32)
    arrays, rest = eqx.partition(levitax.fuse(model, state), eqx.is_array)
    # `eqx.filter_jit` would walk through the model in each call, which is visible with a batch of one image.
    run = jax.jit(lambda arrays, images: jax.vmap(eqx.combine(arrays, rest))(images))
    cost = run.lower(arrays, images).cost_analysis()
    assert cost is not None, "XLA has counted nothing on this platform."
    return lambda: run(arrays, images).block_until_ready(), cost["flops"]


if __name__ == "__main__":
    main()
