"""The default recipe teaches something, in a tenth of its time."""

import pytest

from fastssl.training import TrainConfig, train


@pytest.mark.slow
def test_a_short_training_beats_the_untrained_encoder_by_far(tmp_path):
    config = TrainConfig(epochs=50, run_dir=tmp_path / "run", device="cpu", pictures=False)
    _, report = train(config)
    assert report is not None
    for row in ("5 labels a class", "10 labels a class"):
        trained, untrained = (report["results"][row][c]["mean"] for c in ("trained", "untrained"))
        assert trained > untrained + 0.15, row
