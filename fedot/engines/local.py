"""All clients in this process, one after the other, on one model.

Memory: one emulator for all clients. A client costs its records and the adapter state it works on,
never a model, because the adapter's tensors are swapped in the model that is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from fedot.client.round import Site, run_round
from fedot.errors import FedotError
from fedot.messages import ClientFailure, ClientInfo, ClientResult, RoundTask
from fedot.models.adapters import Adapter
from fedot.privacy.noise import NoiseSource

__all__ = ["LocalEngine"]

logger = logging.getLogger(__name__)


class LocalEngine:
    """An `Engine` for simulations.

    Args:
        adapter: on the bundle's model; lent to every client in turn.
        sites: the clients.
        autocast: compute in bfloat16.
        make_noise: see `run_round`.
    """

    def __init__(
        self,
        adapter: Adapter,
        sites: Sequence[Site],
        autocast: bool = False,
        make_noise: Callable[[], NoiseSource] = NoiseSource.from_os,
    ):
        self._adapter = adapter
        self._sites = {site.info.name: site for site in sites}
        self._autocast = autocast
        self._make_noise = make_noise
        self._cancelled: set[str] = set()

    def clients(self) -> Sequence[ClientInfo]:
        """Who can be drawn, by name."""
        return [self._sites[name].info for name in sorted(self._sites)]

    def run(self, task: RoundTask, cohort: Sequence[str]) -> Iterator[ClientResult | ClientFailure]:
        """Do a task at every client of a cohort, in order."""
        for name in cohort:
            if task.task_id in self._cancelled:
                return
            try:
                yield run_round(
                    self._sites[name], self._adapter, task, self._autocast, self._make_noise
                )
            except FedotError as error:
                logger.warning("client %s failed in round %d: %s", name, task.round, error)
                yield ClientFailure(name, task.round, str(error))

    def cancel(self, task_id: str) -> None:
        """Stop after the client at work."""
        self._cancelled.add(task_id)
