"""`fedot audit`: attack what a federation releases, and hold the result against what it claims.

All of it in simulation. Every number is a lower bound on what leaks, found by these attacks; none
proves privacy. What refutes a claim is told in `findings`; an empty list means that nothing was
found by an audit of this power.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedot.client.round import round_event
from fedot.client.training import PrivateSettings, TrainingSettings, train, train_privately
from fedot.config import Config, PayloadConfig, load_config
from fedot.data.tokenize import Sequences
from fedot.errors import ConfigError
from fedot.federation.cohort import most_rounds
from fedot.federation.parts import Parts, load_parts
from fedot.federation.payloads import settled
from fedot.journal import write_durably
from fedot.messages import Progress, no_progress
from fedot.models.adapters import Adapter, load_adapter
from fedot.privacy.accounting import SampledGaussian, epsilon_of
from fedot.privacy.audit_bounds import guess, repeated_lower_bound
from fedot.privacy.noise import NoiseSource
from fedot.seeds import derive_seed
from fedot.studies.audit_judgement import CONFIDENCE, bounds, findings, game_figures, too_few
from fedot.studies.audit_worlds import World, audited_adapter, federate, joined, without_dp
from fedot.studies.canaries import observed_steps, play_repeated_games
from fedot.studies.inversion import recover_tokens
from fedot.studies.mechanism import check_sampling, measure_sensitivity
from fedot.studies.membership import attack, membership_scores, random_records, record_losses

__all__ = ["AUDIT_FILE", "AuditSize", "audit_config", "audit_run"]

AUDIT_FILE = "audit.json"
_REAL_RECORDS = 64
_TEXT_CANARY_TOKENS = 32
_GUESSED_TEXTS_RATIO = 0.2

Say = Callable[[str], None]
"""Told what a person should know before the work starts, a line each."""


@dataclass(frozen=True, slots=True)
class AuditSize:
    """How much work an audit is.

    Attributes:
        canaries: of the gradient game.
        text_canaries: random records among one client's.
        references: adapters that membership is compared with; an even number.
        repeated_games: runs of one canary each, for Clopper-Pearson.
    """

    canaries: int = 1000
    text_canaries: int = 200
    references: int = 4
    repeated_games: int = 100


def audit_run(
    run: Path,
    size: AuditSize | None = None,
    progress: Progress = no_progress,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Audit a finished run: its settings, and the adapters that it released.

    Raises:
        ConfigError: the run is not finished, or what it was made from is gone.
    """
    if not (run / "adapter-best").is_dir() or not (run / "summary.json").is_file():
        raise ConfigError(
            f"{run} holds no finished run (no adapter-best); finish it with --resume, or name a "
            "config."
        )
    config = load_config(run / "config.yaml")
    chain = json.loads((run / "summary.json").read_text(encoding="utf-8"))["wire"]["chain"]
    config = _with_payload(config, config.payload.model_copy(update={"chain": chain}))
    return _audit(config, run, size or AuditSize(), progress, say, run)


