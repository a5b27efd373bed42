from typing import Unpack

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from . import nn
from ._blocks import as_blocks, attention_weights, Blocks, run_blocks
from ._build import make_head, make_stages, make_stem
from ._config import DEFAULTS, LeViTConfig, LeViTKeywords, Overrides
from ._keys import as_key, split_key
from ._model_checks import check_features, check_image
from ._outline import outline
from ._spelled_out import spelled_out


class LeViT(eqx.Module):
    """LeViT, "a Vision Transformer in ConvNet's clothing for faster inference" (Graham et al. 2021, arXiv 2104.01136).

    A convolutional stem makes one token for every 16x16 pixels. Three stages of attention and MLP blocks follow,
    each with half the rows and columns of the one before. One or two linear classifiers read the mean token.

    A LeViT holds batch statistics, so make it together with its `eqx.nn.State`:

    ```python
    model, state = eqx.nn.make_with_state(levitax.LeViT)(image_size=224, num_classes=1000, key=key)
    logits, state = eqx.filter_jit(levitax.batched(model))(images, state, key=key)
    ```

    **Attributes:**

    - `stem`: a [`levitax.nn.Stem`][].
    - `stages`: a [`levitax.nn.Stage`][] for each resolution.
    - `head`: a [`levitax.nn.DistilledHead`][], a [`levitax.nn.NormLinear`][], or `None` if `num_classes` is 0.
    - `config`: the keywords, as a [`levitax.LeViTConfig`][].
    """

    stem: nn.Stem
    stages: tuple[nn.Stage, ...]
    head: nn.NormLinear | nn.DistilledHead | None
    config: LeViTConfig = eqx.field(static=True)

    # Lists the keywords in the signature and in `help`.
    @spelled_out(Overrides, LeViTKeywords, defaults=DEFAULTS)
    def __init__(self, *, key: PRNGKeyArray, **keywords: Unpack[LeViTKeywords]):
        """The defaults are LeViT-256.

        **Arguments:**

        - `key`: draws the initial weights.
        - `keywords`: any of [`levitax.LeViTKeywords`][].

        **Raises:** `TypeError` or `ValueError`, naming the argument, for sizes that are not positive integers, rates
        outside [0, 1), tuples without one number for each stage, unknown names and keywords, too few channels for the
        stem, images too small for the stages, and invalid keys.
        """
        self.config = LeViTConfig(**keywords)
        stem_key, stages_key, head_key = split_key(as_key(key), 3)
        self.stem = make_stem(self.config, stem_key)
        self.stages = make_stages(self.config, stages_key)
        self.head = make_head(self.config, head_key)

    def __call__(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[nn.Logits, eqx.nn.State]:
        """**Arguments:**

        - `image`: one image, `(height, width, channels)`, of the size that the model was made for. For a batch use
            [`levitax.batched`][].
        - `state`: the batch statistics that were made with the model.
        - `key`: needed in training if dropout or drop path is active.

        **Returns:** float32 logits `(..., classes)`, with one leading axis, of tokens, if `pooling` is "none"; and the
        new state. In training, two heads return a [`levitax.nn.DistilledLogits`][]. If `num_classes` is 0, the model
        returns the mean token, of `dim[-1]` channels, or all tokens.

        **Raises:** `TypeError` or `ValueError` if the image is not one floating-point image of that size, channels
        last, or if `state` belongs to another model. In training, also if a key or the batch axis is missing, or if a
        normalisation sees one value per channel. In the head, that is the case for a batch of one image.
        """
        maps, state = self.features(image, state, key=key)
        return self.classify(maps[-1], state, key=key)

    def features(
        self,
        image: Float[Array, "height width channels"],
        state: eqx.nn.State,
        *,
        blocks: Blocks | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[tuple[Float[Array, "rows columns dim"], ...], eqx.nn.State]:
        """Computes the feature map after each stage, for detection or segmentation, or after each of some blocks.

        **Arguments:**

        - `image`: `(height, width, channels)`, as in a call.
        - `state`: as in a call.
        - `blocks`: numbers of blocks, from 0 in the first stage, or from the end if negative; or their paths, such as
            "stages.1.blocks.0". A block that downsamples counts too. Nothing is computed after the last of these
            blocks. By default the last block of each stage.
        - `key`: as in a call.

        **Returns:** for each stage, or each of `blocks` in the given order, `(rows, columns, dim)`, in the dtype of the
        computation; and the new state.

        **Raises:** `TypeError` or `ValueError`, as in a call, and for a block that does not exist.
        """
        wanted = as_blocks(blocks, self.stages)
        *keys, stem_key, _ = split_key(key, len(self.stages) + 2)
        tokens, state = self._embed(image, state, stem_key)
        after = {result.block: result for result in run_blocks(self.stages, tokens, state, keys, last=max(wanted))}
        maps = tuple(after[block].tokens.reshape(*self.config.grid(block.stage), -1) for block in wanted)
        return maps, after[max(wanted)].state

    def classify(
        self, features: Float[Array, "rows columns dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[nn.Logits, eqx.nn.State]:
        """Completes a call from the last feature map, for callers that need both.

        **Arguments:**

        - `features`: the last of the maps from `features`, `(rows, columns, dim)`.
        - `state`: the state that `features` returned with the maps.
        - `key`: that of the call.

        **Returns:** float32 logits `(..., classes)`, or the other results of a call; and the new state.

        **Raises:** `TypeError` if `features` is not a floating-point array, for example all maps; `ValueError` for
        another shape, or if a key is missing.
        """
        check_features(features, (*self.config.grid(-1), self.config.dim[-1]))
        tokens = features.astype("float32")
        # Average pooling, since there is no classification token (section 4.2 of the paper).
        pooled = tokens.mean((0, 1)) if self.config.pooling == "mean" else tokens.reshape(-1, tokens.shape[-1])
        *_, head_key = split_key(key, len(self.stages) + 2)
        return (pooled, state) if self.head is None else self.head(pooled, state, key=head_key)

    def attention_maps(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State
    ) -> tuple[tuple[Float[Array, "heads queries tokens"], ...], ...]:
        """Computes the attention weights of each block, in inference mode.

        **Arguments:**

        - `image`: `(height, width, channels)`, as in a call.
        - `state`: as in a call.

        **Returns:** for each stage and each block in it, the weights `(heads, queries, tokens)` in float32, which sum
        to 1 over the tokens. Queries and tokens are in row-major order on the stage's grid. In the first block of each
        later stage, the tokens belong to the stage before.

        **Raises:** `TypeError` or `ValueError` for an image or a state that a call refuses; `TypeError` for a stage or
        a block without attention weights.
        """
        model = eqx.nn.inference_mode(self)
        return attention_weights(model.stages, *model._embed(image, state))

    def __repr__(self) -> str:
        return outline(self)

    def _embed(self, image, state, key=None):
        check_image(image, (*self.config.image_size, self.config.in_channels))
        x, state = self.stem(image.astype(self.config.dtype), state, key=key)
        return x.reshape(-1, x.shape[-1]), state
