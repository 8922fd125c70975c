"""What tests of the store share: how many files there are, and what is in a batch of them."""

from __future__ import annotations

import numpy as np

from fastssl.data.decode import decode

N = 23


def cut(file, share=0.93):
    raw = file.read_bytes()
    file.write_bytes(raw[: int(share * len(raw))])


def unpacked(batch):
    places = zip(batch.offsets.tolist(), batch.sizes.tolist(), strict=True)
    return [batch.data[o : o + h * w * 3].view(h, w, 3).cpu().numpy() for o, (h, w) in places]


def assert_images(batch, paths):
    images = unpacked(batch)
    assert len(images) == len(paths)
    for image, path in zip(images, paths, strict=True):
        assert np.array_equal(image, decode(path))
