"""What a data owner gets: loadable by anybody, refused when one bit is not what was written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from hashlib import sha256

import pytest
import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedot.emulator.bundle import read_bundle, write_bundle, write_signature
from fedot.emulator.manifest import bundle_digest, signed_bytes
from fedot.errors import ConfigError, WireError
from fedot.models.adapters import AdapterSpec, attach
from fedot.models.anatomy import load_model, shallower

MANIFEST = "fedot-bundle.json"
KEPT = (0, 2, 3)
SPEC = AdapterSpec("lora", (0, 3), 2, 4.0, ("model.layers.0.mlp.up_proj",))


@pytest.fixture(scope="module")
def written(checkpoint, tiny_tokenizer, tmp_path_factory):
    emulator = shallower(load_model(str(checkpoint)), KEPT)
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    return write_bundle(folder, emulator, tiny_tokenizer, KEPT, SPEC, {"method": "test"})


@pytest.fixture
def folder(written, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(written.folder, tmp_path / "bundle")


def spoil(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def list_in_manifest(folder, name):
    digest = sha256((folder / name).read_bytes()).hexdigest()
    spoil(folder, lambda manifest: manifest["files"].update({name: digest}))


def test_what_was_written_is_what_is_read(written):
    again = read_bundle(written.folder)
    assert again == written
    assert again.layer_map == KEPT
    assert again.adapter == SPEC
    assert again.built == {"method": "test"}
    assert again.num_bytes == sum(p.stat().st_size for p in written.folder.iterdir())


def test_bundle_is_a_checkpoint_that_plain_transformers_loads(written, checkpoint, tiny_tokenizer):
    ids = torch.arange(2, 30).view(2, 14)
    emulator = shallower(load_model(str(checkpoint)), KEPT)
    with torch.inference_mode():
        wanted = emulator(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(written.folder)
        assert torch.equal(plain(ids).logits, wanted)
        assert torch.equal(written.load()(ids).logits, wanted)
    tokenizer = AutoTokenizer.from_pretrained(written.folder)
    assert tokenizer("a client")["input_ids"] == tiny_tokenizer("a client")["input_ids"]


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "gpt2-tied"])
def test_whole_model_in_a_bundle_is_bit_identical(family, make_model, tiny_tokenizer, tmp_path):
    model = make_model(family.removesuffix("-tied"), tied=family.endswith("-tied"))
    full = (0, 1, 2, 3)
    bundle = write_bundle(tmp_path / "b", shallower(model, full), tiny_tokenizer, full, SPEC, {})
    ids = torch.arange(2, 30).view(2, 14)
    with torch.inference_mode():
        assert torch.equal(bundle.load()(ids).logits, model(ids).logits)


def test_adapter_of_the_bundle_goes_onto_its_model(written):
    adapter = attach(written.load(), written.adapter, written.layer_map)
    assert set(adapter.parameters) == {
        "model.layers.0.mlp.up_proj.lora_A.weight",
        "model.layers.0.mlp.up_proj.lora_B.weight",
    }


def test_manifest_has_room_for_signature_and_report_and_lists_every_file(written):
    manifest = json.loads((written.folder / MANIFEST).read_text())
    assert manifest["format_version"] == 1
    assert manifest["signature"] is None
    assert manifest["leakage_report"] is None
    names = {path.name for path in written.folder.iterdir()} - {MANIFEST}
    assert set(manifest["files"]) == names
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


@settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_any_flipped_bit_is_refused(folder, data):
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    spoiled = bytearray(whole)
    spoiled[place] ^= bit
    path.write_bytes(spoiled)
    try:
        with pytest.raises(WireError, match="differs from its digest"):
            read_bundle(folder)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(WireError, match=f"{name} is missing or not listed"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "name", ["extra.json", "model-2.safetensors", ".hidden", "modeling.py", "pytorch_model.bin"]
)
def test_file_that_is_not_listed_is_refused(folder, name):
    (folder / name).write_bytes(b"{}")
    with pytest.raises(WireError, match="is missing or not listed"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "name",
    [
        "modeling_evil.py",
        "pytorch_model.bin",
        "w.pt",
        "w.pkl",
        "t.so",
        "noending",
        "x.JSON",
        # What transformers would follow to other weights, or another processor.
        "adapter_config.json",
        "adapter_model.safetensors",
        "processor_config.json",
    ],
)
def test_kind_of_file_that_could_be_code_is_refused_even_when_listed(folder, name, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (folder / name).write_bytes(pickle.dumps(Evil()))
    list_in_manifest(folder, name)
    with pytest.raises(WireError, match="no kind of file that a bundle may hold"):
        read_bundle(folder)
    assert not (tmp_path / "ran").exists()


def test_index_that_leads_out_of_the_bundle_is_refused(folder, tmp_path):
    names = list(load_file(folder / "model.safetensors"))
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    list_in_manifest(folder, "model.safetensors.index.json")
    with pytest.raises(WireError, match="names files that are not of the bundle"):
        read_bundle(folder)


def test_weights_in_several_files_are_read(folder, written):
    written.load().save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    spoil(folder, lambda manifest: manifest["files"].pop("model.safetensors"))
    names = sorted(path.name for path in folder.iterdir() if path.name.startswith("model"))
    assert len(names) > 2
    for name in (*names, "config.json", "generation_config.json"):
        list_in_manifest(folder, name)
    ids = torch.arange(2, 30).view(2, 14)
    with torch.inference_mode():
        assert torch.equal(read_bundle(folder).load()(ids).logits, written.load()(ids).logits)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("nest", [lambda x: x, lambda x: {"text_config": [x]}])
def test_config_that_names_code_of_somebody_is_refused(folder, key, nest):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | nest({key: "some-org/kernel"})
    path.write_text(json.dumps(config))
    list_in_manifest(folder, "config.json")
    with pytest.raises(WireError, match=f"sets {key}"):
        read_bundle(folder)


def test_link_to_a_file_elsewhere_is_refused(folder, tmp_path):
    os.replace(folder / "config.json", tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(WireError, match="no kind of file"):
        read_bundle(folder)


def test_folder_and_dangling_link_in_place_of_a_file_are_refused(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(WireError, match="no kind of file"):
        read_bundle(folder)
    (folder / "config.json").rmdir()
    (folder / "config.json").symlink_to(folder / "nowhere")
    with pytest.raises(WireError, match="no kind of file"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "sub/config.json"])
def test_name_that_leads_outside_is_refused(folder, name):
    spoil(folder, lambda manifest: manifest["files"].update({name: "0" * 64}))
    with pytest.raises(WireError, match="no kind of file"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_version", 2),
        ("format_version", None),
        ("format_version", "1"),
        ("files", None),
        ("files", []),
        ("files", {}),
        ("layer_map", None),
        ("layer_map", ["a"]),
        ("layer_map", 3),
        ("layer_map", "023"),
        ("layer_map", [3, 2, 0]),
        ("layer_map", [0, 0, 3]),
        ("layer_map", [-1, 0, 3]),
        ("layer_map", [0, 2.5, 3]),
        ("layer_map", [0, 1, 2]),  # the adapter trains block 3
        ("adapter", None),
        ("adapter", []),
        ("adapter", {}),
        ("adapter", SPEC.to_json() | {"kind": "ia3"}),
        ("adapter", SPEC.to_json() | {"blocks": [9]}),
        ("built", None),
        ("built", "by hand"),
    ],
)
def test_manifest_with_a_wrong_value_is_refused(folder, key, value):
    spoil(folder, lambda manifest: manifest.update({key: value}))
    with pytest.raises(WireError):
        read_bundle(folder)


def test_layer_map_of_another_depth_is_refused_on_loading(folder):
    spoil(folder, lambda manifest: manifest.update(layer_map=[0, 3]))
    with pytest.raises(WireError, match="names 2 blocks, the model has 3"):
        read_bundle(folder).load()


@pytest.mark.parametrize("key", ["format_version", "files", "layer_map", "adapter", "built"])
def test_manifest_that_lacks_a_key_is_refused(folder, key):
    spoil(folder, lambda manifest: manifest.pop(key))
    with pytest.raises(WireError):
        read_bundle(folder)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"1", b'"text"', b"\xff\xfe", b"[" * 9999]
)
def test_manifest_that_is_no_table_is_refused(folder, text):
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(WireError):
        read_bundle(folder)


def test_folder_without_manifest_is_no_bundle(tmp_path, checkpoint):
    for place in (tmp_path, tmp_path / "none", checkpoint):
        with pytest.raises(ConfigError, match="there is no bundle at"):
            read_bundle(place)


class Full(Exception):
    pass


def test_half_written_bundle_is_never_at_its_place(tmp_path, tiny_llama, tiny_tokenizer):
    class FullDisk:
        """A model whose weights are written half before the disk is full."""

        def save_pretrained(self, folder):
            tiny_llama.save_pretrained(folder)
            weights = os.path.join(folder, "model.safetensors")
            os.truncate(weights, 100)
            raise Full

    place, full = tmp_path / "bundle", (0, 1, 2, 3)
    with pytest.raises(Full):
        write_bundle(place, FullDisk(), tiny_tokenizer, full, SPEC, {})
    assert not place.exists()
    # What the crash left does not disturb the next attempt.
    bundle = write_bundle(place, tiny_llama, tiny_tokenizer, full, SPEC, {})
    assert list(tmp_path.iterdir()) == [place]
    assert read_bundle(place) == bundle


KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def verify(message, signature):
    KEY.public_key().verify(signature, message)


@pytest.fixture
def signed(folder):
    write_signature(folder, KEY.sign)
    return folder


def test_signed_bundle_is_verified_and_says_so(signed):
    bundle = read_bundle(signed, verify)
    assert bundle == read_bundle(signed)
    assert bundle.signature == KEY.sign(signed_bytes(json.loads((signed / MANIFEST).read_text())))


def test_signature_changes_the_digest_and_nothing_that_was_signed(folder):
    before, unsigned = bundle_digest(folder), (folder / MANIFEST).read_bytes()
    assert before == sha256(unsigned).hexdigest()
    bundle = write_signature(folder, KEY.sign)
    assert bundle == read_bundle(folder)
    assert bundle_digest(folder) != before
    manifest = json.loads((folder / MANIFEST).read_text())
    assert signed_bytes(manifest) == signed_bytes(json.loads(unsigned))


def test_signed_bytes_are_the_same_however_the_manifest_is_laid_out():
    one = {"b": [1, 2], "a": {"d": "\u00fc", "c": None}, "signature": None}
    other = {"signature": "00", "a": {"c": None, "d": "\u00fc"}, "b": [1, 2]}
    assert signed_bytes(one) == signed_bytes(other)
    assert signed_bytes(one) == (
        b'fedot bundle\n{"a":{"c":null,"d":"\\u00fc"},"b":[1,2],"signature":null}'
    )


def unread(folder):
    """Make every file but the manifest fail if it is opened, whoever asks."""
    for path in folder.iterdir():
        if path.name != MANIFEST:
            path.unlink()
            os.mkfifo(path)


def test_unsigned_bundle_is_refused_before_any_other_file_is_opened(folder):
    unread(folder)
    with pytest.raises(WireError, match="is not signed"):
        read_bundle(folder, verify)


def test_another_key_is_refused_before_any_other_file_is_opened(folder):
    write_signature(folder, Ed25519PrivateKey.generate().sign)
    unread(folder)
    with pytest.raises(InvalidSignature):
        read_bundle(folder, verify)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"].update({"config.json": "0" * 64}),
        lambda m: m["files"].pop("config.json"),
        lambda m: m["adapter"].update(rank=3),
        lambda m: m.update(layer_map=[0, 1, 3]),
        lambda m: m.update(built={"method": "another"}),
        lambda m: m.update(leakage_report={"margin": 9}),
        lambda m: m.update(more=1),
    ],
)
def test_any_change_of_a_signed_manifest_is_refused(signed, change):
    spoil(signed, change)
    unread(signed)
    with pytest.raises(InvalidSignature):
        read_bundle(signed, verify)


@given(bit=st.integers(0, 511))
@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_flipped_bit_of_a_signature_is_refused(signed, bit):
    whole = (signed / MANIFEST).read_bytes()
    held = bytearray.fromhex(json.loads(whole)["signature"])
    held[bit // 8] ^= 1 << bit % 8
    spoil(signed, lambda manifest: manifest.update(signature=held.hex()))
    try:
        with pytest.raises(InvalidSignature):
            read_bundle(signed, verify)
    finally:
        (signed / MANIFEST).write_bytes(whole)


@pytest.mark.parametrize("signature", ["no hex", 7, [], {"a": 1}, True])
def test_signature_of_another_kind_is_refused(signed, signature):
    spoil(signed, lambda manifest: manifest.update(signature=signature))
    with pytest.raises(WireError, match="must be hex digits or null"):
        read_bundle(signed)
