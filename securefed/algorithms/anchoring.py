"""Between the two phases of the adapter `tangent`: the head that was trained becomes the point where gradients are taken.

"Train, convexify, train" (Yu et al. 2022, arXiv 2207.06343, section 3). It reads what the clients' noised rounds have
released and nothing else, so it costs no privacy.
"""

from __future__ import annotations

from securefed.layout import Layout
from securefed.types import Vector


def anchored(layout: Layout, model: Vector) -> Vector:
    """The global model (d,) with its anchor at the head that it has, and a head and centre that begin again at zero."""
    tensors = layout.unflatten(model)
    width = tensors["anchor.weight"].shape[1]
    head = tensors["head.weight"][:, :width]
    tensors["anchor.weight"] = head[1:] - head[:1] if len(head) == 2 else head.clone()
    if "centre.weight" in tensors:
        tensors["anchor.centre"] = tensors["centre.weight"][:width, 0].clone()
    for name in ("head.weight", "head.bias", "centre.weight"):
        if name in tensors:
            tensors[name] = tensors[name].new_zeros(tensors[name].shape)
    return layout.flatten(tensors)
