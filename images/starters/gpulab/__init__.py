"""The starters' helper: the same code on a GPU or a CPU, and what this slice is and costs.

`open_lab()` picks the libraries and says why, `show()` draws pictures, `my_slice()` describes the
slice and `memory_used()` its GPU memory. It never pretends: without a real GPU everything is
computed on the CPU, and says so.
"""

from gpulab.backend import GpuRequired, Lab, open_lab
from gpulab.pictures import show
from gpulab.slices import MySlice, memory_used, my_slice

__all__ = ["GpuRequired", "Lab", "MySlice", "memory_used", "my_slice", "open_lab", "show"]
