"""A run to be killed: ``python killed.py CONFIG``, as test_resume.py starts it."""

import sys
from pathlib import Path

from test_run import TinyEncoder

from fastssl.training import train
from fastssl.training.config import config_from, read_yaml

if __name__ == "__main__":
    import torch

    torch.manual_seed(7)
    encoder = TinyEncoder()
    train(config_from(read_yaml(Path(sys.argv[1])), sys.argv[1]), encoder=encoder)
