"""The names that other implementations give to our arrays, and how theirs become ours.

A layout maps the dotted path of one of our arrays to the reference's names with their shapes (but for the trailing ones
of 1x1 convolutions), and to a function from the reference's arrays to ours. Running statistics have paths too: `<path
of the BatchNorm>.mean` and `.var`.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import levitax

from . import numbers


Arrays = dict[str, np.ndarray]
Shape = tuple[int, ...]
Source = tuple[dict[str, Shape], Callable[..., np.ndarray]]
Layout = Callable[[str, Shape, levitax.LeViTConfig], Source]

NORM = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def timm(path: str, shape: Shape, config: levitax.LeViTConfig) -> Source:
    """timm's `levit_*`, with linear maps."""
    if path.endswith("bias.table"):
        name = _timm_block(path.removesuffix(".bias.table")) + ".attention_biases"
        return {name: _flat_table(shape)}, lambda table: table.reshape(shape)
    owner, leaf = path.rsplit(".", 1)
    normalised = owner.endswith(".norm")
    owner = owner.removesuffix(".norm")
    kind, leaf = ("bn", NORM[leaf]) if normalised else ("linear", leaf)
    if owner.startswith("head"):
        owner = {"head.classification": "head", "head.distillation": "head_dist"}.get(owner, owner)
    elif owner.startswith("stem"):
        owner = f"stem.conv{int(owner.rsplit('.', 1)[1]) + 1}"
    else:
        owner = _timm_block(owner)
    return {f"{owner}.{kind}.{leaf}": shape}, lambda array: array


def _timm_block(path: str) -> str:
    match = re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(attention|mlp)(?:\.(.+))?", path)
    assert match, path
    stage, block, part, rest = int(match[1]), int(match[2]), match[3], match[4]
    if stage > 0 and block == 0:
        parent = f"stages.{stage}.downsample.{'attn_downsample' if part == 'attention' else 'mlp'}"
    else:
        parent = f"stages.{stage}.blocks.{block - (stage > 0)}.{'attn' if part == 'attention' else 'mlp'}"
    parts = {
        "project_in.linear": ".qkv",
        "project_in.query": ".q.ln",
        "project_in.key_value": ".kv",
        "project_out": ".proj.ln",
        "expand": ".ln1",
        "contract": ".ln2",
        None: "",
    }
    return parent + parts[rest]


def transformers(path: str, shape: Shape, config: levitax.LeViTConfig) -> Source:
    """`LevitForImageClassification` and `LevitForImageClassificationWithTeacher`."""
    owner, leaf = path.rsplit(".", 1)
    normalised = owner.endswith(".norm")
    owner = owner.removesuffix(".norm")
    kind, leaf = ("batch_norm", NORM[leaf]) if normalised else ("linear", leaf)
    if owner.startswith("head"):
        names = {"head.classification": "classifier", "head.distillation": "classifier_distill", "head": "classifier"}
        return {f"{names[owner]}.{kind}.{leaf}": shape}, lambda array: array
    if owner.startswith("stem"):
        kind = "batch_norm" if normalised else "convolution"
        number = int(owner.rsplit(".", 1)[1]) + 1
        return {f"levit.patch_embeddings.embedding_layer_{number}.{kind}.{leaf}": shape}, lambda array: array
    match = re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(attention|mlp)\.(.+)", owner)
    assert match, path
    stage, block, part, rest = int(match[1]), int(match[2]), match[3], match[4]
    subsample = stage > 0 and block == 0
    if subsample:
        # At the end of the stage before, behind its pairs of attention and MLP.
        stage, layer = stage - 1, 2 * config.depth[stage - 1]
    else:
        layer = 2 * (block - (stage > 0))
    parent = f"levit.encoder.stages.{stage}.layers.{layer + (part == 'mlp')}"
    if not (subsample and part == "attention"):
        parent += ".module"
    if rest == "bias":
        return {f"{parent}.attention_biases": _flat_table(shape)}, lambda table: table.reshape(shape)
    parts = {
        "project_in.linear": "queries_keys_values",
        "project_in.query": "queries",
        "project_in.key_value": "keys_values",
        "project_out": "projection",
        "expand": "linear_up",
        "contract": "linear_down",
    }
    return {f"{parent}.{parts[rest]}.{kind}.{leaf}": shape}, lambda array: array


