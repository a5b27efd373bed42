"""Compares the images per second of LeViT in levitax and elsewhere, on this machine and in one run.

    python examples/benchmark.py                                     # the main table, an hour or two
    python examples/benchmark.py --models levit_256 --batches 1 16   # part of it
    python examples/benchmark.py --tasks training --theirs-python ~/torch/bin/python

Each contender runs in its own process, and they take turns: in each round, each makes calls for some time while the
others wait. A ratio is the median over the rounds of our speed over theirs; for a file in a runtime, of our file in the
same runtime. The script lists contenders that are not installed. The same command runs on a GPU.
"""

import argparse
import ctypes
import dataclasses
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contenders import Case, CONTENDERS, OTHER_MODELS, Unavailable, versions


MODELS = ("levit_128s", "levit_256", "levit_384")

RUNTIMES = ("ONNX Runtime", "OpenVINO")

# Variables of the environment that change what is measured.
SETTINGS = ("GLIBC_TUNABLES", "LD_PRELOAD", "XLA_FLAGS", "OMP_NUM_THREADS")


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        return serve(sys.argv[2], Case(**json.loads(sys.argv[3])))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["inference", "training"], choices=["inference", "training"])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 128], help="images; 1 not in training")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224], help="pixels a side")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=[*CONTENDERS, *OTHER_MODELS])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in each round")
    parser.add_argument("--theirs-python", default=sys.executable, help="interpreter for all but levitax")
    parser.add_argument("--json", type=Path, help="write all that was measured there")
    parser.add_argument("--figures", type=Path, help="draw images/s by batch and time by size into this folder")
    arguments = parser.parse_args()

    cases = [
        Case(task, model, size, batch, dtype)
        for task, model, size, batch, dtype in itertools.product(
            arguments.tasks, arguments.models, arguments.sizes, arguments.batches, arguments.dtypes
        )
        # Batch normalisation of the mean token takes no statistics of one image.
        if not (task == "training" and batch == 1)
    ]
    print(machine(), flush=True)
    results: list[dict[str, Any]] = []
    for case in cases:
        rows = measure(case, arguments)
        report(case, rows)
        results += rows
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine(), "date": time.strftime("%F"), "rows": results}, indent=1)
        )
    if arguments.figures:
        draw(results, arguments.figures)


