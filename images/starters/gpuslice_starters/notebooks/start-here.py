# %% [markdown]
# # Start here
#
# What you are running on, where your files live, what it costs and how to stop.
#
# Click into a cell and press **Shift+Enter** to run it.

# %%
from gpulab import memory_used, my_slice, open_lab

print(my_slice())

# %% [markdown]
# This notebook runs on a **slice**: a GPU, or a part of one, that is set aside for you while your
# server runs. A GPU is a chip that does thousands of simple calculations at the same time.
#
# **SIMULATED** means: this installation has no real GPU. Its numbers are made up to show how
# everything works, and no real money is meant. Your code then runs on the CPU.

# %%
lab = open_lab()
print(lab)
print(memory_used())

# %% tags=["check"]
numbers = lab.to_device([1, 2, 3])
assert int((numbers * numbers).sum()) == 14
print(f"✓ the {lab.on} computes")

# %% [markdown]
# ## Your files
#
# The folder on the left is your **home**. Drag a file from your computer into it to upload it.

# %%
import os
from pathlib import Path

note = Path.home() / "hello-from-start-here.txt"
if not note.exists():
    note.write_text("This file survives a stop.\n")
print(note)

# %% tags=["check"]
assert os.access(Path.home(), os.W_OK)
assert note.read_text()
print("✓ you can write to your home")

# %% [markdown]
# | when you stop your server | |
# |---|---|
# | files in your home, notebooks included | **stay** |
# | packages installed into your home | **stay** |
# | variables, running programs, what is in GPU memory | gone |
# | files anywhere else, such as `/tmp` | count on them being gone |
#
# ## More packages
#
# The next cell says how to install a package so that it stays.

# %%
import site
import sys

if site.ENABLE_USER_SITE:
    print("In a cell:  %pip install --user NAME")
else:
    print("Here everybody shares one set of packages, so --user is switched off. In a cell:")
    print("  %pip install --target ~/packages NAME")
    print("and in each notebook that needs it, before you import it:")
    print("  import os, sys; sys.path.append(os.path.expanduser('~/packages'))")
print("Afterwards: Kernel → Restart Kernel")
print("Python", sys.version.split()[0])

# %% [markdown]
# ## Coming from Colab
#
# | in Colab | here |
# |---|---|
# | *File → Download → .ipynb* | drag that file into the folder on the left |
# | `files.upload()` | drag the file into the folder on the left |
# | `drive.mount(...)`, `/content` | your home, there from the start |
# | `!pip install NAME` at each start | install it once, as the cell above says |
# | *Runtime → Change runtime type* | stop your server, start another slice |
#
# `google.colab` does not exist here: delete the lines that import it.
#
# ## What it costs, and how to stop
#
# You pay from the start of your server to its stop, whether you compute or not. **Closing the tab
# does not stop it**, and neither does shutting down your laptop.
#
# To stop: *File → Hub Control Panel → Stop My Server*. The next cell says what you have spent.

# %%
print(my_slice())

# %% [markdown]
# ## What next
#
# The starters *Image processing* and *Train a CNN* are in the launcher: the **+** above the folder.
