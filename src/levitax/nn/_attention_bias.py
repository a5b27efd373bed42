import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import as_integers, check_positive
from .._keys import as_key
from ._initial import full, normal


class AttentionBias(eqx.Module):
    """A learned bias for each head and each absolute offset between query and key (section 4.2, "Attention bias
    instead of a positional embedding").

    Offsets are absolute, so the bias does not distinguish left from right, or up from down.

    **Attributes:**

    - `table`: `(heads, rows, columns)`, a bias for each offset in rows and columns; `table[:, 0, 0]` is the bias of a
        token towards itself.
    - `stride`, `scale`: as given.
    """

    table: Float[Array, "heads rows columns"]
    stride: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self,
        heads: int,
        grid: tuple[int, int],
        *,
        stride: int = 1,
        scale: float = 1.0,
        std: float = 0.0,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `heads`: number of heads.
        - `grid`: rows and columns of the keys.
        - `stride`: of the queries in that grid.
        - `scale`: a factor on the table. The paper has none.
        - `std`: standard deviation of the initial table. The paper's table starts at 0.
        - `key`: draws the table.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers, and for an invalid key.
        """
        check_positive(heads=heads, stride=stride)
        rows, columns = as_integers("grid", grid, 2, "rows and columns")
        shape = heads, rows, columns
        key = as_key(key)
        self.table = normal(key, shape, std) if std else full(shape, 0)
        self.stride = stride
        self.scale = scale

    def __call__(self) -> Float[Array, "heads queries tokens"]:
        """Returns the full matrix `(heads, queries, tokens)`: a bias for each query and key, both in row-major
        order."""
        return expand(self.table, self.stride, self.scale)


class GatheredAttentionBias(eqx.Module):
    """An [`levitax.nn.AttentionBias`][] gathered once, for inference.

    **Arguments:**

    - `matrix`: `(heads, queries, tokens)`.
    """

    matrix: Float[Array, "heads queries tokens"]

    def __call__(self) -> Float[Array, "heads queries tokens"]:
        """Returns the matrix, `(heads, queries, tokens)`."""
        return self.matrix


def expand(table, stride, scale):
    """The scaled entry of a table of NumPy or JAX for the offset between each query and each key: `(heads, queries,
    tokens)`."""
    heads, rows, columns = table.shape
    # Row and column offsets are independent: two small gathers instead of one of the size of the result.
    entries = table[:, _offsets(rows, stride)][..., _offsets(columns, stride)]
    return scale * entries.transpose(0, 1, 3, 2, 4).reshape(heads, -1, rows * columns)


def _offsets(size, stride):
    # In NumPy, so that the indices are constants of the program: never trained, averaged, cast or saved.
    return np.abs(np.arange(0, size, stride)[:, None] - np.arange(size)[None, :])
