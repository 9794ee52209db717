"""End to end: every notebook through plain papermill, and the book that they make."""

import nbformat
import pytest

from helpers.processes import papermill
from helpers.sentences import assert_says

pytestmark = pytest.mark.book


@pytest.mark.parametrize(
    ("notebook", "arguments"),
    [
        (
            "01_tome_review",
            "-p height 96 -p width 160 -p images 3 -p batch_size 2 "
            "-p ratio 0.35 -p step 3 -p block 4 -p seed 11",
        ),
        ("01_tome_review", "-p classes volcano -p images 1 -p threshold 1.0 -p steps 3 -p step 0 -p block 0"),
        (
            "02_similarity_per_step",
            "-p model tiny-pixart -p images 5 -p batch_size 3 -p steps 3 -p guidance 3 "
            "-p ratio 0.6 -y thresholds:\\n-\\n0.83",
        ),
        ("02_similarity_per_step", "-p dtype bfloat16 -p images 1 -p steps 2 -p guidance 1"),
        (
            "04_pair_drift",
            "-p model tiny-pixart -p images 3 -p batch_size 2 -p steps 4 -p ratio 0.4 "
            "-p variation_images 1 -y guidances:\\n-\\n2.0 -y step_counts:\\n-\\n3",
        ),
        (
            "03_threshold_sweep",
            "-p model tiny-pixart -p images 5 -p batch_size 3 -p steps 3 -p repetitions 1 "
            "-y thresholds:\\n-\\n0.75 "
            "-y finer:\\n-\\n0.9 -y compared:\\n-\\n0.75 -y shown:\\n-\\n0.9",
        ),
        (
            "05_checkpoint_schedules",
            "-p model tiny-pixart -p images 3 -p batch_size 2 -p steps 3 "
            "-p drift_images 25 -p repetitions 1 "
            "-y thresholds:\\n-\\n0.8 -y tolerances:\\n-\\n0.5 -y budgets:\\n-\\n3",
        ),
        (
            "06_headline",
            "-p images 2 -p batch_size 2 -p steps 3 -p ratio 0.3 -p threshold 0.8 "
            "-p schedule CONFIG_1 -p interval 2 -p repetitions 1 -p curve_images 1 -p curve_kinds ToDo",
        ),
        ("07_where_the_time_goes", "-p size 448 -y sizes:\\n-\\n320"),
        (
            "08_weigh_the_keys",
            "-p model tiny-pixart -p images 2 -p batch_size 2 -p steps 3 -p threshold 0.8 "
            "-p schedule CONFIG_1 -p even EVEN_4 -p factor 3 -y thresholds:\\n-\\n0.8",
        ),
        (
            "09_short_generations",
            "-p images 2 -p batch_size 2 -p steps 4 -p threshold 0.8 -p sampler Euler -p every 2 "
            "-p repetitions 1 -p drift_images 2 -p factor 3 -p curve_images 1 -p curve_kinds ToDo "
            "-p distilled_images 1 -p distilled_steps 3 -y step_counts:\\n-\\n3",
        ),
        (
            "10_a_transformer",
            "-p model tiny-pixart -p images 2 -p batch_size 2 -p steps 3 -p ratio 0.3 "
            "-p curve_images 1 -p curve_kinds ToDo -p timed_images 1 -p single_layers 2 "
            "-y noises:\\n-\\n0.05 -y gentle:\\n-\\n0.95 -y thresholds:\\n-\\n0.8",
        ),
        ("cover", "-p classes desert -p threshold 0.8 -p schedule CONFIG_FIVE -p seed 3 -p faster 0.5"),
        (
            "study_cost",
            "-p preset tiny -p share 0.6 -y sizes:\\n-\\n640 -y gpus:\\n-\\n3 -y batches:\\n-\\n5",
        ),
    ],
)
def test_notebooks_run_with_parameters_nobody_tried(notebook, arguments, tmp_path):
    """Those that a transformer can have are run on one."""
    arguments = [
        part.replace("\\n-\\n", " [") + "]" if "\\n" in part else part for part in arguments.split(" ")
    ]
    out = tmp_path / "out.ipynb"
    done = papermill(notebook, out, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert any(
        "image/svg+xml" in o.get("data", {})
        for cell in nbformat.read(out, 4).cells
        for o in cell.get("outputs", [])
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-p", "imges", "3"), ("imges=3", "did you mean 'images'?")),
        (("-p", "ratio", "0.9"), ("ratio=0.9", "between 0 and 0.75")),
    ],
)
def test_a_wrong_parameter_is_an_error_before_anything_runs(arguments, says, tmp_path):
    done = papermill("01_tome_review", tmp_path / "out.ipynb", *arguments)
    assert done.returncode != 0
    assert_says(done.stderr, *says)
    cells = [cell for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells if cell.cell_type == "code"]
    ran = [cell for cell in cells if cell.execution_count is not None]
    assert len(ran) <= 4  # parameters, injected parameters, the check; papermill's own notice
    assert not any("load(" in cell.source for cell in ran)
    assert not (tmp_path / "output").exists()


def test_chapter_1_refuses_a_model_without_a_unet(tmp_path):
    done = papermill(
        "01_tome_review", tmp_path / "out.ipynb", "-p", "model", "tiny-pixart", "-p", "steps", "2"
    )
    assert done.returncode != 0
    assert_says(done.stderr, "model='tiny-pixart' must have a U-Net")
