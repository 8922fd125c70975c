import json

import pytest
import torch

from fastssl.cli import main
from fastssl.data import TensorImages
from fastssl.errors import UserError
from fastssl.evaluation import Fitting, accuracy
from fastssl.training import TrainConfig, distill_run, load_run, load_student, train


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "tiny"
    quiet = {"evaluate": False, "pictures": False, "device": "cpu"}
    sizes = {"epochs": 1, "batch_size": 64, "chunk_size": None, "head_hidden": 32}
    train(TrainConfig(run_dir=path, encoder="small-cnn", image_size=8, head="v2", **sizes, **quiet))
    return path


@pytest.fixture(autouse=True)
def short_teaching(monkeypatch):
    monkeypatch.setattr("fastssl.training.distilling.TEACHING", Fitting(epochs=3))


def test_a_student_is_taught_and_read_back(run_dir, capsys):
    arguments = ["distill", str(run_dir), "--device", "cpu", "--epochs", "1"]
    options = ["--encoder", "small-resnet", "--label-share", "5%", "--head-layers", "1"]
    assert main([*arguments, *options]) == 0
    printed = capsys.readouterr().out
    report = json.loads((run_dir / "distillation.json").read_text())
    assert list(report["results"]) == ["teacher", "student, labels alone", "student, distilled"]
    assert report["setup"]["label share"] == 0.05
    for word in ("5% of the labels", "student, distilled", "student.pt"):
        assert word in printed
    student, run = load_student(run_dir, device="cpu"), load_run(run_dir, device="cpu")
    test = run.data.test
    images = test[torch.arange(len(test))]
    score = accuracy(student, images, test.labels, transform=run.recipe.normalize)
    assert score == report["results"]["student, distilled"]["accuracy"]


def test_self_distillation_begins_with_the_runs_encoder(run_dir):
    assert main(["distill", str(run_dir), "--device", "cpu", "--epochs", "1"]) == 0
    report = json.loads((run_dir / "distillation.json").read_text())
    assert list(report["results"]) == ["teacher", "student, distilled"]
    assert load_student(run_dir, device="cpu").linear.out_features == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["RUN", "--encoder", "vgg"], "no encoder 'vgg'; there are: small-cnn"),
        (["RUN", "--label-share", "0.1"], "too few labels"),
        (["RUN", "--label-share", "101"], "at most 1, got 1.01"),
        (["RUN", "--head-layers", "3"], "a head's 3 layers"),
        (["RUN", "--temperature", "0"], "temperature must be positive"),
        (["RUN", "--lr", "-1"], "lr must be positive, not -1"),
        (["RUN", "--optimizer", "adam"], "no optimizer 'adam'"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(run_dir, arguments, message, capsys):
    given = [str(run_dir) if a == "RUN" else a for a in arguments]
    assert main(["distill", *given, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "fastssl distill: " in error
    assert message in error


def test_no_labels_no_teacher(run_dir):
    run = load_run(run_dir, device="cpu")
    images = run.data.train
    object.__setattr__(run.data, "train", TensorImages(images[torch.arange(9)]))
    with pytest.raises(UserError, match="a teacher needs labels"):
        distill_run(run, "cpu")


def test_a_broken_student(run_dir, tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        load_student(tmp_path)
    torch.save({"encoder": None, "head_layers": 0, "model": {}}, run_dir / "student.pt")
    with pytest.raises(UserError, match="is not of this run's student"):
        load_student(run_dir, device="cpu")
