"""The gauge attack: at the honest mean in product space, far from it factor by factor, and ruinous in an average."""

from __future__ import annotations

import torch

from securefed.factors import AdapterSpace, adapter_gram
from securefed.gram import centred_gram, squared_distances
from securefed.layout import Layout
from securefed.types import RoundContext
from securefed_benchmarks.lora_claims import gauge
from securefed_defenses import MultiKrum

RANK, WIDE = 2, 6
H, F = 6, 2


def test_product_space_takes_the_gauge_attack_for_the_honest_mean_and_factor_space_does_not() -> None:
    g = torch.Generator().manual_seed(0)
    base = {
        "w.lora_A": torch.randn(RANK, WIDE, generator=g),
        "w.lora_B": torch.randn(WIDE, RANK, generator=g),
    }
    layout = Layout.of(base)
    flat = torch.from_numpy(layout.flatten(base))
    honest = 0.1 * torch.randn(H, layout.size, generator=g)
    rows = torch.cat([honest, gauge(honest, F, flat, layout, 100.0)])
    space = AdapterSpace.of(layout, base)
    product = squared_distances(adapter_gram(torch.cat([rows, honest.mean(0, keepdim=True)]), space))
    factor = squared_distances(centred_gram(torch.cat([rows, honest.mean(0, keepdim=True)])))
    assert float(product[-2, -1]) < 1e-6 * float(product[0, -1])
    assert float(factor[-2, -1]) > 1e3 * float(factor[0, -1])
    context = RoundContext(0, tuple(range(H + F)), (1.0,) * (H + F), layout.digest, space=space)
    fooled = MultiKrum(f=F, space="product").step(rows, context, None)[0]
    safe = MultiKrum(f=F).step(rows, context, None)[0]
    assert float((safe - honest.mean(0)).norm()) < 1e-5 * float(fooled.norm())
