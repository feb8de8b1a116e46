"""Audit an update that was made elsewhere: a plain PyTorch loop, two checkpoints, and a verdict.

Nothing here but the last lines knows SecureFed. A client trains a small net on 60 digits; somebody kept the
model before and after (a server, a log, a backup). Whoever has both can tell most of the client's records
from others, unless the update was clipped and noised. The page shows every view beside the others.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import securefed as sf


def client(folder: Path, x: torch.Tensor, y: torch.Tensor, steps: int) -> nn.Module:
    """Somebody else's training: SGD for some steps, a checkpoint before and one after."""
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    torch.save(model.state_dict(), folder / "before.pt")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(steps):
        rows = torch.arange(step * 20, step * 20 + 20) % len(x)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "after.pt")
    return model


def main(folder: str | None = None, steps: int = 1200) -> str:
    """Audits the client's update, raw and as it would be with clipping and noise; returns the verdict."""
    where = Path(folder or mkdtemp())
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(pixels))[:300]
    x = torch.tensor(pixels[chosen] / 16, dtype=torch.float32)
    y = torch.tensor(digits[chosen])
    guessed = (
        torch.arange(300) % 5 > 0
    )  # labels that nobody checked: what is learned of them is learned by heart
    y[guessed] = torch.randint(0, 10, (240,))
    model = client(where, x[:60], y[:60], steps)

    report = sf.audit(
        where / "before.pt",
        where / "after.pt",
        base=model,
        recipe={
            "optimizer": "sgd",
            "steps": steps,
            "learning_rate": 0.5,
            "batch_size": 20,
            "max_grad_norm": 1.0,
            "noise_multiplier": 1.0,
        },
        candidates=(x, y),
        is_member=np.arange(300) < 60,
        shadows=0,
    )
    print(report.text())
    print("page:", report.save(where / "audit.html"))
    return report.verdict


if __name__ == "__main__":
    main()
