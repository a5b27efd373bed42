from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from .._extras import require
from ._mesh import gather_local


@runtime_checkable
class Teacher(Protocol):
    """Whoever knows the classes: a function of a batch of images, normalised as the student's, to their logits."""

    def __call__(
        self, images: Float[Array | np.ndarray, "batch height width channels"], /
    ) -> Float[Array | np.ndarray, "batch classes"]:
        """Of `images`, `(batch, height, width, channels)`, the logits `(batch, classes)`."""
        ...


def torch_teacher(module: Any, *, device: str | None = None) -> Teacher:
    """Makes a PyTorch module a teacher. The paper's is `timm.create_model("regnety_160.deit_in1k", pretrained=True)`.

    ```python
    targets = TeacherTargets(labels, torch_teacher(module)(images))
    ```

    **Arguments:**

    - `module`: from images `(batch, channels, height, width)` to logits `(batch, classes)`. It is put into evaluation
        mode.
    - `device`: where it is moved; by default it stays where it is.

    **Returns:** a function of images `(batch, height, width, channels)` to logits in float32, to be called outside of
    `jax.jit`. Of images that are spread over devices and processes, each process asks about its own, and the logits are
    spread as they are.

    **Raises:** `ModuleNotFoundError` without PyTorch.
    """
    torch = require("torch", "`levitax.train.torch_teacher`", "install it (https://pytorch.org)")
    module = module.eval() if device is None else module.eval().to(device)
    parameter = next(module.parameters(), None)

    def teach(images):
        is_spread = isinstance(images, jax.Array)
        with torch.inference_mode():
            batch = torch.from_numpy(gather_local(images) if is_spread else np.array(images)).movedim(-1, 1)
            batch = batch if parameter is None else batch.to(parameter.device, parameter.dtype)
            logits = module(batch).float().cpu().numpy()
        if not is_spread:
            return logits
        sharding = images.sharding
        if isinstance(sharding, NamedSharding):
            # Of an axis fewer than images have, only the first of which is spread.
            sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
        return jax.make_array_from_process_local_data(sharding, logits)

    return teach
