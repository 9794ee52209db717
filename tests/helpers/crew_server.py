"""Prepare the server of `helpers.crew`: load the model, and start no threads that compute."""

import torch

torch.set_num_threads(1)

from helpers import crew  # noqa: E402

crew.model()
