"""The gRPC server: every call is identified, allowed, limited, answered, and written down.

Design note: `_Gate` stands before every call, bulk streams too, and is the only place that turns an
error into a status. A call that is in no table below does not exist.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn

import grpc

from fedot.errors import ConfigError, FedotError
from fedot.transport import fedot_pb2 as pb
from fedot.transport.authorize import Action, Asked
from fedot.transport.bulk import receive, send
from fedot.transport.channel import server_options
from fedot.transport.members import Peer
from fedot.transport.server_tls import certificate_of
from fedot.transport.service import Hub, Service
from fedot.transport.status import reason_of, status_of

__all__ = ["listening"]

logger = logging.getLogger(__name__)

# A site that waits holds a thread, and one that transfers another.
_MOST_THREADS = 512
_STOP_GRACE_S = 2.0
