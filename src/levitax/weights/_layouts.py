from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias


LayoutName: TypeAlias = Literal[
    "levitax", "official", "timm", "timm_conv", "transformers", "transformers_backbone", "mmpretrain", "vit_pytorch"
]
"""The library whose names and shapes the arrays of a file follow; see [`levitax.weights.state_dict`][]."""


class Layer(NamedTuple):
    """A layout's names for a linear layer or convolution, and for its normalisation, if it has one."""

    linear: str
    norm: str = ""


class Place(NamedTuple):
    """The position of a block: its number in its stage, and the depths of the stages before."""

    block: int
    depths_before: tuple[int, ...]

    @property
    def stage(self) -> int:
        return len(self.depths_before)

    @property
    def downsamples(self) -> bool:
        """Whether the block downsamples, as the first one of every later stage does."""
        return self.stage > 0 and self.block == 0

    @property
    def regular(self) -> int:
        """The number of the block among those of its stage that keep the grid."""
        return self.block - (self.stage > 0)

    @property
    def overall(self) -> int:
        """The number of the block in the whole model."""
        return sum(self.depths_before) + max(self.stage - 1, 0) + self.block


class Layout(NamedTuple):
    """The names of the arrays of a LeViT in one kind of file. All numbers count from 0.

    The names of the layers in an attention or MLP follow the name of that attention or MLP, and a dot.
    """

    convolution: Callable[[int], Layer]
    attention: Callable[[Place], str]
    mlp: Callable[[Place], str]
    # Several layers here are one of ours, with the channels of all of them grouped by head.
    query_key_value: tuple[Layer, ...]
    query: tuple[Layer, ...]
    key_value: tuple[Layer, ...]
    project_out: Layer
    bias: str
    expand: Layer
    contract: Layer
    classification: Layer
    distillation: Layer
    # The head of a model with only one.
    head: Layer
    # "map": (heads, rows, columns); "flat": (heads, rows * columns); "embedding": (rows * columns, heads).
    bias_table: Literal["map", "flat", "embedding"] = "flat"
    mean: str = "running_mean"
    var: str = "running_var"
    # Linear layers are stored as 1x1 convolutions.
    pointwise: bool = False
    # The index into the bias table for each query and key, if the file holds it.
    bias_index: str = ""
    # PyTorch's normalisations count the batches they have seen.
    batch_count: str = "num_batches_tracked"


def folded(layout: Layout, *, renamed: bool) -> Layout:
    """The layout of a model whose normalisations are folded into its linear layers and convolutions.

    If `renamed`, a folded layer has the name of the pair, as after `fuse` in timm and the authors' code. Otherwise it
    keeps its own name, as if an identity had replaced the normalisation.
    """

    def fold(layer: Layer) -> Layer:
        return Layer(layer.linear.rpartition(".")[0] if renamed else layer.linear)

    single = ("project_out", "expand", "contract", "classification", "distillation", "head")
    several = ("query_key_value", "query", "key_value")
    return layout._replace(
        convolution=lambda number: fold(layout.convolution(number)),
        **{name: fold(getattr(layout, name)) for name in single},
        **{name: tuple(map(fold, getattr(layout, name))) for name in several},
    )


def _official(place: Place) -> str:
    return f"blocks.{2 * place.overall}" + ("" if place.downsamples else ".m")


def _timm(place: Place) -> str:
    return f"stages.{place.stage}." + ("downsample" if place.downsamples else f"blocks.{place.regular}")


def _vit_pytorch(place: Place) -> str:
    return f"backbone.{2 * place.stage - place.downsamples}.layers.{0 if place.downsamples else place.regular}"


def _transformers(place: Place, part: int) -> str:
    # The downsampling block is at the end of the stage before, after its pairs of attention and MLP.
    if place.downsamples:
        owner = f"encoder.stages.{place.stage - 1}.layers.{2 * place.depths_before[-1] + part}"
        return owner + (".module" if part else "")
    return f"encoder.stages.{place.stage}.layers.{2 * place.regular + part}.module"


def _transformers_layout(prefix: str) -> Layout:
    embedding = f"{prefix}patch_embeddings.embedding_layer_"
    return Layout(
        convolution=lambda number: Layer(f"{embedding}{number + 1}.convolution", f"{embedding}{number + 1}.batch_norm"),
        attention=lambda place: prefix + _transformers(place, 0),
        mlp=lambda place: prefix + _transformers(place, 1),
        query_key_value=(Layer("queries_keys_values.linear", "queries_keys_values.batch_norm"),),
        query=(Layer("queries.linear", "queries.batch_norm"),),
        key_value=(Layer("keys_values.linear", "keys_values.batch_norm"),),
        project_out=Layer("projection.linear", "projection.batch_norm"),
        bias="attention_biases",
        expand=Layer("linear_up.linear", "linear_up.batch_norm"),
        contract=Layer("linear_down.linear", "linear_down.batch_norm"),
        classification=Layer("classifier.linear", "classifier.batch_norm"),
        distillation=Layer("classifier_distill.linear", "classifier_distill.batch_norm"),
        head=Layer("classifier.linear", "classifier.batch_norm"),
    )


