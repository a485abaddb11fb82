"""What a step of DP-SGD costs beside one without DP: time, memory, operations. `make bench-dp`.

    python benchmarks/dp.py --rounds 15

In every round each method makes one step, in an order that changes; a ratio is the median over
rounds of the step's time by that of the step without DP in the same round. Peak memory is that of
all tensors (weights and AdamW's state included), from the profiler's record of allocations.
Noise is drawn by a thread while gradients are computed; what a step still waits for it is its part.
Operations are those that reach PyTorch's dispatcher: one kernel each on a GPU, views left out.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import statistics
import time
from collections import Counter
from typing import Any

import torch
from dp_methods import METHODS, Method, Shape, make, resident_bytes
from record import Row, mark, write
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fedot.privacy.noise import NoiseSource

ON_CPU = {
    "llama 4x256": Shape("llama", 256, 4, 4, 4096, 16),
    "gpt2 4x256": Shape("gpt2", 256, 4, 4, 4096, 16),
}
ON_GPU = {
    "gpt2 124M": Shape("gpt2", 768, 12, 12, 50257, 16),
    "llama 1.3B": Shape("llama", 2048, 24, 16, 32000, 16),
}
ADAPTERS = ("lora-8", "lora-32", "blocks")
TOKENS = (64, 128, 256)
VIEWS = ("view", "t.", "transpose", "expand", "slice", "select", "unsqueeze", "alias", "detach")
VIEWS += ("permute", "as_strided", "split", "unbind", "squeeze", "empty", "_unsafe_view")


WALL, BUSY = 0, 1


def _mm_flops(_: Any, a: Any, b: Any, *rest: Any, out_shape: Any = None, **kwargs: Any) -> int:
    *batch, rows, inner = a
    return 2 * math.prod(batch) * rows * inner * (b[-1] if len(b) > 1 else 1)


# What PyTorch's counter does not know: products in place, and matrix times vector.
IN_PLACE = {
    torch.ops.aten.addmm_: _mm_flops,
    torch.ops.aten.baddbmm_: _mm_flops,
    torch.ops.aten.mv: lambda a, v, **_: 2 * a[0] * a[1],
}


class Operations(TorchDispatchMode):
    """Counts what reaches the dispatcher and computes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__
        if not name.startswith(VIEWS):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def peak_bytes(method: Method, device: str) -> int:
    """Of one step, weights and AdamW's state included."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        method.step()
        torch.cuda.synchronize()
        return resident_bytes(method) + torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        method.step()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return resident_bytes(method) + peak


def timed(step: Any, device: str) -> tuple[float, float]:
    """Seconds on the wall, and of this process on any processor."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, busy = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - busy


def measure(
    model: str, shape: Shape, what: str, num_tokens: int, rounds: int, device: str, names: list[str]
) -> Row:
    """All methods on one model, adapter and length."""
    methods = {name: make(name, shape, what, num_tokens, device) for name in names}
    num_parameters = methods["no DP"].num_parameters
    noise = NoiseSource.from_os()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (*names, "noise")}
    waits: list[tuple[float, float]] = []
    for number in range(rounds):
        order = names[number % len(names) :] + names[: number % len(names)]
        for name in order:
            before = waited_s(methods[name])
            seconds[name].append(timed(methods[name].step, device))
            if name == "ours":
                waits.append((waited_s(methods[name]) - before, 0.0))
        seconds["noise"].append(timed(lambda: noise.normal(num_parameters), "cpu"))
    row: Row = {
        "model": model,
        "adapter": what,
        "tokens": num_tokens,
        "batch": shape.batch_size,
        "num_parameters": num_parameters,
        "methods": {},
    }
    for name, method in methods.items():
        counter = FlopCounterMode(display=False, custom_mapping=IN_PLACE)
        with counter as flops, Operations() as operations:
            method.step()
        ratios = quotients(seconds[name], seconds["no DP"], WALL)
        row["methods"][name] = {
            "seconds": statistics.median(wall for wall, _ in seconds[name]),
            "time_ratio": statistics.median(ratios),
            "time_ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)],
            "cpu_time_ratio": statistics.median(quotients(seconds[name], seconds["no DP"], BUSY)),
            "peak_bytes": peak_bytes(method, device),
            "operations": operations.counts.total(),
            "flops": flops.get_total_flops(),
        }
    base = row["methods"]["no DP"]
    for found in row["methods"].values():
        found["memory_ratio"] = found["peak_bytes"] / base["peak_bytes"]
        found["operations_ratio"] = found["operations"] / base["operations"]
        found["flops_ratio"] = found["flops"] / base["flops"]
    row["noise_share"] = statistics.median(quotients(waits, seconds["ours"], WALL))
    row["noise_drawn_share"] = statistics.median(quotients(seconds["noise"], seconds["ours"], WALL))
    return row


def waited_s(method: Method) -> float:
    return method.noise.waited_s if method.noise else 0.0


def quotients(
    times: list[tuple[float, float]], bases: list[tuple[float, float]], clock: int
) -> list[float]:
    return [t[clock] / base[clock] for t, base in zip(times, bases, strict=True)]


def show(row: Row) -> None:
    print(
        f"{row['model']}, {row['adapter']}, T={row['tokens']}, P={row['num_parameters']:,}: "
        f"a step of ours waits {row['noise_share']:.1%} for noise ({row['noise_drawn_share']:.1%} "
        "if drawn alone)"
    )
    for name, found in row["methods"].items():
        print(
            f"  {name:14} {1e3 * found['seconds']:8.1f} ms  time x{found['time_ratio']:.2f} "
            f"{found['time_ratio_quartiles'][0]:.2f}..{found['time_ratio_quartiles'][2]:.2f} "
            f"(CPU x{found['cpu_time_ratio']:.2f})  "
            f"memory x{found['memory_ratio']:.2f}  operations x{found['operations_ratio']:.2f}  "
            f"FLOPs x{found['flops_ratio']:.3f}",
            flush=True,
        )


def marks_of(rows: list[Row]) -> list[Row]:
    """The worst case of each adapter kind."""
    found = []
    for kind, limit in (("lora", 1.10), ("blocks", 1.15)):
        those = [row["methods"]["ours"] for row in rows if row["adapter"].startswith(kind)]
        if those:
            times = [m["time_ratio"] for m in those]
            found.append(mark(f"{kind}: time, worst", max(times), "at_most", limit))
            found.append(mark(f"{kind}: time, median", statistics.median(times), "at_most", limit))
            memory = max(m["memory_ratio"] for m in those)
            found.append(mark(f"{kind}: memory, worst", memory, "at_most", 1.2))
    shares = [row["noise_share"] for row in rows]
    found.append(mark("noise: what a step waits for it, worst", max(shares), "at_most", 0.03))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--adapters", nargs="*", default=ADAPTERS)
    parser.add_argument("--tokens", nargs="*", type=int, default=TOKENS)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = ON_CPU | (ON_GPU if device == "cuda" else {})
    rows = []
    for model in options.models or shapes:
        for what in options.adapters:
            for num_tokens in options.tokens:
                gc.collect()
                place = "cuda" if model in ON_GPU else "cpu"
                rows.append(
                    measure(
                        model,
                        shapes[model],
                        what,
                        num_tokens,
                        options.rounds,
                        place,
                        options.methods,
                    )
                )
                show(rows[-1])
    if not options.no_write:
        packages = ("torch", "transformers", "peft", "opacus", "cryptography")
        path = write("dp", rows, marks_of(rows), packages)
        print(f"written to {path}")


if __name__ == "__main__":
    main()
