import functools
import json

import pytest
import torch
from PIL import Image

from fastssl.cli import main
from fastssl.data import Split, TensorImages
from fastssl.evaluation import evaluate_encoder
from fastssl.training import TrainConfig, train


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "tiny"
    config = TrainConfig(
        epochs=1,
        batch_size=64,
        chunk_size=32,
        head_hidden=32,
        run_dir=path,
        device="cpu",
        evaluate=False,
        pictures=False,
    )
    train(config)
    return path


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(
        "fastssl.training.run.evaluate_encoder", functools.partial(evaluate_encoder, draws=2)
    )


def test_eval_prints_the_table_and_writes_the_report(run_dir, capsys):
    assert main(["eval", str(run_dir), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    report = json.loads((run_dir / "evaluation.json").read_text())
    markdown = (run_dir / "evaluation.md").read_text()
    for row in ("kNN", "1 label a class", "50 labels a class", "linear probe"):
        assert row in printed
        assert row in markdown
    assert report["setup"]["test images"] == 359
    assert report["setup"]["train images"] == 1438
    assert report["results"]["5 labels a class"]["raw pixels"]["mean"] > 0.8


def test_eval_on_other_data_into_another_directory(run_dir, tmp_path):
    arguments = ["eval", str(run_dir), "--device", "cpu", "--data", "digits"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "evaluation.json").exists()


def test_chosen_tasks_on_the_encoder_with_the_heads_first_layer(run_dir, tmp_path, capsys):
    arguments = ["eval", str(run_dir), "--device", "cpu", "--out", str(tmp_path)]
    tuning = ["--tasks", "rankme,semi-supervised", "--label-shares", "10", "--epochs", "1"]
    assert main([*arguments, *tuning, "--head-layers", "1"]) == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(report["results"]) == ["RankMe, dimensions", "fine-tuning, 10% of labels"]
    assert list(report["results"]["fine-tuning, 10% of labels"]) == ["trained", "untrained"]
    assert report["setup"]["feature dimensions"]["trained"] == 32  # the head's hidden width
    assert report["setup"]["fitting"]["epochs"] == 1
    printed = capsys.readouterr().out
    assert "fine-tuning, 10% of labels" in printed
    assert "over 3" in printed


def test_without_labels_rankme_alone(run_dir, tmp_path, capsys, monkeypatch):
    images = torch.randint(0, 256, (9, 1, 16, 16), dtype=torch.uint8)
    unlabelled = Split(TensorImages(images), None, "digits")
    monkeypatch.setattr("fastssl.cli.eval.load_data", lambda *_, **__: unlabelled)
    arguments = ["eval", str(run_dir), "--data", "x", "--device", "cpu", "--out", str(tmp_path)]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(report["results"]) == ["RankMe, dimensions"]
    assert "9 training images of x." in capsys.readouterr().out
    assert main([*arguments, "--tasks", "rankme,knn,fine-tuning"]) == 2
    assert "knn, fine-tuning: labels of training and test images" in capsys.readouterr().err


def test_colour_images_for_a_grey_encoder(run_dir, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (20, 20)).save(tmp_path / name / f"{i}.png")
    assert main(["eval", str(run_dir), "--data", f"folder:{tmp_path}"]) == 2
    assert "3 channels, the encoder takes 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["RUN", "--data", "nothing"], "nothing"),
        (["RUN", "--device", "abacus"], "abacus"),
        (["RUN", "--tasks", "knn,golf"], "no task 'golf'; there are: knn, few-labels"),
        (["RUN", "--tasks", "semi-supervised", "--label-shares", "0.1"], "too few labels: 0.001"),
        (["RUN", "--epochs", "0"], "epochs must be at least 1, not 0"),
        (["RUN", "--head-layers", "2"], "all but the last of a head's 2 layers"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(run_dir, arguments, message, capsys):
    assert main(["eval", *(str(run_dir) if a == "RUN" else a for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastssl eval: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_checkpoint_is_not_unpickled(run_dir, tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (print, ("code from a checkpoint ran",))

    (tmp_path / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    torch.save({"method": Trap()}, tmp_path / "checkpoint.pt")
    assert main(["eval", str(tmp_path), "--device", "cpu"]) == 2
    streams = capsys.readouterr()
    assert "code from a checkpoint ran" not in streams.out
    assert "checkpoint" in streams.err
