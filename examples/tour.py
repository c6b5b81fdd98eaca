# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of ghost_ops
#
# From a plain net to a file that another program runs, in ten minutes. It runs as it is, `python examples/tour.py`, and
# as a notebook, which [jupytext](https://jupytext.readthedocs.io) makes of it: `pip install jupytext notebook`, then
# `jupytext --to notebook examples/tour.py` and `jupyter notebook examples/tour.ipynb`.
#
# It needs `pip install "ghost-ops[demo]"`.

# %%
from pathlib import Path
from tempfile import mkdtemp

import torch

import ghost_ops
from ghost_ops.demo import digits
from ghost_ops.feature_maps import feature_maps
from ghost_ops.feature_maps.plot import plot

torch.manual_seed(0)
folder = Path(mkdtemp(prefix="ghost-ops-tour-"))

# %% [markdown]
# ## A plain net
#
# A small GhostNet in plain PyTorch, and handwritten digits. Yours may be timm's, Huawei's, YOLO's or your own: its
# modules are recognised by what they compute.

# %%
SIDE, EPOCHS = 16, 3
data = digits.load(SIDE)
net = digits.SmallGhostNet()
x = data.test[:2]

# %% [markdown]
# ## explain: what runs where
#
# As the net is, each module runs as plain PyTorch. The report says so, and why.

# %%
print(ghost_ops.explain(net, x))

# %% [markdown]
# ## fuse: the same net, trainable, with fused kernels
#
# The modules stay the objects that they were, with the same parameters and the same state_dict. So results are the
# same up to rounding, and `revert` undoes it.

# %%
with torch.no_grad():
    expected = net.eval()(x)
net = ghost_ops.fuse(net)
with torch.no_grad():
    difference = (net(x) - expected).abs().max()
print(f"largest difference: {difference:.1e}")
assert difference < 1e-4 * expected.abs().max() + 1e-6
print(ghost_ops.explain(net, x))

# %% [markdown]
# ## Training
#
# A fused net trains as any other.

# %%
training = digits.Training(net, data, EPOCHS)
for epoch in range(EPOCHS):
    losses = training.run_epoch(epoch, lambda: None)
    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")
accuracy = training.accuracy()
print(f"right in the test set: {accuracy:.1%}")

# %% [markdown]
# ## freeze: for inference
#
# BatchNorms are folded, weights are packed, and what hangs together is one call. The frozen net is a copy, for any
# batch.

# %%
net = ghost_ops.revert(net).eval()
frozen = ghost_ops.freeze(net, example=x)
with torch.no_grad():
    plain_answers, answers = net(data.test), frozen(data.test)
print(f"same answers: {(answers.argmax(1) == plain_answers.argmax(1)).float().mean():.1%}")
assert (answers - plain_answers).abs().max() < 1e-4 * plain_answers.abs().max()

# %% [markdown]
# ## profile: where the time goes
#
# Each module plain, fused and frozen, beside what this machine could do at best. `rounds` is small here.

# %%
print(ghost_ops.profile(net, x, rounds=1))

# %% [markdown]
# ## ghosts: why it works
#
# Many maps of a layer are like another one. A Ghost module computes half of them, and makes the others from these with
# a cheap operation: the arrows.

# %%
maps = feature_maps(net, x[:1], "blocks.1.ghost1")
for pair in maps.pairs(3):
    print(f"maps {pair.first} and {pair.second}: similarity {pair.similarity:.3f}")
image = x[0, 0] * digits.STD + digits.MEAN
plot(maps, folder / "ghosts.png", image=image, title="A small GhostNet that has learned digits")
print(f"the figure is in {folder / 'ghosts.png'}")
if "get_ipython" in globals():  # in a notebook
    from IPython.display import Image, display

    display(Image(folder / "ghosts.png"))

# %% [markdown]
# ## Export
#
# The frozen net as a file of `torch.export`, without the code of the net. Whoever loads it imports `ghost_ops`. A
# warning says what to give to other tools.

# %%
batch = torch.export.Dim.AUTO
with torch.no_grad():
    program = torch.export.export(frozen, (x,), dynamic_shapes=({0: batch},))
torch.export.save(program, folder / "digits.pt2")
loaded = torch.export.load(folder / "digits.pt2").module()
with torch.no_grad():
    difference = (loaded(data.test) - answers).abs().max()
print(f"{folder / 'digits.pt2'}: {(folder / 'digits.pt2').stat().st_size / 1e3:.0f} kB, difference {difference:.1e}")
assert difference <= 1e-5 * answers.abs().max()
# The command line does the same for ONNX, OpenVINO and AOTInductor: docs/command-line.md.
