"""What `benchmark.py` compares: for each way of running a LeViT, and for other models, a function that makes a call of
it.

`make(case)` imports what it needs, and raises `ModuleNotFoundError` or `Unavailable` where that cannot be had here. It
returns the call, which returns once its result is there, and the versions of what runs.
"""

# No project has all of these at once.
# pyright: reportMissingImports=false

import contextlib
import dataclasses
import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """One cell of the table."""

    task: Literal["inference", "training"]
    model: str
    image_size: int
    batch: int
    dtype: Literal["float32", "bfloat16"]


class Contender(NamedTuple):
    call: Callable[[], Any]
    packages: tuple[str, ...]


class Unavailable(Exception):
    """This contender has no such case."""


def versions(packages: tuple[str, ...]) -> str:
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def batch_of(case: Case, channels_last: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(case.batch, case.image_size, case.image_size, 3)).astype(np.float32)
    if not channels_last:
        images = np.ascontiguousarray(np.moveaxis(images, -1, 1))
    return images, rng.integers(1000, size=case.batch)


def levitax_fused(case: Case) -> Contender:
    import levitax

    if case.task == "training":
        raise Unavailable("fused models are for inference")
    return _jax_inference(levitax.fuse(*_levitax(case)), case)


def levitax_fused_float32(case: Case) -> Contender:
    if case.dtype == "float32":
        raise Unavailable("that is `levitax fused` here")
    return levitax_fused(dataclasses.replace(case, dtype="float32"))


def levitax_plain(case: Case) -> Contender:
    import jax

    import levitax

    model, state = _levitax(case)
    if case.task == "inference":
        return _jax_inference(levitax.Predictor(model, state), case)

    from levitax.train import adamw, make_step, TrainState

    optimizer = adamw(1e-3)
    train_state = TrainState(model, state, optimizer, key=jax.random.key(0))
    step = make_step()
    images, labels = map(jax.numpy.asarray, batch_of(case, channels_last=True))

    def call():
        nonlocal train_state
        train_state, metrics = step(train_state, images, labels)
        return metrics.loss.block_until_ready()

    return Contender(call, _JAX)


_JAX = ("levitax", "jax", "jaxlib", "equinox")


def _levitax(case):
    import jax

    import levitax

    return levitax.create_model(case.model, image_size=case.image_size, dtype=case.dtype, key=jax.random.key(0))


def compiled(predict: Callable[..., Any]) -> tuple[Any, Any]:
    """`run(arrays, images)` of a `levitax.Predictor`, and its arrays."""
    import equinox as eqx
    import jax

    arrays, rest = eqx.partition(predict, eqx.is_array)
    # `eqx.filter_jit` would walk through the model at each call, which counts at a batch of one image.
    return jax.jit(lambda arrays, images: jax.vmap(eqx.combine(arrays, rest))(images)), arrays


def _jax_inference(predict, case):
    import jax

    images = jax.numpy.asarray(batch_of(case, channels_last=True)[0])
    run, arrays = compiled(predict)
    return Contender(lambda: run(arrays, images).block_until_ready(), _JAX)


def timm_eager(case: Case) -> Contender:
    return _torch(_timm(case), case, compiled=False, packages=("timm", "torch"))


def timm_compiled(case: Case) -> Contender:
    return _torch(_timm(case), case, compiled=True, packages=("timm", "torch"))


def transformers_eager(case: Case) -> Contender:
    from transformers import LevitForImageClassificationWithTeacher

    model = LevitForImageClassificationWithTeacher(_transformers_config(case)).eval()
    return _torch(model, case, compiled=False, packages=("transformers", "torch"))


def levitax_onnx_runtime(case: Case) -> Contender:
    write = lambda export, predict, path: export.to_onnx(predict, path, batch=case.batch)
    with _our_file(case, "levit.onnx", write) as path:
        return _onnx_runtime(case, path, ("onnxruntime", "levitax"), channels_last=True)


def levitax_openvino(case: Case) -> Contender:
    write = lambda export, predict, path: export.to_openvino(predict, path, batch=case.batch)
    with _our_file(case, "levit.xml", write) as path:
        return _openvino(case, path, ("openvino", "levitax"), channels_last=True)


def levitax_openvino_int8(case: Case) -> Contender:
    def write(export, predict, path):
        # Noise, which is enough for how long it takes, and not for what it gives.
        noise = np.random.default_rng(1).normal(size=(max(32, case.batch), case.image_size, case.image_size, 3))
        return export.to_openvino_int8(predict, path, noise.astype(np.float32), batch=case.batch)

    with _our_file(case, "levit.xml", write) as path:
        return _openvino(case, path, ("openvino", "levitax", "nncf"), channels_last=True)


def timm_onnx_runtime(case: Case) -> Contender:
    with _timm_onnx(case) as path:
        return _onnx_runtime(case, path, ("onnxruntime", "timm", "torch"), channels_last=False)


def timm_openvino(case: Case) -> Contender:
    with _timm_onnx(case) as path:
        return _openvino(case, path, ("openvino", "timm", "torch"), channels_last=False)


# timm has LeViT twice: with linear maps, and with 1x1 convolutions in their place, which some runtimes like better.


def timm_conv_onnx_runtime(case: Case) -> Contender:
    return timm_onnx_runtime(dataclasses.replace(case, model=case.model.replace("levit_", "levit_conv_")))


def timm_conv_openvino(case: Case) -> Contender:
    return timm_openvino(dataclasses.replace(case, model=case.model.replace("levit_", "levit_conv_")))


# What the paper compares LeViT with: each at the size of images it is made for, whatever that of the case.


