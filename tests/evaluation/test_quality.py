"""Quality in nats per token: by hand, and its standard errors against the bootstrap."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedot.data.records import Record
from fedot.data.tokenize import Sequences, tokenize_records
from fedot.evaluation.quality import Quality, difference, measure


def quality(nll, tokens):
    return Quality(
        torch.tensor(nll, dtype=torch.float64), torch.tensor(tokens, dtype=torch.float64)
    )


def random_quality(num, seed, level=3.0):
    """Records of different lengths whose losses go with their lengths, as real ones do."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 60, (num,), generator=rng).double()
    each = level + 0.5 * torch.randn(num, generator=rng, dtype=torch.float64)
    return Quality(each * tokens, tokens)


def test_loss_counts_tokens_not_records():
    q = quality([10.0, 2.0], [8, 2])
    assert q.loss == 1.2  # not the mean of 1.25 and 1.0


def test_standard_error_by_hand():
    # loss = 12 / 10; residuals 10 - 9.6 = 0.4 and 2 - 2.4 = -0.4;
    # sqrt((0.16 + 0.16) * 2 / 1) / 10 = 0.08.
    assert quality([10.0, 2.0], [8, 2]).loss_se == pytest.approx(0.08, rel=1e-12)


def test_equal_losses_per_token_have_no_error():
    assert quality([2.0, 4.0, 6.0], [1, 2, 3]).loss_se == pytest.approx(0.0, abs=1e-15)


def test_standard_error_is_that_of_the_bootstrap():
    q = random_quality(200, seed=0)
    rng = torch.Generator().manual_seed(1)
    rows = torch.randint(200, (4000, 200), generator=rng)
    losses = q.nll[rows].sum(dim=1) / q.tokens[rows].sum(dim=1)
    # The bootstrap's own error over 4000 draws is 1.1 %; 5 % is more than four of those.
    assert q.loss_se == pytest.approx(float(losses.std()), rel=0.05)


def test_four_times_the_records_halve_the_error():
    q = random_quality(100, seed=0)
    four = Quality(q.nll.repeat(4), q.tokens.repeat(4))
    assert four.loss == pytest.approx(q.loss, rel=1e-12)
    # n / (n - 1) differs a little between 100 and 400.
    assert four.loss_se == pytest.approx(q.loss_se / 2, rel=0.01)


def test_one_record_has_no_known_error_and_the_summary_stays_json():
    q = quality([3.0], [2])
    assert q.loss_se == math.inf
    summary = q.summary()
    assert summary["loss_se"] is None
    json.dumps(summary, allow_nan=False)


def test_summary_by_hand():
    assert quality([10.0, 2.0], [8, 2]).summary() == {
        "loss": 1.2,
        "loss_se": pytest.approx(0.08),
        "perplexity": pytest.approx(math.exp(1.2)),
        "tokens": 10,
        "records": 2,
    }


def test_perplexity_of_a_hopeless_model_does_not_overflow():
    json.dumps(quality([1e6, 1e6], [1, 1]).summary(), allow_nan=False)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 500)), min_size=1, max_size=8))
def test_json_gives_back_every_bit(rows):
    q = quality([nll for nll, _ in rows], [tokens for _, tokens in rows])
    again = Quality.from_json(json.loads(json.dumps(q.to_json())))
    assert torch.equal(again.nll, q.nll)
    assert torch.equal(again.tokens, q.tokens)


def test_difference_by_hand():
    worse, better = quality([12.0, 6.0], [8, 2]), quality([10.0, 2.0], [8, 2])
    gap, gap_se = difference(worse, better)
    assert gap == pytest.approx(0.6)
    # Gaps 2 and 4, their ratio 0.6: residuals 2 - 4.8 and 4 - 1.2.
    assert gap_se == pytest.approx(math.sqrt((2.8**2 + 2.8**2) * 2) / 10)


def test_difference_is_antisymmetric_and_zero_with_itself():
    one, other = random_quality(50, seed=0), random_quality(50, seed=0, level=2.0)
    assert difference(one, other)[0] == pytest.approx(-difference(other, one)[0])
    assert difference(one, other)[1] == pytest.approx(difference(other, one)[1])
    assert difference(one, one) == (0.0, 0.0)


def test_pairing_sees_what_two_single_errors_would_hide():
    # Every record is easier by 0.05 nats a token, far less than records differ among themselves.
    worse = random_quality(100, seed=0)
    better = Quality(worse.nll - 0.05 * worse.tokens, worse.tokens)
    gap, gap_se = difference(worse, better)
    assert gap == pytest.approx(0.05)
    assert gap_se < 1e-9
    assert math.hypot(worse.loss_se, better.loss_se) > 0.05


class Uniform(nn.Module):
    """Every token is as likely as any other."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = vocabulary
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.vocabulary))


@pytest.fixture
def records(tiny_tokenizer) -> Sequences:
    texts = [
        "a client",
        "the model owner keeps the adapter and sends the update",
        "mean",
        "a b c d",
    ]
    return tokenize_records(
        [Record("### Response\n" * (n % 2), text) for n, text in enumerate(texts)],
        tiny_tokenizer,
        32,
    )


def test_guessing_among_v_tokens_costs_log_v(records):
    q = measure(Uniform(320), records)
    assert q.loss == pytest.approx(math.log(320), rel=1e-6)  # float32 log-softmax
    assert q.tokens.tolist() == records.learned.sum(dim=1).tolist()


def test_loss_by_hand_on_a_real_model(any_model, records):
    q = measure(any_model, records)
    for n in range(len(records)):
        one = records.take([n])
        with torch.inference_mode():
            log_probs = any_model(one.ids).logits[0].double().log_softmax(dim=-1)
        nll = sum(
            -log_probs[t - 1, one.ids[0, t]] for t in range(one.ids.shape[1]) if one.learned[0, t]
        )
        # float32 logits, up to 20 tokens of about 6 nats.
        assert q.nll[n].item() == pytest.approx(float(nll), abs=1e-3)


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_batch_size_and_padding_do_not_change_the_loss(any_model, records, size):
    wide = Sequences(
        nn.functional.pad(records.ids, (0, 9), value=7),
        nn.functional.pad(records.learned, (0, 9)),
    )
    wanted = measure(any_model, records).nll
    # Another shape may multiply in another order: float32, sums up to 120 nats.
    torch.testing.assert_close(measure(any_model, wide, size).nll, wanted, rtol=0, atol=1e-3)


def test_measuring_leaves_model_and_random_state_alone(make_model, records):
    model = make_model("gpt2").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    one = measure(model, records)
    torch.manual_seed(1)
    assert torch.equal(measure(model, records).nll, one.nll)  # no dropout
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
