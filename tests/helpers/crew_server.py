"""Prepare the server of `helpers.crew`: load the model, and start no threads that compute."""

import torch

torch.set_num_threads(1)  # before anything computes: a fork would lose the threads

from helpers import crew  # noqa: E402

crew.model()