LEVITAX = Layout(
    # The paths of the arrays in the model.
    convolution=lambda number: Layer(f"stem.convolutions.{number}", f"stem.convolutions.{number}.norm"),
    attention=lambda place: f"stages.{place.stage}.blocks.{place.block}.attention",
    mlp=lambda place: f"stages.{place.stage}.blocks.{place.block}.mlp",
    query_key_value=(Layer("project_in.linear", "project_in.linear.norm"),),
    query=(Layer("project_in.query", "project_in.query.norm"),),
    key_value=(Layer("project_in.key_value", "project_in.key_value.norm"),),
    project_out=Layer("project_out", "project_out.norm"),
    bias="bias.table",
    expand=Layer("expand", "expand.norm"),
    contract=Layer("contract", "contract.norm"),
    classification=Layer("head.classification", "head.classification.norm"),
    distillation=Layer("head.distillation", "head.distillation.norm"),
    head=Layer("head", "head.norm"),
    bias_table="map",
    mean="mean",
    var="var",
    batch_count="",
)

# The authors' repository, and timm before February 2023.
OFFICIAL = Layout(
    convolution=lambda number: Layer(f"patch_embed.{2 * number}.c", f"patch_embed.{2 * number}.bn"),
    attention=_official,
    mlp=lambda place: f"blocks.{2 * place.overall + 1}.m",
    query_key_value=(Layer("qkv.c", "qkv.bn"),),
    query=(Layer("q.1.c", "q.1.bn"),),
    key_value=(Layer("kv.c", "kv.bn"),),
    project_out=Layer("proj.1.c", "proj.1.bn"),
    bias="attention_biases",
    expand=Layer("0.c", "0.bn"),
    contract=Layer("2.c", "2.bn"),
    classification=Layer("head.l", "head.bn"),
    distillation=Layer("head_dist.l", "head_dist.bn"),
    head=Layer("head.l", "head.bn"),
    bias_index="attention_bias_idxs",
)

TIMM = Layout(
    convolution=lambda number: Layer(f"stem.conv{number + 1}.linear", f"stem.conv{number + 1}.bn"),
    attention=lambda place: _timm(place) + (".attn_downsample" if place.downsamples else ".attn"),
    mlp=lambda place: _timm(place) + ".mlp",
    query_key_value=(Layer("qkv.linear", "qkv.bn"),),
    query=(Layer("q.ln.linear", "q.ln.bn"),),
    key_value=(Layer("kv.linear", "kv.bn"),),
    project_out=Layer("proj.ln.linear", "proj.ln.bn"),
    bias="attention_biases",
    expand=Layer("ln1.linear", "ln1.bn"),
    contract=Layer("ln2.linear", "ln2.bn"),
    classification=Layer("head.linear", "head.bn"),
    distillation=Layer("head_dist.linear", "head_dist.bn"),
    head=Layer("head.linear", "head.bn"),
)

MMPRETRAIN = Layout(
    convolution=lambda number: Layer(
        f"backbone.patch_embed.patch_embed.{2 * number}.conv", f"backbone.patch_embed.patch_embed.{2 * number}.bn"
    ),
    attention=lambda place: (
        f"backbone.stages.{place.stage}.{2 * place.block}" + ("" if place.downsamples else ".block")
    ),
    mlp=lambda place: f"backbone.stages.{place.stage}.{2 * place.block + 1}.block",
    query_key_value=(Layer("qkv.linear", "qkv.bn"),),
    query=(Layer("q.1.linear", "q.1.bn"),),
    key_value=(Layer("kv.linear", "kv.bn"),),
    project_out=Layer("proj.1.linear", "proj.1.bn"),
    bias="attention_biases",
    expand=Layer("linear1.linear", "linear1.bn"),
    contract=Layer("linear2.linear", "linear2.bn"),
    classification=Layer("head.head.linear", "head.head.bn"),
    distillation=Layer("head.head_dist.linear", "head.head_dist.bn"),
    head=Layer("head.head.linear", "head.head.bn"),
    bias_index="attention_bias_idxs",
)

# A different network (see `network` in `levitax.LeViT`).
VIT_PYTORCH = Layout(
    convolution=lambda number: Layer(f"conv_embedding.{number}"),
    attention=lambda place: _vit_pytorch(place) + ".0",
    mlp=lambda place: _vit_pytorch(place) + ".1",
    query_key_value=(Layer("to_q.0", "to_q.1"), Layer("to_k.0", "to_k.1"), Layer("to_v.0", "to_v.1")),
    query=(Layer("to_q.0", "to_q.1"),),
    key_value=(Layer("to_k.0", "to_k.1"), Layer("to_v.0", "to_v.1")),
    project_out=Layer("to_out.1", "to_out.2"),
    bias="pos_bias.weight",
    expand=Layer("net.0"),
    contract=Layer("net.3"),
    classification=Layer("mlp_head"),
    distillation=Layer("distill_head"),
    head=Layer("mlp_head"),
    bias_table="embedding",
    pointwise=True,
    bias_index="pos_indices",
)


LAYOUTS: Mapping[LayoutName, Layout] = MappingProxyType(
    {
        "levitax": LEVITAX,
        "official": OFFICIAL,
        "timm": TIMM,
        "timm_conv": TIMM._replace(pointwise=True),
        "transformers": _transformers_layout("levit."),
        "transformers_backbone": _transformers_layout(""),
        "mmpretrain": MMPRETRAIN,
        "vit_pytorch": VIT_PYTORCH,
    }
)
