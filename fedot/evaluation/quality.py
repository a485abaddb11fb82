"""Quality in nats per token, with standard errors over records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedot.data.tokenize import Sequences
from fedot.messages import Progress, no_progress

__all__ = ["Quality", "difference", "finite", "measure"]


@dataclass(frozen=True, slots=True)
class Quality:
    """A model's loss on N records.

    Attributes:
        nll: each record's summed loss in nats, shape (N,), float64.
        tokens: each record's number of learned tokens, shape (N,), float64.
    """

    nll: Tensor
    tokens: Tensor

    @property
    def loss(self) -> float:
        """Nats per token over all records together."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def loss_se(self) -> float:
        """Standard error of `loss` over records (ratio estimator, records independent)."""
        return _ratio_se(self.nll, self.tokens)

    def summary(self) -> dict[str, Any]:
        """The numbers that a report shows; None for the error of a single record."""
        return {
            "loss": self.loss,
            "loss_se": finite(self.loss_se),
            "perplexity": math.exp(min(self.loss, 700.0)),
            "tokens": int(self.tokens.sum()),
            "records": len(self.tokens),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain lists; `from_json` reads them back to the last bit."""
        return {"nll": self.nll.tolist(), "tokens": self.tokens.tolist()}

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Quality:
        """Read what `to_json` wrote."""
        return Quality(
            torch.tensor(raw["nll"], dtype=torch.float64),
            torch.tensor(raw["tokens"], dtype=torch.float64),
        )


def measure(
    model: nn.Module,
    records: Sequences,
    batch_size: int = 64,
    autocast: bool = False,
    progress: Progress = no_progress,
    stage: str = "measure",
) -> Quality:
    """Loss of a model on every record, without training; `progress` is told under `stage`."""
    device = next(model.parameters()).device
    model.eval()
    nll, tokens = [], []
    progress(stage, 0, len(records))
    for batch in records.batches(batch_size):
        ids, learned = batch.ids.to(device), batch.learned.to(device)[:, 1:]
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast),
        ):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        nll.append((losses * learned).double().sum(dim=1).cpu())
        tokens.append(learned.double().sum(dim=1).cpu())
        progress(stage, sum(map(len, tokens)), len(records))
    return Quality(torch.cat(nll), torch.cat(tokens))


def finite(number: float) -> float | None:
    """The number, or None where it is none: one record has no error, a broken model no loss."""
    return number if math.isfinite(number) else None


def difference(worse: Quality, better: Quality) -> tuple[float, float]:
    """Loss of `worse` minus loss of `better` on the same records, and its paired standard error."""
    gap = worse.nll - better.nll
    return float(gap.sum() / worse.tokens.sum()), _ratio_se(gap, worse.tokens)


def _ratio_se(total: Tensor, tokens: Tensor) -> float:
    count = len(tokens)
    if count < 2:
        return math.inf
    residual = total - total.sum() / tokens.sum() * tokens
    return float((residual.square().sum() * count / (count - 1)).sqrt() / tokens.sum())
