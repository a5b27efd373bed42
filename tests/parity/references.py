# pyright: reportMissingImports=false
"""The computations of the PyTorch implementations, with the weights of `numbers.py`.

The functions that use timm import it, because it needs a torchvision that fits torch.
"""

import copy
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import cases, numbers
from .numbers import Arrays


def fill(model: torch.nn.Module, arrays: Arrays | None = None) -> Arrays:
    """Loads arrays into the model, by default the numbers of their names, and returns them."""
    tensors = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    if arrays is None:
        arrays = {name: numbers.tensor(name, tuple(value.shape)) for name, value in tensors.items()}
    assert arrays.keys() == tensors.keys(), arrays.keys() ^ tensors.keys()
    with torch.no_grad():
        for name, value in tensors.items():
            value.copy_(torch.from_numpy(arrays[name]))
    return arrays


def timm(variant: str, size: cases.Size, *, distilled: bool, **options: Any) -> torch.nn.Module:
    """Returns timm's model of that name."""
    import timm.models.levit as levit

    return levit.create_levit(variant, distilled=distilled, img_size=size.requested, **options)


def official(variant: str, **keywords: Any) -> torch.nn.Module:
    """Returns the model of timm before 2023, which names its arrays as the authors' repository does."""
    import timm.models.levit as levit

    return getattr(levit, variant)(**keywords)


def mmpretrain(variant: str) -> torch.nn.Module:
    """Returns mmpretrain's backbone and head, from two files: its dependencies need compilers and OpenCV."""
    nn = torch.nn

    class Module(nn.Module):
        def __init__(self, init_cfg=None):
            super().__init__()

    class Registry:
        def register_module(self):
            return lambda cls: cls

    norms = {"BN": nn.BatchNorm2d, "BN1d": nn.BatchNorm1d}
    stand_ins = {
        "mmcv": {},
        "mmcv.cnn": {"build_activation_layer": lambda config: nn.Hardswish(), "fuse_conv_bn": None},
        "mmcv.cnn.bricks": {"DropPath": None},
        "mmengine": {},
        "mmengine.model": {"BaseModule": Module, "ModuleList": nn.ModuleList, "Sequential": nn.Sequential},
        "mmpretrain": {},
        "mmpretrain.registry": {"MODELS": Registry()},
        "mmpretrain.models": {},
        "mmpretrain.models.utils": {"build_norm_layer": lambda config, size: norms[config["type"]](size)},
        "mmpretrain.models.backbones": {},
        "mmpretrain.models.backbones.base_backbone": {"BaseBackbone": Module},
        "mmpretrain.models.heads": {"ClsHead": Module},
    }
    sys.modules.pop("mmpretrain", None)
    package = importlib.util.find_spec("mmpretrain")
    assert package is not None and package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "models"
    for name, content in stand_ins.items():
        module = types.ModuleType(name)
        module.__dict__.update(content, __path__=[])
        sys.modules[name] = module
    backbone = _from_file("mmpretrain.models.backbones.levit", folder / "backbones" / "levit.py")
    head = _from_file("mmpretrain.models.heads.levit_head", folder / "heads" / "levit_head.py")

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbone.LeViT(variant.removeprefix("levit_"))
            self.head = head.LeViTClsHead(in_channels=self.backbone.embed_dims[-1])
            self.head.pre_logits = lambda features: features

        def forward(self, x):
            return self.head(self.backbone(x)[-1].mean((2, 3)))

    return Classifier()


def transformers(variant: str, *, image_size: int = 224, num_labels: int = 1000, teacher: bool) -> torch.nn.Module:
    """Returns transformers' model with the sizes of a published variant."""
    import transformers as hf

    import levitax

    sizes = levitax.LeViTConfig(**levitax.VARIANTS[variant])
    config = hf.LevitConfig(
        image_size=image_size,
        hidden_sizes=sizes.dim,
        num_attention_heads=sizes.heads,
        depths=sizes.depth,
        key_dim=sizes.key_dim,
        drop_path_rate=0,
        num_labels=num_labels,
    )
    return (hf.LevitForImageClassificationWithTeacher if teacher else hf.LevitForImageClassification)(config)


