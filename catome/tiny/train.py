"""Train the embedded model from nothing: ``python -m catome.tiny.train``.

Renders scenes, trains the VAE on them, then the U-Net with its text encoder on the VAE's latents, then the
scene network; writes a diffusers folder. Every stage is resumable: started again with the same ``--work``
folder it goes on where it was. What a step sees is a function of its number alone, so an interrupted run
equals an uninterrupted one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from catome.tiny import model as parts
from catome.tiny.scenes import CLASSES, SIZE, prompt, render

NET_BATCH = 48


def _render_many(task: tuple[str, range]) -> np.ndarray:
    name, seeds = task
    return np.stack([render(name, seed) for seed in seeds])


def render_set(file: Path, per_class: int, first_seed: int = 0) -> np.ndarray:
    """Render ``per_class`` scenes of every class into ``file`` (uint8 ``[12 * per_class, 128, 128, 3]``,
    class-major)."""
    shape = (len(CLASSES) * per_class, SIZE, SIZE, 3)
    if not file.exists():
        partial = file.with_suffix(".partial.npy")
        images = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        chunk = 50
        tasks = [
            (name, range(first_seed + at, first_seed + min(at + chunk, per_class)))
            for name in CLASSES
            for at in range(0, per_class, chunk)
        ]
        at = 0
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            for block in tqdm(pool.map(_render_many, tasks), total=len(tasks), desc="render", mininterval=5):
                images[at : at + len(block)] = block
                at += len(block)
        images.flush()
        partial.replace(file)
    return np.load(file, mmap_mode="r")


def to_tensor(images: np.ndarray, device) -> torch.Tensor:
    """uint8 ``[B, H, W, 3]`` to float ``[B, 3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


class Trainer:
    """The loop all networks share: AdamW, warm-up, constant rate, cosine over the last half, EMA, resumable
    state."""

    def __init__(
        self,
        network,
        folder: Path,
        steps: int,
        args,
        rate: float,
        ema: float = 0.0,
        save_every_s: float = 120,
    ):
        self.network, self.file, self.steps, self.args, self.rate = network, folder, steps, args, rate
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
        self.step, self.seconds, self.save_every_s = 0, 0.0, save_every_s
        if folder.exists():
            self._load()

    def _load(self) -> None:
        with safe_open(self.file, "pt") as stored:
            state = json.loads(stored.metadata()["state"])
        tensors = load_file(self.file, device=str(self.args.device))
        self.step, self.seconds = state["step"], state["seconds"]
        pick = {
            k: {n[len(k) + 1 :]: t for n, t in tensors.items() if n.startswith(k + "/")}
            for k in ("net", "ema", "opt")
        }
        self.network.load_state_dict(pick["net"])
        if self.average is not None:
            self.average.load_state_dict(pick["ema"])
        moments: dict[int, dict] = {}
        for name, tensor in pick["opt"].items():
            index, key = name.split("/")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(
            {"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        print(f"{self.file.name}: goes on at step {self.step}", flush=True)

    def save(self) -> None:
        tensors = {f"net/{n}": t for n, t in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"ema/{n}": t for n, t in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"opt/{index}/{key}": value for key, value in moments.items()}
        tensors = {n: t.detach().contiguous().clone() for n, t in tensors.items()}
        partial = self.file.with_suffix(".partial")
        save_file(tensors, partial, {"state": json.dumps({"step": self.step, "seconds": self.seconds})})
        partial.replace(self.file)

    def rate_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / 200)
        late = max(0.0, (step / self.steps - 0.5) * 2)
        return self.rate * warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * late)))

    def run(self, loss_of, name: str) -> None:
        """Minimise ``loss_of(step, generator)`` until ``steps``; ``generator`` is seeded from the step
        alone."""
        saved = began = time.monotonic()
        before = self.seconds
        mean = 0.0
        bar = tqdm(total=self.steps, initial=self.step, desc=name, mininterval=10)
        while self.step < self.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate_at(self.step)
            generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.step)
            torch.manual_seed(self.args.seed * 1_000_003 + self.step)
            with autocast(self.args):
                loss = loss_of(self.step, generator)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.network)
            self.step += 1
            bar.update()
            if self.step % 50 == 0:
                mean = 0.8 * mean + 0.2 * loss.item() if mean else loss.item()
                bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            self.seconds = before + time.monotonic() - began
            if time.monotonic() - saved > self.save_every_s:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()

    @property
    def best(self):
        return self.average.module if self.average is not None else self.network


