"""``fastssl.patch``: what it replaces, what it leaves, and that it can be undone."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastssl
from fastssl.compat import info_nce_pytorch, solo_learn
from tests.compat.agreement import peer

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def undone():
    yield
    fastssl.unpatch()


@pytest.fixture
def solo(tmp_path, monkeypatch):
    """A package laid out as solo-learn, which is on no index."""
    files = {
        "solo/__init__.py": "",
        "solo/losses/__init__.py": "from solo.losses.simclr import simclr_loss_func\n"
        "from solo.losses.other import other_loss_func\n",
        "solo/losses/simclr.py": "def simclr_loss_func(z, indexes, temperature=0.1): pass\n",
        "solo/losses/other.py": "def other_loss_func(): pass\n",
        "solo/methods/__init__.py": "",
        "solo/methods/simclr.py": "from solo.losses.simclr import simclr_loss_func\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("solo.methods.simclr")
    for name in [name for name in sys.modules if name.split(".")[0] == "solo"]:
        del sys.modules[name]


def test_replaces_in_every_module_of_the_package_and_back(solo):
    losses = importlib.import_module("solo.losses")
    simclr = importlib.import_module("solo.losses.simclr")
    own, other = simclr.simclr_loss_func, losses.other_loss_func
    patched = fastssl.patch("solo_learn")
    for module in (solo, losses, simclr):
        assert module.simclr_loss_func is solo_learn.simclr_loss_func
    assert losses.other_loss_func is other
    assert str(patched).splitlines() == [
        f"solo.{name}.simclr_loss_func -> fastssl.compat.solo_learn.simclr_loss_func"
        for name in ("losses", "losses.simclr", "methods.simclr")
    ]
    fastssl.unpatch("solo_learn")
    for module in (solo, losses, simclr):
        assert module.simclr_loss_func is own


def test_is_a_context_manager(solo):
    own = solo.simclr_loss_func
    with fastssl.patch("solo_learn"):
        assert solo.simclr_loss_func is solo_learn.simclr_loss_func
    assert solo.simclr_loss_func is own
    with pytest.raises(ZeroDivisionError), fastssl.patch("solo_learn"):
        1 / 0  # noqa: B018
    assert solo.simclr_loss_func is own


def test_twice_is_harmless_and_an_inner_block_leaves_an_outer_patch(solo):
    own = solo.simclr_loss_func
    fastssl.patch("solo_learn")
    with fastssl.patch("solo_learn") as again:
        assert str(again) == "solo_learn: nothing was left to replace"
    assert solo.simclr_loss_func is solo_learn.simclr_loss_func
    fastssl.unpatch()
    fastssl.unpatch()
    fastssl.unpatch("lightly")
    assert solo.simclr_loss_func is own


def test_what_was_replaced_since_is_left_alone(solo):
    own, theirs = solo.simclr_loss_func, object()
    with fastssl.patch("solo_learn"):
        solo.simclr_loss_func = theirs
    assert solo.simclr_loss_func is theirs
    assert importlib.import_module("solo.losses").simclr_loss_func is own


def test_modules_imported_later_get_ours_and_keep_it(solo):
    fastssl.patch("solo_learn")
    del sys.modules["solo.methods.simclr"]
    later = importlib.import_module("solo.methods.simclr")
    assert later.simclr_loss_func is solo_learn.simclr_loss_func


def test_unknown_and_missing_packages_say_so(solo):
    with pytest.raises(ValueError, match=r"package must be one of .*'lightly'.*, not 'lighty'"):
        fastssl.patch("lighty")
    with pytest.raises(ValueError, match="package must be one of"):
        fastssl.unpatch("lighty")
    with pytest.raises(ModuleNotFoundError, match="no module 'grad_cache' installed here"):
        fastssl.patch("gradcache")
    with pytest.raises(
        ValueError, match=r"fastssl.compat.solo_learn has no 'byol'; it has DINOLoss"
    ):
        fastssl.patch("solo_learn", "byol")
    with pytest.raises(ValueError, match=r"this version of solo_learn has no solo.losses.nnclr"):
        fastssl.patch("solo_learn", "nnclr_loss_func")


def test_a_package_that_does_not_import_says_so(tmp_path, monkeypatch):
    (tmp_path / "grad_cache.py").write_text("raise RuntimeError('no such operator')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="grad_cache does not import: no such operator"):
        fastssl.patch("gradcache")


@pytest.mark.parametrize(
    ("package", "homes", "distribution"),
    [
        ("info_nce_pytorch", "info_nce", "info-nce-pytorch"),
        (
            "lightly",
            "lightly.loss lightly.models.modules.memory_bank lightly.models.utils",
            "lightly",
        ),
        ("open_clip", "open_clip.loss", "open_clip_torch"),
        ("pytorch_metric_learning", "pytorch_metric_learning.losses", "pytorch-metric-learning"),
        ("timm", "timm.utils", "timm"),
    ],
)
def test_every_name_stands_in_for_the_installed_packages(package, homes, distribution):
    compat = importlib.import_module(f"fastssl.compat.{package}")
    modules = [peer(home, distribution) for home in homes.split()]
    where = {name: m for m in modules for name in compat.__all__ if hasattr(m, name)}
    assert where.keys() == set(compat.__all__)
    own = {name: getattr(module, name) for name, module in where.items()}
    with fastssl.patch(package) as patched:
        for name, module in where.items():
            assert getattr(module, name) is getattr(compat, name)
            ours = f"fastssl.compat.{package}.{name}"
            assert f"{module.__name__}.{name} -> {ours}" in str(patched).splitlines()
    for name, value in own.items():
        assert getattr(where[name], name) is value


def test_one_name_alone():
    module = peer("info_nce", "info-nce-pytorch")
    own = module.InfoNCE
    with fastssl.patch("info_nce_pytorch", "info_nce"):
        assert module.InfoNCE is own
        assert module.info_nce is info_nce_pytorch.info_nce


def train(steps: int = 4) -> list[float]:
    """SimCLR as lightly's documentation has it, with a tiny backbone and random images."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    class SimCLR(nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone
            self.projection_head = SimCLRProjectionHead(16, 16, 8)

        def forward(self, x):
            x = self.backbone(x).flatten(start_dim=1)
            return self.projection_head(x)

    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model = SimCLR(backbone)
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    losses = []
    for _ in range(steps):
        x0, x1 = torch.rand(2, 32, 3, 8, 8)
        loss = criterion(model(x0), model(x1))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_a_lightly_script_runs_unchanged():
    lightly = peer("lightly.loss", "lightly")
    without = train()
    with fastssl.patch("lightly"):
        assert lightly.NTXentLoss.__module__ == "fastssl.compat.lightly"
        patched = train()
    torch.testing.assert_close(torch.tensor(patched), torch.tensor(without), rtol=0, atol=1e-5)
    assert len(set(without)) == len(without)


