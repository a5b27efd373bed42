import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from . import nn
from ._fuse import check_levit
from ._model import LeViT
from ._model_checks import check_state
from ._multiply_adds import multiply_adds
from ._outline import parts, table, title
from ._parameters import count_parameters


# Before the name of a part, so that no function of a user has the same name.
_PREFIX = "levitax.summary "


class SummaryRow(NamedTuple):
    """A row of a [`levitax.Summary`][].

    **Attributes:**

    - `name`: the part: "stem", "stage 1", ..., "head", or "total".
    - `output_shape`: of one image. If a head of your own returns several arrays, a PyTree of their shapes.
    - `parameters`: as counted by [`levitax.count_parameters`][].
    - `multiply_adds`: for one image in inference mode, in matrix products and convolutions.
    - `layers`: the class of the part and its sizes.
    """

    name: str
    output_shape: Any
    parameters: int
    multiply_adds: int
    layers: str


@dataclasses.dataclass(frozen=True, repr=False)
class Summary:
    """The parts of a LeViT, from [`levitax.summary`][]. `print` shows a table of at most 40 lines.

    **Attributes:**

    - `title`: the first line: image size, classes, dtype, mode, and whether the model is fused.
    - `rows`: a [`levitax.SummaryRow`][] for the stem, each stage and the head.
    - `total`: a [`levitax.SummaryRow`][] for the whole model.
    """

    title: str
    rows: tuple[SummaryRow, ...]
    total: SummaryRow

    def __repr__(self) -> str:
        columns = ("part", "layers", "output", "parameters", "multiply-adds")
        lines = [
            (row.name, row.layers, str(row.output_shape), f"{row.parameters:,}", _in_units(row.multiply_adds))
            for row in (*self.rows, self.total)
        ]
        return table(self.title, columns, lines)


def summary(model: LeViT, state: eqx.nn.State | None = None) -> Summary:
    """Lists output shape, parameters and multiply-adds of a LeViT, in all and by part.

    ```python
    print(levitax.summary(model))
    levitax.summary(model).total.multiply_adds
    ```

    Traces the model in inference mode, and computes nothing. Multiply-adds are those of matrix products and
    convolutions, also in layers of your own.

    **Arguments:**

    - `model`: a [`levitax.LeViT`][], also a fused one, and one whose parts were changed or only have shapes, from
        `eqx.filter_eval_shape`.
    - `state`: its state. Only needed if a layer other than [`levitax.nn.BatchNorm`][] keeps something in it.

    **Returns:** a [`levitax.Summary`][], which prints as a table.

    **Raises:** `TypeError` if `model` is not a [`levitax.LeViT`][] or `state` not an `eqx.nn.State`; `ValueError` if
    the state is needed; and the errors of a call.
    """
    check_levit(model)
    if state is None:
        model = _with_initial_state(model)
    else:
        check_state(state)
    config = model.config
    shapes: dict[str, Any] = {}

    def call(model, state, image):
        if state is None:
            model, state = eqx.nn.make_with_state(lambda: model)()
        output, _ = _with_named_parts(model, shapes)(image, state)
        return output

    image = jax.ShapeDtypeStruct((*config.image_size, config.in_channels), jnp.float32)
    # Its type would ask for arrays, in place of their shapes.
    trace: Any = eqx.filter_make_jaxpr(call)
    traced, output, _ = trace(*_as_structs((eqx.nn.inference_mode(model), state)), image)
    counts = {_PREFIX + part.name: 0 for part in parts(model)}
    total = multiply_adds(traced.jaxpr, counts)
    shapes["head"] = _shapes(output)
    for stage in range(config.stages):
        # A stage returns a row of tokens; `features` gives them as a map.
        shapes[f"stage {stage + 1}"] = (*config.grid(stage), shapes[f"stage {stage + 1}"][-1])
    rows = tuple(
        SummaryRow(
            part.name, shapes[part.name], count_parameters(part.module), counts[_PREFIX + part.name], part.layers
        )
        for part in parts(model)
    )
    return Summary(title(model), rows, SummaryRow("total", shapes["head"], count_parameters(model), total, ""))


def _with_initial_state(model: LeViT) -> LeViT:
    """A model that holds its state again. The normalisations show the shapes; no values are needed.

    **Raises:** `ValueError` if another layer keeps a state.
    """
    is_norm = lambda node: isinstance(node, nn.BatchNorm)
    is_index = lambda node: isinstance(node, eqx.nn.StateIndex)

    def initialise(node):
        if not is_norm(node):
            return node
        statistics: Any = jax.ShapeDtypeStruct(node.weight.shape, jnp.float32)
        index = eqx.nn.StateIndex(nn.RunningStatistics(statistics, statistics))
        return eqx.tree_at(lambda norm: norm.statistics, node, index)

    model = jax.tree.map(initialise, model, is_leaf=is_norm)
    for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=is_index):
        # An index without its state has the path of the layer as its marker.
        if is_index(node) and isinstance(node.marker, str):
            where = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"`model.{where}` keeps a state, and the model alone does not show its shape: pass the state too, "
                "as in `levitax.summary(model, state)`."
            )
    return model


def _with_named_parts(model, shapes):
    """Calls each part in a `jax.jit` of its name, which the traced function shows, and notes the output's shape."""

    def named(part):
        if part.module is None:
            return None

        def call(*arguments, **keywords):
            output, state = part.module(*arguments, **keywords)
            shapes[part.name] = _shapes(output)
            return output, state

        call.__name__ = _PREFIX + part.name
        return jax.jit(call)

    stem, *stages, head = map(named, parts(model))
    where = lambda model: (model.stem, model.stages, model.head)
    return eqx.tree_at(where, model, (stem, tuple(stages), head), is_leaf=lambda node: node is None)


def _as_structs(tree):
    """Without values and shardings."""
    to_struct = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf
    return jax.tree.map(to_struct, tree)


def _shapes(output):
    return jax.tree.map(jnp.shape, output)


def _in_units(count: int) -> str:
    rounded = float(f"{count:.3g}")
    for size, unit in ((1e9, "GMAC"), (1e6, "MMAC"), (1e3, "kMAC")):
        if rounded >= size:
            # Three digits, also if they are zeros.
            return f"{f'{rounded / size:#.3g}'.rstrip('.')} {unit}"
    return f"{count} MAC"
