"""Which images each process sees, and how those of a folder are read."""

import shutil

import click
import pytest
import torch


@pytest.mark.parametrize(
    "count, size, accumulate, world", [(100, 8, 1, 1), (100, 8, 2, 3), (64, 4, 4, 4), (7, 8, 1, 1)]
)
def test_training_batches(count, size, accumulate, world, train):
    batches = train.images.train_batches
    ranks = [
        batches(count, size, accumulate, seed=3, epoch=1, rank=rank, world=world) for rank in range(world)
    ]  # fmt: skip
    lengths = {len(own) for own in ranks}
    assert lengths == {count // (size * accumulate * world) * accumulate}
    seen = [i for own in ranks for batch in own for i in batch]
    assert len(set(seen)) == len(seen) and all(len(batch) == size for own in ranks for batch in own)
    if seen:
        assert seen != [i for r in range(world) for b in batches(count, size, accumulate, seed=3, epoch=2, rank=r,
                                                                  world=world) for i in b]  # fmt: skip


@pytest.mark.parametrize("count, size, world", [(10, 4, 1), (10, 4, 3), (2, 4, 3), (9, 2, 2)])
def test_validation_batches_count_every_image_once(count, size, world, train):
    ranks = [train.images.val_batches(count, size, rank=rank, world=world) for rank in range(world)]
    assert len({tuple(map(len, own)) for own in ranks}) == 1
    assert sorted(i for own in ranks for batch in own for i in batch if i < count) == list(range(count))


def test_folder(train, folder):
    data, val, classes, channels = train.images.load(folder, 16, 0)
    assert (len(data), len(val), classes, channels) == (39, 9, 3, 3)
    image, label = data[0]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and label == 0
    assert data[38][1] == 2
    assert torch.equal(image, data[0][0])
    data.epoch = 1
    assert not torch.equal(image, data[0][0])
    assert torch.equal(val[3][0], val[3][0])
    brightest = [
        val[i][0].mean((1, 2)) + torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]) for i in (0, 3, 6)
    ]
    assert [int(m.argmax()) for m in brightest] == [0, 1, 2]


def test_workers_do_not_change_what_is_read(train, folder):
    data = train.images.load(folder, 16, 0)[0]
    batches = [[0, 5], [7, 3]]
    state = torch.get_rng_state()
    alone, helped = (list(train.images.batches_of(data, batches, workers)) for workers in (0, 1))
    assert torch.equal(state, torch.get_rng_state())
    for (x, y), (x2, y2) in zip(alone, helped, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_folders_that_do_not_fit(train, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/val/bee")
    with pytest.raises(click.BadParameter, match="same classes in train and val, these differ: bee"):
        train.images.load(tmp_path / "data", 16, 0)
    shutil.rmtree(tmp_path / "data/val")
    (tmp_path / "data/val").mkdir()
    with pytest.raises(click.BadParameter, match="found no image"):
        train.images.load(tmp_path / "data", 16, 0)
