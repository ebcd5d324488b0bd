"""The command line as its user meets it: in a process of its own."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest


def dagscale(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dagscale", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def document(*arguments: str, cwd: Path | None = None) -> dict:  # type: ignore[type-arg]
    done = dagscale(*arguments, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


USER_FILE = (
    (Path(__file__).parent.parent / "examples" / "mymodel.py").read_text()
    + """

def broken():
    class Broken(Net):
        def forward(self, x):
            raise KeyError("the user's own words")
    return Broken(8, 1), torch.randn(2, 20)

def integers():
    return Net(8, 1), torch.randint(0, 9, (2, 20))

def elsewhere():
    return Net(8, 1), torch.empty(2, 20, device="meta")

def weightless():
    return nn.ReLU(), torch.randn(2, 20)

class Constant(Net):
    def forward(self, x):
        return self.head(torch.ones(2, 8))

def pathless():
    return Constant(8, 1), torch.randn(2, 20)

import dagscale
from torch.utils.data import DataLoader, TensorDataset

def bare():
    return dagscale.Recipe(loss=nn.functional.mse_loss, steps=3)

def failing():
    raise ValueError("no recipe today")

class Stream:
    def __iter__(self):
        yield from ()

stream = Stream()

def loader():
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :1]), batch_size=6, shuffle=True)

def huge():
    x, y = loader().dataset.tensors
    return 1e6 * x / x.square().mean().sqrt(), y

def alone():
    return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 1))

def distance(output, target):
    return (output[:, :1] - target).square().mean()

def recipe():
    return dagscale.Recipe(loader(), loss=distance, optimizer="sgd", steps=12)
