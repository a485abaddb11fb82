"""A tiny Llama that is trained once on this machine and cached: the demo's closed model.

Design note: it has to be trained to its capacity, or its depth does not matter and the five numbers
mean nothing. Hence few parameters, many thin blocks, and Muon, which gets a model of this size in
90 s to where AdamW needs several times as long.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedot.messages import Progress

__all__ = ["Recipe", "cache_folder", "pretrained"]

logger = logging.getLogger(__name__)

END = "<|end|>"
_STAGE = "pretrain the base model (once)"
# Enough text for a good vocabulary; more only takes longer.
_TOKENIZER_CHARACTERS_PER_TEXT = 20_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the base model is made; steps are pinned, not seconds."""

    vocabulary: int = 512
    hidden_size: int = 48
    num_blocks: int = 6
    intermediate_size: int = 128
    num_heads: int = 4
    num_steps: int = 1200
    batch_size: int = 16
    num_tokens: int = 128
    learning_rate: float = 1e-2


def cache_folder() -> Path:
    """Where base models are kept: `$FEDOT_CACHE`, or `fedot` in the user's cache directory."""
    named = os.environ.get("FEDOT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedot"


def pretrained(recipe: Recipe, texts: Sequence[str], progress: Progress) -> Path:
    """The base model's checkpoint directory, made now if it is not cached.

    Args:
        recipe: sizes and steps.
        texts: what to train on.
        progress: is told after every step.
    """
    folder = cache_folder() / f"base-{_key(recipe, texts)}"
    if (folder / "config.json").is_file():
        return folder
    tokenizer = _train_tokenizer(recipe, texts)
    model = _train_model(recipe, tokenizer, texts, progress)
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    model.save_pretrained(str(draft))
    tokenizer.save_pretrained(str(draft))
    try:
        os.replace(draft, folder)
    except OSError:
        # Another process was faster; both made the same model.
        shutil.rmtree(draft)
    return folder


def _key(recipe: Recipe, texts: Sequence[str]) -> str:
    content = sha256(f"{asdict(recipe)} torch {torch.__version__}".encode())
    for text in texts:
        content.update(text.encode())
    return content.hexdigest()[:16]


def _train_tokenizer(recipe: Recipe, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE: every text has tokens, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = (text[:_TOKENIZER_CHARACTERS_PER_TEXT] for text in texts)
    tokenizer.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def _train_model(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    progress: Progress,
) -> LlamaForCausalLM:
    model = _new_model(recipe, tokenizer)
    optimizers = _optimizers(model, recipe.learning_rate)
    stream = _stream(tokenizer, texts)
    rng = torch.Generator().manual_seed(0)
    model.train()
    progress(_STAGE, 0, recipe.num_steps)
    for step in range(recipe.num_steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _trapezoid(step, recipe.num_steps)
        ids = _windows(stream, recipe.batch_size, recipe.num_tokens, rng)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        F.cross_entropy(logits.transpose(1, 2), ids[:, 1:]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress(_STAGE, step + 1, recipe.num_steps)
    model.eval()
    return model


def _new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_blocks,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=4 * recipe.num_tokens,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def _optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings and norms."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "embed" not in name
        (matrices if inner else others).append(parameter)
    return [
        torch.optim.Muon(
            matrices, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def _stream(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for row in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
        ids += [*row, end]
    return torch.tensor(ids)


def _windows(stream: Tensor, count: int, num_tokens: int, rng: torch.Generator) -> Tensor:
    starts = torch.randint(len(stream) - num_tokens - 1, (count, 1), generator=rng)
    return stream[starts + torch.arange(num_tokens + 1)]


def _trapezoid(step: int, num_steps: int) -> float:
    """Warm up over 4 % of the steps, cool down linearly over the last 40 %."""
    return min(1.0, (step + 1) / (0.04 * num_steps), (num_steps - step) / (0.4 * num_steps))
