"""From the nodes of a graph to a model: without what nothing needs, and with two nodes as one where ONNX has that."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._graph import Graph


def finish(graph: Graph, inputs: Sequence[Any], outputs: Sequence[Any], metadata: dict[str, str]) -> Any:
    """The ONNX model of what `outputs` need of `graph`."""
    _join(graph, {value.name for value in outputs})
    needed = {value.name for value in outputs}
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
