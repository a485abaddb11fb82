"""What a server can learn from whether a site is ready, and what a data set spends at all homes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from site_party import KEPT, PRIVATE, SPEC, Party, run_card
from tokenizers import Regex, normalizers

from fedot.cards import RunCard
from fedot.client.round import round_event
from fedot.client.training import PrivateSettings, TrainingSettings, train, train_privately
from fedot.data.tokenize import Sequences
from fedot.emulator.bundle import write_bundle, write_signature
from fedot.engines.data_owner import DataOwner
from fedot.engines.local_site import load_adapter_of, load_site, weigh
from fedot.errors import BudgetError, WireError
from fedot.models.adapters import attach
from fedot.models.anatomy import load_model, shallower
from fedot.privacy.ledger import Ledger
from fedot.privacy.noise import NoiseSource
from fedot.transport.identity import Signer

RecordsFile = Callable[..., Path]


def data_owner(folder: Path, records: Path, home: str = "home", **terms: Any) -> DataOwner:
    policy = {"dataset_id": "notes", "max_epsilon": 4.0, "delta": 1e-5} | terms
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    return DataOwner("a", folder / home, records, folder / "policy.yaml")


def test_all_records_train_unless_the_data_owner_holds_some_out(
    tmp_path: Path, records_file: RecordsFile
) -> None:
    records, card = records_file(num=200), run_card(bundle_digest="0" * 64)
    assert weigh(data_owner(tmp_path, records, max_epsilon=None), card).num_records == 200
    held = data_owner(tmp_path, records, max_epsilon=None, held_out_ratio=0.5)
    assert 60 < weigh(held, card).num_records < 140


def test_a_server_has_no_say_in_which_records_train(
    tmp_path: Path, records_file: RecordsFile
) -> None:
    """With a split of its own it could leave one record alone in it, and see if it is there."""
    owner = data_owner(tmp_path, records_file(num=200), max_epsilon=None, held_out_ratio=0.5)
    cards = [run_card(bundle_digest="0" * 64, seed=seed) for seed in range(5)]
    assert len({weigh(owner, card).num_records for card in cards}) == 1
    raw = json.loads(cards[0].model_dump_json())
    for key, value in (("held_out_ratio", 0.999), ("text_field", "name")):
        with pytest.raises(WireError, match=key):
            RunCard.read(json.dumps(raw | {key: value}))


def test_a_tokenizer_that_empties_some_records_changes_nothing_that_a_server_sees(
    tmp_path: Path, records_file: RecordsFile, checkpoint: Path, tiny_tokenizer: Any
) -> None:
    """It is the server's: a refusal would say that a record matches its pattern."""
    bundle = Path(shutil.copytree(checkpoint, tmp_path / "bundle"))
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"\A.*secret.*\z"), "")
    tokenizer.save_pretrained(bundle)
    rows = [{"text": f"note number {n}"} for n in range(20)]
    card = run_card(bundle_digest="0" * 64)
    for others in ([], [{"text": "a secret"}]):
        owner = data_owner(tmp_path, records_file(rows=rows + others), max_epsilon=None)
        assert len(load_site(owner, card, bundle).records) == 20 + len(others)


def test_a_batch_without_anything_to_learn_trains_to_nothing(checkpoint: Path) -> None:
    adapter = attach(shallower(load_model(str(checkpoint)), KEPT), SPEC, KEPT)
    before = {name: value.clone() for name, value in adapter.state().items()}
    # What a tokenizer without begin and end makes of an empty text.
    nothing = Sequences(torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, 1, dtype=torch.bool))
    settings = TrainingSettings(num_steps=2, batch_size=2, micro_batch_size=2, learning_rate=1e-2)
    train(adapter, nothing, settings, torch.Generator().manual_seed(0))
    noiseless = PrivateSettings(sampling_prob=1.0, noise_multiplier=0.0, l2_clip_norm=1.0)
    train_privately(adapter, nothing, settings, noiseless, NoiseSource.from_os())
    assert all(torch.equal(value, before[name]) for name, value in adapter.state().items())


def test_what_one_owner_spent_is_gone_for_the_next(
    tmp_path: Path, records_file: RecordsFile
) -> None:
    """Every owner has a home of its own at the site; the data set has one budget."""
    card = run_card(bundle_digest="0" * 64, privacy=PRIVATE)
    first = data_owner(tmp_path, records_file(), "home-a")
    offer = weigh(first, card)
    event = round_event(card.training, card.privacy, offer.num_records, card.planned_rounds)
    for round in range(1, card.planned_rounds + 1):
        Ledger(first.ledger_file).reserve(f"{card.run_id}/{round}", "notes", event, 4.0, 1e-5)
    second = data_owner(tmp_path, first.records, "home-b")
    with pytest.raises(BudgetError, match=r"has spent 4\.000"):
        weigh(second, card.model_copy(update={"run_id": "run-2"}))


def test_a_bundle_whose_rows_depend_on_each_other_is_refused_under_dp(
    tmp_path: Path, checkpoint: Path, tiny_tokenizer: Any, keys: Path
) -> None:
    emulator = shallower(load_model(str(checkpoint)), KEPT)
    emulator.config.rope_parameters = {
        "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0
    }  # fmt: skip
    folder = tmp_path / "bundle"
    write_bundle(folder, emulator, tiny_tokenizer, KEPT, SPEC, {})
    write_signature(folder, Signer(keys / "pki").sign)
    owner = DataOwner("a", tmp_path, tmp_path, tmp_path, device="cpu")
    with pytest.raises(WireError, match="rotary positions are 'dynamic'"):
        load_adapter_of(owner, run_card(bundle_digest="0" * 64, privacy=PRIVATE), folder)
    assert load_adapter_of(owner, run_card(bundle_digest="0" * 64), folder).num_parameters


def test_a_policy_that_becomes_tighter_stops_the_next_round(party: Party, bundle: Path) -> None:
    party.opens(bundle)
    party.joins()
    party.posts(1, bundle)
    party.wait_for(lambda: any(line.startswith("round 1 done") for line in party.said))
    policy = party.home.with_name("policy.yaml")
    policy.write_text(policy.read_text().replace("lora", "blocks") + "adapters: [blocks]\n")
    party.posts(2, bundle)
    party.wait_for(lambda: any(line.startswith("round 2 failed") for line in party.said))
    assert "allows blocks" in party.said[-1]
    policy.write_text(policy.read_text().replace("data-a", "data-b"))
    party.posts(3, bundle)
    party.wait_for(lambda: any(line.startswith("round 3 failed") for line in party.said))
    assert "names data set data-b now" in party.said[-1]


def test_without_its_policy_a_site_trains_nothing(party: Party, bundle: Path) -> None:
    party.opens(bundle)
    party.joins()
    party.wait_for(lambda: "ready; waiting for rounds" in party.said)
    party.home.with_name("policy.yaml").unlink()
    party.posts(1, bundle)
    party.wait_for(lambda: any(line.startswith("round 1 failed") for line in party.said))
    assert not party.net.hub.uploads.committed("run-1", 1)
