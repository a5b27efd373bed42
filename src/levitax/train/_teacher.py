import os
import warnings
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from .._array_checks import as_array, check_form, check_not_empty
from .._extras import require
from .._fuse import fuse
from ..data import match_classes, Preprocessing
from ..weights import load, load_preprocessing
from ._mesh import gather_local
from ._targets import check_finite
from ._teacher_logits import is_teacher_logits, TeacherLogits


@runtime_checkable
class Teacher(Protocol):
    """A function from a batch of images, normalised for the student, to logits."""

    def __call__(
        self, images: Float[Array | np.ndarray, "batch height width channels"], /
    ) -> Float[Array | np.ndarray, "batch classes"]:
        """Maps `images`, `(batch, height, width, channels)`, to logits `(batch, classes)`."""
        ...


def torch_teacher(module: Any, *, device: str | None = None) -> Teacher:
    """Turns a PyTorch module into a teacher. The paper's is
    `timm.create_model("regnety_160.deit_in1k", pretrained=True)`.

    ```python
    targets = TeacherTargets(labels, torch_teacher(module)(images))
    ```

    **Arguments:**

    - `module`: maps images `(batch, channels, height, width)` to logits `(batch, classes)`, or to an output with
        `.logits` like the models of transformers. `torch_teacher` puts it into evaluation mode.
    - `device`: the device to move the module to; by default the module stays where it is.

    **Returns:** a function from images `(batch, height, width, channels)` to logits in float32, to be called outside
    `jax.jit`. If the images are spread over devices and processes, each process evaluates its own images, and the
    logits are spread like the images. The function raises `TypeError` or `ValueError` for images of another shape or
    dtype, and for images that the module refuses. The same holds for an output without one finite logit for each image
    and class.

    **Raises:** `ModuleNotFoundError` without PyTorch, `TypeError` if `module` is not a `torch.nn.Module`.
    """
    torch = require("torch", "`levitax.train.torch_teacher`", "install it (https://pytorch.org)")
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"`module` is of type `{type(module).__name__}`; expected a `torch.nn.Module`.")
    module = module.eval() if device is None else module.eval().to(device)
    parameter = next(module.parameters(), None)

    def ask(images):
        """The module's logits of NumPy images."""
        with torch.inference_mode():
            batch = torch.from_numpy(images.astype(np.float32)).movedim(-1, 1)
            batch = batch if parameter is None else batch.to(parameter.device, parameter.dtype)
            try:
                outputs = module(batch)
            except Exception as error:
                # A module may raise anything: a RuntimeError, timm's AssertionError, transformers' ValueError.
                raise ValueError(_not_taken(images.shape, error)) from error
            outputs = getattr(outputs, "logits", outputs)
            if not isinstance(outputs, torch.Tensor):
                raise TypeError(_no_logits(outputs))
            return outputs.float().cpu().numpy() if outputs.is_floating_point() else outputs.cpu().numpy()

    def teach(images):
        _check_images(images)
        is_spread = isinstance(images, jax.Array)
        rows = gather_local(images) if is_spread else np.asarray(images)
        logits = ask(rows)
        _check_logits(logits, len(rows))
        if not is_spread:
            return logits
        sharding = images.sharding
        if isinstance(sharding, NamedSharding):
            # Logits have fewer axes than images, and only the first is spread.
            sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
        return jax.make_array_from_process_local_data(sharding, logits)

    return teach


def load_teacher(source: str | os.PathLike[str], student: Preprocessing) -> Teacher | TeacherLogits:
    """Loads a teacher, published or your own.

    **Arguments:**

    - `source`: as in [`levitax.load`][]; a file of [`levitax.train.TeacherLogits`][]; or `timm:` and the name of one of
        timm's models, which runs in PyTorch.
    - `student`: the preprocessing of the student, with its class names. The teacher gets images that are normalised for
        the student, and normalises them as in its own training.

    **Returns:** the stored logits, or a [`levitax.train.Teacher`][] whose logits are in the order of the student's
    classes. If the teacher's weights have no class names, `load_teacher` warns and keeps their order.

    **Raises:** the errors of [`levitax.load`][]; `ValueError` if teacher and student have different classes;
    `ModuleNotFoundError` without timm.
    """
    if isinstance(source, str) and source.startswith("timm:"):
        timm = require("timm", "a teacher of timm", "run `pip install timm`")
        torch = require("torch", "a teacher of timm", "install it (https://pytorch.org)")
        module = timm.create_model(source.removeprefix("timm:"), pretrained=True)
        teach = torch_teacher(module, device="cuda" if torch.cuda.is_available() else None)
        expected = Preprocessing(mean=module.pretrained_cfg["mean"], std=module.pretrained_cfg["std"])
        return lambda images: teach(_renormalise(images, student, expected))
    if is_teacher_logits(source):
        return TeacherLogits.load(source)
    predict, expected = fuse(*load(source)), load_preprocessing(source)
    columns: Any = slice(None)
    if expected.class_names:
        columns = match_classes(student.class_names, expected.class_names)
    else:
        warnings.warn(
            "The teacher's weights have no class names, so its classes are taken in the order of the student's. Save "
            "the weights with `preprocessing=` to match the classes by name.",
            stacklevel=2,
        )
    return eqx.filter_jit(lambda images: jax.vmap(predict)(_renormalise(images, student, expected))[:, columns])


def _renormalise(images, old, new):
    """Images that `old` normalised, as `new` normalises them."""
    if (old.mean, old.std) == (new.mean, new.std):
        return images
    of = lambda values: np.asarray(values, np.float32)[None, None, None]
    return (images * of(old.std) + (of(old.mean) - of(new.mean))) / of(new.std)


def _check_images(images):
    if isinstance(images, Tracer):
        raise TypeError(
            "The teacher was called inside a JAX transformation, such as `jax.jit`, where PyTorch cannot run. Call it "
            "before, and pass its logits."
        )
    images = as_array("images", images)
    way_out = "Normalise pixels like the student's, with `levitax.data.Preprocessing.normalise`."
    check_form("images", images, {jnp.floating: ("batch", "height", "width", "channels")}, way_out=way_out)
    check_not_empty("images", images)


def _check_logits(logits, batch):
    way_out = "The module must return logits, a row for each image."
    check_form("the teacher's logits", logits, {jnp.floating: (batch, "classes")}, way_out=way_out)
    check_finite("the teacher's logits", logits)


def _not_taken(shape, error):
    return (
        f"The teacher failed on images of shape {shape[1:]}, height, width and channels: {error}. Choose a teacher for "
        "images of this size and number of channels, or preprocess the images for it."
    )


def _no_logits(outputs):
    return (
        f"The teacher returned a `{type(outputs).__name__}`; expected logits `(batch, classes)`, or an output with "
        "`.logits`. Wrap the module in one that returns the logits alone."
    )