def preprocess(image: np.ndarray) -> np.ndarray:
    """Returns an image as transformers prepares it for its LeViT, channels last."""
    from transformers.models.levit.image_processing_pil_levit import LevitImageProcessorPil

    return LevitImageProcessorPil()(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


def vit_pytorch(**keywords: Any) -> torch.nn.Module:
    """Returns vit-pytorch's model, from its one file: the package imports dozens of others, and torchvision."""
    package = importlib.util.find_spec("vit_pytorch")
    assert package is not None and package.submodule_search_locations is not None
    module = _from_file("vit_pytorch_levit", Path(package.submodule_search_locations[0]) / "levit.py")
    named = {"image_size": 224, "distillation": False, "network": "vit_pytorch"} | keywords
    del named["network"]
    size = named.pop("image_size")
    distill = named["num_classes"] if named.pop("distillation") else None
    return module.LeViT(image_size=size if isinstance(size, int) else size[0], num_distill_classes=distill, **named)


def _from_file(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stage_ends(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Returns the modules that compute the map at the end of each stage, before downsampling."""
    if hasattr(model, "backbone"):
        return list(model.backbone)[::2]
    if hasattr(model, "levit"):
        stages = model.levit.encoder.stages
        return [stage.layers[2 * depth - 1] for stage, depth in zip(stages, model.config.depths, strict=True)]
    return list(model.stages)


def heads(output) -> list[torch.Tensor]:
    """Returns the logits of each head."""
    if hasattr(output, "cls_logits"):
        return [output.cls_logits, output.distillation_logits]
    if hasattr(output, "logits"):
        return [output.logits]
    return list(output) if isinstance(output, tuple) else [output]


def logits(output) -> torch.Tensor:
    """Returns the prediction of the model: the mean over its heads."""
    return torch.stack(heads(output)).mean(0)


def evaluate(model: torch.nn.Module, images: np.ndarray) -> Arrays:
    """The map at the end of each stage, channels last but flat over the tokens, and the logits, in inference."""
    model.eval()
    record = {}

    def hook(name):
        def keep(module, inputs, output):
            if output.ndim == 4:
                output = output.flatten(2).transpose(1, 2)
            record[name] = output.numpy()

        return keep

    hooks = [end.register_forward_hook(hook(f"stage{index}")) for index, end in enumerate(stage_ends(model))]
    with torch.inference_mode():
        record["logits"] = logits(model(_nchw(images))).numpy()
    for handle in hooks:
        handle.remove()
    return record


def predict(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Returns the logits alone, in inference."""
    model.eval()
    with torch.inference_mode():
        return logits(model(_nchw(images))).numpy()


def pooled(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Returns the mean token of transformers' backbone, in inference."""
    model.eval()
    with torch.inference_mode():
        return model(_nchw(images)).pooler_output.numpy()


def bfloat16_error(model: torch.nn.Module, images: np.ndarray) -> float:
    """Returns the largest error of the logits under bfloat16 autocast, over their largest magnitude in float32."""
    model.eval()
    with torch.inference_mode():
        exact = logits(model(_nchw(images)))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = logits(model(_nchw(images))).float()
    return ((rounded - exact).abs().max() / exact.abs().max()).item()


def train(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> tuple[Arrays, Arrays, Arrays]:
    """Plain gradient descent on one batch.

    Returns the first gradients by name, all parameters and buffers at the end by name, and the losses and the logits in
    inference at the end.
    """
    model.train()
    targets = torch.from_numpy(labels).long()
    optimizer = torch.optim.SGD(model.parameters(), cases.LEARNING_RATE)
    gradients: Arrays = {}
    losses = []
    for step in range(cases.TRAINING_STEPS):
        optimizer.zero_grad()
        each = [
            torch.nn.functional.cross_entropy(head, targets, label_smoothing=cases.SMOOTHING)
            for head in heads(model(_nchw(images)))
        ]
        loss = torch.stack(each).mean()
        loss.backward()
        if step == 0:
            gradients = {name: value.grad.numpy().copy() for name, value in model.named_parameters()}
        losses.append(loss.item())
        optimizer.step()
    final = {name: value.numpy() for name, value in model.state_dict().items() if value.is_floating_point()}
    return gradients, final, {"losses": np.array(losses), "logits": evaluate(model, images)["logits"]}


def training_outputs(model: torch.nn.Module, images: np.ndarray, dtype: Any) -> tuple[np.ndarray, Arrays]:
    """Returns the logits of each head in training, in `dtype`, and then all parameters and buffers, in float32."""
    model = copy.deepcopy(model).to(torch.float64 if dtype == np.float64 else torch.float32).train()
    outputs = heads(model(_nchw(images.astype(dtype))))
    after = {name: value.float().numpy() for name, value in model.state_dict().items() if value.is_floating_point()}
    return torch.stack(outputs).detach().numpy(), after


def _nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def replace_activation(model: torch.nn.Module, activation: torch.nn.Module) -> None:
    """Replaces every hard-swish with another activation."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.Hardswish):
                setattr(parent, name, activation)
