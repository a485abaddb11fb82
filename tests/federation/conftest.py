"""A model owner's run with real sites in this process: what tests of owner runs start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

Change = Callable[[Any], Any]

# Nothing that these tests look at, and it costs time.
QUICK: dict[str, Any] = {"evaluation": {"ceiling_learning_rates": []}}


class Federation:
    """An owner, and data owners with records, folders and ledgers of their own.

    Args:
        config: a simulation's: says which records each site has. The owner's run never sees them.
        home: the owner's run is in `run`, what is the sites' in `sites`.
        change: what becomes of each answer on its way; None loses it.
    """

    def __init__(self, config: Any, home: Path, change: Change):
        from fedot.client.round import Site
        from fedot.federation.parts import load_parts
        from fedot.messages import ClientInfo

        train = load_parts(config).train
        self.config, self.out, self.change = config, home / "run", change
        self.names = sorted(train)
        self.sites = [Site(ClientInfo(n, n), train[n], home / "sites" / n) for n in self.names]
        self.starts: list[Any] = []
        self.asked: list[tuple[int, tuple[str, ...]]] = []

    def run(self, **more: Any) -> dict[str, Any]:
        """The owner's run; taken up again where there is one."""
        from fedot.federation.owner_run import run_job

        data = self.config.data.model_copy(update={"clients": {}, "policies": {}})
        owner = self.config.model_copy(update={"data": data})
        settings = {"names": self.names, "resume": self.out.exists()} | more
        return run_job(owner, self.out, self.open_engine, **settings)

    def open_engine(self, start: Any) -> Joined:
        """Every site loads the bundle that the run wrote."""
        from fedot.engines.local import LocalEngine
        from fedot.models.adapters import attach
        from fedot.privacy.noise import NoiseSource

        self.starts.append(start)
        bundle = start.bundle
        adapter = attach(bundle.load(start.config.model.dtype), bundle.adapter, bundle.layer_map)
        seeded = LocalEngine(adapter, self.sites, make_noise=lambda: NoiseSource(bytes(32)))
        return Joined(seeded, self)

    def ledger_keys(self, name: str) -> list[str]:
        """The rounds that a site has reserved, in order."""
        (site,) = [site for site in self.sites if site.info.name == name]
        return [entry.key for entry in site.ledger.entries()]


class Joined:
    """A `LocalEngine` whose answers go through `Federation.change`."""

    def __init__(self, inner: Any, federation: Federation):
        self._inner = inner
        self._federation = federation

    def clients(self) -> Sequence[Any]:
        return list(self._inner.clients())

    def run(self, task: Any, cohort: Sequence[str]) -> Iterator[Any]:
        self._federation.asked.append((task.round, tuple(cohort)))
        for answer in self._inner.run(task, cohort):
            changed = self._federation.change(answer)
            if changed is not None:
                yield changed

    def cancel(self, task_id: str) -> None:
        self._inner.cancel(task_id)


@pytest.fixture
def make_federation(tiny_config: dict[str, Any], tmp_path: Path) -> Callable[..., Federation]:
    """`make_federation("privacy.unit=example", home="a", change=...)`."""
    from fedot.config import config_from_dict, with_overrides

    def make(
        *overrides: str, home: str = "here", change: Change = lambda answer: answer
    ) -> Federation:
        config = config_from_dict(with_overrides(tiny_config | QUICK, overrides))
        return Federation(config, tmp_path / home, change)

    return make
