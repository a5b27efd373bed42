"""From the nodes of a graph to a model: without what nothing needs, and with two nodes as one where ONNX has that."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._graph import Graph


def finish(graph: Graph, inputs: Sequence[Any], outputs: Sequence[Any], metadata: dict[str, str]) -> Any:
    """The ONNX model of what `outputs` need of `graph`."""
    needed = {value.name for value in outputs}
    _join(graph, needed)
    if graph.pointwise:
        _divide(graph, needed)
    nodes = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.insert(0, node)
    helper, numpy_helper = graph.onnx.helper, graph.onnx.numpy_helper
    constants = [numpy_helper.from_array(value, name) for name, value in graph.constants.items() if name in needed]
    operators = [helper.make_opsetid("", graph.opset)]
    # Of the file format the oldest that has these operators, since runtimes refuse those newer than they are.
    version = helper.find_min_ir_version_for(operators)
    whole = helper.make_graph(nodes, "levitax", inputs, outputs, constants)
    model = helper.make_model(whole, opset_imports=operators, ir_version=version, producer_name="levitax")
    helper.set_model_props(model, metadata)
    graph.onnx.checker.check_model(model)
    return model


def _join(graph: Graph, outputs: set[str]) -> None:
    """A bias becomes part of the convolution or product before it, a sum that is divided a mean, and another name for a
    value the name."""
    makers = {name: node for node in graph.nodes for name in node.output}
    uses = Counter(name for node in graph.nodes for name in node.input)
    uses.update(outputs)
    joined = []
    for node in graph.nodes:
        maker = makers.get(node.input[0]) if node.op_type in ("Add", "Div", "Identity") else None
        if maker is None or uses[node.input[0]] != 1:
            continue
        other = graph.constants.get(node.input[1], np.empty(0)) if len(node.input) == 2 else np.empty(0)
        if node.op_type == "Add" and maker.op_type in ("Conv", "Gemm") and len(maker.input) == 2:
            # Of a convolution (channels, 1, 1), of a product (channels,).
            if other.ndim != {"Conv": 3, "Gemm": 1}[maker.op_type] or other.size != other.shape[0]:
                continue
            maker.input.append(graph.constant(other.reshape(-1), node.input[1]))
        elif node.op_type == "Div" and maker.op_type == "ReduceSum" and other.size == 1:
            if other.item() != graph.summed.get(maker.output[0]):
                continue
            maker.op_type = "ReduceMean"
        elif node.op_type != "Identity":
            continue
        maker.output[list(maker.output).index(node.input[0])] = node.output[0]
        makers[node.output[0]] = maker
        joined.append(node)
    graph.nodes = [node for node in graph.nodes if node not in joined]


def _divide(graph: Graph, outputs: set[str]) -> None:
    """A convolution for queries, keys and values of all heads becomes one for each of the three: to take its result
    apart is a copy. LeViT takes 1 to 4 % less time so in ONNX Runtime (batches of 1 and 16, two cores)."""
    makers = {name: node for node in graph.nodes for name in node.output}
    uses = Counter(name for node in graph.nodes for name in node.input)
    uses.update(outputs)
    nodes = []
    for node in graph.nodes:
        parts = None
        if node.op_type == "Split" and uses[node.input[0]] == 1:
            reshape = makers.get(node.input[0])
            convolution = makers.get(reshape.input[0]) if reshape is not None and reshape.op_type == "Reshape" else None
            if convolution is not None and convolution.op_type == "Conv" and uses[convolution.output[0]] == 1:
                parts = _divided(graph, convolution, reshape, node)
        nodes += [node] if parts is None else parts
    graph.nodes = nodes


def _divided(graph: Graph, convolution: Any, reshape: Any, split: Any) -> list[Any] | None:
    """The convolution, and the heads, of each part."""
    names = convolution.input[1:]
    parameters = [graph.constants[name] for name in names if name in graph.constants]
    # Batch, heads, channels of a head, and tokens.
    shape, sizes = graph.constants[reshape.input[1]], graph.constants[split.input[1]]
    axis = next(attribute.i for attribute in split.attribute if attribute.name == "axis")
    if axis != 2 or len(parameters) < len(names) or len(parameters[0]) != shape[1] * shape[2]:
        return None
    make_node = graph.onnx.helper.make_node
    nodes = []
    for output, size, end in zip(split.output, sizes, np.cumsum(sizes), strict=True):
        inputs = [convolution.input[0]]
        for name, value in zip(names, parameters, strict=True):
            by_head = value.reshape(shape[1], shape[2], *value.shape[1:])[:, end - size : end]
            inputs.append(graph.constant(by_head.reshape(-1, *value.shape[1:]), name))
        part = make_node("Conv", inputs, [f"{output}_conv"], f"{output}_conv")
        part.attribute.extend(convolution.attribute)
        heads = graph.constant(np.array([*shape[:2], size, *shape[3:]]))
        nodes += [part, make_node("Reshape", [f"{output}_conv", heads], [output], output)]
    return nodes
