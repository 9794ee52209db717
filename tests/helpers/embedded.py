"""Calls of the embedded model's U-Net."""

import torch

import catome
from catome import tiny


def unet_inputs(pipe, names, size=(32, 32), timestep=401, seed=0):
    tokens = pipe.tokenizer(
        [tiny.prompt(n) for n in names], padding="max_length", return_tensors="pt"
    ).input_ids
    sample = torch.randn(len(names), 4, *size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return {"sample": sample, "timestep": timestep, "encoder_hidden_states": pipe.text_encoder(tokens)[0]}


@torch.no_grad()
def call(pipe, inputs, **change):
    inputs = {**inputs, **change}
    # tomesd needs the sample as a positional argument
    return pipe.unet(inputs.pop("sample"), **inputs).sample


def counted_matches(monkeypatch):
    """A list that grows by one with each search for pairs."""
    searches = []
    real = catome.runtime.state.best_matches

    def counting(*args, **kwargs):
        searches.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr("catome.runtime.state.best_matches", counting)
    return searches
