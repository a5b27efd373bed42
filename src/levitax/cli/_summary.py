import json
from typing import Annotated, Any

from cyclopts import Parameter

import levitax

from ._options import AsJson, ImageSize, sizes_of


def summary(
    model: Annotated[
        str | None, Parameter(help="A variant, such as levit_256, or weights. By default all variants are listed.")
    ] = None,
    *,
    image_size: ImageSize = None,
    as_json: AsJson = False,
) -> None:
    """Lists the parts of a model, their output shapes, parameters and multiply-adds; or lists all variants."""
    sizes = sizes_of(image_size)
    if model is not None:
        made, state = _shapes(model, sizes) if model in levitax.VARIANTS else levitax.load(model, **sizes)
        found = levitax.summary(made, state)
        print(json.dumps([row._asdict() for row in (*found.rows, found.total)]) if as_json else found)
        return
    rows = []
    for name in levitax.VARIANTS:
        total = levitax.summary(*_shapes(name, sizes)).total
        weights = levitax.PRETRAINED.get(name)
        rows.append({"model": name, "parameters": total.parameters, "multiply_adds": total.multiply_adds})
        rows[-1]["weights"] = weights
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'model':14}{'parameters':>12}{'multiply-adds':>16}  published weights")
    for row in rows:
        print(f"{row['model']:14}{row['parameters']:>12,}{row['multiply_adds']:>16,}  {row['weights'] or ''}".rstrip())


def _shapes(name: str, sizes: dict[str, Any]) -> Any:
    """The shapes of a variant and its state, without values."""
    import equinox as eqx
    import jax

    return eqx.filter_eval_shape(lambda key: levitax.create_model(name, key=key, **sizes), jax.random.key(0))
