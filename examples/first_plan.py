"""A first plan: search a small network once, and carry its settings over to a deeper and wider one."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data import load

digits = load("digits")  # 1,797 images of 8 × 8 pixels, from scikit-learn


def network(width: int, depth: int) -> nn.Module:
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), *hidden, nn.Linear(width, 10))


small, model = network(width=64, depth=1), network(width=128, depth=6)

recipe = dagscale.Recipe(
    (digits.x, digits.y), loss=cross_entropy, optimizer=torch.optim.SGD, momentum=0.9, nesterov=True, batch_size=32,
    epochs=3, schedule=dagscale.cosine(warmup=0.1),
)  # fmt: skip
found = dagscale.search(small, recipe)  # the base: its band of good rates
plan = dagscale.plan(model, base=found)  # init and rate of every parameter of the target
plan.init_(model)
optimizer = plan.optimizer(model)
schedule = plan.schedule(optimizer)

print(found)
print(plan)
