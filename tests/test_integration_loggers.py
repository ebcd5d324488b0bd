"""TensorBoard, W&B and MLflow, with the real packages where they are: plan and watch arrive there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dagscale
from dagscale.errors import DagscaleError
from dagscale.integrations.loggers import config, rows, scalars, to_mlflow, to_tensorboard, to_wandb

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def planned() -> tuple[nn.Module, dagscale.Plan]:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = dagscale.plan(
        model, X, base_lr=0.01, law="none", optimizer="adamw", betas=(0.9, 0.95), weight_decay=0.1,
        schedule=dagscale.cosine(), steps=10,
    )  # fmt: skip
    return plan.init_(model), plan


def watched(model: nn.Module, plan: dagscale.Plan, log: Callable[..., Any]) -> dict[str, float]:
    optimizer = plan.optimizer(model)
    with dagscale.watch(model, plan, optimizer, every=1, log=log) as watch:
        for _ in range(2):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
    return watch.scalars()


def test_what_is_written() -> None:
    _, plan = planned()
    assert scalars(plan) == {"dagscale/plan/lr": 0.01, "dagscale/plan/base_lr": 0.01}
    said = config(plan)
    assert said["law"] == "none"
    assert said["recipe/optimizer/name"] == "adamw"
    assert said["recipe/optimizer/settings/betas"] == "[0.9, 0.95]"
    assert said["recipe/schedule/shape"] == "cosine"
    assert rows(plan)[0][:3] == ("0.weight", "8×6", plan.parameters["0.weight"].role)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model, plan = planned()
    with SummaryWriter(str(tmp_path)) as writer:
        last = watched(model, plan, to_tensorboard(writer, plan))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [e.value for e in events.Scalars("dagscale/plan/lr")] == pytest.approx([plan.lr])
    seen = events.Scalars("dagscale/update/readout")
    assert [e.step for e in seen] == [1, 2]
    assert seen[-1].value == pytest.approx(last["dagscale/update/readout"])
    text = events.Tensors("dagscale/plan/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| 0.weight | 8×6 |" in text
    assert "0.01" in text
    assert (
        "recipe/weight_decay | 0.1"
        in events.Tensors("dagscale/config/text_summary")[0].tensor_proto.string_val[0].decode()
    )


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    model, plan = planned()
    run = wandb.init(mode="offline", dir=str(tmp_path), project="test")
    last = watched(model, plan, to_wandb(run, plan))
    assert run.config["dagscale"] == config(plan)
    summary = dict(run.summary)
    run.finish()
    assert summary["dagscale/plan/lr"] == plan.lr
    assert summary["dagscale/step"] == 2
    assert summary["dagscale/update/readout"] == pytest.approx(last["dagscale/update/readout"])
    assert list(tmp_path.rglob("*.wandb")), "a run to sync later"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    model, plan = planned()
    with mlflow.start_run() as run:
        last = watched(model, plan, to_mlflow(mlflow, plan))
        artifacts = Path(mlflow.get_artifact_uri().removeprefix("file://"))
    data = mlflow.get_run(run.info.run_id).data
    assert data.params["dagscale/recipe/weight_decay"] == "0.1"
    assert data.metrics["dagscale/plan/lr"] == plan.lr
    assert data.metrics["dagscale/update/readout"] == pytest.approx(last["dagscale/update/readout"])
    written = (artifacts / "dagscale" / "plan.json").read_text()
    assert dagscale.Plan.from_json(json.dumps(json.loads(written))) == plan


class Recorder:
    """What is called on it, for environments without mlflow."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def test_what_mlflow_is_called_with() -> None:
    model, plan = planned()
    recorder = Recorder()
    watched(model, plan, to_mlflow(recorder, plan))
    names = [name for name, _, _ in recorder.calls]
    assert names == ["log_params", "log_metrics", "log_text", "log_dict", "log_metrics", "log_metrics"]
    assert recorder.calls[3][1] == (plan.to_dict(), "dagscale/plan.json")
    assert [kwargs["step"] for name, _, kwargs in recorder.calls if name == "log_metrics"] == [0, 1, 2]


def test_one_line_with_the_mend() -> None:
    with pytest.raises(DagscaleError, match=r"writer must be a torch.utils.tensorboard.SummaryWriter, not str"):
        to_tensorboard("runs")
    with pytest.raises(DagscaleError, match=r"run must be what wandb.init returns, not NoneType"):
        to_wandb(None)
    with pytest.raises(DagscaleError, match="mlflow must be the module mlflow, not int"):
        to_mlflow(1)
