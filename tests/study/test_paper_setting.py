"""The paper's setting, proven without its weights: Stable Diffusion v1.5's whole architecture, saved to disk
in its format."""

import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from catome.study.bench.contenders import random_unet
from catome.study.run.parameters import imagenet_classes
from helpers.processes import papermill
from slides import glued

pytestmark = pytest.mark.book


@pytest.fixture(scope="module")
def sd15(tmp_path_factory, loaded):
    """A folder as the Hub has it, 2 GB of random float16 weights."""
    folder = tmp_path_factory.mktemp("sd15")
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    pipe = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=CLIPTextModel(text).half(),
        tokenizer=loaded.tokenizer,
        unet=random_unet("sd15", "float16", "cpu"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    random_unet.cache_clear()
    yield folder
    for file in folder.rglob("*.safetensors"):
        file.unlink()


def jpegs(folder):
    """Real-format JPEGs of several sizes and colour models, flat."""
    rng = np.random.default_rng(0)
    for i, (mode, shape) in enumerate(
        [("RGB", (150, 200, 3)), ("L", (300, 140)), ("CMYK", (160, 160, 4))] * 3
    ):
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode)
        image.save(folder / f"ILSVRC2012_val_{i:08}.JPEG")


def test_the_threshold_sweep_in_the_papers_setting(sd15, tmp_path):
    (tmp_path / "real").mkdir()
    jpegs(tmp_path / "real")
    smaller = (
        "-p device cpu -p dtype float32 -p images 2 -p batch_size 2 -p steps 2 -p height 64 -p width 64 "
        "-p repetitions 1"
    )
    lists = "-y thresholds:[-0.5,1.0] -y finer:[0.9] -y compared:[-0.5] -y shown:[-0.5]".replace(":", ": ")
    arguments = [
        *smaller.split(),
        *(part for pair in lists.split("-y ")[1:] for part in ("-y", pair.strip())),
    ]
    arguments += ["-p", "model", str(sd15), "-p", "reference", str(tmp_path / "real")]
    done = papermill("03_threshold_sweep", tmp_path / "out.ipynb", *arguments, preset="paper")
    assert done.returncode == 0, done.stderr[-3000:]
    words = glued(nbformat.read(tmp_path / "out.ipynb", 4))
    assert {name: words[name] for name in ("images", "count", "reals")} == {
        "images": "2",
        "count": "3",
        "reals": "9",
    }
    rows = pq.read_table(tmp_path / "output/quality.parquet").to_pandas()
    classes = imagenet_classes()
    assert {(row["prompt"], row["class"]) for _, row in rows.iterrows()} == {
        (f"A high quality photograph of a {name}.", name) for name in classes[:2]
    }
    assert set(rows["guidance_rescale"]) == {1.0}
    assert rows.groupby("method").size().min() == 2
    # the control of fixed shares is compared with unmerged images alone
    beside_real = rows[rows["reference"] != ""]
    assert beside_real["method"].nunique() == 5
    assert np.isfinite(beside_real["psnr_real"]).all()
    merged = rows[rows["method"] == "CA-ToMe(threshold=-0.5, schedule=every step)"]
    assert np.isfinite(merged["psnr"]).all()
    assert all(0 < share.astype(float).mean() <= 0.75 for share in merged["merged_share"])
