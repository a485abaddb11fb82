"""What every room's tests start from: tiny models, a tokenizer, files of records, a whole config.

torch is imported by the fixtures that need it, so that tests without models stay quick.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest

# Threads cost a tiny model more than they bring, and a test run has several processes.
os.environ["OMP_NUM_THREADS"] = "1"
# No network: a test that would download something fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TQDM_DISABLE"] = "1"

NUM_BLOCKS = 4
VOCABULARY = 320
MAX_POSITIONS = 128
WORDS = """
the a client server model owner record block adapter round noise budget ledger update mean
keeps sends trains reads counts drops tunes holds private public small large third next
"""

RecordsFile = Callable[..., Path]
MakeModel = Callable[..., Any]


def a_model(family: str, *, tied: bool = False, seed: int = 0, **changes: Any) -> Any:
    """A four-block causal LM with random weights, in eval mode."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    common = {
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": tied,
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if family == "llama":
        settings = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": NUM_BLOCKS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": MAX_POSITIONS,
        }
        config = LlamaConfig(**(common | settings | changes))
    else:
        settings = {
            "n_embd": 32,
            "n_layer": NUM_BLOCKS,
            "n_head": 4,
            "n_positions": MAX_POSITIONS,
        }
        config = GPT2Config(**(common | settings | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def some_texts(num: int, seed: int) -> list[str]:
    """Different short texts of 8 to 20 words."""
    rng, words = Random(seed), WORDS.split()
    return [f"{seed}-{n} " + " ".join(rng.choices(words, k=rng.randint(8, 20))) for n in range(num)]


@pytest.fixture
def make_model() -> MakeModel:
    """`make_model("llama" or "gpt2", tied=..., seed=..., **config)`: see `a_model`."""
    return a_model


@pytest.fixture
def tiny_llama() -> Any:
    return a_model("llama")


@pytest.fixture
def tiny_gpt2() -> Any:
    """Tied, as GPT-2 is."""
    return a_model("gpt2", tied=True)


@pytest.fixture(params=["llama", "llama-tied", "gpt2", "gpt2-tied"])
def any_model(request: pytest.FixtureRequest) -> Any:
    """One test for every supported family, tied and untied."""
    family, _, tied = request.param.partition("-")
    return a_model(family, tied=bool(tied))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Byte-level BPE: any text can be read, nothing is unknown."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        some_texts(40, seed=0),
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A saved Llama with its tokenizer. Read it, never write to it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-llama"
    a_model("llama").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def records_file(tmp_path: Path) -> RecordsFile:
    """`records_file("name.jsonl", num=24, seed=0)`, or `rows=[{...}, ...]`: writes JSONL."""

    def write(
        name: str = "records.jsonl",
        num: int = 24,
        seed: int = 0,
        rows: Iterable[dict[str, Any]] | None = None,
    ) -> Path:
        if rows is None:
            rows = [{"text": text} for text in some_texts(num, seed)]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def tiny_config(checkpoint: Path, records_file: RecordsFile) -> dict[str, Any]:
    """A whole federation that runs in seconds, without DP; change keys before you check it.

    `config_from_dict(tiny_config)`. Three clients of 24 records, two rounds of three steps.
    """
    clients = {f"client-{n}": str(records_file(f"client-{n}.jsonl", seed=n + 1)) for n in range(3)}
    return {
        "model": {"path": str(checkpoint), "device": "cpu"},
        "data": {
            "clients": clients,
            "owner_text": str(records_file("owner.jsonl", num=60, seed=100)),
            "proxy": str(records_file("proxy.jsonl", num=12, seed=200)),
            "max_tokens": 32,
        },
        "adapter": {"kind": "lora", "rank": 2, "alpha": 4},
        "emulator": {"keep_ratio": 0.5, "distill_steps": 4, "batch_size": 4},
        "training": {"steps_per_round": 3, "batch_size": 8},
        "privacy": {"unit": "none"},
        "federation": {"rounds": 2},
        "evaluation": {"ceiling_learning_rates": [3e-3], "ceiling_epochs": 1},
        "seed": 7,
    }
