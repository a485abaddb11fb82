"""How others turn the same tensors into bytes; run by `benchmarks/codec.py` in their environment.

    pip install nvflare==2.9.0 flwr==1.41.0 bitsandbytes torch safetensors
    python benchmarks/codec_peers.py TENSORS.safetensors REPEATS

Prints a JSON list, a row for each scheme. One thread. Where a library only hands over arrays, their
bytes are counted and no time is added for serializing them, in its favour.
"""

from __future__ import annotations

import gzip
import json
import pickle
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import bitsandbytes.functional as bnb
import safetensors.torch
import torch
from flwr.app import Array
from nvflare.apis.fl_context import FLContext
from nvflare.app_opt.pt.quantization.dequantizer import ModelDequantizer
from nvflare.app_opt.pt.quantization.quantizer import ModelQuantizer

Tensors = dict[str, torch.Tensor]
Scheme = tuple[Callable[[Tensors], Any], Callable[[Any], Tensors], Callable[[Any], int]]


def nested_bytes(value: Any) -> int:
    """Bytes of all arrays in nested dicts and tuples."""
    if isinstance(value, dict):
        return sum(map(nested_bytes, value.values()))
    if isinstance(value, tuple | list):
        return sum(map(nested_bytes, value))
    if isinstance(value, bytes):
        return len(value)
    return int(getattr(value, "nbytes", 0))


def nvflare(kind: str) -> Scheme:
    quantizer, dequantizer, context = ModelQuantizer(kind), ModelDequantizer(), FLContext()

    def encode(tensors: Tensors) -> Any:
        return quantizer.quantization(dict(tensors), context)

    def decode(sent: Any) -> Tensors:
        params, state, dtypes = sent
        result = dequantizer.dequantization(dict(params), state, kind, dtypes, context)
        return dict(result)

    return encode, decode, lambda sent: nested_bytes(sent[:2])


def flower() -> Scheme:
    def encode(tensors: Tensors) -> Any:
        return {name: Array(tensor).data for name, tensor in tensors.items()}

    def decode(sent: Any) -> Tensors:
        wrapped = {n: Array("float32", (), "numpy.ndarray", data) for n, data in sent.items()}
        return {n: torch.from_numpy(array.numpy()) for n, array in wrapped.items()}

    return encode, decode, nested_bytes


def pickled(compress: Callable[[bytes], bytes], expand: Callable[[bytes], bytes]) -> Scheme:
    """Pickled numpy arrays through the standard library, as FederatedScope sends them."""

    def encode(tensors: Tensors) -> bytes:
        return compress(pickle.dumps({n: t.numpy() for n, t in tensors.items()}))

    def decode(sent: bytes) -> Tensors:
        return {n: torch.from_numpy(a) for n, a in pickle.loads(expand(sent)).items()}

    return encode, decode, len


def bitsandbytes_int8() -> Scheme:
    def encode(tensors: Tensors) -> Any:
        return {n: bnb.quantize_blockwise(t, blocksize=256) for n, t in tensors.items()}

    def decode(sent: Any) -> Tensors:
        return {n: bnb.dequantize_blockwise(q, state) for n, (q, state) in sent.items()}

    def size(sent: Any) -> int:
        return sum(q.nbytes + state.absmax.nbytes for q, state in sent.values())

    return encode, decode, size


SCHEMES: dict[str, tuple[Callable[[], Scheme], float]] = {
    # The second number is the part of the input that is measured: the slow ones get less.
    "NVFlare 2.9 float16": (lambda: nvflare("float16"), 1.0),
    "NVFlare 2.9 AdaQuant (8 bit, CPU)": (lambda: nvflare("adaquant"), 0.25),
    "Flower Array": (flower, 1.0),
    "pickle + zlib": (lambda: pickled(zlib.compress, zlib.decompress), 0.25),
    "pickle + gzip": (lambda: pickled(gzip.compress, gzip.decompress), 0.25),
    "bitsandbytes blockwise int8": (bitsandbytes_int8, 1.0),
}


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def measure(name: str, tensors: Tensors, repeats: int) -> dict[str, Any]:
    make, part = SCHEMES[name]
    encode, decode, size = make()
    some = dict(list(tensors.items())[: max(1, round(part * len(tensors)))])
    sent = encode(some)
    received = decode(sent)
    num_bytes = sum(t.nbytes for t in some.values())
    lost = sum(
        float((received[n].double().reshape(t.shape) - t).square().sum()) for n, t in some.items()
    )
    total = sum(float(t.double().square().sum()) for t in some.values())
    row: dict[str, Any] = {"scheme": name, "input_mb": num_bytes / 1e6}
    for key, work in {"encode": lambda: encode(some), "decode": lambda: decode(sent)}.items():
        speeds = sorted(num_bytes / 1e9 / time_s for time_s in seconds(work, repeats))
        row[f"{key}_gb_per_s"] = statistics.median(speeds)
        row[f"{key}_spread"] = [speeds[0], speeds[-1]]
    return row | {"size_ratio": size(sent) / num_bytes, "relative_l2_error": (lost / total) ** 0.5}


def main() -> None:
    torch.set_num_threads(1)
    tensors = safetensors.torch.load_file(sys.argv[1])
    print(json.dumps([measure(name, tensors, int(sys.argv[2])) for name in SCHEMES]))


if __name__ == "__main__":
    main()
