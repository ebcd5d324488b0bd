"""A first plan: search a small network once, and carry its settings over to a deeper one."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data import load

digits = load("digits")  # 1,797 images of 8 × 8 pixels
x, y = digits.x.flatten(1), digits.y


def network(depth: int) -> nn.Module:
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(64, 10))


small, model = network(depth=2), network(depth=8)
recipe = dagscale.Recipe((x, y), loss=cross_entropy, optimizer=torch.optim.AdamW, batch_size=64, epochs=4)
found = dagscale.search(small, recipe)  # trains copies of the small network: its good learning rates
plan = dagscale.plan(model, base=found)  # how each weight of the large one is drawn, and at which rate it trains
plan.init_(model)
optimizer = plan.optimizer(model)  # from here on, your own training loop
print(found)
print(plan)
