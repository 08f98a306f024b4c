# %% [markdown]
# # Image processing
#
# Ten steps on real pictures, on the GPU if there is one, else on the CPU with the same code.
#
# Run a cell with **Shift+Enter**. After each step a cell marked ✓ checks the result: if you change
# something and a check fails, that is a good moment to look closer.

# %%
import numpy as np
from skimage import data

from gpulab import memory_used, open_lab, show

lab = open_lab()
xp, ndi, ski = lab.xp, lab.ndi, lab.ski  # arrays, filters, pictures
print(lab)

# %% [markdown]
# `xp` is NumPy on the CPU and CuPy on the GPU; `ski` is scikit-image or cuCIM. They share their
# names, so you write your code once.
#
# ## 1. A picture is an array
#
# A grey picture is a table of brightness values from 0 (black) to 1 (white).

# %%
photo = ski.util.img_as_float32(lab.to_device(data.camera()))
show(photo=photo)
print(photo.shape, photo.dtype)

# %% tags=["check"]
assert photo.shape == (512, 512)
assert 0 <= float(photo.min()) < float(photo.max()) <= 1
assert np.allclose(lab.to_host(photo), data.camera() / 255)
print("✓ 512 × 512 values between 0 and 1")

# %% [markdown]
# ## 2. Resize
#
# `anti_aliasing` smooths first, so that fine patterns do not turn into false ones.

# %%
small = ski.transform.resize(photo, (128, 128), anti_aliasing=True)
show(photo=photo, small=small)

# %% tags=["check"]
blocks = lab.to_host(photo).reshape(128, 4, 128, 4).mean(axis=(1, 3))
assert small.shape == (128, 128)
assert np.abs(lab.to_host(small) - blocks).mean() < 0.02
print("✓ each small pixel is close to the average of the 4 × 4 pixels it stands for")

# %% [markdown]
# ## 3. Rotate
#
# By 30 degrees, against the clock. The corners have no picture to show: they become black.

# %%
rotated = ski.transform.rotate(photo, 30, order=1)
show(photo=photo, rotated=rotated)

# %% tags=["check"]
thrice = ski.transform.rotate(ski.transform.rotate(rotated, 30, order=1), 30, order=1)
middle = slice(156, 356)
quarter_turn = np.rot90(lab.to_host(photo))[middle, middle]
assert rotated.shape == photo.shape
assert np.abs(lab.to_host(thrice)[middle, middle] - quarter_turn).mean() < 0.03
print("✓ three turns of 30 degrees are a quarter turn")

# %% [markdown]
# ## 4. Flip
#
# Flipping needs no library, only another order of rows or columns.

# %%
mirrored = photo[:, ::-1]
upside_down = photo[::-1, :]
show(photo=photo, mirrored=mirrored, upside_down=upside_down)

# %% tags=["check"]
assert (lab.to_host(mirrored) == np.fliplr(lab.to_host(photo))).all()
assert (lab.to_host(upside_down) == np.flipud(lab.to_host(photo))).all()
print("✓ left is right, and top is bottom")

# %% [markdown]
# ## 5. Noise
#
# A camera in the dark adds a random value to each pixel. We do it on purpose, to remove it next.

# %%
noisy = ski.util.random_noise(photo, mode="gaussian", rng=0, var=0.01).astype(xp.float32)
show(photo=photo, noisy=noisy)

# %% tags=["check"]
difference = lab.to_host(noisy - photo)
assert 0.08 < difference.std() < 0.11  # 0.1, a little less because nothing is whiter than white
assert abs(difference.mean()) < 0.02
print(f"✓ the noise is about 0.1 strong: {difference.std():.3f}")

# %% [markdown]
# ## 6. Mean filter
#
# Each pixel becomes the average of the 5 × 5 pixels around it. Noise averages out, and so do edges.

# %%
mean = ndi.uniform_filter(noisy, size=5)
show(noisy=noisy, mean=mean)


# %% tags=["check"]
def error(picture):
    """How far a picture is from the photo, on average."""
    return float(abs(picture - photo).mean())


for row, column in ((100, 200), (250, 250), (400, 60)):
    by_hand = lab.to_host(noisy)[row - 2 : row + 3, column - 2 : column + 3].mean()
    assert abs(float(mean[row, column]) - by_hand) < 1e-4
assert error(mean) < 0.6 * error(noisy)
print(f"✓ 5 × 5 averages; the error fell from {error(noisy):.3f} to {error(mean):.3f}")

# %% [markdown]
# ## 7. Gaussian filter
#
# An average too, but near pixels count more than far ones. `sigma` is how far it reaches.

# %%
smooth = ski.filters.gaussian(noisy, sigma=2)
show(noisy=noisy, mean=mean, gaussian=smooth)