def audit_config(
    config: Config,
    out: Path,
    size: AuditSize | None = None,
    progress: Progress = no_progress,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Audit what a config would release, by federations of its own; writes `out/audit.json`."""
    config = _with_payload(config, settled(config.payload)[0])
    return _audit(config, out, size or AuditSize(), progress, say, None)


def _with_payload(config: Config, payload: PayloadConfig) -> Config:
    return config.model_copy(update={"payload": payload})


def _audit(
    config: Config, out: Path, size: AuditSize, progress: Progress, say: Say, run: Path | None
) -> dict[str, Any]:
    if config.privacy.unit == "client":
        raise ConfigError(
            "privacy.unit is client: an audit attacks what is claimed about one record, and has no "
            "noise of the server's in its federations. Audit with privacy.unit: example, both or "
            "none."
        )
    parts = load_parts(config)
    planned = _planned(config, parts)
    client = max(planned, key=lambda name: (len(parts.train[name]), name))
    claim = _claim(config, len(parts.train[client]), planned[client])
    if claim is not None:
        say(too_few(claim, size.canaries, derive_seed(config.seed, "audit", "too few")))
    bundle = run / "bundle" if run is not None else None
    adapter = audited_adapter(config, parts, bundle, progress)
    audit = _Audit(config, parts, adapter, size, progress)
    planted, worlds = audit.worlds(client)
    mechanism: dict[str, Any] = {"gradient_canaries": None, "mechanism": None}
    if claim is not None:
        mechanism = {
            "gradient_canaries": audit.gradient_canaries(client, claim),
            "mechanism": audit.mechanism(client, claim),
        }
    delta = config.privacy.delta
    found = {
        "format_version": 1,
        "audited": "run" if run is not None else "config",
        "simulation": True,
        "unit": config.privacy.unit,
        "client": client,
        "confidence": CONFIDENCE,
        "claim": None
        if claim is None
        else {"epsilon": epsilon_of([claim], delta), "delta": delta, **claim.to_json()},
        **mechanism,
        "text_canaries": {
            name: audit.text_figures(planted, world, world.spent.get(client))
            for name, world in worlds.items()
        },
        "membership": audit.membership(client, planted, worlds, run),
        "inversion": audit.inversion(client, worlds, claim),
    }
    found["findings"] = findings(found)
    out.mkdir(parents=True, exist_ok=True)
    write_durably(out / AUDIT_FILE, (json.dumps(found, indent=1) + "\n").encode())
    return found


@dataclass(frozen=True, slots=True)
class _Planted:
    """What was tossed for: the client's own records, and text canaries.

    Attributes:
        records: the client's, and which of them trained.
        texts: canaries, and which of them trained.
    """

    records: Sequences
    records_in: NDArray[np.bool_]
    texts: Sequences
    texts_in: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Audit:
    """One audit's inputs; every method leaves the adapter at the start that it found."""

    config: Config
    parts: Parts
    adapter: Adapter
    size: AuditSize
    progress: Progress

    def _rng(self, use: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.config.seed, "audit", use))

    def worlds(self, client: str) -> tuple[_Planted, dict[str, World]]:
        """Federations of one client, DP on and off, on a coin's half of records and canaries."""
        rng = self._rng("members")
        vocabulary = int(self.parts.model.config.vocab_size)
        length = min(_TEXT_CANARY_TOKENS, self.config.data.max_tokens)
        texts = random_records(self.size.text_canaries, vocabulary, length, rng)
        records = self.parts.train[client]
        texts_in = torch.rand(len(texts), generator=rng) < 0.5
        records_in = torch.rand(len(records), generator=rng) < 0.5
        train = joined(
            records.take(records_in.nonzero()[:, 0]), texts.take(texts_in.nonzero()[:, 0])
        )
        configs = {"on": self.config, "off": without_dp(self.config)}
        if self.config.privacy.unit == "none":
            del configs["on"]
        worlds = {
            name: federate(config, self.adapter, {client: train}, self.progress, f"DP {name}")
            for name, config in configs.items()
        }
        return _Planted(records, records_in.numpy(), texts, texts_in.numpy()), worlds

    def text_figures(
        self, planted: _Planted, world: World, claim: SampledGaussian | None
    ) -> dict[str, Any]:
        """How well text canaries are told by how much likelier the released adapter makes them."""
        before = record_losses(self.adapter, planted.texts)
        scores = before - self._losses(world.state, planted.texts)
        num_guesses = max(2, round(_GUESSED_TEXTS_RATIO * len(scores)))
        correct = guess(scores, planted.texts_in, num_guesses)
        return {
            **bounds(len(scores), num_guesses, correct, claim, self.config.privacy.delta),
            "auc": attack(scores[planted.texts_in], scores[~planted.texts_in]).auc,
        }

    def gradient_canaries(self, client: str, claim: SampledGaussian) -> dict[str, Any]:
        """One run of `train_privately` with the client's records and steps, and canaries.

        Without `max_batch_size`: with canaries among the records the same cap would cut more.
        """
        self.progress("gradient canaries", 0, 2)
        private = _settings(claim, self.config)
        records = self.parts.train[client]
        some = records.take(range(min(_REAL_RECORDS, len(records))))
        figures = game_figures(
            train_privately,
            self.adapter,
            some,
            private,
            claim.num_steps,
            self.size.canaries,
            self.config.privacy.delta,
            self._rng("gradient"),
        )
        self.progress("gradient canaries", 1, 2)
        counts = play_repeated_games(
            train_privately,
            private,
            claim.num_steps,
            self.size.repeated_games,
            self._rng("repeated"),
            NoiseSource.from_os,
        )
        self.progress("gradient canaries", 2, 2)
        delta, half = self.config.privacy.delta, self.size.repeated_games // 2
        figures["repeated"] = {
            "games": self.size.repeated_games,
            "lower_bound": repeated_lower_bound(*counts, delta, CONFIDENCE),
            "ceiling": repeated_lower_bound(half, half, 0, half, delta, CONFIDENCE),
        }
        return figures

    def mechanism(self, client: str, claim: SampledGaussian) -> dict[str, Any]:
        """Sensitivity and sampling of what trains."""
        sampling = check_sampling(train_privately, claim.sampling_prob, NoiseSource.from_os())
        sensitivity = measure_sensitivity(train_privately, self.adapter, self.parts.train[client])
        return {
            "sensitivity": sensitivity,
            "sampling": asdict(sampling) if sampling is not None else None,
        }

    def membership(
        self,
        client: str,
        planted: _Planted,
        worlds: Mapping[str, World],
        run: Path | None,
    ) -> dict[str, Any]:
        """Released adapters against references that were trained on halves of the same pool."""
        own, others = planted.records, joined(self.parts.choose, self.parts.report)
        everyone = joined(*self.parts.train.values())
        pool = own if run is None else joined(everyone, others)
        references = self._references(pool)

        def scores(state: Mapping[str, torch.Tensor], records: Sequences) -> NDArray[np.float64]:
            typical = np.stack([self._losses(each, records) for each in references])
            return membership_scores(self._losses(state, records), typical)

        found = {}
        for name, world in worlds.items():
            of_own = scores(world.state, own)
            found[name] = attack(of_own[planted.records_in], of_own[~planted.records_in]).to_json()
        if run is not None:
            for folder in ("adapter", "adapter-best"):
                state = load_adapter(run / folder)[1]
                found[folder] = attack(scores(state, everyone), scores(state, others)).to_json()
        return found

    def _references(self, pool: Sequences) -> list[dict[str, torch.Tensor]]:
        """Adapters trained without DP on random halves, in pairs: each record is in half of all."""
        plain, rng = without_dp(self.config), self._rng("references")
        states = []
        for number in range(self.size.references):
            if number % 2 == 0:
                halves = torch.randperm(len(pool), generator=rng).chunk(2)
            half = pool.take(halves[number % 2].sort().values)
            stage = f"reference {number + 1} of {self.size.references}"
            world = federate(plain, self.adapter, {"pool": half}, self.progress, stage)
            states.append(world.state)
        return states

    def inversion(
        self, client: str, worlds: Mapping[str, World], claim: SampledGaussian | None
    ) -> list[dict[str, Any]]:
        """Tokens of one record, and of a batch, from a step's gradient and from an update."""
        records = self.parts.train[client]
        batch = min(self.config.training.batch_size, len(records))
        cases = []
        # From a tuned state: LoRA's B starts at zero, and then A has no gradient at all.
        start, tuned = self.adapter.state(), worlds.get("on", worlds["off"]).state
        for num in sorted({1, batch}):
            rows = records.take(range(num))
            for dp in ("off", "on") if claim is not None else ("off",):
                self.adapter.load(tuned)
                steps = _one_step(self.adapter, rows, claim if dp == "on" else None, self.config)
                for view, change in steps.items():
                    self.adapter.load(tuned)
                    result = recover_tokens(change, self.adapter, rows)
                    if result is not None:
                        cases.append({"records": num, "dp": dp, "view": view, **asdict(result)})
        self.adapter.load(start)
        return cases

    def _losses(self, state: Mapping[str, torch.Tensor], records: Sequences) -> NDArray[np.float64]:
        start = self.adapter.state()
        self.adapter.load(state)
        losses = record_losses(self.adapter, records, self.config.model.dtype != "float32")
        self.adapter.load(start)
        return losses


