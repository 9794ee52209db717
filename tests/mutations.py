"""Small wrong changes to the code, each of which some test must notice: ``python tests/mutations.py``.

Every mutation is applied by itself to a copy of the repository, in which the tests that should notice it are
run. One that they pass has survived, and the command ends with 1. `tests/repository/test_mutations.py` holds
that each of them still fits the code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from helpers.paths import ROOT


@dataclass(frozen=True)
class Mutation:
    """A wrong change.

    Attributes:
        what: it is, in words.
        file: that is changed, under ``catome``.
        before, after: the text, which is there once, and what takes its place.
        tests: files under ``tests`` that should notice, with options of pytest behind them.
    """

    what: str
    file: str
    before: str
    after: str
    tests: str


PLANS = "core/test_matching_and_plan.py core/test_patch.py -k 'not checkpoint'"
STEPS = "core/runtime/test_steps.py core/runtime/test_generations.py"
ONLINE = "study/test_online.py"
DRIFT = "study/test_results.py -k 'staleness or derived or jaccard or drift'"
QUALITY = "study/test_quality.py"

MUTATIONS = (
    Mutation(
        "a pair exactly at the threshold is not merged",
        "tensors/plan.py",
        "merged = matches.similarity >= threshold",
        "merged = matches.similarity > threshold",
        PLANS,
    ),
    Mutation(
        "a share is rounded, not cut",
        "tensors/plan.py",
        "count = int(ratio * tokens)",
        "count = round(ratio * tokens)",
        PLANS,
    ),
    Mutation(
        "sums for means", "tensors/plan.py", 'mode="mean").to(x.dtype)', 'mode="sum").to(x.dtype)', PLANS
    ),
    Mutation(
        "a permuted gather",
        "tensors/plan.py",
        "y.index_select(0, self.slot.flatten())",
        "y.index_select(0, self.slot.flip(1).flatten())",
        PLANS,
    ),
    Mutation(
        "groups count by the root of their size",
        "tensors/attention.py",
        "return counted.log().to(dtype)",
        "return (counted.log() / 2).to(dtype)",
        "core/test_attention.py",
    ),
    Mutation(
        "groups count once",
        "tensors/attention.py",
        "counted = sizes if weighted else sizes.clamp(max=1)",
        "counted = sizes.clamp(max=1)",
        "core/test_attention.py",
    ),
    Mutation(
        "values count as much as keys where pairs are found",
        "tensors/attention.py",
        "_VALUES = 0.5",
        "_VALUES = 1.0",
        "core/test_attention.py",
    ),
    Mutation(
        "the weights' channel forgets the scale",
        "tensors/attention.py",
        "return 1 / (scale * _CONSTANT)",
        "return 1 / _CONSTANT",
        "core/test_attention.py",
    ),
    Mutation(
        "slots without a member are attended to",
        "tensors/padded.py",
        "log_weights = (sizes if weighted else sizes.clamp(max=1)).log()",
        "log_weights = sizes.clamp(min=1).log()",
        "core/runtime/test_compiled_steps.py",
    ),
    Mutation(
        "compiled steps go on with the pairs of the checkpoint before",
        "runtime/compiled.py",
        "if self._loaded is not loaded and not _same_plans(self._loaded, loaded):",
        "if self._loaded is None:",
        "core/runtime/test_compiled_steps.py",
    ),
    Mutation(
        "checkpoints of another length are rounded up",
        "policy/schedule.py",
        "{step * calls // self.length for step in self.steps}",
        "{-(-step * calls // self.length) for step in self.steps}",
        "core/test_schedule.py",
    ),
    Mutation(
        "pairs are found afresh one step after a checkpoint as well",
        "runtime/state.py",
        "or cached.made < self._due():",
        "or cached.made <= self._due():",
        "core/test_patch.py " + STEPS,
    ),
    Mutation(
        "a checkpoint one step late",
        "policy/schedule.py",
        "if checkpoint <= step)",
        "if checkpoint < step or checkpoint == 0)",
        "core/test_schedule.py core/test_patch.py",
    ),
    Mutation(
        "merging begins one step late",
        "runtime/state.py",
        "return self.config.start * length <= self.generation.step and not over",
        "return self.config.start * length < self.generation.step and not over",
        "core/test_patch.py " + STEPS,
    ),
    Mutation(
        "the online schedule looks again where nothing more is broken than is tolerated",
        "study/online.py",
        "config.threshold) > self.tolerance",
        "config.threshold) >= self.tolerance",
        ONLINE,
    ),
    Mutation(
        "compiled steps do not ask whether pairs are outdated",
        "runtime/state.py",
        "if self.rule.outdated is not None or self.condition.since is not None:",
        "if self.condition.since is not None:",
        "core/runtime/test_outdated.py",
    ),
    Mutation(
        "a patch that is put back no longer asks whether pairs are outdated",
        "patch.py",
        "rule.choose, pipe, rule.outdated)",
        "rule.choose, pipe)",
        ONLINE,
    ),
    Mutation(
        "rows of another set of real images serve where some are asked for",
        "study/measure/comparison.py",
        'if keys["reference"]:',
        "if False:",
        QUALITY + " -k record",
    ),
    Mutation(
        "broken pairs are those that still hold",
        "study/online.py",
        "broken = (merged & ~(similarity >= least)).sum(1)",
        "broken = (merged & (similarity >= least)).sum(1)",
        ONLINE,
    ),
    Mutation(
        "the rows of a video's frames get each other's checkpoints",
        "runtime/state.py",
        "return changed.repeat_interleave(images // len(changed))",
        "return changed.repeat(images // len(changed))",
        STEPS + " models/test_contract.py -k 'another or image or row'",
    ),
    Mutation(
        "a second call at one place begins a generation",
        "runtime/steps.py",
        "return (place - self.place) * self.direction < 0",
        "return (place - self.place) * self.direction <= 0",
        STEPS,
    ),
    Mutation(
        "a failed call leaves its generation behind",
        "runtime/hooks.py",
        "        if output is None:\n            self.reset()",
        "        if output is None:\n            pass",
        STEPS + " core/runtime/test_wrappers.py core/test_surroundings.py",
    ),
    Mutation(
        "a schedule pays for the age since step 0",
        "policy/staleness.py",
        "last = step if step in checkpoints else last",
        "last = 0",
        DRIFT,
    ),
    Mutation(
        "derived schedules may leave a checkpoint without a step",
        "policy/staleness.py",
        "total[torch.ones_like(total, dtype=torch.bool).tril()]",
        "total[torch.ones_like(total, dtype=torch.bool).tril(-1)]",
        DRIFT,
    ),
    Mutation(
        "drift of the half without a prompt",
        "study/measure/drift.py",
        "prompted = slice(-len(images), None)",
        "prompted = slice(0, len(images))",
        DRIFT,
    ),
    Mutation(
        "online checkpoints counted in the half without a prompt",
        "study/measure/searches.py",
        "range(-len(images), 0)",
        "range(len(images))",
        QUALITY + " -k online",
    ),
    Mutation(
        "pairs are new ones where they differ from the first",
        "study/measure/searches.py",
        "targets[step - 1]",
        "targets[0]",
        QUALITY + " -k online",
    ),
    Mutation(
        "an online schedule beside one that searches more often",
        "study/studies/schedules.py",
        "round(searches_made(searched))",
        "2 * round(searches_made(searched))",
        "study/test_words_of_chapters_4_to_6.py -k online",
    ),
    Mutation(
        "a p-value of zero, since the observed change of FID is no draw",
        "study/measure/quality.py",
        "return (1 + reached) / (1 + draws)",
        "return reached / draws",
        QUALITY + " -k 'chance_of_a_change_of_fid'",
    ),
    Mutation(
        "every method that FID may tell is told, however many are tested",
        "study/measure/comparison.py",
        "stays = quality.holm(list(chances.values()))",
        "stays = [chance <= 0.05 for chance in chances.values()]",
        "study/test_words_of_chapters_4_to_6.py -k fid",
    ),
    Mutation(
        "pairs are old one step later than they are",
        "study/studies/drift.py",
        "age = int(old[0]) + 1",
        "age = int(old[0]) + 2",
        "study/test_words_of_chapters_4_to_6.py -k half",
    ),
    Mutation(
        "another second text encoder of Stable Diffusion XL is the same model",
        "study/run/store.py",
        'if hasattr(pipe, "text_encoder_2")',
        'if hasattr(pipe, "text_encoder_3")',
        "study/test_xl.py -k second_text_encoder",
    ),
    Mutation(
        "shards count alike, however many images they have",
        "study/measure/drift.py",
        "axis=0, weights=weights)",
        "axis=0)",
        DRIFT,
    ),
    Mutation(
        "Jaccard distance over one of both sets",
        "study/measure/drift.py",
        "union = size[lag:] + size[:-lag] - common",
        "union = size[lag:]",
        DRIFT,
    ),
    Mutation(
        "schedules are derived from images that they are tried on",
        "study/measure/drift.py",
        "return range(tried, shards), range(tried)",
        "return range(tried - 1, shards), range(tried)",
        QUALITY + " -k derived_from",
    ),
    Mutation(
        "features compared with another image's",
        "study/measure/comparison.py",
        "np.linalg.norm(features - reference, axis=1)",
        "np.linalg.norm(features - reference[::-1], axis=1)",
        QUALITY + " -k features_are_compared",
    ),
    Mutation(
        "merged share of the half without a prompt",
        "study/measure/comparison.py",
        "plan.merged_share[-len(part) :]",
        "plan.merged_share[: len(part)]",
        QUALITY + " -k 'compare or summary or share'",
    ),
    Mutation(
        "methods are timed one after the other",
        "study/measure/comparison.py",
        "turn = [*methods[repetition % len(methods) :], *methods[: repetition % len(methods)]]",
        "turn = list(methods)",
        QUALITY + " -k turns",
    ),
    Mutation(
        "KID of ten images",
        "study/measure/quality.py",
        "subset: int = 100",
        "subset: int = 10",
        QUALITY + " -k kid",
    ),
    Mutation(
        "the jackknife's factor",
        "study/measure/quality.py",
        "error = np.sqrt((len(without) - 1) / len(without) *",
        "error = np.sqrt(1 / len(without) *",
        QUALITY + " -k jackknife",
    ),
    Mutation(
        "the jackknife of few groups is taken for one of many",
        "study/measure/quality.py",
        "students_t.ppf(0.975, len(without) - 1)",
        "1.96",
        QUALITY + " -k four_groups",
    ),
    Mutation(
        "many comparisons are judged one by one",
        "study/measure/quality.py",
        "level / (len(chances) - place)",
        "level",
        QUALITY + " -k 'holm or comparisons'",
    ),
    Mutation(
        "a method is timed in another batch than it was judged in",
        "study/studies/headline.py",
        'if method.batch not in (None, turns["batch"].iloc[0]):',
        "if method.batch == 0:",
        "study/test_chapters.py",
    ),
    Mutation(
        "a rival that is tried anyway is generated twice",
        "study/studies/schedules.py",
        "if label not in made.methods",
        "if label",
        "study/test_words_of_chapters_4_to_6.py -k rival",
    ),
    Mutation(
        "the bounds decide how staleness and closeness are related",
        "study/studies/schedules.py",
        'RANKED = ("paper", "derived")',
        'RANKED = ("paper", "derived", "bounds")',
        "study/test_chapters.py",
    ),
    Mutation(
        "a changed source keeps its name",
        "study/run/store.py",
        "_checksum(file.read_bytes())",
        "len(file.read_bytes())",
        "study/test_results.py -k sources",
    ),
    Mutation(
        "the jackknife changes the mixture of classes",
        "study/measure/quality.py",
        "np.flatnonzero(of_image == group) for group",
        "np.flatnonzero(np.sort(of_image) == group) for group",
        QUALITY + " -k jackknife",
    ),
    Mutation(
        "PSNR of another peak",
        "study/measure/quality.py",
        "np.log10(255**2 / error)",
        "np.log10(255 / error)",
        QUALITY,
    ),
    Mutation(
        "DeepCache's interval is ignored",
        "study/methods.py",
        "cache_interval=interval",
        "cache_interval=2",
        QUALITY + " -k deep_cache",
    ),
    Mutation(
        "ToDo keeps the wrong token",
        "study/methods.py",
        "grid[:, ::of_rows, ::factor]",
        "grid[:, of_rows - 1 :: of_rows, factor - 1 :: factor]",
        QUALITY + " -k todo",
    ),
    Mutation(
        "forecasts by a polynomial of lower order",
        "runtime/forecast.py",
        "while len(known) > forecast.order + 1:",
        "while len(known) > max(forecast.order, 1):",
        "core/runtime/test_forecast.py",
    ),
    Mutation(
        "errors of methods together are those of the worst",
        "study/studies/compose.py",
        "error = sum(one.error for one in parts)",
        "error = max(one.error for one in parts)",
        "study/test_compose.py -k 'errors'",
    ),
    Mutation(
        "noise by the place in the batch",
        "study/run/generate.py",
        "setting.seed * 1_000_003 + i) for i in images]",
        "setting.seed * 1_000_003 + i) for i in range(len(images))]",
        "study/test_study.py",
    ),
    Mutation(
        "of equal dst tokens the last block's is taken by the kernel",
        "tensors/kernels.py",
        "better = here > highest  #",
        "better = here >= highest  #",
        "core/test_kernels.py -k equal",
    ),
    Mutation(
        "merging keys saves queries, too, in the cost model",
        "policy/cost_model.py",
        "scores_left = 1 - share if keep_queries else (1 - share) ** 2",
        "scores_left = (1 - share) ** 2",
        "core/test_worth.py",
    ),
    Mutation(
        "a changed entry of the leaderboard keeps its old rows",
        "study/leaderboard.py",
        "hashlib.sha256(file.read_bytes())",
        "hashlib.sha256(file.name.encode())",
        "study/test_leaderboard.py -k changed",
    ),
    Mutation(
        "an entry over the limit is ranked",
        "study/leaderboard.py",
        "<= self.limit + 1e-9",
        "<= 1 + self.limit",
        "study/test_leaderboard.py -k closest",
    ),
    Mutation(
        "what an entry leaves on stays on",
        "study/leaderboard.py",
        "            if left is not None:\n                guard.put_back(pipe)\n",
        "",
        "study/test_leaderboard.py -k left_on",
    ),
    Mutation(
        "scores that a mask rules out count as left",
        "study/measure/scores.py",
        "return int(left.sum()) * scores // left.numel()",
        "return scores",
        "study/test_leaderboard.py -k scores",
    ),
    Mutation(
        "a few turns are taken for many",
        "study/measure/quality.py",
        "students_t.ppf(0.975, count - 1)",
        "1.96",
        QUALITY + " -k 'same_turn or geometric'",
    ),
    Mutation(
        "a method is not timed against the generation of its own turn",
        "study/measure/comparison.py",
        "seconds[str(method)] / seconds[str(other)]",
        "seconds[str(method)] / seconds[str(other)].mean()",
        QUALITY + " -k same_turn",
    ),
    Mutation(
        "a threshold is called slower where its interval does not say so",
        "study/studies/sweep.py",
        "longer if high < 1 else less if low > 1 else undecided",
        "longer if low < 1 else less if low > 1 else undecided",
        "study/test_sweep.py -k by_their_intervals",
    ),
    Mutation(
        "a verdict on these prompts is taken for one on others",
        "study/measure/quality.py",
        "for ends in (mean_interval(values)[1:], (low, high))",
        "for ends in (mean_interval(values)[1:], mean_interval(values)[1:])",
        QUALITY + " -k other_prompts",
    ),
    Mutation(
        "the interval of a speed-up is upside down",
        "study/measure/quality.py",
        "float(np.exp(mean - reach)), float(np.exp(mean + reach))",
        "float(np.exp(mean + reach)), float(np.exp(mean - reach))",
        "study/test_curves.py -k speed_ups",
    ),
    Mutation(
        "speed-ups over images have another mean than those over turns",
        "study/measure/turns.py",
        "quality.geometric_mean(1 / seconds[label]",
        "quality.mean_interval(1 / seconds[label]",
        "study/test_curves.py -k same_mean",
    ),
    Mutation(
        "work is averaged as times are",
        "study/measure/turns.py",
        "quality.mean_interval(flops[label]",
        "quality.geometric_mean(flops[label]",
        "study/test_curves.py -k ratios_of_each_turn",
    ),
    Mutation(
        "the speed-up of a resample is another mean",
        "study/measure/quality.py",
        "np.exp(-np.log(left)[turns].mean(-1))",
        "1 / left[turns].mean(-1)",
        "study/test_curves.py -k share_of_resamples",
    ),
    Mutation(
        "rivals are those that leave more work",
        "study/studies/curves.py",
        'others["flops"] <= own["flops"]',
        'others["flops"] >= own["flops"]',
        "study/test_curves.py -k rival",
    ),
    Mutation(
        "who is as close and faster does not beat",
        "study/measure/quality.py",
        "better = (closeness > own_closeness) | (gain > own_gain)",
        "better = (closeness > own_closeness) & (gain > own_gain)",
        "study/test_curves.py -k frontier",
    ),
    Mutation(
        "the unmerged pipeline beats nothing",
        "study/measure/quality.py",
        "unchanged = np.full((*closeness.shape[:-1], 1), np.inf)",
        "unchanged = np.full((*closeness.shape[:-1], 1), -np.inf)",
        "study/test_curves.py -k unmerged_pipeline",
    ),
    Mutation(
        "each method is resampled with images of its own",
        "study/measure/quality.py",
        "_finite_means(values[images]) for values in psnr",
        "_finite_means(values[rng.permutation(images)]) for values in psnr",
        "study/test_curves.py -k share_of_resamples",
    ),
    Mutation(
        "fixed shares leave as many tokens, not as many scores",
        "study/studies/allocation.py",
        "np.broadcast_to(1 - np.sqrt(mean), left.shape)",
        "np.broadcast_to(1 - mean, left.shape)",
        "study/test_allocation.py -k every_freedom",
    ),
    Mutation(
        "steps counted from 1 are taken as counted from 0",
        "study/studies/released.py",
        "{step - 1 for step in",
        "{step for step in",
        "study/test_released.py -k earlier",
    ),
    Mutation(
        "a cache that is kept serves from the second call on",
        "study/studies/released.py",
        "details.kept and step == 0",
        "details.kept and step == 1",
        "study/test_released.py -k kept",
    ),
    Mutation(
        "the image before is of the same class",
        "study/studies/released.py",
        "classes=[names[-1], *names[:-1]]",
        "classes=names",
        "study/test_released.py -k class_before",
    ),
    Mutation(
        "every image merges as many as the emptiest row",
        "study/methods.py",
        "(matches.similarity >= config.threshold).sum(1).max()",
        "(matches.similarity >= config.threshold).sum(1).min()",
        "study/test_quality.py -k batch_maximum",
    ),
    Mutation(
        "a claim that was made while one looked is taken away",
        "study/run/claims.py",
        "return not taken_meanwhile",
        "return True",
        "study/test_work.py -k since_one_looked",
    ),
    Mutation(
        "rows are found whatever the prompts were",
        "study/run/store.py",
        '"prompt": "\\n".join(setting.prompts[:images])',
        '"prompt": ""',
        "study/test_frontier.py -k other_prompts",
    ),
    Mutation(
        "a batch that must be whole is halved",
        "study/measure/comparison.py",
        "if method.batch is not None:",
        "if False:",
        "study/test_long_runs.py -k must_be_whole",
    ),
    Mutation(
        "a process of another user counts as dead",
        "study/run/claims.py",
        "with suppress(PermissionError):",
        "with suppress(KeyError):",
        "study/test_work.py -k somebody_elses",
    ),
    Mutation(
        "a run counts twice after a kill",
        "study/run/store.py",
        "self._take((part[0], {}) if self._holds(part[0]) else part)",
        "self._take(part)",
        "study/test_results.py -k counts_no_run_twice",
    ),
    Mutation(
        "rows that were computed again go back to the first ones after a kill",
        "study/run/store.py",
        "self._take((part[0], {}) if self._holds(part[0]) else part)",
        "self._take(None if self._holds(part[0]) else part)",
        "study/test_results.py -k leaves_what_was_computed_again",
    ),
    Mutation(
        "the noise of a batch goes by its first row",
        "study/methods.py",
        "sample.float().std(dim=tuple(range(1, sample.ndim)), keepdim=True)",
        "sample[:1].float().std(dim=tuple(range(1, sample.ndim)), keepdim=True)",
        "study/test_transformer.py -k noise_has_the_size",
    ),
    Mutation(
        "real images by the order of their folders, whatever these are called",
        "study/measure/real_images.py",
        "if set(names) <= set(folders):",
        "if False:",
        "study/test_quality.py -k classes_of_their_names",
    ),
    Mutation(
        "the finer transformer begins with a sum",
        "tiny/transformer.py",
        "rows.view(4, 4, *rows.shape[1:]).mean(0)",
        "rows.view(4, 4, *rows.shape[1:]).sum(0)",
        "models/test_tiny_transformer.py -k mean_of_a_patch",
    ),
    Mutation(
        "positions of pixels are counted as those of patches",
        "tiny/transformer.py",
        "interpolation_scale=2 // patch_size",
        "interpolation_scale=1",
        "models/test_tiny_transformer.py -k positions",
    ),
    Mutation(
        "nobody is told of the steps",
        "tiny/transformer.py",
        "callback(self, next(done), timestep, {})",
        "next(done)",
        "models/test_tiny_transformer.py -k steps_are_told",
    ),
    Mutation(
        "the distilled model learns from a teacher without guidance",
        "tiny/train_lcm.py",
        "without + guidance * (given - without)",
        "given",
        "models/test_tiny_lcm.py -k guided_teacher",
    ),
    Mutation(
        "at the end of its path the distilled model draws another image than it was given",
        "tiny/train_lcm.py",
        "return skip * noisy + out * predicted",
        "return predicted",
        "models/test_tiny_lcm.py -k end_of_the_path",
    ),
    Mutation(
        "the weights of the distilled model are not those of half precision",
        "tiny/lcm.py",
        "pipe.unet.half().to(dtype)",
        "pipe.unet.to(dtype)",
        "models/test_tiny_lcm.py -k every_precision",
    ),
    Mutation(
        "a forecast stands beside fewer steps only where these call the model more often",
        "study/studies/curves.py",
        "if count + more >= calls]",
        "if count + more > calls]",
        "study/test_curves.py -k stands_beside",
    ),
    Mutation(
        "weights are credited with the dip itself",
        "study/studies/weights.py",
        "return at[worst] - at[lowest]",
        "return at[worst]",
        "study/test_weights.py -k dip",
    ),
    Mutation(
        "scores left are counted as if queries were merged",
        "study/studies/weights.py",
        'left if method.family == "merged keys" else left**2',
        "left**2",
        "study/test_weights.py -k scores",
    ),
    Mutation(
        "images are drawn from all classes where they are to be drawn within them",
        "study/measure/quality.py",
        "len(group) * group.var(ddof=1)",
        "len(group) * values.var(ddof=1)",
        "study/test_quality.py -k alike",
    ),
    Mutation(
        "every comparison has the images of the first",
        "study/studies/sweep.py",
        "images=self.compared_images[self.compared.index(threshold)]",
        "images=self.compared_images[0]",
        "study/test_sweep.py -k more_images",
    ),
    Mutation(
        "a short generation leaves its sampler in the pipeline",
        "study/run/generate.py",
        "        pipe.scheduler = own",
        "        pass",
        "study/test_short.py -k put_back",
    ),
)


def mutated(text: str, mutation: Mutation) -> str:
    """The text of a file with a mutation.

    Raises:
        ValueError: unless what is to be changed is there once.
    """
    if text.count(mutation.before) != 1:
        raise ValueError(
            f"{mutation.file} has {mutation.before!r} {text.count(mutation.before)} times, not once"
        )
    return text.replace(mutation.before, mutation.after)


def caught(mutation: Mutation, copy: Path) -> bool:
    """Return True if the tests notice a mutation of a copy of the repository, which is as before
    afterwards."""
    file = copy / "catome" / mutation.file
    whole = file.read_text()
    file.write_text(mutated(whole, mutation))
    try:
        command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider -n0 {mutation.tests}"
        done = subprocess.run(
            command, shell=True, cwd=copy / "tests", capture_output=True, env=_environment(copy)
        )
    finally:
        file.write_text(whole)
    if done.returncode not in (0, 1):  # neither all passed nor some failed
        raise RuntimeError(f"{command}: {done.stdout.decode()[-2000:]}{done.stderr.decode()[-2000:]}")
    return done.returncode == 1


def _environment(copy: Path) -> dict:
    return {**os.environ, "PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "numbers", nargs="*", type=int, help="of the mutations to try, from 1; by default all"
    )
    chosen = parser.parse_args().numbers or range(1, len(MUTATIONS) + 1)
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "catome"
        ignored = shutil.ignore_patterns(".venv", "_build", ".git", "runs", "results", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=ignored)
        (copy / "data" / "results").symlink_to(ROOT / "data" / "results")
        for number in chosen:
            mutation = MUTATIONS[number - 1]
            began = time.monotonic()
            found = caught(mutation, copy)
            survived += not found
            verdict = "caught" if found else "SURVIVED"
            print(
                f"{number:3d}  {verdict:8}  {time.monotonic() - began:4.0f} s  {mutation.file}: "
                f"{mutation.what}",
                flush=True,
            )
    print(f"{len(chosen) - survived} of {len(chosen)} mutations are caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
