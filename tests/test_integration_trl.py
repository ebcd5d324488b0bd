"""TRL's trainers train by a plan: supervised and preference tuning, rates by name, resumed to the bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dagscale
from dagscale.errors import RecipeError

hf = pytest.importorskip("dagscale.integrations.huggingface")
pytest.importorskip("trl.trainer.dpo_trainer")  # trl itself imports lazily
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

WORDS = ("<pad>", "<eos>", "a", "b", "c", "d")
SAID = {
    "max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 2, "report_to": [], "use_cpu": True, "bf16": False,
    "logging_strategy": "no", "disable_tqdm": True, "weight_decay": 0.1,
}  # fmt: skip


def gpt(layers: int) -> nn.Module:
    torch.manual_seed(layers)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=6, n_positions=16, n_embd=16, n_layer=layers, n_head=2, bos_token_id=1, eos_token_id=1,
            pad_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        )
    )  # fmt: skip


def tokenizer() -> Any:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def sentence(length: int) -> str:
    return " ".join(random.choice("abcd") for _ in range(length))


def supervised(folder: Path) -> Any:
    random.seed(0)
    data = datasets.Dataset.from_list([{"text": sentence(length)} for length in (5, 9, 12, 14) * 4])
    args = trl.SFTConfig(output_dir=str(folder), **SAID)
    return trl.SFTTrainer(gpt(2), args, train_dataset=data, processing_class=tokenizer())


def preferences(folder: Path) -> Any:
    random.seed(0)
    rows = [{"prompt": sentence(3) + " ", "chosen": "a a b", "rejected": sentence(3)} for _ in range(16)]
    args = trl.DPOConfig(output_dir=str(folder), **SAID)
    return trl.DPOTrainer(
        gpt(2), ref_model=gpt(2), args=args, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(),
    )  # fmt: skip


@pytest.mark.parametrize("make", [supervised, preferences])
def test_it_trains_by_the_plan_and_resumes_to_the_bit(tmp_path: Path, make: Any) -> None:
    """The loss is TRL's own: a recipe has it only where that is the model's, as in supervised tuning."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    whole = make(tmp_path)
    with pytest.raises(RecipeError, match="has a compute_loss of its own: give recipe_of"):
        hf.recipe_of(whole)
    inputs = {"input_ids": torch.zeros(2, 8, dtype=torch.long)}
    told: dict[str, Any] = {"optimizer": "adamw"} if make is preferences else {"recipe": hf.recipe_of(whole, loss=None)}
    plan = dagscale.plan(
        whole.model, inputs, init="keep", law="none", base_lr=1e-3, lr_scale={"transformer.wte": 0.5}, **told
    )
    assert {name: p.lr for name, p in plan.parameters.items()}.items() >= {
        "transformer.wte.weight": 5e-4, "transformer.h.0.mlp.c_fc.weight": 1e-3,
    }.items()  # fmt: skip
    before = [p.detach().clone() for p in whole.model.parameters()]
    for trainer, checkpoint in ((whole, None), (make(tmp_path), str(tmp_path / "checkpoint-2"))):
        hf.use_plan(trainer, plan)
        trainer.train(resume_from_checkpoint=checkpoint)
        held = {name: group["initial_lr"] for group in trainer.optimizer.param_groups for name in group["param_names"]}
        assert held == pytest.approx({name: p.lr for name, p in plan.parameters.items()})
    assert trainer.state.global_step == 4
    for old, once, resumed in zip(before, whole.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(once, resumed)
        assert not torch.equal(once, old)