"""
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "mymodel.py").write_text(USER_FILE)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    return tmp_path


@pytest.mark.parametrize(
    ("code", "paths", "cubes"), [("2_22_222", "4", "126"), ("2_02_002", "1", "64"), ("1_01_001", "1", "1")]
)
def test_inspect_counts_the_papers_paths(code: str, paths: str, cubes: str) -> None:
    facts = document("inspect", f"mlp:{code}")
    assert (facts["paths"], facts["sum_depth_cubed"]) == (paths, cubes)
    assert facts["kernel"] == 1
    assert facts["parameters"]["total"] == facts["parameters"]["reached"]
    assert set(facts["layers"][0]) == {"name", "op", "fan_in", "fan_out", "kernel", "in_degree"}


def test_plan_is_the_papers_rate() -> None:
    made = document("plan", "mlp:2_22_222", "--base", "mlp:1_01_001", "--base-lr", "0.1", "--law", "paths")
    assert made["lr"] == pytest.approx(0.1 / math.sqrt(126))
    assert math.prod(made["factors"].values()) * made["base_lr"] == pytest.approx(made["lr"])
    assert set(made["parameters"]["stem.linear.weight"]) >= {"init_std", "lr"}


def test_plan_of_a_users_own_file(project: Path) -> None:
    command = ["plan", "mymodel.py:make", "--base", "mymodel.py:small", "--base-lr", "0.1"]
    made = document(*command, "--law", "paths", cwd=project)
    # 4 residual blocks: depths 1 + Binomial(4): Σ L³ = 1 + 4·8 + 6·27 + 4·64 + 125 = 576; the base 1 + 8 = 9.
    assert made["lr"] == pytest.approx(0.1 * math.sqrt(9 / 576))
    table = dagscale(*command, cwd=project)
    assert table.returncode == 0
    assert "blocks.0–3.weight" in table.stdout


def test_readable_output_and_picture(tmp_path: Path) -> None:
    done = dagscale("inspect", "mlp:2_22_222", "--picture", str(tmp_path / "graph.svg"))
    assert done.returncode == 0, done.stderr
    assert "in-degree" in done.stdout
    assert (tmp_path / "graph.svg").read_text().startswith("<?xml")


def test_search_prints_one_document_and_draws(tmp_path: Path) -> None:
    facts = document(
        "search", "mlp:1?width=16", "--steps", "8", "--seeds", "1", "--limit", "200",
        "--plot", str(tmp_path / "curve.png"), "--grid", "-7.75", "-2.75",
    )  # fmt: skip
    assert {round(2 * math.log2(point["lr"]) % 1, 6) for point in facts["curve"]} == {0.5}  # the default grid has none
    assert facts["lr"] > 0
    assert facts["band"][0] <= facts["lr"] <= facts["band"][1]
    assert (tmp_path / "curve.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "training",
    [
        ["--recipe", "mymodel.py:recipe"],
        ["--data", "mymodel.py:loader", "--loss", "mymodel.py:distance", "--steps", "12"],
    ],
)
def test_search_of_a_users_data_is_a_file_that_plans_are_made_from(project: Path, training: list[str]) -> None:
    """A measured plan after ``search --save`` needs what is measured on the base, without its model; by default the
    rate of a deeper residual network needs nothing."""
    found = document(
        "search", "mymodel.py:small", *training, "--limit", "24", "--seeds", "1", "--save", "base.json", cwd=project
    )
    command = ["plan", "mymodel.py:make", *training, "--base", "base.json", "--save", "plan.json"]
    made = document(*command, "--width", "none", cwd=project)
    assert made["base_lr"] == found["lr"]
    assert made["law"] == "combined"
    assert json.loads((project / "plan.json").read_text())["lr"] == made["lr"]
    carried = document(*command, cwd=project)
    assert (carried["law"], carried["depth"], carried["lr"]) == ("none", "completep", found["lr"])


def test_a_plan_trains_as_its_base_was_searched_unless_told_otherwise(project: Path) -> None:
    """The same options twice, and no option at all; a module without inputs gets those of the data."""
    said = [
        "--loss", "mse_loss", "--optimizer", "adamw", "--setting", "betas=0.9,0.95", "--weight-decay", "0.1",
        "--schedule", "cosine", "--warmup", "0.2",
    ]  # fmt: skip
    given = ["--data", "mymodel.py:loader", "--limit", "24"]
    document("search", "mymodel.py:alone", *given, *said, "--seeds", "1", "--save", "base.json", cwd=project)
    plans = [
        document("plan", "mymodel.py:alone", *given, *more, "--base", "base.json", cwd=project) for more in ([], said)
    ]
    assert plans[0] == plans[1]
    assert plans[0]["recipe"]["epochs"] == 1
    assert plans[0]["recipe"]["optimizer"] == {"name": "adamw", "settings": {"betas": [0.9, 0.95]}}
    other = dagscale("plan", "mymodel.py:alone", *given, "--base", "base.json", "--optimizer", "sgd", cwd=project)
    assert "the recipe is not that of the base" in other.stderr


def test_version() -> None:
    import dagscale as package

    assert dagscale("--version").stdout.strip() == f"dagscale {package.__version__}"


def test_completion_ends_well(tmp_path: Path) -> None:
    for asked, given, answer in (
        (["--show-completion", "bash"], {}, "_completion"),
        ([], {"COMP_WORDS": "dagscale pla", "COMP_CWORD": "1", "_DAGSCALE_COMPLETE": "complete_bash"}, "plan"),
    ):
        called = "import sys; sys.argv[0] = 'dagscale'; from dagscale.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", called, *asked], capture_output=True, text=True, timeout=120,
            env={**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", **given},
        )  # fmt: skip
        assert answer in done.stdout
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["inspect", "mlp:2_2"], "2_2"),
        (["inspect", "mlp:2_2x"], "x"),
        (["inspect", "nope:2"], "nope"),
        (["inspect", "mymodel.py:nothing"], "nothing"),
        (["inspect", "mymodel.py:broken"], 'KeyError: "the user\'s own words"'),
        (["inspect", "mymodel.py:integers"], "floating-point"),
        (["inspect", "mymodel.py:elsewhere"], ".to('cpu')"),
        (["inspect", "mymodel.py:weightless"], "no parameters"),
        (["inspect", "mymodel.py:pathless"], "no path from input to output"),
        (["inspect", "mlp:2", "--picture", "missing/folder/x.svg"], "missing/folder"),
        (["inspect", "mlp:2", "--picture", "x.bmp"], ".svg"),
        (["plan", "mlp:2_22", "--base", "mlp:2", "--base-lr", "0.1", "--law", "pahts"], "did you mean 'paths'"),
        (["plan", "mlp:2_22", "--base", "mlp:2", "--base-lr", "0.1", "--init", "x"], "unknown init"),
        (["plan", "mlp:2_22", "--base", "mlp:2", "--base-lr", "0"], "positive"),
        (["plan", "mlp:2_22", "--base-lr", "0.1"], "base"),
        (["plan", "mlp:2_22", "--base", "mlp:0", "--base-lr", "0.1"], "no path"),
        (["plan", "mlp:2_22", "--base", "mymodel.py:pathless", "--base-lr", "0.1"], "base: no path"),
        (["search", "mlp:2", "--data", "mymodel.py"], "mymodel.py"),
        (["search", "mlp:2", "--data", "absent"], "absent"),
        (["search", "mlp:2", "--data", "table.csv"], "that returns (x, y): --data file.py:function"),
        (["search", "mlp:2", "--seeds", "0"], "'--seeds'"),
        (["search", "mlp:2", "--plot", "missing/folder/x.png"], "missing/folder"),
        (["verify", "mlp-dags", "--store", "s.sqlite"], "unknown suite 'mlp-dags'; did you mean 'mlp-dag'"),
        (["verify", "mlp-dag", "--options", "&&"], "name nothing between two &"),
        (["verify", "mlp-dag", "--batch-size", "0"], "'--batch-size'"),
        (["verify", "mlp-dag", "--epochs", "-1"], "'--epochs'"),
        (["verify", "mlp-dag", "--spacing", "1e-9"], "'--spacing'"),
        (["verify", "mlp-dag", "--grid", "-2000", "2000"], "exponent must be -100 to 100"),
        (["verify", "mlp-dag", "--architectures", "9" * 24], "'--architectures'"),
        (["inspect", "mlp:2", "--seed", str(2**64)], "'--seed'"),
        (["verify", "mlp-dag", "--store", "mymodel.py/s.sqlite"], "cannot make the folder mymodel.py"),
        (["demo", "--out", "mymodel.py"], "cannot make the folder mymodel.py"),
        (["plan", "mlp:2", "--base", "mlp:2", "--base-lr", "0.1", "--law", "curvature"], "needs data"),
        (["sweep", "status", "mymodel.py"], "mymodel.py"),
        (["plan", "cnn:2", "--base", "mlp:2", "--base-lr", "0.1"], "shares no layer with the target"),
        (["plan", "mlp:2", "--base", "mlp:2", "--base-lr", "0.1", "--optimizer", "sdg"], "did you mean 'sgd'"),
        (["plan", "mlp:2", "--base", "mlp:2", "--base-lr", "x"], "'--base-lr'"),
        (["check", "mlp:2", "mlp:2_02", "--data", "digits", "--plot", "x.xyz"], ".svg"),
        (["check", "mlp:2?width=8", "mlp:2?width=16", "--data", "digits", "--loss", "mse_loss"], "leave loss out"),
        (["search", "mlp:2", "--loss", "mse_loss", "--steps", "4"], "leave loss out for cross-entropy"),
        (["search", "mymodel.py:small", "--data", "mymodel.py:loader", "--loss", "mse"], "did you mean 'mse_loss'?"),
        (
            ["search", "mymodel.py:alone", "--data", "mymodel.py:huge", "--loss", "mse_loss", "--steps", "2"],
            "inputs are 1e+06 in root mean",
        ),
        (["frobnicate", "--json"], "No such command 'frobnicate'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(project: Path, arguments: list[str], text: str) -> None:
    before = sorted(p.name for p in project.iterdir())
    done = dagscale(*arguments, cwd=project)
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [n for n in sorted(p.name for p in project.iterdir()) if n != "__pycache__"] == before


def test_json_is_alone_on_stdout_whatever_the_model_prints(project: Path) -> None:
    with (project / "mymodel.py").open("a") as file:
        file.write(
            "\nprint('on import')\nNet.forward = lambda self, x, own=Net.forward: print('called') or own(self, x)\n"
        )
    made = document("plan", "mymodel.py:make", "--base-lr", "0.1", "--law", "none", cwd=project)
    assert made["lr"] == 0.1


def test_usage_errors_are_status_2() -> None:
    done = dagscale("plan", "mlp:2", "--no-such-option")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "--no-such-option" in done.stderr


def test_interruption_is_one_line_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = ["verify", "mlp-depth", "--method", "one-rate", "--epochs", "500", "--jobs", "1", "--store", "s.sqlite"]
    with (tmp_path / "err").open("w+") as err:
        running = subprocess.Popen([sys.executable, "-m", "dagscale", *command], cwd=tmp_path, stdout=err, stderr=err)
        deadline = time.monotonic() + 100
        while not (tmp_path / "s.sqlite-wal").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
        err.seek(0)
        assert [line for line in err.read().splitlines() if "dagscale" in line] == [
            "dagscale: interrupted: what is finished is in s.sqlite; the same command goes on from there"
        ]


def test_interruption_before_there_is_a_store_promises_none(tmp_path: Path) -> None:
    from dagscale.cli.app import Interrupted, resumable

    store = tmp_path / "s.sqlite"
    with pytest.raises(Interrupted, match=r"^interrupted before a run was finished$"), resumable(store):
        raise KeyboardInterrupt
    store.touch()
    with pytest.raises(Interrupted, match="what is finished is in"), resumable(store):
        raise KeyboardInterrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_while_torch_is_imported_is_one_line(number: signal.Signals) -> None:
    running = subprocess.Popen(
        [sys.executable, "-u", "-v", "-m", "dagscale", "list", "laws"], stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    while "/torch/__init__.py" not in (line := running.stderr.readline()):  # -v names each file that is read
        assert line, "it ended before torch was imported"
    running.send_signal(number)
    rest = running.communicate(timeout=60)[1]
    assert "dagscale: interrupted" in rest
    assert "Traceback" not in rest
    assert running.returncode == 130


def test_a_function_that_would_end_the_program_is_refused(project: Path) -> None:
    (project / "ends.py").write_text("import sys\n\n\ndef recipe():\n    sys.exit(3)\n")
    done = dagscale("plan", "mymodel.py:make", "--base-lr", "0.1", "--recipe", "ends.py:recipe", cwd=project)
    assert done.returncode == 2
    assert done.stderr.startswith("dagscale: calling recipe() raised SystemExit: 3")


def test_a_table_of_runs_that_never_ends_is_refused(project: Path) -> None:
    os.mkfifo(project / "runs.csv")
    done = dagscale("verify", "--runs", "runs.csv", cwd=project)
    assert done.returncode == 2
    assert "runs.csv is no plain file" in done.stderr


def test_json_is_alone_on_stdout_even_past_python(project: Path) -> None:
    with (project / "mymodel.py").open("a") as file:
        file.write("\nimport os\nos.write(1, b'past print')\n")
    made = document("plan", "mymodel.py:make", "--base-lr", "0.1", "--law", "none", cwd=project)
    assert made["lr"] == 0.1


def test_names_are_text(project: Path) -> None:
    with (project / "mymodel.py").open("a") as file:
        file.write(
            "\ndef named():\n    net = nn.Sequential()\n"
            "    for name in ('[/red]', '[bold]x', '\\x1b[31m', '\\udc80', '$\\\\frac{$'):\n"
            "        net.add_module(name, nn.Linear(20, 20))\n    return net, torch.randn(2, 20)\n"
        )
    for command in (
        ["inspect", "mymodel.py:named", "--picture", "x.svg"],
        ["plan", "mymodel.py:named", "--base-lr", "0.1", "--law", "none"],
    ):
        done = dagscale(*command, cwd=project)
        assert done.returncode == 0, done.stderr
        assert "[/red]" in done.stdout
        assert "\\x1b[31m" in done.stdout
        assert "\x1b" not in done.stdout
    ET.parse(project / "x.svg")


def test_messages_are_one_line_of_bounded_length(project: Path) -> None:
    for target in ("mlp:2\n2", "x" * 5000, "\x1b[31mred:2"):
        done = dagscale("inspect", target, cwd=project)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert len(done.stderr) < 700
        assert "\x1b" not in done.stderr


def test_a_pair_searched_and_planned_for_a_longer_run(tmp_path: Path) -> None:
    """`search --decay`, then `plan --horizon` from the file that it saved."""
    base = tmp_path / "base.json"
    training = ["--data", "digits", "--optimizer", "adamw", "--batch-size", "32"]
    found = document(
        "search", "mlp:1_01_001", *training, "--steps", "10", "--weight-decay", "0.1", "--decay", "--seeds", "1",
        "--save", str(base),
    )  # fmt: skip
    decay = str(found["recipe"]["weight_decay"])
    assert len(found["pairs"]) > 1
    plan = ["plan", "mlp:2_22_222", *training, "--steps", "40", "--weight-decay", decay, "--base", str(base)]
    made = document(*plan, "--law", "none", "--horizon", "power")
    assert made["factors"] == pytest.approx({"horizon power": 4**-0.32})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["inspect", "mlp:2", "--seed", "9" * 5000], "'--seed'"),
        (["inspect", "mlp:2", "--limit", "4"], "--limit is of data"),
        (["inspect", "mlp:2", "--format", "dot", "--json"], "--format and --json are two documents"),
        (["plan", "mlp:2", "--limit", "4"], "--limit is of data"),
        (["plan", "mlp:2", "--data", "digits", "--limit", "0"], "'--limit'"),
        (["plan", "mlp:2", "--recipe", "mymodel.py:bare", "--limit", "4"], "the recipe has none"),
        (["plan", "mlp:2", "--recipe", "mymodel.py:make"], "not a dagscale.Recipe"),
        (["plan", "mlp:2", "--recipe", "mymodel.py:failing"], "calling failing() raised ValueError: no recipe"),
        (["plan", "mlp:2", "--data", "mymodel.py:failing"], "calling failing() raised ValueError: no recipe"),
        (["plan", "mlp:2", "--data", "nowhere:data"], "'nowhere' is no module that can be imported"),
        (["plan", "mlp:2", "--data", "mymodel.py:stream", "--limit", "4"], "--limit cannot draw from Stream"),
        (["plan", "mlp:2", "--data", "digits", "--loss", "mse_los"], "did you mean 'mse_loss'"),
        (["plan", "mlp:2", "--data", "digits", "--loss", "mymodel.py:nothing"], "has no 'nothing'"),
        (["plan", "mlp:2", "--data", "text:mymodel.py"], "the data are token ids, and this takes images"),
        (["plan", "hf:bert", "--data", "text:"], "name a file of text"),
        (["search", "mlp:2", "--law", "none"], "name one with --save"),
        (["search", "lm:1"], "lm:1 is trained, and needs data: name them with --data"),
        (["search", "mymodel.py:small"], "mymodel.py:small is trained, and needs data: name them with --data"),
        (["search", "mlp:2", "--steps", "20", "--epochs", "2"], "steps and epochs both say how long a run is"),
        (["search", "mlp:2", "--grid", "2", "-8"], "give the lower exponent first"),
        (["search", "mlp:2", "--grid", "-2000", "2000"], "exponent must be -100 to 100"),
        (["search", "mlp:2", "--warmup", "nan"], "warmup"),
        (["search", "mlp:2", "--clip", "nan"], "clip"),
        (["search", "mlp:2", "--weight-decay", "nan"], "weight"),
        (["plan", "mlp:2", "--base-lr", "nan", "--law", "none"], "base"),
        (["check", "mlp:2", "mlp:3", "--base-lr", "nan"], "base"),
        (["verify", "mlp-dag", "--spacing", "nan"], "spacing"),
        (["retrain"], "name the --data to train on"),
        (["retrain", "--data", "digits", "--report", "r.jsonl"], "name the --data to train on"),
        (["retrain", "--report", "r.jsonl", "--budget", "8m"], "--report trains nothing"),
        (["retrain", "--data", "digits", "--budget", "8"], "'8' is no length of time"),
        (["retrain", "--data", "digits", "--budget", "0m"], "'0m' is no length of time"),
        (["retrain", "--data", "digits", "--budget", "9m", "--top", "9"], "--budget goes through one list"),
        (["retrain", "--data", "digits", "--seeds", "1"], "'--seeds'"),
        (["retrain", "--data", "digits", "--count", "0"], "'--count'"),
        (["retrain", "--report", "r.jsonl", "--count", "3"], "--count is of training, and --report trains nothing"),
        (["retrain", "--data", "digits", "--budget", "8m", "--out", "o"], "--out is of the comparison, which --report"),
        (["retrain", "--data", "digits", "--dataset", "cifar10"], "--dataset is of a --benchmark, and none is named"),
        (["retrain", "--data", "digits", "--architectures", "3_33_333", "--count", "3"], "--count is of a sample, and"),
        (["retrain", "--data", "digits", "--architectures", "absent"], "'absent' is neither a file nor a code"),
        (["rerank", "--benchmark", "t.csv"], "--against names the accuracies"),
        (
            ["rerank", "--benchmark", "t.csv", "--against", "t.csv", "--setting", "x"],
            "--setting: t.csv has one setting",
        ),
        (["rerank", "--benchmark", "jahs-bench-201:table.csv", "--partial"], "table.csv"),
        (["inspect", "nb201:0_00_000"], "take one whose operations lead from input to output"),
        (["plan", "mlp:2", "--data", "digits", "--batch", "absent"], "unknown rule of batch size and horizon 'absent'"),
        (["list", "lawz"], "there is no list of 'lawz'"),
    ],
)
def test_bad_options_are_one_line_and_status_2(
    project: Path, arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As above, in this process: what comes before any work needs none of its own."""
    from dagscale.cli import main

    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["dagscale", *arguments])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = sorted(project.iterdir())
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capfd.readouterr()
    assert left.value.code == 2, err
    assert text in err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert [path for path in sorted(project.iterdir()) if path.name != "__pycache__"] == before
