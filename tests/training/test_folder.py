"""From JPEGs to a report: photographs of different sizes, one of them cut short."""

from __future__ import annotations

import functools
import json
import unittest.mock

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.augment import Packed
from fastssl.cli import main
from fastssl.data import ImageStore, build_recipe
from fastssl.evaluation import evaluate_encoder
from fastssl.training import TrainConfig, Trainer, load_run, train
from fastssl.training.ranks import Ranks
from fastssl.training.run import build_method

CLASSES = {"fire": (220, 80, 30), "sea": (30, 90, 210), "wood": (60, 160, 50)}
EACH = 20
SMALL = {"batch_size": 16, "chunk_size": 8, "epochs": 2, "head_hidden": 32, "head_out": 16}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (folder / name).mkdir()
        for i in range(EACH):
            pixels = np.clip(rng.normal(colour, 60, (5, 6, 3)), 0, 255).astype(np.uint8)
            height, width = rng.integers(36, 90, 2)
            image = Image.fromarray(pixels).resize((int(width), int(height)))
            image.save(folder / name / f"{i:02}.jpg")
    cut = folder / "sea" / "07.jpg"
    cut.write_bytes(cut.read_bytes()[:-60])
    return folder


def settings(photos, run_dir, **values):
    quiet = {"evaluate": False, "pictures": False, "device": "cpu", "image_size": 32}
    given = {**SMALL, **quiet, "data": str(photos), "encoder": "small-cnn", "on_corrupt": "skip"}
    return TrainConfig(**{**given, "run_dir": run_dir, **values})


def state(path):
    return torch.load(path / "checkpoint.pt", weights_only=True)["method"]


def test_from_jpegs_to_knn(photos, tmp_path, capsys, monkeypatch):
    quick = functools.partial(evaluate_encoder, labels_per_class=(1,), draws=2)
    monkeypatch.setattr("fastssl.training.run.evaluate_encoder", quick)
    monkeypatch.setattr("fastssl.training.run.INITIALISATIONS", 1)
    run, cache = tmp_path / "run", tmp_path / "cache"
    options = "--image-size 32 --encoder small-cnn --batch-size 16 --chunk-size 8 --epochs 4 "
    options += f"--head-hidden 32 --head-out 16 --device cpu --cache {cache} --run-dir {run}"
    command = ["train", "simclr", "--data", str(photos), *options.split()]

    assert main(command) == 2
    broken = photos / "sea" / "07.jpg"
    assert f"{broken}: not a readable image: image file is truncated" in capsys.readouterr().err
    assert not run.exists()

    assert main([*command, "--on-corrupt", "skip"]) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert f"left out, being unreadable: 1 file: {broken}: image file is trunc" in err
    assert "kNN" in out
    report = json.loads((run / "evaluation.json").read_text())
    assert report["results"]["kNN"]["trained"]["mean"] > 0.6  # a third by chance
    assert report["setup"]["train images"] + report["setup"]["test images"] == 3 * EACH - 1
    assert [file["path"] for file in report["setup"]["unreadable"]] == [str(broken)]
    assert (run / "unreadable.txt").read_text().startswith(f"{broken}: image file is truncated")
    assert "Unreadable files: 1." in (run / "evaluation.md").read_text()
    assert {"views.png", "map.png"} <= {path.name for path in run.iterdir()}
    assert len(list(cache.glob("*.bin"))) == 2  # training and test images

    assert main(["eval", str(run), "--tasks", "knn", "--device", "cpu"]) == 0
    again = json.loads((run / "evaluation.json").read_text())
    assert again["results"]["kNN"]["trained"] == report["results"]["kNN"]["trained"]
    assert load_run(run, device="cpu").config.cache == cache

    options = "--eval-crop 0.5 --crop-area 0.9 --epochs 1 --batch-size 16 --device cpu"
    seen = options.split()
    assert main(["eval", str(run), "--tasks", "rankme,fine-tuning", *seen]) == 0
    told = json.loads((run / "evaluation.json").read_text())
    assert (told["setup"]["eval crop"], told["setup"]["data"]) == (0.5, str(photos))
    other = told["results"]
    rank = "RankMe, dimensions"
    assert other[rank]["trained"] != report["results"][rank]["trained"]
    assert "fine-tuning, all labels" in other
    assert main(["distill", str(run), "--label-share", "50", *seen]) == 0
    capsys.readouterr()
    for option, says in (("--eval-crop", "eval_crop: "), ("--crop-area", "the least area of a")):
        assert main(["eval", str(run), "--tasks", "fine-tuning", option, "1.5"]) == 2
        assert says in capsys.readouterr().err


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """The weights of a run that was never interrupted."""
    return state(train(settings(photos, tmp_path_factory.mktemp("whole") / "run"))[0])


