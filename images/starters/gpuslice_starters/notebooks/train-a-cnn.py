# %% [markdown]
# # Train a CNN
#
# A small neural network learns to read handwritten digits, better than 98 % of the time.
#
# CNN is short for *convolutional neural network*: its first layers are filters, like those of the
# notebook *Image processing*, but the network finds the filters itself.

# %%
import importlib.util
import time

if importlib.util.find_spec("torch") is None:
    raise ImportError(
        "PyTorch is not installed here. Ask whoever runs this platform, or install it as the "
        "starter 'Start here' says (NAME is torch; a large download), then restart the kernel."
    )
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from gpulab import memory_used, my_slice

torch.manual_seed(0)  # the same numbers each time
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if device.type == "cpu":
    torch.set_num_threads(1)  # for a network this small, more would only wait for each other
print("Training on the", "GPU" if device.type == "cuda" else "CPU")

# %% [markdown]
# ## 1. The data
#
# 1797 digits that people wrote, 8 × 8 pixels each. We keep a fifth apart: the network never sees it
# while it learns, so it is a fair test.

# %%
digits = load_digits()
pictures = digits.images.astype("float32")[:, None] / 16  # from 0 to 1
x_train, x_test, y_train, y_test = train_test_split(
    pictures, digits.target, test_size=0.2, stratify=digits.target, random_state=0
)
x_train, x_test, y_train, y_test = (
    torch.as_tensor(part, device=device) for part in (x_train, x_test, y_train, y_test)
)

_, axes = plt.subplots(1, 10, figsize=(10, 1.4))
for axis, picture, name in zip(axes, pictures, digits.target, strict=False):
    axis.imshow(picture[0], cmap="gray_r")
    axis.set_title(name)
    axis.axis("off")
plt.show()

# %% tags=["check"]
assert len(x_train) == 1437 and len(x_test) == 360
assert sorted(y_test.unique().tolist()) == list(range(10))
print("✓ 1437 digits to learn from, 360 to test with")

# %% [markdown]
# ## 2. The network
#
# Two pairs of layers look for strokes, then for shapes made of strokes. The last layer says how
# much the picture looks like each digit from 0 to 9.


# %%
def layer(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


network = nn.Sequential(
    layer(1, 32),
    layer(32, 32),
    nn.MaxPool2d(2),
    layer(32, 64),
    layer(64, 64),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Dropout(0.2),
    nn.Linear(64, 10),
).to(device)
print(sum(p.numel() for p in network.parameters()), "numbers to learn")

# %% tags=["check"]
with torch.no_grad():
    assert network(x_test[:5]).shape == (5, 10)
print("✓ ten scores for each picture")

# %% [markdown]
# ## 3. Learn
#
# In each *epoch* the network sees every training picture once. The *loss* says how wrong it is. We
# also move each picture by up to a pixel, so that it learns the shape and not the place.

# %%
EPOCHS, BATCH = 20, 64


def shift(batch):
    """Move each picture by up to one pixel in each direction."""
    padded = nn.functional.pad(batch, (1, 1, 1, 1))
    dy, dx = (torch.randint(0, 3, (len(batch), 1, 1)).to(batch.device) for _ in range(2))
    rows = torch.arange(8, device=batch.device)[None, :, None] + dy
    columns = torch.arange(8, device=batch.device)[None, None, :] + dx
    which = torch.arange(len(batch), device=batch.device)[:, None, None]
    return padded[which, 0, rows, columns][:, None]


optimiser = torch.optim.AdamW(network.parameters())
steps = EPOCHS * -(-len(x_train) // BATCH)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=6e-3, total_steps=steps)
losses = []
start = time.perf_counter()
for _ in range(EPOCHS):
    network.train()
    total = 0.0
    for batch in torch.randperm(len(x_train)).split(BATCH):
        scores = network(shift(x_train[batch]))
        loss = nn.functional.cross_entropy(scores, y_train[batch], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.item() * len(batch)
    losses.append(total / len(x_train))
seconds = time.perf_counter() - start
print(f"{EPOCHS} epochs in {seconds:.1f} s")

# %%
plt.figure(figsize=(6, 3))
plt.plot(range(1, EPOCHS + 1), losses, marker="o")
plt.xlabel("epoch")
plt.ylabel("loss")
plt.show()

# %% tags=["check"]
assert losses[-1] < losses[0] / 3
print(f"✓ the loss fell from {losses[0]:.2f} to {losses[-1]:.2f}")

# %% [markdown]
# ## 4. Test
#
# How many of the 360 digits that it has never seen does it read correctly?

# %%
network.eval()
with torch.no_grad():
    guesses = network(x_test).argmax(dim=1)
accuracy = (guesses == y_test).float().mean().item()
print(f"test accuracy: {accuracy:.2%}")

# %% tags=["check"]
assert accuracy > 0.98
print("✓ more than 98 %")

# %%
wrong = (guesses != y_test).nonzero()[:, 0].tolist()
columns = max(len(wrong), 1)
_, axes = plt.subplots(1, columns, figsize=(1.4 * columns, 1.6), squeeze=False)
for axis, i in zip(axes[0], wrong, strict=False):
    axis.imshow(x_test[i, 0].cpu(), cmap="gray_r")
    axis.set_title(f"{y_test[i].item()} read as {guesses[i].item()}", fontsize=8)
for axis in axes[0]:
    axis.axis("off")
plt.show()
print(len(wrong), "of", len(x_test), "were read wrongly")

# %% [markdown]
# ## 5. What it took

# %%
if device.type == "cuda":
    most = torch.cuda.max_memory_allocated() / 2**20
    print(f"GPU memory of this training: {most:.0f} MiB at most")
else:
    print("GPU memory of this training: none, it ran on the CPU")
print(memory_used())

here = my_slice()
print("Cost of this training:", here.cost(seconds))
print(here)

# %% [markdown]
# The bill counts from start to stop of your server, not only while you train. **Stop it when you
# are done:** *File → Hub Control Panel → Stop My Server*.
#
# **Try next:** set `EPOCHS = 3`, or let `shift` return `batch` unchanged. Guess first, then run
# *Kernel → Restart Kernel and Run All Cells*.