def test_open_clip_builds_ours():
    """What a package itself builds is patched too."""
    peer("open_clip.loss", "open_clip_torch")
    factory = importlib.import_module("open_clip.factory")

    class Settings:
        distill = siglip = horovod = local_loss = gather_with_grad = False
        model, rank, world_size, loss_dist_impl = "ViT-B-32", 0, 1, None

    with fastssl.patch("open_clip"):
        assert type(factory.create_loss(Settings)).__module__ == "fastssl.compat.open_clip"
        Settings.siglip = True
        assert type(factory.create_loss(Settings)).__module__ == "fastssl.compat.open_clip"


def test_compat_needs_no_peer_and_importing_fastssl_touches_none():
    """Every module imports where no peer can be, and patches nothing."""
    code = (
        "import sys, pkgutil, importlib\n"
        "peers = ['lightly', 'open_clip', 'pytorch_metric_learning', 'solo', 'info_nce', "
        "'grad_cache', 'timm', 'torchvision']\n"
        "sys.modules.update(dict.fromkeys(peers))\n"
        "import fastssl\n"
        "assert not any(m.startswith('fastssl.compat.') for m in sys.modules)\n"
        "import fastssl.compat\n"
        "for module in pkgutil.iter_modules(fastssl.compat.__path__):\n"
        "    importlib.import_module(f'fastssl.compat.{module.name}')\n"
        "print(sorted(m.split('.')[2] for m in sys.modules if m.startswith('fastssl.compat.')))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    for name in ("lightly", "moco", "gradcache", "supcontrast"):
        assert name in ran.stdout