def machine() -> str:
    """What everything runs on."""
    processor = platform.processor() or platform.machine()
    flags: Sequence[str] = ()
    if os.path.exists("/proc/cpuinfo"):
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        lines = {name.strip(): value.strip() for name, value in lines.items()}
        processor = lines.get("model name", processor)
        flags = lines.get("flags", "").split()
    wide = " ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in flags)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{processor} ({wide})", f"{cores} cores", f"Python {platform.python_version()}"]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True)
        parts += told.stdout.splitlines() if told.returncode == 0 else []
    parts += [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return ", ".join(parts)


# One contender, in a process of its own.


def serve(name: str, case: Case) -> None:
    """Answers each line of standard input, a number of seconds, with the seconds of the calls made in that time, and of
    three at least: the first one after a pause is slow."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    answer = lambda value: print(json.dumps(value), file=answers, flush=True)
    try:
        start = time.perf_counter()
        contender = (CONTENDERS | OTHER_MODELS)[name](case)
        made = time.perf_counter()
        contender.call()
    except (ModuleNotFoundError, Unavailable) as error:
        return answer({"absent": str(error)})
    answer(
        {
            "versions": versions(contender.packages),
            "first_call_s": time.perf_counter() - made,
            "build_s": made - start,
            "peak_with_compilation_mb": peak(),
        }
    )
    forget_peak()
    before = resident()
    for line in sys.stdin:
        seconds, stop = [], time.perf_counter() + float(line)
        while len(seconds) < 3 or time.perf_counter() < stop:
            start = time.perf_counter()
            contender.call()
            seconds.append(time.perf_counter() - start)
        answer({"seconds": seconds, "peak_mb": peak(), "resident_mb": before})


def _status(field: str) -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak() -> float:
    """The most memory that this process has held, in MB."""
    if sys.platform == "linux":
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def resident() -> float:
    return _status("VmRSS") if sys.platform == "linux" else peak()


def forget_peak() -> None:
    """What compiling took does not count as memory of a step. (On Linux; elsewhere it does.)"""
    if sys.platform == "linux":
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


# All contenders in one case, in turn.


class Worker:
    def __init__(self, name: str, case: Case, python: str):
        self.name = name
        command = [python, __file__, "serve", name, json.dumps(dataclasses.asdict(case))]
        pipe = subprocess.PIPE
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)
        self.rounds: list[float] = []
        self.calls = 0
        self.last: dict[str, Any] = {}
        self.start = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.errors.seek(0)
        told = self.errors.read().strip().splitlines() or ["it said nothing"]
        return {"absent": f"its process ended with status {self.process.wait()}: {told[-1]}"}

    def measure(self, seconds: float) -> None:
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        self.last = self._answer()
        if "absent" in self.last:
            sys.exit(f"{self.name}: {self.last['absent']}")
        self.rounds.append(statistics.median(self.last["seconds"]))
        self.calls += len(self.last["seconds"])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def measure(case: Case, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    workers: list[Worker] = []
    rows = []
    try:
        for name in arguments.contenders:
            python = sys.executable if name.startswith("levitax") else arguments.theirs_python
            worker = Worker(name, case, python)
            if name.startswith("levitax") and worker.process.poll():
                sys.exit(f"{name}: {worker.start['absent']}")
            if "absent" in worker.start:
                rows.append(dataclasses.asdict(case) | {"contender": name} | worker.start)
                worker.close()
            else:
                workers.append(worker)
        for round_ in range(arguments.rounds + 1):
            for worker in workers:
                worker.measure(arguments.seconds)
                if not round_:  # the first one warms up
                    worker.rounds, worker.calls = [], 0
    finally:
        for worker in workers:
            worker.close()
    for worker in workers:
        quantiles = statistics.quantiles(worker.rounds, n=4) if len(worker.rounds) > 1 else worker.rounds * 3
        rows.append(
            dataclasses.asdict(case)
            | {"contender": worker.name, "calls": worker.calls, "seconds": worker.rounds}
            | {"images_per_s": case.batch / statistics.median(worker.rounds)}
            | {"spread": [case.batch / quantiles[2], case.batch / quantiles[0]]}
            | {name: worker.last[name] for name in ("peak_mb", "resident_mb")}
            | worker.start
        )
    return rows


def report(case: Case, rows: list[dict[str, Any]]) -> None:
    measured = {row["contender"]: row for row in rows if "seconds" in row}
    first = next((name for name in measured if name.startswith("levitax")), None)
    print(f"\n{case.task}, {case.model}, {case.image_size} pixels, batch {case.batch}, {case.dtype}")
    print("  ours/theirs                      images/s  (middle half)     first call   peak memory")
    for name, row in measured.items():
        # In a runtime beside our model in the same, else beside the first row.
        runtime = next((runtime for runtime in RUNTIMES if name.endswith(runtime)), None)
        ours = measured.get(f"levitax {runtime}", measured.get(first or ""))
        ratio = ""
        if ours is not None and row is not ours:
            ratios = [theirs / our for our, theirs in zip(ours["seconds"], row["seconds"], strict=True)]
            ratio = f"{statistics.median(ratios):.2f}"
        low, high = row["spread"]
        print(
            f"  {ratio:>5}  {name:28} {row['images_per_s']:7.1f}  ({low:.1f} to {high:.1f})".ljust(65)
            + f"{row['first_call_s']:6.1f} s  {row['peak_mb']:6.0f} MB   {row['versions']}"
        )
    for row in rows:
        if "absent" in row:
            print(f"         {row['contender']}: {row['absent']}")
    sys.stdout.flush()


def draw(results: list[dict[str, Any]], folder: Path) -> None:
    """Images a second by batch, and milliseconds an image by size, of the first model and dtype measured."""
    import matplotlib.pyplot as plt

    plt.style.use(Path(__file__).with_name("transparent.mplstyle"))
    folder.mkdir(parents=True, exist_ok=True)
    measured = [row for row in results if "seconds" in row and row["task"] == "inference"]
    if not measured:
        return
    for field, label, value, name in (
        ("batch", "batch", lambda row: row["images_per_s"], "images_per_second"),
        ("image_size", "pixels a side", lambda row: 1000 / row["images_per_s"], "milliseconds_per_image"),
    ):
        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        fixed = [other for other in ("model", "dtype", "batch", "image_size") if other != field]
        like = measured[0] | ({"batch": 16} if field == "image_size" else {})
        for contender in dict.fromkeys(row["contender"] for row in measured):
            points = sorted(
                (row[field], value(row))
                for row in measured
                if row["contender"] == contender and all(row[other] == like[other] for other in fixed)
            )
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=contender)
        axes.set(xlabel=label, ylabel=name.replace("_", " "), title=f"{like['model']}, {like['dtype']}", ylim=(0, None))
        if field == "batch":
            axes.set_xscale("log", base=2)
        axes.set_xticks(ticks := sorted({row[field] for row in measured}), labels=map(str, ticks))
        axes.legend(frameon=False)
        figure.savefig(folder / f"{name}.png")
        plt.close(figure)


if __name__ == "__main__":
    main()
