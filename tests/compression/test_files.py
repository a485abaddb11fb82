"""Payloads from and to safetensors files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedot.compression.codec import (
    Step,
    decode,
    decode_to_file,
    encode,
    encode_file,
    plan,
    spec_of,
    spec_of_file,
)
from fedot.errors import ConfigError, WireError

CHAIN = plan(Step("int8"), Step("deflate"))
EXACT = plan(Step("float32"), Step("planes"), Step("zstd"))


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    values = torch.randn(700_001, generator=torch.Generator().manual_seed(0))
    return {
        "c.wide": values[:400_000].reshape(400, 1000),
        "a.brain": values[400_000:700_000].bfloat16(),
        "b.half": values[400_001:400_004].half(),
        "é.scalar": values[700_000],
        "d.empty": torch.empty(0, 3),
    }


@pytest.fixture
def file(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_a_file_and_its_tensors_make_the_same_payload(
    tensors: dict[str, torch.Tensor], file: Path
) -> None:
    out = io.BytesIO()
    bytes_after = encode_file(out, file, CHAIN)
    sent = encode(tensors, CHAIN)
    assert out.getvalue() == sent.payload
    assert bytes_after == sent.bytes_after
    assert spec_of_file(file) == spec_of(tensors)


def test_a_lossless_chain_brings_back_the_very_file(
    tensors: dict[str, torch.Tensor], file: Path, tmp_path: Path
) -> None:
    payload = io.BytesIO(encode(tensors, EXACT).payload)
    received = tmp_path / "received.safetensors"
    decode_to_file(payload, spec_of(tensors), [EXACT], received)
    loaded = safetensors.torch.load_file(received)
    assert {n: t.dtype for n, t in loaded.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert received.read_bytes() == file.read_bytes()


def test_a_lossy_chain_decodes_alike_to_a_file_and_to_tensors(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    payload, path = encode(tensors, CHAIN).payload, tmp_path / "received.safetensors"
    decode_to_file(io.BytesIO(payload), spec_of(tensors), [CHAIN], path)
    in_memory = decode(payload, spec_of(tensors), [CHAIN])
    on_disk = safetensors.torch.load_file(path)
    assert all(torch.equal(on_disk[name], in_memory[name]) for name in tensors)


def test_a_refused_payload_leaves_no_file(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    payload = encode(tensors, CHAIN).payload
    damaged = payload[:-1] + bytes([payload[-1] ^ 1])
    for bad in (payload[:-1], payload + b"x", damaged, b""):
        with pytest.raises(WireError):
            decode_to_file(io.BytesIO(bad), spec_of(tensors), [CHAIN], tmp_path / "received")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_and_leaves_no_file(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    (tmp_path / "received.unchecked").symlink_to("/dev/full")
    payload = io.BytesIO(encode(tensors, CHAIN).payload)
    with pytest.raises(OSError, match="No space left"):
        decode_to_file(payload, spec_of(tensors), [CHAIN], tmp_path / "received")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_adapter_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "ids.safetensors"
    safetensors.torch.save_file({"ids": torch.zeros(2, dtype=torch.int64)}, path)
    with pytest.raises(ConfigError, match=r"'ids' in .* is I64"):
        spec_of_file(path)
    path.write_bytes(b"not a file")
    for what in (path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="cannot be read as safetensors"):
            encode_file(io.BytesIO(), what, CHAIN)


MEASURE = """
import sys
from pathlib import Path
import torch
from fedot.compression.codec import Step, decode_to_file, encode, encode_file, plan, spec_of_file

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

source, payload, target = map(Path, sys.argv[1:4])
chain, spec = plan(Step(sys.argv[4])), spec_of_file(source)
encode({"w": torch.ones(300)}, chain)  # what an operator loads once is none of the stream's
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
before = status("VmRSS")
with payload.open("wb") as out:
    encode_file(out, source, chain, workers=2)
with payload.open("rb") as incoming:
    decode_to_file(incoming, spec, [chain], target, workers=2)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("operator", ["float32", "int8", "nf4"])
def test_memory_stays_within_64_mb_for_a_file_of_512_mb(tmp_path: Path, operator: str) -> None:
    source = tmp_path / "large.safetensors"
    one = torch.ones(1 << 25)
    safetensors.torch.save_file({f"w{number}": one + number for number in range(4)}, source)
    names = [str(source), str(tmp_path / "payload"), str(tmp_path / "target")]
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, *names, operator],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    # Resident memory includes the mapped pages of both files.
    assert int(out.stdout) <= 64e6
    received = safetensors.torch.load_file(tmp_path / "target")
    # Half of int8's least step.
    torch.testing.assert_close(received["w3"], one + 3, rtol=0.016, atol=0)
