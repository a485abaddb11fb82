"""Teach an emulator's middle to do what the full model's middle does.

Teacher and student share bottom and top, so both middles get the same input. The loss is the LM
loss plus `hidden_weight` times mean(((t - s) / rms(t))^2) where the middles end.

Source: Xiao et al. 2023, arXiv:2302.04870 (offsite-tuning, layer-drop distillation).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedot.data.tokenize import Sequences
from fedot.messages import Progress, no_progress
from fedot.models.anatomy import anatomy_of

__all__ = ["distill"]

_STAGE = "distil the emulator"


def distill(
    full: PreTrainedModel,
    emulator: PreTrainedModel,
    num_end_blocks: int,
    text: Sequences,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    hidden_weight: float,
    rng: torch.Generator,
    progress: Progress = no_progress,
) -> None:
    """Train the emulator's middle blocks in place; bottom, top and the full model stay as they are.

    Args:
        full: the teacher.
        emulator: the student, made by `shallower`.
        num_end_blocks: blocks at either end that are not touched.
        text: windows of the owner's text, shape (N, T).
        num_steps: AdamW steps, cosine to 0 after 5 % of warm-up.
        batch_size: windows a step.
        learning_rate: at its highest.
        hidden_weight: of the hidden-state match beside the LM loss.
        rng: draws the windows.
        progress: is told at the start and after every step.
    """
    middle = _middle_parameters(emulator, num_end_blocks)
    emulator.requires_grad_(False)
    for parameter in middle:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(middle, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    # No dropout: it would blur the match, and it draws from the global generator.
    emulator.eval()
    progress(_STAGE, 0, num_steps)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _warm_cosine(step, num_steps)
        rows = torch.randint(len(text), (batch_size,), generator=rng)
        loss = _loss(full, emulator, num_end_blocks, text.ids[rows], hidden_weight)
        loss.backward()
        nn.utils.clip_grad_norm_(middle, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress(_STAGE, step + 1, num_steps)
    emulator.requires_grad_(False)
    # Parameters only: buffers such as rotary frequencies stay float32 in any model.
    for parameter in middle:
        parameter.data = parameter.data.to(full.dtype)


def _loss(
    full: PreTrainedModel,
    emulator: PreTrainedModel,
    num_end_blocks: int,
    ids: Tensor,
    hidden_weight: float,
) -> Tensor:
    device = next(full.parameters()).device
    ids = ids.to(device)
    # hidden_states[i] is what block i gets, so -1 - n is what the first of n top blocks gets.
    place = -1 - num_end_blocks
    with torch.no_grad():
        target = full.base_model(ids, use_cache=False, output_hidden_states=True)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=full.dtype != torch.float32):
        got = emulator(ids, use_cache=False, output_hidden_states=True)
    teacher, student = target.hidden_states[place].float(), got.hidden_states[place].float()
    scale = teacher.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)
    match = ((teacher - student) / scale).square().mean()
    logits = got.logits[:, :-1].float()
    language = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:])
    loss: Tensor = language + hidden_weight * match
    return loss


def _middle_parameters(emulator: PreTrainedModel, num_end_blocks: int) -> list[nn.Parameter]:
    anatomy = anatomy_of(emulator)
    middle = range(num_end_blocks, anatomy.num_blocks - num_end_blocks)
    named = emulator.named_parameters()
    return [p for name, p in named if anatomy.split_name(name)[0] in middle]


def _warm_cosine(step: int, num_steps: int) -> float:
    warm = max(1, num_steps // 20)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / num_steps)))
