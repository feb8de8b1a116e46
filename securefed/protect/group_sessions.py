"""The two halves of a round in groups: m sessions of masking side by side, each message tagged by its group."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from securefed.errors import ProtocolError
from securefed.protect.drawing import Groups
from securefed.protect.masking import MaskingClient, MaskingServer
from securefed.types import Collected, GroupSum, Output, RoundParameters, Update

_TAG = struct.Struct("<4sBI")  # magic, version, group
_MAGIC, _VERSION = b"SFGR", 1


def part_of(parameters: RoundParameters, groups: Groups) -> tuple[RoundParameters, ...]:
    """What each group's members agree on: the round's parameters with the group as its cohort.

    Raises:
        ProtocolError: the cohort is not everyone, so that some group would be in the round in part.
    """
    everyone = tuple(sorted(k for group in groups for k in group))
    if parameters.clients != everyone:
        raise ProtocolError(
            f"grouped: a cohort of {len(parameters.clients)} breaks groups that are fixed for all {len(everyone)} clients; "
            "let every client take part in every round"
        )
    weight = dict(zip(everyone, parameters.weights or (), strict=False))
    return tuple(
        replace(parameters, clients=group, weights=tuple(weight[k] for k in group) if weight else None)
        for group in groups
    )


def tagged(group: int, output: Output) -> Output:
    """The messages with their group's number in front."""
    tag = _TAG.pack(_MAGIC, _VERSION, group)
    return replace(output, send=tuple(replace(m, payload=tag + m.payload) for m in output.send))


def untagged(group: int, payload: bytes) -> bytes:
    """The message behind the tag. The tag only routes: masking signs the group's member list.

    Raises:
        ProtocolError: no such tag, or that of another group.
    """
    if payload[: _TAG.size] != _TAG.pack(_MAGIC, _VERSION, group):
        raise ProtocolError(f"grouped: not a version {_VERSION} message of group {group}")
    return payload[_TAG.size :]


@dataclass(eq=False)
class GroupedClient:
    """One client in one round: masking with the members of its own group."""

    group: int
    _inner: MaskingClient = field(repr=False)

    def start(self) -> Output:
        return tagged(self.group, self._inner.start())

    def receive(self, payload: bytes) -> Output:
        """One message of the server. Raises ProtocolError where it is not of this group, step and round."""
        return tagged(self.group, self._inner.receive(untagged(self.group, payload)))

    def submit(self, update: Update) -> Output:
        return tagged(self.group, self._inner.submit(update))


@dataclass(eq=False)
class GroupedServer:
    """The server in one round: m masked sums side by side. A group that ends without a sum is left out."""

    parameters: RoundParameters
    _servers: tuple[MaskingServer, ...] = field(repr=False)
    _results: dict[int, Collected] = field(default_factory=dict, repr=False)
    _failed: dict[int, str] = field(default_factory=dict)
    _refused: dict[int, str] = field(default_factory=dict)
    _done: bool = False

    def __post_init__(self) -> None:
        self._group = {k: j for j, server in enumerate(self._servers) for k in server.parameters.base.clients}

    def start(self) -> Output:
        return self._gather({j: server.start() for j, server in enumerate(self._servers)})

    def receive(self, sender: int, payload: bytes) -> Output:
        """Takes one message; a bad one changes nothing and its sender is listed with the reason.

        Raises:
            ProtocolError: the round has ended.
        """
        self._require_open()
        group = self._group.get(sender)
        if group is None or self._ended(group):
            return Output()  # a stranger, or late: its group has its sum, or never will
        try:
            inner = untagged(group, payload)
        except ProtocolError as error:
            self._refused[sender] = str(error)
            return Output()
        return self._gather({group: self._servers[group].receive(sender, inner)})

    def advance(self) -> Output:
        """Nobody else will answer, in any group that still waits."""
        self._require_open()
        return self._gather({j: s.advance() for j, s in enumerate(self._servers) if not self._ended(j)})

    def _require_open(self) -> None:
        if self._done:
            raise ProtocolError(f"grouped: round {self.parameters.round} has already ended")

    def _ended(self, group: int) -> bool:
        return group in self._results or group in self._failed

    def _gather(self, outputs: Mapping[int, Output]) -> Output:
        for j, output in outputs.items():
            if output.abort is not None:
                self._failed[j] = output.abort
            elif output.result is not None and output.result.weight > 0:
                self._results[j] = output.result
            elif output.result is not None:
                self._failed[j] = f"its weight is {output.result.weight:g}, so it has no mean"
        send = tuple(m for j, output in outputs.items() for m in tagged(j, output).send)
        if len(self._results) + len(self._failed) < len(self._servers):
            return Output(send=send)
        self._done = True
        if not self._results:
            reasons = "; ".join(f"group {j}: {why}" for j, why in sorted(self._failed.items())[:3])
            return Output(send=send, abort=f"grouped: no group has a sum: {reasons}")
        return Output(send=send, result=self._collected())

    def _collected(self) -> Collected:
        found = dict(sorted(self._results.items()))
        lost = {
            k: f"group {j} has no sum: {why}"
            for j, why in sorted(self._failed.items())
            for k in self._servers[j].parameters.base.clients
        }
        survivors = tuple(sorted(k for c in found.values() for k in c.survivors))
        clipped = sum((c.clipped_share or 0.0) * len(c.survivors) for c in found.values())
        return Collected(
            survivors=survivors,
            total=np.sum([c.total for c in found.values()], axis=0),
            weight=float(sum(c.weight for c in found.values())),
            refused={**self._refused, **{k: v for c in found.values() for k, v in c.refused.items()}, **lost},
            dropped={k: v for c in found.values() for k, v in c.dropped.items()},
            clipped_share=clipped / len(survivors),
            groups={j: GroupSum(c.survivors, c.total, c.weight) for j, c in found.items()},
        )
