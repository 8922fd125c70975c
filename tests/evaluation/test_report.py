import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn

from fastssl.evaluation import (
    evaluate_encoder,
    extract_features,
    raw_pixels,
    to_markdown,
    to_table,
    write_report,
)

ROWS = ["kNN", "1 label a class", "5 labels a class", "10 labels a class"]
ROWS += ["linear probe, all labels", "k-means, accuracy", "k-means, NMI", "k-means, ARI"]
RANK = "RankMe, dimensions"


def tiny_encoder():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())


def tiny_images(n):
    """Three classes: which third of the image is bright."""
    labels = torch.arange(n) % 3
    images = torch.randint(0, 60, (n, 1, 6, 6), dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        images[i, :, 2 * label : 2 * label + 2] += 150
    return images, labels


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    train, test = tiny_images(30), tiny_images(12)
    return evaluate_encoder(
        tiny_encoder(), *train, *test, untrained=tiny_encoder(), draws=3, progress=False
    )


def test_every_cell_is_there_and_in_its_range(report):
    assert list(report["results"]) == [*ROWS, RANK]
    for row, cells in report["results"].items():
        assert list(cells) == ["trained", "untrained", "raw pixels"]
        for cell in cells.values():
            low, high = (1, 30) if row == RANK else (-0.5, 1) if "ARI" in row else (0, 1)
            assert low <= cell["mean"] <= high, row
            assert cell["std"] >= 0
    assert report["results"]["kNN"]["raw pixels"]["mean"] == 1.0
    assert report["setup"]["left_out"] == [50]
    assert report["setup"]["feature dimensions"]["raw pixels"] == 36


def test_the_report_is_repeatable_and_survives_json(report):
    torch.manual_seed(0)
    train, test = tiny_images(30), tiny_images(12)
    again = evaluate_encoder(
        tiny_encoder(), *train, *test, untrained=tiny_encoder(), draws=3, progress=False
    )
    assert again["results"] == report["results"]
    assert json.loads(json.dumps(report)) == report


def test_several_initialisations_share_the_draws():
    train, test = tiny_images(30), tiny_images(12)
    several = [tiny_encoder() for _ in range(2)]
    options = {"labels_per_class": (2,), "progress": False}

    def untrained(module, draws, seed=0):
        result = evaluate_encoder(
            tiny_encoder(), *train, *test, untrained=module, draws=draws, seed=seed, **options
        )
        return result["results"]["2 labels a class"]["untrained"]["mean"]

    # draw 0 judges the first, draw 1 the second
    one_each = [untrained(module, 1, seed) for seed, module in enumerate(several)]
    assert untrained(several, 2) == pytest.approx(sum(one_each) / 2)


def test_markdown_and_table_show_every_row(report, tmp_path):
    console = Console(width=100, file=io.StringIO())
    console.print(to_table(report))
    for text in (to_markdown(report), console.file.getvalue()):
        for word in (*ROWS, RANK, "trained", "untrained", "raw pixels", "12 test", "[50]"):
            assert word in text
    json_path, markdown_path = write_report(report, tmp_path)
    assert json.loads(json_path.read_text()) == report
    assert markdown_path.read_text() == to_markdown(report)


def test_features_leave_the_encoder_as_it_was():
    encoder = tiny_encoder().train()
    encoder[1].eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images, _ = tiny_images(7)
    features = extract_features(encoder, images, batch_size=3)
    assert features.shape == (7, 64)
    assert features.dtype == torch.float32
    assert [m.training for m in encoder] == [True, False, True, True]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_uint8_is_read_as_k_over_255_and_transformed():
    images, _ = tiny_images(5)
    features = extract_features(nn.Identity(), images, transform=lambda x: 2 * x)
    torch.testing.assert_close(features, 2 * raw_pixels(images))
    torch.testing.assert_close(raw_pixels(images), raw_pixels(images.float() / 255))


def test_large_images_are_averaged_for_raw_pixels():
    images = torch.rand(3, 3, 64, 48)
    assert raw_pixels(images).shape == (3, 3 * 32 * 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": torch.arange(29)}, "train labels must be int64"),
        ({"test_labels": torch.zeros(12)}, "test labels must be int64"),
        ({"train_labels": torch.zeros(30).long()}, "two classes"),
        ({"train_images": torch.zeros(30, 6, 6)}, r"\[N, C, H, W\]"),
        ({"train_images": torch.zeros(30, 1, 6, 6).long()}, "uint8 or floating"),
        ({"train_images": torch.full((30, 1, 6, 6), float("nan"))}, "NaN or infinity"),
    ],
)
def test_wrong_input_says_what_is_wrong(change, message):
    (train_images, train_labels), (test_images, test_labels) = tiny_images(30), tiny_images(12)
    given = {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    } | change
    with pytest.raises(ValueError, match=message):
        evaluate_encoder(tiny_encoder(), **given, untrained=tiny_encoder(), progress=False)
