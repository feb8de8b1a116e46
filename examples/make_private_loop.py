"""A plain PyTorch loop, made private: three lines change, the loop does not.

    python examples/make_private_loop.py

Trains a small net on scikit-learn's digits with epsilon = 3 per picture, saves in the middle, and prints
what was spent and what that means.
"""

from __future__ import annotations

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn

import securefed as sf


def main(epochs: int = 15) -> float:
    """Trains, prints the privacy statement, and gives the test accuracy."""
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    train = torch.utils.data.TensorDataset(x[:1500], y[:1500])
    loader = torch.utils.data.DataLoader(train, batch_size=150, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    loss = nn.CrossEntropyLoss()

    with (
        tempfile.TemporaryDirectory() as folder,
        sf.make_private(
            model,
            optimizer,
            loader,
            epsilon=3.0,
            delta=1e-4,
            max_grad_norm=0.5,
            epochs=epochs,
            data_id="digits-train",
        ) as private,
    ):
        schedule = private.schedule(
            torch.optim.lr_scheduler.LinearLR(private.optimizer, 1.0, 0.2, private.steps)
        )
        for epoch in range(epochs):
            for images, labels in private.loader:
                private.optimizer.zero_grad()
                loss(private.model(images), labels).backward()
                private.optimizer.step()
                schedule.step()
            if epoch == epochs // 2:
                private.save(folder)  # make_private(...).resume(folder) goes on from here, after a crash too
        print(private.statement().text())

    accuracy = float((model(x[1500:]).argmax(1) == y[1500:]).double().mean())
    print(f"test accuracy {accuracy:.3f} at epsilon = {private.epsilon():.2f}, delta = 1e-4")
    return accuracy


if __name__ == "__main__":
    main()
