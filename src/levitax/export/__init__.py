"""Export of fused models to files for other runtimes. Needs `pip install "levitax[export]"`."""

from ._endpoint import Options as Options
from ._onnx import to_onnx as to_onnx
from ._openvino import to_openvino as to_openvino
from ._quantize import to_openvino_int8 as to_openvino_int8
from ._stablehlo import to_stablehlo as to_stablehlo