@pytest.mark.parametrize(
    "values",
    [{"keep": "decoded"}, {"keep": "encoded"}, {"keep": "files", "prefetch": 5}, {"cache": True}],
    ids=lambda values: " ".join(map(str, values.values())),
)
def test_the_weights_do_not_depend_on_what_is_kept_nor_on_a_resume(photos, whole, tmp_path, values):
    if "cache" in values:
        values = {"cache": tmp_path / "cache"}
    config = settings(photos, tmp_path / "run", checkpoint_seconds=0, workers=2, **values)
    stopped = unittest.mock.Mock(side_effect=[True] * 3 + [InterruptedError])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastssl.training.run_dir.Recorder.due", stopped)
        with pytest.raises(InterruptedError):
            train(config)
    assert any(not torch.equal(whole[key], value) for key, value in state(config.run_dir).items())
    train(config, resume=config.run_dir)
    for key, value in state(config.run_dir).items():
        assert torch.equal(whole[key], value), key


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu(photos, tmp_path, resident):
    losses = []
    for device in ("cpu", "cuda"):
        config = settings(photos, tmp_path / device, device=device, resident=resident)
        path, _ = train(config)
        lines = (path / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def trainer(images, config, rank=0, world_size=1):
    method = build_method(config, images.shape, samples=len(images))
    made = Trainer(method, images, build_recipe("small", 32), config, Ranks(0, 1, CPU))
    made.ranks = Ranks(rank, world_size, CPU)
    return made


CPU = torch.device("cpu")


def test_each_rank_reads_its_part_of_a_batch_in_the_images_own_sizes(photos, tmp_path):
    config = settings(photos, tmp_path / "run", keep="files")
    images = ImageStore(sorted((photos / "fire").iterdir()), [0] * EACH, size=32)
    read = []
    images.gather = lambda indices, pin: read.extend(indices) or ImageStore.gather(images, indices)
    batch, pixels = trainer(images, config)._load(0)
    assert isinstance(pixels, Packed)
    assert torch.equal(pixels.sizes, images.sizes[batch])
    read.clear()
    parts = [trainer(images, config, rank, 4)._load(0)[0] for rank in range(4)]
    assert sorted(torch.cat(parts).tolist()) == sorted(batch.tolist()) == sorted(read)
    assert [len(part) for part in parts] == [4] * 4


def test_views_of_strokes_are_made_of_one_size(photos, tmp_path):
    config = settings(photos, tmp_path / "run", views="digits", epochs=1)
    path, _ = train(config)
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_path_that_is_no_folder(tmp_path, capsys):
    assert main(["train", "simclr", "--data", str(tmp_path / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    data = tmp_path / "photos"
    data.mkdir()
    assert main(["train", "simclr", "--data", str(data)]) == 2
    assert "there are no images in it" in capsys.readouterr().err


def test_a_run_directory_has_the_kind_of_data_in_its_name(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = train(settings(photos, None, epochs=1))
    assert path.name.startswith("simclr-folder-")
