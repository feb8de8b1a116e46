"""What one adversary saw of a round, taken from what the round really left behind.

An attack or an audit that takes a `View` cannot use more than its adversary had: what a protection hid is not in it.
"""

from __future__ import annotations

from securefed.errors import ProtocolError
from securefed.types import Collected, Reveals, RoundParameters, Vector, View


def server_view(
    parameters: RoundParameters,
    reveals: Reveals,
    collected: Collected,
    before: Vector,
    after: Vector | None = None,
) -> View:
    """What the server knows when a round has ended: the models, and what the protection revealed.

    - `"updates"`: every survivor's update. - `"group sums"`: each group's sum, weight and members, no update;
    - `"sum"`: one sum over all survivors.

    Args:
        reveals: the protection's promise, held against what was collected.
        before, after: the global model that was sent out, and the next one.

    Raises:
        ProtocolError: more was collected than the protection says it reveals.
    """
    if collected.updates is not None and reveals != "updates":
        raise ProtocolError(
            f"round {parameters.round}: updates were collected under a protection that reveals {reveals}"
        )
    if collected.groups is not None and reveals == "sum":
        raise ProtocolError(
            f"round {parameters.round}: group sums were collected under a protection that reveals a sum"
        )
    return View(
        adversary="server",
        round=parameters.round,
        reveals=reveals,
        clients=collected.survivors,
        layout_digest=parameters.layout_digest,
        before=before,
        after=after,
        updates=dict(collected.updates or {}),
        total=collected.total,
        weight=collected.weight,
        groups=collected.groups,
    )
