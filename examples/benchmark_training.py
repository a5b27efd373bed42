"""Measures the input pipeline and the memory of training: images read per second, and peak memory.

    python examples/benchmark_training.py input [--images FOLDER] [--workers 2]
    python examples/benchmark_training.py memory [--model levit_256] [--batch-size 16]

`input` reads JPEG files with the paper's whole augmentation at 224 pixels. If PyTorch, torchvision and timm are
installed, it also reads them with `torch.utils.data.DataLoader` and timm's transforms of the same names, in turn,
several times. Then it trains, and prints the share of the time that steps waited for images. `memory` takes three steps
in its own process for each way to save memory.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from PIL import Image

import levitax
from levitax.data import DataSet, open_data, Split, train_batches, TrainTransform
from levitax.train import make_step, one_hot, prepare, Recipe, TrainState


RECIPE = Recipe(group_size=None, distillation="none", ema_decay=None)
WAYS = {"plain": {}, "remat": {"remat": True}, "accumulate 2": {"accumulate": 2}, "accumulate 4": {"accumulate": 4}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("input", "memory", "peak"), help="'peak' is what 'memory' runs")
    parser.add_argument("--images", type=Path, help="a folder with train/ and val/; by default one is made")
    parser.add_argument("--workers", type=int, default=2, help="processes that read")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement of `input`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=levitax.VARIANTS, default="levit_256")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--way", choices=WAYS, default="plain", help="of 'peak'")
    arguments = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, jax {jax.__version__}, {jax.devices()[0].device_kind}")
    if arguments.what == "memory":
        compare_memory(arguments)
    elif arguments.what == "peak":
        print(peak(arguments.model, arguments.batch_size, **WAYS[arguments.way]))
    elif arguments.images is not None:
        compare_input(arguments.images, arguments)
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_images(Path(folder))
            compare_input(Path(folder), arguments)


def make_images(folder: Path, number: int = 256) -> None:
    """JPEG files of 500x375 pixels and about 60 kB, like most of ImageNet's, from two photographs."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    for part, count in (("train", number), ("val", 8)):
        for index in range(count):
            kind = folder / part / ("china", "flower")[index % 2]
            kind.mkdir(parents=True, exist_ok=True)
            photograph = photographs[index % 2]
            width = int(rng.integers(320, 4 * photograph.height // 3))
            height = 3 * width // 4
            left = int(rng.integers(photograph.width - width + 1))
            top = int(rng.integers(photograph.height - height + 1))
            image = photograph.resize((500, 375), box=(left, top, left + width, top + height))
            image.save(kind / f"{index:03}.jpg", quality=90)


def compare_input(folder: Path, arguments: argparse.Namespace) -> None:
    """Prints the images per second of both pipelines, measured in turn, and how long training steps wait for ours."""
    data = open_data(folder)
    pipelines: dict[str, Iterator[Any]] = {"levitax": ours(data, arguments.batch_size, arguments.workers)}
    try:
        pipelines["PyTorch"] = theirs(folder, arguments.batch_size, arguments.workers)
    except ModuleNotFoundError as error:
        print(f"no comparison with PyTorch: {error}")
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    for round_ in range(arguments.rounds + 1):
        for name, batches in pipelines.items():
            rate = images_a_second(batches, arguments.batch_size, arguments.seconds)
            if round_:  # the first one warms up
                rates[name].append(rate)
    for name, values in rates.items():
        median, low, high = statistics.median(values), min(values), max(values)
        print(f"{name:8} {median:7.1f} images/s ({low:.1f} to {high:.1f}), {arguments.workers} workers")
    if len(rates) == 2:
        ratios = [one / other for one, other in zip(*rates.values(), strict=True)]
        print(f"ratio    {statistics.median(ratios):7.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    del pipelines
    for workers in sorted({0, arguments.workers}):
        share, rate = waiting(data, arguments.model, arguments.batch_size, workers)
        print(f"{arguments.model} training at {rate:.1f} images/s waits {share:.1%} of the time, {workers} workers")


def images_a_second(batches: Iterator[Any], batch_size: int, seconds: float) -> float:
    # Batches that were read while the other pipeline was measured do not count.
    for _ in islice(batches, 8):
        pass
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(batches)
        count += batch_size
    return count / (time.perf_counter() - start)


def reader(split: Split, batch_size: int, workers: int) -> Any:
    transform = TrainTransform(image_size=(224, 224))
    return train_batches(split, transform, batch_size=batch_size, steps=10**9, seed=0, repeats=3, workers=workers)


def ours(data: DataSet, batch_size: int, workers: int) -> Iterator[Any]:
    """Batches as the model takes them."""
    on_device = jax.jit(partial(prepare, recipe=RECIPE, preprocessing=data.preprocessing))
    with reader(data.train, batch_size, workers) as batches:
        for number, batch in enumerate(batches):
            targets = one_hot(batch.labels, len(data.classes))
            yield jax.block_until_ready(on_device(batch.images, targets, key=jax.random.key(number)))


def theirs(folder: Path, batch_size: int, workers: int) -> Iterator[Any]:
    """The same in PyTorch."""
    from timm.data import create_transform, Mixup  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader, RandomSampler  # pyright: ignore[reportMissingImports]
    from torchvision.datasets import ImageFolder  # pyright: ignore[reportMissingImports]

    transform = create_transform(
        224,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
    )
    images = ImageFolder(str(folder / "train"), transform)
    sampler = RandomSampler(images, replacement=True, num_samples=10**7)
    mixup = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=len(images.classes))
    return (mixup(*batch) for batch in DataLoader(images, batch_size, sampler=sampler, num_workers=workers))


def training(model_name: str, classes: int, remat: bool = False, accumulate: int = 1) -> tuple[TrainState, Callable]:
    """A train state and its step."""
    key = jax.random.key(0)
    model, state = levitax.create_model(model_name, num_classes=classes, remat=remat, key=key)
    optimizer = RECIPE.optimizer(1000)
    return TrainState(model, state, optimizer, key=key), make_step(RECIPE.loss(), accumulate=accumulate)


def waiting(data: DataSet, model_name: str, batch_size: int, workers: int, steps: int = 30) -> tuple[float, float]:
    """The share of the time that steps wait for images, and images per second."""
    train_state, step = training(model_name, len(data.classes))
    on_device = jax.jit(partial(prepare, recipe=RECIPE, preprocessing=data.preprocessing))
    with reader(data.train, batch_size, workers) as batches:
        waited, start = 0.0, 0.0
        for number in range(steps + 3):
            # The first three steps compile and warm up.
            if number == 3:
                waited, start = 0.0, time.perf_counter()
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            targets = one_hot(batch.labels, len(data.classes))
            inputs = on_device(batch.images, targets, key=jax.random.key(number))
            train_state, metrics = step(train_state, *inputs)
            metrics.loss.block_until_ready()
        seconds = time.perf_counter() - start
    return waited / seconds, steps * batch_size / seconds


def compare_memory(arguments: argparse.Namespace) -> None:
    """Peak memory of the process, for each way."""
    sizes = ("--model", arguments.model, "--batch-size", str(arguments.batch_size))
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        for way in WAYS:
            command = [sys.executable, __file__, "peak", *sizes, "--way", way]
            # The first time compiles, which takes more memory than the steps.
            tell = partial(subprocess.run, command, env=environment, capture_output=True, text=True, check=True)
            _, result = tell(), tell().stdout
            seconds, start, high = map(float, result.split()[-3:])
            print(f"{way:14} {high:7.0f} MB at most, {start:.0f} before the first step; {seconds:.2f} s a step")


def peak(model_name: str, batch_size: int, **way: Any) -> str:
    """Seconds a step; megabytes before the steps and at most, of this process."""
    train_state, step = training(model_name, 1000, **way)
    images = np.random.default_rng(0).normal(size=(batch_size, 224, 224, 3)).astype(np.float32)
    targets = np.eye(1000, dtype=np.float32)[:batch_size]
    megabytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    jax.block_until_ready(eqx.filter(train_state, eqx.is_array))
    before = megabytes()
    seconds = 0.0
    for _ in range(3):
        start = time.perf_counter()
        train_state, metrics = step(train_state, images, targets)
        metrics.loss.block_until_ready()
        seconds = time.perf_counter() - start
    return f"{seconds} {before} {megabytes()}"


if __name__ == "__main__":
    main()