def autocast(args):
    if args.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(args.device.type, torch.bfloat16)


def train_vae(args, images: np.ndarray):
    vae = parts.build_vae().to(args.device)
    trainer = Trainer(vae, args.work / "vae.safetensors", args.vae_steps, args, rate=1.5e-3, ema=0.995)
    crop = SIZE // 2

    def loss_of(step, generator):
        index = torch.randint(len(images), (args.vae_batch,), generator=generator)
        corner = torch.randint(0, crop + 1, (args.vae_batch, 2), generator=generator).tolist()
        batch = [
            images[i, r : r + crop, c : c + crop] for i, (r, c) in zip(index.tolist(), corner, strict=True)
        ]
        x = to_tensor(np.stack(batch), args.device)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample.float()
        edges = sum((torch.diff(y, dim=d) - torch.diff(x, dim=d)).abs().mean() for d in (2, 3))
        return (
            F.l1_loss(y, x)
            + 4 * F.mse_loss(y, x)
            + 0.5 * edges
            + 1e-4 * posterior.kl().mean() / (4 * (crop // 4) ** 2)
        )

    if trainer.step < args.vae_steps:
        trainer.run(loss_of, "vae")
    vae = trainer.best.eval().requires_grad_(False)
    return vae, trainer


@torch.no_grad()
def encode_set(args, vae, images: np.ndarray, file: Path) -> torch.Tensor:
    """Latent means of all images, scaled to unit deviation, as float16 ``[N, 4, 32, 32]``."""
    if not file.exists():
        latents = []
        for at in tqdm(range(0, len(images), 64), desc="encode", mininterval=10):
            with autocast(args):
                mean = vae.encode(to_tensor(images[at : at + 64], args.device)).latent_dist.mean
            latents.append(mean.half().cpu().contiguous(memory_format=torch.contiguous_format))
        latents = torch.cat(latents).contiguous()
        save_file({"latents": latents}, file.with_suffix(".partial"))
        file.with_suffix(".partial").replace(file)
    return load_file(file)["latents"]


def noise_loss(device, latents: torch.Tensor, batch: int, colour: float, predict):
    """The loss of predicting noise, as a function of the step and its generator (`Trainer.run`).

    Args:
        device: of the network.
        latents: of unit deviation, class-major, ``[12 * N, 4, H, W]``.
        batch: images a step.
        colour: weight of the loss on wide errors at high noise.
        predict: the network, of noisy latents, timesteps and labels; the label behind the last class is no
            prompt.
    """
    alphas = parts.build_scheduler().alphas_cumprod.to(device)
    per_class = len(latents) // len(CLASSES)

    def loss_of(step, generator):
        index = torch.randint(len(latents), (batch,), generator=generator)
        drop = torch.rand(batch, generator=generator) < 0.1
        label = torch.where(drop, len(CLASSES), index // per_class).to(device)
        # stratified over the batch: fewer lucky and unlucky steps
        t = (torch.arange(batch) + torch.rand(batch, generator=generator)) * (1000 / batch)
        t = t.long().clamp(0, 999).to(device)
        clean = latents[index.to(device)]
        noise = torch.randn(clean.shape, generator=generator).to(device)
        alpha = alphas[t].view(-1, 1, 1, 1)
        predicted = predict(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, t, label)
        snr = alphas[t] / (1 - alphas[t])
        weight = snr.clamp(max=5) / snr  # min-SNR-5 (arXiv 2303.09556) for noise prediction
        error = predicted.float() - noise
        # at high noise an error in the predicted noise that is small but wide becomes a wrong colour of the
        # whole image
        wide = F.avg_pool2d(error, 8).square().mean((1, 2, 3)) * (1 / snr).clamp(max=100)
        return (weight * error.square().mean((1, 2, 3)) + colour * wide).mean()

    return loss_of


class Denoiser(torch.nn.Module):
    """U-Net and text encoder as one trainable network."""

    def __init__(self, tokenizer):
        super().__init__()
        self.unet, self.text_encoder = parts.build_unet(), parts.build_text_encoder(tokenizer)

    def forward(self, noisy, timesteps, tokens):
        return self.unet(noisy, timesteps, self.text_encoder(tokens)[0]).sample


def train_unet(args, latents: torch.Tensor, scale: float):
    tokenizer = parts.build_tokenizer(args.work / "tokenizer")
    texts = [prompt(name) for name in CLASSES] + [""]
    tokens = tokenizer(
        texts, padding="max_length", max_length=parts.MAX_TOKENS, return_tensors="pt"
    ).input_ids
    tokens = tokens.to(args.device)
    latents = latents.to(args.device)
    network = Denoiser(tokenizer).to(args.device)
    trainer = Trainer(
        network, args.work / "unet.safetensors", args.unet_steps, args, args.unet_rate, ema=args.unet_ema
    )

    def predict(noisy, timesteps, label):
        return network(noisy, timesteps, tokens[label])

    loss_of = noise_loss(args.device, latents.float() * scale, args.unet_batch, args.unet_colour, predict)
    if trainer.step < args.unet_steps:
        trainer.run(loss_of, "unet")
    return trainer.best.eval().requires_grad_(False), tokenizer, trainer


def train_scene_net(args, vae, images: np.ndarray, seed: int, name: str):
    """Train a `SceneNet` on renders and VAE reconstructions (one in six), randomly blurred and made noisy."""
    torch.manual_seed(seed)
    network = parts.SceneNet().to(args.device)
    trainer = Trainer(network, args.work / f"{name}.safetensors", args.net_steps, args, rate=2e-3)
    per_class = len(images) // len(CLASSES)
    size = NET_BATCH

    def loss_of(step, generator):
        # each network sees its own half of every class, so that the judge never saw what the extractor did
        index = torch.randint(len(images) // 2, (size,), generator=generator)
        label, index = index // (per_class // 2), index % (per_class // 2) * 2 + seed % 2
        x = to_tensor(images[(label * per_class + index).numpy()], args.device)
        half = size // 6
        with torch.no_grad():
            x[:half] = vae.decode(vae.encode(x[:half]).latent_dist.mean).sample.float().clamp(-1, 1)
        layout = F.adaptive_avg_pool2d(x, 8).flatten(1)
        blur = torch.rand(size, generator=generator) * (torch.rand(size, generator=generator) < 0.5)
        grain = torch.rand(size, generator=generator) * (torch.rand(size, generator=generator) < 0.5)
        blur, grain = blur.to(args.device), grain.to(args.device)
        soft = F.avg_pool2d(
            F.avg_pool2d(x, 5, 1, 2, count_include_pad=False), 5, 1, 2, count_include_pad=False
        )
        x = torch.lerp(x, soft, blur.view(-1, 1, 1, 1))
        x = x + 0.3 * grain.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator).to(args.device)
        features = F.silu(network(x)).float()
        loss = F.cross_entropy(network.name(features), label.to(args.device))
        loss = loss + 2 * F.mse_loss(network.layout(features).float(), layout)
        return loss + F.mse_loss(network.damage(features).float(), torch.stack([blur, grain], 1))

    if trainer.step < args.net_steps:
        trainer.run(loss_of, name)
    return network.eval().requires_grad_(False), trainer


def save_model(
    folder: Path, vae, scale: float, denoiser, tokenizer, nets: dict, training: dict | None = None
) -> None:
    """Write everything as a float16 diffusers folder; ``nets`` are `SceneNet` by folder name."""
    from diffusers import StableDiffusionPipeline

    vae.register_to_config(scaling_factor=round(scale, 5))
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=parts.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to("cpu", torch.float16).save_pretrained(folder, safe_serialization=True)
    for name, net in nets.items():
        (folder / name).mkdir(exist_ok=True)
        half = {key: tensor.half().cpu().contiguous() for key, tensor in net.state_dict().items()}
        save_file(half, folder / name / "model.safetensors")
    (folder / "training.json").write_text(json.dumps(training or {}, indent=1) + "\n")


def without(argv: list[str], *options: str) -> list[str]:
    """The arguments of a command without some options and their values."""
    for option in options:
        at = argv.index(option) if option in argv else len(argv)
        argv = argv[:at] + argv[at + 2 :]
    return argv


def training_parser(module: str, about: str, name: str) -> argparse.ArgumentParser:
    """The parser that all trainings share: where their files are, on which device they run, from how many
    renders they learn.

    Args:
        module: that is run.
        about: its docstring.
        name: of the folders, in ``data`` and in ``runs``.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data") / name, help="folder to write the model to")
    parser.add_argument(
        "--work", type=Path, default=Path("runs") / name, help="folder for renders and resumable state"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--per-class", type=int, default=2000, help="rendered training images of each class")
    parser.add_argument(
        "--note", default="", help="a sentence for the model card about how the training went"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def check_positive(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the command with status 2 if a number of images, steps or images a step is below 1."""
    for name, value in vars(args).items():
        if name.endswith(("per_class", "_steps", "_batch")) and value < 1:
            parser.error(f"--{name.replace('_', '-')}={value}: must be at least 1")


def training_record(
    module: str,
    argv: list[str] | None,
    args: argparse.Namespace,
    images: int,
    stages: dict[str, tuple[Trainer, int]],
) -> dict:
    """The content of ``training.json`` about a training.

    Args:
        module: that was run.
        argv: its arguments; None for those of the process.
        args: the same, parsed.
        images: rendered.
        stages: the trainer of each stage, and its images a step.
    """
    given = " ".join(without(sys.argv[1:] if argv is None else argv, "--note", "--work", "--out"))
    return {
        "command": f"python -m {module} {given}".strip(),
        "device": torch.cuda.get_device_name()
        if args.device.type == "cuda"
        else f"{os.cpu_count()} CPU cores",
        "torch": torch.__version__,
        "precision": args.precision,
        "images": images,
        "note": args.note,
        "stages": {
            name: {"steps": run.step, "samples": run.step * batch, "seconds": round(run.seconds)}
            for name, (run, batch) in stages.items()
        },
    }


MODULE = "catome.tiny.train"


def main(argv: list[str] | None = None) -> None:
    parser = training_parser(MODULE, __doc__, "tiny-sd")
    parser.add_argument("--vae-steps", type=int, default=5500)
    parser.add_argument("--vae-batch", type=int, default=16)
    parser.add_argument("--unet-steps", type=int, default=10400)
    parser.add_argument("--unet-batch", type=int, default=8)
    parser.add_argument("--unet-rate", type=float, default=8e-4)
    parser.add_argument("--unet-ema", type=float, default=0.998)
    parser.add_argument(
        "--unet-colour", type=float, default=0.5, help="weight of the loss on wide errors at high noise"
    )
    parser.add_argument("--net-steps", type=int, default=400)
    parser.add_argument("--stage", choices=("vae", "all"), default="all", help="stop after this stage")
    args = parser.parse_args(argv)
    check_positive(parser, args)
    if args.per_class % 2:
        parser.error(f"--per-class={args.per_class}: must be even")
    args.device = torch.device(args.device)
    args.work.mkdir(parents=True, exist_ok=True)

    torch.set_flush_denormal(True)  # on CPUs they are slow, and no gradient needs them
    torch.manual_seed(args.seed)
    images = render_set(args.work / f"renders-{args.per_class}.npy", args.per_class)
    vae, vae_run = train_vae(args, images)
    if args.stage == "vae":
        return
    latents = encode_set(args, vae, images, args.work / f"latents-{args.per_class}.safetensors")
    scale = 1.0 / latents.float().std().item()
    denoiser, tokenizer, unet_run = train_unet(args, latents, scale)
    scene_net, net_run = train_scene_net(args, vae, images, args.seed, "scene_net")
    judge, judge_run = train_scene_net(args, vae, images, args.seed + 1, "judge")
    runs = {"vae": (vae_run, args.vae_batch), "unet": (unet_run, args.unet_batch)}
    runs |= {"scene_net": (net_run, NET_BATCH), "judge": (judge_run, NET_BATCH)}
    training = training_record(MODULE, argv, args, len(images), runs)
    save_model(args.out, vae, scale, denoiser, tokenizer, {"scene_net": scene_net, "judge": judge}, training)
    print(f"wrote {args.out}; now: python -m catome.tiny.evaluate --model {args.out}")


if __name__ == "__main__":
    main()
