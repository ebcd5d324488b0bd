"""A loop in the manner of nanoGPT: a GPT on bytes, AdamW, warm-up and cosine, clipping; lines with +++ are new."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale  # +++

block_size, batch_size, max_iters, warmup_iters, grad_clip = 32, 16, 40, 4, 1.0
text = Path(dagscale.__file__).with_name("errors.py").read_bytes() * 4
data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


class Block(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.attn = nn.MultiheadAttention(n_embd, n_head, batch_first=True)
        self.up, self.down = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        h, mask = self.ln_1(x), nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.down(nn.functional.gelu(self.up(self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, n_layer, n_embd, n_head=2):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(256, n_embd), nn.Embedding(block_size, n_embd)
        self.h = nn.Sequential(*(Block(n_embd, n_head) for _ in range(n_layer)))
        self.ln_f, self.lm_head = nn.LayerNorm(n_embd), nn.Linear(n_embd, 256, bias=False)

    def forward(self, idx, targets=None):
        x = self.h(self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device)))
        if targets is None:  # to generate, the last token's are enough
            return self.lm_head(self.ln_f(x[:, -1:])), None
        logits = self.lm_head(self.ln_f(x))
        return logits, cross_entropy(logits.flatten(0, 1), targets.flatten())


def get_batch():
    starts = torch.randint(len(data) - block_size - 1, (batch_size,))
    rows = torch.stack([data[i : i + block_size + 1] for i in starts])
    return rows[:, :-1], rows[:, 1:]


batches = [(get_batch(),) for _ in range(max_iters)]  # +++ enough to search and to plan with
recipe = dagscale.Recipe(  # +++
    batches, lambda out: out[1], torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.1,
    steps=max_iters, clip=grad_clip, schedule=dagscale.cosine(warmup=warmup_iters),
)  # fmt: skip
torch.manual_seed(1337)
model = GPT(n_layer=4, n_embd=64)
found = dagscale.search(GPT(n_layer=1, n_embd=32), recipe, seeds=1)  # +++
plan = dagscale.plan(model, base=found, width="mup", depth="completep")  # +++
optimizer = plan.optimizer(plan.init_(model))  # +++ in place of configure_optimizers(…)
schedule = plan.schedule(optimizer)  # +++ in place of get_lr(it)

for it in range(max_iters):
    X, Y = get_batch()
    logits, loss = model(X, Y)
    loss.backward()
    dagscale.clip_grad_norm_(optimizer, grad_clip)  # +++ in place of torch's
    optimizer.step()
    schedule.step()  # +++ in place of the loop that sets the rate of every group
    optimizer.zero_grad(set_to_none=True)
    if it % 10 == 0 or it == max_iters - 1:
        print(f"iter {it}: loss {loss.item():.4f}")