def _planned(config: Config, parts: Parts) -> dict[str, int]:
    return most_rounds(config, list(parts.train))


def _claim(config: Config, num_records: int, num_rounds: int) -> SampledGaussian | None:
    """All rounds of one client together; None without DP."""
    if not config.privacy.protects_records:
        return None
    one = round_event(config.training, config.privacy, num_records, num_rounds)
    return replace(one, num_steps=one.num_steps * num_rounds)


def _settings(claim: SampledGaussian, config: Config) -> PrivateSettings:
    return PrivateSettings(claim.sampling_prob, claim.noise_multiplier, config.privacy.l2_clip_norm)


def _one_step(
    adapter: Adapter, records: Sequences, claim: SampledGaussian | None, config: Config
) -> dict[str, dict[str, torch.Tensor]]:
    """A step over all of some records: its gradient, and the update that it makes."""
    num = len(records)
    before = adapter.state()
    settings = TrainingSettings(
        1, num, config.training.micro_batch_size, config.training.learning_rate
    )
    with observed_steps(list(adapter.trained.values())) as steps:
        if claim is None:
            train(adapter, records, settings, torch.Generator().manual_seed(0))
        else:
            private = PrivateSettings(1.0, claim.noise_multiplier, config.privacy.l2_clip_norm)
            train_privately(adapter, records, settings, private, NoiseSource.from_os())
    lengths = [p.numel() for p in adapter.trained.values()]
    pieces = zip(adapter.trained.items(), steps[0].split(lengths), strict=True)
    return {
        "gradient": {name: flat.view(p.shape) for (name, p), flat in pieces},
        "update": {n: t - before[n] for n, t in adapter.state().items() if n in adapter.trained},
    }
