from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedot.errors import BudgetError, ConfigError
from fedot.privacy.accounting import SampledGaussian, calibrate_noise, epsilon_of
from fedot.privacy.ledger import Entry
from fedot.privacy.policy import (
    Policy,
    Request,
    load_policy,
    refuse_unless_allowed,
    rounds_that_fit,
)

TERMS = {"dataset_id": "notes", "max_epsilon": 6.5, "delta": 1e-5}
EVENT = SampledGaussian(0.1, calibrate_noise(0.1, 60, 8.0, 1e-5), 10)


def policy(**changes: object) -> Policy:
    return Policy.model_validate(TERMS | changes)


def request(**changes: object) -> Request:
    asked = {
        "key": "run/1",
        "adapter": "lora",
        "chain": "int8+deflate",
        "event": EVENT,
        "num_rounds": 6,
    }
    return Request(**(asked | changes))


def held(num: int, dataset_id: str = "notes") -> list[Entry]:
    return [Entry(f"before/{n}", dataset_id, EVENT) for n in range(num)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_epsilonn: 3", ("no key max_epsilonn", "Did you mean max_epsilon?")),
        ("max_epsilon: 0", ("max_epsilon is 0",)),
        ("delta: 1", ("delta is 1",)),
        ("adapters: [laro]", ("'laro'", "lora, blocks, full")),
        ("adapters: []", ("adapters is []",)),
        ("metrics_may_leave: perhaps", ("metrics_may_leave",)),
        ("dataset_id: ''", ("dataset_id",)),
    ],
)
def test_what_a_policy_may_not_say_is_refused(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(TERMS | yaml.safe_load(text)))
    with pytest.raises(ConfigError) as refused:
        load_policy(path)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("missing", TERMS)
def test_terms_without_a_safe_default_must_be_there(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in TERMS.items() if k != missing}))
    with pytest.raises(ConfigError, match=f"lacks {missing}"):
        load_policy(path)


@pytest.mark.parametrize("content", [None, "- a\n- b\n", "a: [", ""])
def test_unreadable_policy_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "policy.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="policy"):
        load_policy(path)


def test_policy_in_the_docs_is_one(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
    path = tmp_path / "policy.yaml"
    path.write_text(docs.split("```yaml\n")[1].split("```")[0])
    assert load_policy(path).max_epsilon == 8


def test_metrics_stay_at_home_unless_the_policy_says_otherwise() -> None:
    assert not policy().metrics_may_leave


@pytest.mark.parametrize(
    ("terms", "asked"),
    [
        ({"adapters": ["lora"]}, {"adapter": "blocks"}),
        ({"chains": ["int8+deflate"]}, {"chain": "float32"}),
        ({"chains": ["int8+deflate"]}, {"chain": "top_k+int8+deflate"}),
    ],
)
def test_adapter_or_chain_that_is_not_allowed_is_refused(
    terms: dict[str, list[str]], asked: dict[str, str]
) -> None:
    (allowed,) = terms.values()
    with pytest.raises(ConfigError, match=f"allows {allowed[0]}".replace("+", r"\+")):
        refuse_unless_allowed(policy(max_epsilon=50, **terms), request(**asked), [])
    refuse_unless_allowed(policy(max_epsilon=50), request(**asked), [])


def test_task_without_dp_needs_a_policy_that_demands_none() -> None:
    with pytest.raises(BudgetError, match="demands DP"):
        refuse_unless_allowed(policy(), request(event=None), [])
    refuse_unless_allowed(policy(max_epsilon=None), request(event=None), [])


def test_plan_over_budget_is_refused_although_its_first_round_would_fit() -> None:
    assert epsilon_of([EVENT], 1e-5) < 6.5
    with pytest.raises(BudgetError, match="6 rounds to come"):
        refuse_unless_allowed(policy(), request(), [])
    refuse_unless_allowed(policy(), request(num_rounds=1), [])


def test_what_is_said_to_fit_fits_and_one_round_more_does_not() -> None:
    spent = held(1)
    with pytest.raises(BudgetError) as refused:
        refuse_unless_allowed(policy(), request(), spent)
    text = str(refused.value)
    rounds = int(text.split("What would fit: ")[1].split()[0])
    target = float(text.split("privacy.target_epsilon=")[1].split()[0])
    assert 0 < rounds < 6
    refuse_unless_allowed(policy(), request(num_rounds=rounds), spent)
    with pytest.raises(BudgetError):
        refuse_unless_allowed(policy(), request(num_rounds=rounds + 1), spent)
    advised = SampledGaussian(0.1, calibrate_noise(0.1, 60, target, 1e-5), 10)
    refuse_unless_allowed(policy(), request(event=advised), spent)
    greedy = SampledGaussian(0.1, calibrate_noise(0.1, 60, target + 0.1, 1e-5), 10)
    with pytest.raises(BudgetError):
        refuse_unless_allowed(policy(), request(event=greedy), spent)


def test_spent_data_set_is_told_so() -> None:
    spent = held(rounds_that_fit([], EVENT, 6.5, 1e-5, 20) + 1)
    with pytest.raises(BudgetError, match="Nothing fits any more"):
        refuse_unless_allowed(policy(), request(), spent)


def test_other_data_sets_spend_nothing_of_this_one() -> None:
    task = request(num_rounds=1)
    with pytest.raises(BudgetError):
        refuse_unless_allowed(policy(), task, held(20, "notes"))
    refuse_unless_allowed(policy(), task, held(20, "other"))


def test_round_that_holds_its_reservation_is_not_asked_again() -> None:
    mine = [Entry("run/1", "notes", EVENT), *held(20)]
    refuse_unless_allowed(policy(), request(), mine)


@pytest.mark.parametrize("most", [0, 1, 5, 100])
def test_rounds_that_fit_is_what_counting_up_finds(most: int) -> None:
    found = rounds_that_fit([EVENT], EVENT, 6.0, 1e-5, most)
    counted = 0
    while counted < most and epsilon_of([EVENT] * (counted + 2), 1e-5) <= 6.0:
        counted += 1
    assert found == counted


def test_broken_yaml_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("dataset_id: a\nmax_epsilon: [\n")
    with pytest.raises(ConfigError, match=r"policy\.yaml is not valid YAML: line 3, column 1: "):
        load_policy(path)
