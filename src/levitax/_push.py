import dataclasses
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import equinox as eqx

from ._array_checks import as_number
from ._extras import extra, require
from ._model import LeViT
from ._summary import summary
from .data import Preprocessing
from .data._preprocessing import as_class_names
from .weights import save


def push(
    repo_id: str,
    model: LeViT,
    state: eqx.nn.State,
    preprocessing: Preprocessing,
    classes: Sequence[str] | None = None,
    *,
    accuracy: float | None = None,
    data: str | None = None,
    licence: str = "apache-2.0",
    private: bool = False,
    token: str | None = None,
) -> str:
    """Uploads a model to the Hugging Face hub, with a model card.

    ```python
    levitax.push("you/flowers", *levitax.load("runs/flowers"), levitax.load_preprocessing("runs/flowers"))
    ```

    Afterwards `levitax.Classifier.load("you/flowers")` loads it anywhere. Creates the repository if there is none;
    replaces `model.safetensors` and `README.md` if there is one. Needs `pip install "levitax[weights]"`, and a token
    with the right to write.

    **Arguments:**

    - `repo_id`: the name of the repository, such as "you/flowers".
    - `model`, `state`: a [`levitax.LeViT`][] and its state, as for [`levitax.save`][].
    - `preprocessing`: of the model's images.
    - `classes`: the class names, in the order of the logits; by default those of the preprocessing.
    - `accuracy`: top-1 accuracy on images that the model was not trained on, from 0 to 1, for the card.
    - `data`: the name of the data set, for the card.
    - `licence`: of the weights, in the hub's short form.
    - `private`: whether a new repository is private.
    - `token`: for the hub; by default the one of `hf auth login` or of the environment variable `HF_TOKEN`.

    **Returns:** the address of the repository.

    **Raises:** `ValueError` for a `repo_id` that is no owner and name, and an `accuracy` out of range; the errors of
    [`levitax.save`][]; `PermissionError` if the hub does not accept the token; `ConnectionError` if it is out of reach.
    """
    if not isinstance(repo_id, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
        raise ValueError(f"`repo_id` is {repo_id!r}; expected an owner and a name, such as 'you/flowers'.")
    as_number("accuracy", accuracy, 0, 1, optional=True)
    if classes is not None:
        preprocessing = dataclasses.replace(preprocessing, class_names=as_class_names("classes", classes))
    user, way_out = "`levitax.push`", extra("weights")
    hub, errors = (require(module, user, way_out) for module in ("huggingface_hub", "huggingface_hub.errors"))
    api = hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder, "model.safetensors"), model, state, preprocessing=preprocessing)
        card = _card(repo_id, model, state, preprocessing, accuracy=accuracy, data=data, licence=licence)
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a LeViT with levitax")
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status not in (401, 403):
                raise ConnectionError(f"The hub refused {repo_id!r} with status {status}: {error}") from error
            raise PermissionError(
                f"The hub does not let you write to {repo_id!r} (status {status}). Log in with `hf auth login`, or "
                "pass a `token` with the right to write."
            ) from error
        except errors.HFValidationError as error:
            raise ValueError(f"`repo_id` is {repo_id!r}, which the hub does not accept: {error}") from None
        except Exception as error:
            # A transfer can fail with any exception of the client's HTTP library.
            raise ConnectionError(
                f"The hub is out of reach, so nothing was uploaded to {repo_id!r} ({type(error).__name__}: {error}). "
                "`levitax.save` writes the same file to this machine."
            ) from error
    return f"{api.endpoint}/{repo_id}"


def _card(
    repo_id: str,
    model: LeViT,
    state: eqx.nn.State,
    preprocessing: Preprocessing,
    *,
    accuracy: float | None,
    data: str | None,
    licence: str,
) -> str:
    """The model card, in Markdown, with the hub's metadata."""
    total, config = summary(model, state).total, model.config
    names = preprocessing.class_names
    some = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
    rows = {
        "parameters": f"{total.parameters:,}",
        "multiply-adds": f"{total.multiply_adds:,} for an image",
        "images": f"{config.image_size[0]}x{config.image_size[1]} pixels, {config.in_channels} channel(s)",
        "classes": f"{config.num_classes:,}: {some}" if names else f"{config.num_classes:,}",
        "data": data,
        "top-1 accuracy": None if accuracy is None else f"{accuracy:.2%}",
    }
    rows = {name: " ".join(value.split()).replace("|", "\\|") for name, value in rows.items() if value is not None}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
license: {licence}
library_name: levitax
pipeline_tag: image-classification
tags: [levit, jax, equinox, image-classification]
---

# {repo_id.partition("/")[2]}

A LeViT image classifier ([Graham et al. 2021](https://arxiv.org/abs/2104.01136)) for JAX, in the format of levitax.

| | |
|---|---|
{table}

```python
import levitax

classifier = levitax.Classifier.load("{repo_id}")
print(classifier("image.jpg"))
```

`levitax.load("{repo_id}")` returns the model and its state, as Equinox PyTrees, to train further.
"""