# %% tags=["check"]
bell = np.exp(-(np.arange(-8, 9) ** 2) / (2 * 2**2))
weights = np.outer(bell, bell) / bell.sum() ** 2
for row, column in ((100, 200), (250, 250), (400, 60)):
    around = lab.to_host(noisy)[row - 8 : row + 9, column - 8 : column + 9]
    assert abs(float(smooth[row, column]) - (weights * around).sum()) < 1e-4
assert error(smooth) < 0.6 * error(noisy)
print(f"✓ a bell curve with sigma 2; the error is {error(smooth):.3f}")

# %% [markdown]
# ## 8. Edges: Sobel and Canny
#
# Sobel measures how fast the brightness changes. Canny keeps only the crests: thin lines, yes or
# no.

# %%
sobel = ski.filters.sobel(smooth)
canny = ski.feature.canny(photo, sigma=2)
show(photo=photo, sobel=sobel / sobel.max(), canny=canny)

# %% tags=["check"]
p = lab.to_host(smooth)[199:202, 299:302]  # the 3 × 3 pixels around (200, 300)
across = (p[:, 2] - p[:, 0]) @ [1, 2, 1] / 4
down = (p[2] - p[0]) @ [1, 2, 1] / 4
assert abs(float(sobel[200, 300]) - np.hypot(across, down) / np.sqrt(2)) < 1e-4

strength, lines = lab.to_host(sobel), lab.to_host(canny)
assert lines.dtype == bool
assert 0.02 < lines.mean() < 0.04
assert strength[lines].mean() > 3 * strength[~lines].mean()
print(f"✓ Sobel by hand agrees; Canny's lines are {lines.mean():.1%} of the picture")

# %% [markdown]
# ## 9. Erode, dilate, open, close
#
# First a yes/no picture: which pixels belong to a coin? Then a small disc is moved over it.
#
# - **erode**: yes only where the whole disc fits: things shrink
# - **dilate**: yes where the disc touches something: things grow
# - **open**: erode, then dilate: specks vanish
# - **close**: dilate, then erode: holes and gaps vanish

# %%
coins = ski.util.img_as_float32(lab.to_device(data.coins()))
light = ski.filters.threshold_local(coins, 101, method="gaussian")
mask = coins > light
disc = ski.morphology.disk(3)

eroded = ski.morphology.erosion(mask, disc)
dilated = ski.morphology.dilation(mask, disc)
opened = ski.morphology.opening(mask, disc)
closed = ski.morphology.closing(mask, disc)
show(coins=coins, mask=mask)
show(eroded=eroded, dilated=dilated, opened=opened, closed=closed)

# %% tags=["check"]
steps = [(y, x) for y in range(-3, 4) for x in range(-3, 4) if y * y + x * x <= 3 * 3]
inner = (slice(6, -6), slice(6, -6))  # away from the border


def moved(picture):
    """The picture moved by each step of the disc."""
    return [np.roll(picture, step, axis=(0, 1)) for step in steps]


on_host = lab.to_host(mask)
shrunk, grown = np.all(moved(on_host), axis=0), np.any(moved(on_host), axis=0)
assert len(steps) == int(disc.sum())
assert (lab.to_host(eroded)[inner] == shrunk[inner]).all()
assert (lab.to_host(dilated)[inner] == grown[inner]).all()
assert (lab.to_host(opened)[inner] == np.any(moved(shrunk), axis=0)[inner]).all()
assert (lab.to_host(closed)[inner] == np.all(moved(grown), axis=0)[inner]).all()
print("✓ all four agree with moving the disc by hand")

# %% [markdown]
# ## 10. Count the coins
#
# Close the gaps, fill the holes, open with a larger disc, drop what touches the border, count.

# %%
solid = ndi.binary_fill_holes(closed)
separate = ski.morphology.opening(solid, ski.morphology.disk(9))
whole = ski.segmentation.clear_border(separate)
labels, count = ndi.label(whole)
show(coins=coins, whole=whole)
print("coins:", int(count))

# %% tags=["check"]
assert int(count) == 24 == int(labels.max())
print("✓ 24 coins; count them in the picture")

# %% [markdown]
# ## How fast was that?
#
# The clock stops only when the GPU has finished. Small pictures gain little from a GPU; large ones
# and long chains of steps gain a lot.

# %%
blur_s = lab.seconds(lambda: ski.filters.gaussian(photo, sigma=2))
canny_s = lab.seconds(lambda: ski.feature.canny(photo, sigma=2))
print(f"On the {lab.on}: Gaussian {blur_s * 1000:.1f} ms, Canny {canny_s * 1000:.1f} ms")
print(memory_used())

# %% [markdown]
# **Try next:** change `disk(3)` to `disk(8)` in step 9 and guess first what happens. Upload a
# picture of your own and read it with `skimage.io.imread("name.jpg", as_gray=True)`.