def vit_pytorch(path: str, shape: Shape, config: levitax.LeViTConfig) -> Source:
    """`vit_pytorch.levit.LeViT`: 1x1 convolutions, and queries, keys and values apart."""
    owner, leaf = path.rsplit(".", 1)
    normalised = owner.endswith(".norm")
    owner = owner.removesuffix(".norm")
    if owner.startswith("head"):
        names = {"head": "mlp_head", "head.classification": "mlp_head", "head.distillation": "distill_head"}
        return {f"{names[owner]}.{leaf}": shape}, lambda array: array
    if owner.startswith("stem"):
        return {f"conv_embedding.{owner.rsplit('.', 1)[1]}.{leaf}": shape}, lambda array: array
    match = re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(attention|mlp)\.(.+)", owner)
    assert match, path
    stage, block, part, rest = int(match[1]), int(match[2]), match[3], match[4]
    subsample = stage > 0 and block == 0
    backbone = 2 * stage - 1 if subsample else 2 * stage
    parent = f"backbone.{backbone}.layers.{0 if subsample else block - (stage > 0)}.{0 if part == 'attention' else 1}"
    if rest == "bias":
        return {f"{parent}.pos_bias.weight": _flat_table(shape)[::-1]}, lambda table: table.T.reshape(shape)
    if part == "mlp":
        return {f"{parent}.net.{'0' if rest == 'expand' else '3'}.{leaf}": shape}, lambda array: array.reshape(shape)
    if rest == "project_out":
        name = f"to_out.2.{NORM[leaf]}" if normalised else f"to_out.1.{leaf}"
        return {f"{parent}.{name}": shape}, lambda array: array.reshape(shape)
    letters = {"project_in.linear": "qkv", "project_in.query": "q", "project_in.key_value": "kv"}[rest]
    suffix = f"1.{NORM[leaf]}" if normalised else f"0.{leaf}"
    sizes = config.block_sizes(stage)[block]
    channels = {"q": sizes.key_dim, "k": sizes.key_dim, "v": sizes.value_dim}

    def by_head(*arrays):
        return np.concatenate([array.reshape(sizes.heads, -1, *shape[1:]) for array in arrays], axis=1).reshape(shape)

    names = {f"{parent}.to_{x}.{suffix}": (sizes.heads * channels[x], *shape[1:]) for x in letters}
    return names, by_head


def _flat_table(shape: Shape) -> Shape:
    heads, rows, columns = shape
    return heads, rows * columns


def paths(tree) -> Iterator[tuple[str, Any]]:
    """The dotted path and the node of every array and every BatchNorm in a model."""
    is_norm = lambda node: isinstance(node, levitax.nn.BatchNorm)
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_norm):
        dotted = jax.tree_util.keystr(path, simple=True, separator=".")
        if is_norm(node):
            yield dotted, node
        elif eqx.is_array(node) or isinstance(node, jax.ShapeDtypeStruct):
            yield dotted, node


def sources(model, layout: Layout) -> Iterator[tuple[str, Shape, Source]]:
    """The path, shape and source of each of our arrays, running statistics included."""
    for path, node in paths(model):
        if isinstance(node, levitax.nn.BatchNorm):
            leaves, shape = [f"{path}.{leaf}" for leaf in NORM], node.weight.shape
        else:
            leaves, shape = [path], node.shape
        for leaf in leaves:
            yield leaf, shape, layout(leaf, shape, model.config)


def to_ours(model, layout: Layout, arrays: Arrays) -> Arrays:
    """The reference's arrays under our paths. Every one of ours must be there, and every one of theirs be used."""
    ours, used = {}, set()
    for path, shape, (names, convert) in sources(model, layout):
        used.update(names)
        ours[path] = convert(*(arrays[name] for name in names))
        assert ours[path].shape == shape, (path, ours[path].shape, shape)
    assert used == arrays.keys(), arrays.keys() ^ used
    return ours


def generate(model, layout: Layout) -> Arrays:
    """The numbers that belong to the reference's names."""
    return {
        name: numbers.tensor(name, shape)
        for _, _, (names, _) in sources(model, layout)
        for name, shape in names.items()
    }


def fill(model, state, layout: Layout, arrays: Arrays):
    """`model` and `state` with the reference's arrays."""
    ours = {path: jnp.asarray(array) for path, array in to_ours(model, layout, arrays).items()}
    is_norm = lambda node: isinstance(node, levitax.nn.BatchNorm)

    def put(path, node):
        nonlocal state
        path = jax.tree_util.keystr(path, simple=True, separator=".")
        if is_norm(node):
            state = state.set(node.statistics, levitax.nn.RunningStatistics(ours[f"{path}.mean"], ours[f"{path}.var"]))
            weights = ours[f"{path}.weight"], ours[f"{path}.bias"]
            return eqx.tree_at(lambda norm: (norm.weight, norm.bias), node, weights)
        return ours[path] if eqx.is_array(node) else node

    return jax.tree_util.tree_map_with_path(put, model, is_leaf=is_norm), state


def read(model, state) -> Arrays:
    """All our arrays by path: parameters, gradients in the tree of a model, and statistics."""
    ours = {}
    for path, node in paths(model):
        if isinstance(node, levitax.nn.BatchNorm):
            ours |= {f"{path}.weight": node.weight, f"{path}.bias": node.bias}
            if state is not None:
                running = node.running(state)
                ours |= {f"{path}.mean": running.mean, f"{path}.var": running.var}
        else:
            ours[path] = node
    return {path: np.asarray(array) for path, array in ours.items()}