def efficientnet(name: str, image_size: int, run: Callable[[Case], Contender]) -> Callable[[Case], Contender]:
    return lambda case: run(dataclasses.replace(case, model=name, image_size=image_size))


CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    "levitax fused": levitax_fused,
    "levitax": levitax_plain,
    "levitax float32": levitax_fused_float32,
    "timm eager": timm_eager,
    "timm compiled": timm_compiled,
    "transformers": transformers_eager,
    "levitax ONNX Runtime": levitax_onnx_runtime,
    "timm ONNX Runtime": timm_onnx_runtime,
    "timm conv ONNX Runtime": timm_conv_onnx_runtime,
    "levitax OpenVINO": levitax_openvino,
    "timm OpenVINO": timm_openvino,
    "timm conv OpenVINO": timm_conv_openvino,
    "levitax int8 OpenVINO": levitax_openvino_int8,
}

OTHER_MODELS: dict[str, Callable[[Case], Contender]] = {
    "EfficientNet-B1 ONNX Runtime": efficientnet("efficientnet_b1", 240, timm_onnx_runtime),
    "EfficientNet-B2 ONNX Runtime": efficientnet("efficientnet_b2", 260, timm_onnx_runtime),
    "EfficientNet-B1 OpenVINO": efficientnet("efficientnet_b1", 240, timm_openvino),
    "EfficientNet-B2 OpenVINO": efficientnet("efficientnet_b2", 260, timm_openvino),
}


def _timm(case):
    import timm

    # As in `levitax`, two heads: the published `levit_*` of timm have them in training, and their mean in inference.
    # Only models with a fixed grid take a size.
    size = {"img_size": case.image_size} if case.model.startswith("levit") else {}
    model = timm.create_model(case.model, **size)
    if case.task == "inference":
        model.eval()
        _fold(model)
    elif hasattr(model, "set_distilled_training"):
        model.set_distilled_training(True)
    return model


def _fold(module):
    """Batch normalisations into the layers beside them, as timm's own `fuse` does layer by layer."""
    for name, child in module.named_children():
        if hasattr(child, "fuse"):
            setattr(module, name, child.fuse())
        else:
            _fold(child)


def _torch(model, case, *, compiled, packages):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    arrays = batch_of(case, channels_last=False)
    images, labels = (torch.from_numpy(array).to(device) for array in arrays)
    if device == "cuda":
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    half = case.dtype == "bfloat16"
    if half and device == "cpu" and case.task == "inference":
        # Weights in the dtype of the computation beat autocast, which converts them at each call.
        half, model, images = False, model.to(torch.bfloat16), images.to(torch.bfloat16)
    autocast = torch.autocast(device, torch.bfloat16, enabled=half)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    forward = torch.compile(model) if compiled else model

    def infer():
        with torch.inference_mode(), autocast:
            forward(images)
        synchronize()

    if case.task == "inference":
        return Contender(infer, packages)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train():
        with autocast:
            outputs = forward(images)
            heads = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = torch.stack([torch.nn.functional.cross_entropy(head.float(), labels) for head in heads]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronize()

    return Contender(train, packages)


def _transformers_config(case):
    from transformers import LevitConfig

    import levitax

    if case.task == "training":
        raise Unavailable("inference only: its model of two heads returns no two logits in training")
    sizes = levitax.LeViTConfig(**levitax.VARIANTS[case.model])
    return LevitConfig(
        image_size=case.image_size,
        hidden_sizes=sizes.dim,
        num_attention_heads=sizes.heads,
        depths=sizes.depth,
        key_dim=sizes.key_dim,
        num_labels=1000,
    )


@contextlib.contextmanager
def _our_file(case, name, write):
    """The path of our model as a file, as `write(levitax.export, predict, path)` makes it, as long as the context."""
    if case.task == "training":
        raise Unavailable("inference only")
    import levitax
    from levitax import export

    predict = levitax.fuse(*_levitax(dataclasses.replace(case, dtype="float32")))
    with tempfile.TemporaryDirectory() as folder:
        yield write(export, predict, os.path.join(folder, name))


@contextlib.contextmanager
def _timm_onnx(case):
    """That of timm's model."""
    if case.task == "training":
        raise Unavailable("inference only")
    import onnxscript  # what `torch.onnx` needs: named here, where its absence is an answer
    import torch

    del onnxscript
    images = torch.from_numpy(batch_of(case, channels_last=False)[0])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "levit.onnx")
        torch.onnx.export(_timm(case), (images,), path, input_names=["images"], dynamo=True, verbose=False)
        yield path


def _onnx_runtime(case, path, packages, channels_last):
    import onnxruntime

    if case.dtype != "float32":
        raise Unavailable("float32 only")
    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    images = batch_of(case, channels_last)[0]
    return Contender(lambda: session.run(None, {"images": images}), packages)


def _openvino(case, path, packages, channels_last):
    import openvino

    precision = {"float32": "f32", "bfloat16": "bf16"}[case.dtype]
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    if (used := openvino_precision(compiled)) != precision:
        raise Unavailable(f"computes in {used} on this processor, not in {precision}")
    images = batch_of(case, channels_last)[0]
    return Contender(lambda: compiled(images), packages)


def openvino_precision(compiled: Any) -> str:
    """The precision that OpenVINO computes in, except for the parts in 8 bits: f32, bf16 or f16. The hint is a wish: on
    a processor without bfloat16, OpenVINO computes in f32."""
    used = {node.get_rt_info()["runtimePrecision"].astype(str) for node in compiled.get_runtime_model().get_ops()}
    return next((half for half in ("bf16", "f16") if half in used), "f32")
