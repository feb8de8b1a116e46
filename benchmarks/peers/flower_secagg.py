"""What one round of Flower's SecAgg+ costs: its own workflow and client mod, in one process, no network.

    python3 -m venv /tmp/flower && /tmp/flower/bin/pip install flwr==1.41.0
    /tmp/flower/bin/python benchmarks/peers/flower_secagg.py [n:shares:d:dropped ...]

Runs in an environment of its own, since Flower pins other versions than SecureFed; nothing of SecureFed is
imported. `shares` counts a client's own share, so 21 is k = 20 neighbours. Dropped clients vanish after
the share-keys stage, the only time at which Flower's protocol stands a drop. Prints one JSON object:
seconds of this process' CPU for a client (mean) and for the server (the rest of the workflow), bytes of
the fields a client uploads over all stages, and the largest error of the mean.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import sys
import time
from collections.abc import Iterable
from typing import Any

import flwr
import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.error import Error
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common import recorddict_compat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key

CASES = ("100:21:100000:0", "100:21:100000:10", "100:21:1000000:0", "100:21:1000000:10", "21:21:10000000:0")
DROP_STAGE = 2  # of setup, share keys, collect masked vectors, unmask


class Node:
    """A client as the workflow's strategy names it."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id


class Cohort:
    """The client manager and the strategy of one round: everybody trains, the sum is kept."""

    def __init__(self, ids: Iterable[int]) -> None:
        self.nodes = [Node(i) for i in ids]
        self.start = ndarrays_to_parameters([np.zeros(1, np.float32)])
        self.mean: Any = None

    def num_available(self) -> int:
        return len(self.nodes)

    def configure_fit(self, _round: int, _parameters: Any, _manager: Any) -> list[tuple[Node, FitIns]]:
        return [(node, FitIns(self.start, {})) for node in self.nodes]

    def aggregate_fit(self, _round: int, results: Any, _failures: Any) -> tuple[Any, dict[str, Any]]:
        self.mean = parameters_to_ndarrays(results[0][1].parameters)[0]
        return results[0][1].parameters, {}


class DirectGrid:
    """Hands the workflow's messages to the client mod and times each side on its own."""

    def __init__(self, vectors: dict[int, Any], dropped: set[int]) -> None:
        self.vectors, self.dropped, self.stage = vectors, dropped, -1
        self.mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod").secaggplus_mod
        self.contexts = {
            i: Context(run_id=1, node_id=i, node_config={}, state=RecordDict(), run_config={})
            for i in vectors
        }
        self.client_s, self.copy_s, self.bytes_up = 0.0, 0.0, 0

    def send_and_receive(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        self.stage += 1
        return [self._deliver(message) for message in messages]

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node in self.dropped and self.stage >= DROP_STAGE:
            reply = Message(Error(1, "dropped"), reply_to=message)
        else:
            begin = time.process_time()
            message.content = copy.deepcopy(message.content)  # as a wire would; charged to nobody
            self.copy_s += time.process_time() - begin
            begin = time.process_time()
            reply = self.mod(message, self.contexts[node], lambda m, _c: self._train(m, node))
            self.client_s += time.process_time() - begin
            self.bytes_up += sum(_size(record) for record in reply.content.config_records.values())
        reply.metadata._src_node_id = node  # what the network layer would fill in
        return reply

    def _train(self, message: Message, node: int) -> Message:
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([self.vectors[node]]), 1, {})
        return Message(recorddict_compat.fitres_to_recorddict(result, False), reply_to=message)


def _size(record: ConfigRecord) -> int:
    total = 0
    for value in record.values():
        for item in value if isinstance(value, list) else [value]:
            total += len(item) if isinstance(item, bytes | str) else 8
    return total


def play(n: int, shares: int, d: int, dropped: int, seed: int = 0) -> dict[str, Any]:
    """One round; threshold two thirds of the shares, clipping at 8, Flower's default ring of 2^32."""
    rng = np.random.default_rng(seed)
    ids = [int(i) for i in rng.choice(2**40, n, replace=False) + 1]
    vectors = {i: rng.normal(0, 0.02, d).astype(np.float32) for i in ids}
    gone = set(ids[:dropped])
    cohort, grid = Cohort(ids), DirectGrid(vectors, gone)
    context = LegacyContext(
        Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        strategy=cohort,  # type: ignore[arg-type]  # the methods that one round calls
        client_manager=cohort,  # type: ignore[arg-type]
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = recorddict_compat.parameters_to_arrayrecord(
        cohort.start, True
    )
    workflow = SecAggPlusWorkflow(num_shares=shares, reconstruction_threshold=shares * 2 // 3, max_weight=1.0)
    begin = time.process_time()
    workflow(grid, context)  # type: ignore[arg-type]
    whole = time.process_time() - begin
    truth = np.mean([vectors[i] for i in ids if i not in gone], axis=0)
    return {
        "n": n,
        "k": shares - 1,
        "d": d,
        "dropped": dropped,
        "client_s": grid.client_s / n,
        "server_s": whole - grid.client_s - grid.copy_s,
        "bytes_up_per_parameter": grid.bytes_up / (n - dropped) / d,
        "max_error": float(np.abs(cohort.mean - truth).max()) if cohort.mean is not None else None,
    }


def main() -> None:
    """Plays each case and prints JSON."""
    logging.disable(logging.CRITICAL)
    try:  # newer versions ask who runs; one process with no super-node has to say so itself
        identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
        identity.task_id, identity.run_id, identity.node_id = 1, 1, 1
    except ModuleNotFoundError:
        pass
    cases = [tuple(map(int, case.split(":"))) for case in sys.argv[1:] or CASES]
    play(10, 5, 1000, 0)  # the warm-up: imports, first keys
    results = [play(*case) for case in cases]
    print(json.dumps({"flwr": flwr.__version__, "numpy": np.__version__, "results": results}))


if __name__ == "__main__":
    main()
