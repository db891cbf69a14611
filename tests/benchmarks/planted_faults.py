"""Plant one-line faults, one at a time, and show which test sees each.

    python -m tests.benchmarks.planted_faults [WORD]

WORD: only the faults whose name or file holds it. The first fourteen are faults that earlier tests let pass; then come
one for each baseline with recorded tensors, and those of workers that share a run. Each fault is planted in a copy of
what is committed; its tests must fail there, and pass without it. The exit code is 1 if one survives, or if a test
fails without any fault.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/"


@dataclass(frozen=True)
class Fault:
    """One line that is wrong, and the test that must see it."""

    what: str
    file: str
    right: str
    wrong: str
    test: str


FAULTS = (
    Fault(
        "seed ignores the repeat", "brushbench/types.py", r"\0{repeat}", "",
        "brushbench/test_run_record.py::test_each_repeat_has_its_own_seed_so_that_repeats_are_not_copies",
    ),
    Fault(
        "repeats are not averaged", "brushbench/runs.py",
        'return scores.groupby([*CELL, "sample"], sort=False)["value"].mean().reset_index()', "return scores",
        "brushbench/test_run_summary.py::test_repeats_are_averaged_inside_a_sample_first",
    ),
    Fault(
        "identity ignores the benchmark's hash", "brushbench/config.py",
        '"sha256": self.benchmark.sha256}\n', "}\n",
        "brushbench/test_run_record.py::test_changed_data_of_the_same_names_is_another_run",
    ),
    Fault(
        "identity ignores the method's description", "brushbench/config.py",
        '"method": self.method,', '"method": {},',
        "brushbench/test_run_record.py::test_a_method_that_describes_itself_otherwise_is_another_run",
    ),
    Fault(
        "table key ignores the samples' hash", "brushbench/leaderboard/tables.py",
        r""" + "\0".join(question.ids)""", "",
        "brushbench/test_leaderboard.py::test_runs_on_other_samples_of_the_same_data_get_a_table_of_their_own",
    ),
    Fault(
        "black reference counts as black", "brushbench/evaluation/generation.py",
        "<= BLACK < int(sample.image.max())", "<= BLACK",
        "brushbench/test_failures.py::test_a_black_picture_of_a_black_reference_is_no_black_picture",
    ),
    Fault(
        "interval level 0.92", "brushbench/stats.py",
        "def mean_interval(values: Row, level: float = 0.95", "def mean_interval(values: Row, level: float = 0.92",
        "brushbench/test_stats.py::test_the_level_is_95_percent_and_not_92",
    ),
    Fault(
        "a column is always complete", "brushbench/evaluation/scoring.py", "    if not missing:\n", "    if True:\n",
        "brushbench/test_scoring.py::test_a_column_that_lacks_scores_was_taken_for_complete",
    ),
    Fault(
        "plug-in NaN check removed", "brushbench/metrics/answers.py", "if math.isnan(value):", "if False:",
        "brushbench/test_scoring.py::test_nan_of_a_plug_in_metric_is_no_score",
    ),
    Fault(
        '"unavailable" overwrites a scored column', "brushbench/evaluation/scoring.py",
        "if name not in folder.metric_headers():", "if True:",
        "brushbench/test_scoring.py::test_a_scored_column_is_not_overwritten_as_unavailable",
    ),
    Fault(
        "loss not divided under accumulation", "brushbench/training/loop.py",
        "backward(loss / config.accumulation)", "backward(loss)",
        "brushbench/test_training.py::test_two_accumulated_micro_batches_move_the_weight_as_one_large_batch_does",
    ),
    Fault(
        "learning rate one step off", "brushbench/training/loop.py",
        'group["lr"] = config.rate(step)', 'group["lr"] = config.rate(step + 1)',
        "brushbench/test_training.py::test_each_step_is_made_at_the_learning_rate_of_that_step",
    ),
    Fault(
        "gradient clipping removed", "brushbench/training/loop.py",
        "self.accelerator.clip_grad_norm_(self.module.parameters(), 1.0)", "pass",
        "brushbench/test_training.py::test_a_large_gradient_is_clipped_to_norm_one",
    ),
    Fault(
        "NEAREST for BICUBIC in the published resize", "brushbench/metrics/base.py", "BICUBIC", "NEAREST",
        "brushbench/test_scoring.py::test_the_published_resize_is_bicubic",
    ),
    Fault(
        "PickScore: a long caption loses its end token", "brushbench/metrics/pick_score.py",
        "keep_end=True", "keep_end=False", "brushbench/test_golden_metrics.py::test_pick_score",
    ),
    Fault(
        "InpaintReward: a grey hole in place of a black one", "brushbench/metrics/inpaint_reward.py",
        "np.where(hole, np.uint8(0), sample.image)", "np.where(hole, np.uint8(127), sample.image)",
        "brushbench/test_golden_metrics.py::test_inpaint_reward",
    ),
    Fault(
        "local CLIP: the box not padded in the middle", "brushbench/metrics/clip_local.py",
        "top, left = (longest - height) // 2, (longest - width) // 2", "top, left = 0, 0",
        "brushbench/test_metric_preferences.py::test_local_clip_is_clip_score_of_the_box",
    ),
    Fault(
        "SD Inpainting: channels in another order", "baselines/sd_inpainting.py",
        "torch.cat([sample, both(condition, len(sample)).to(sample)], dim=1)",
        "torch.cat([both(condition, len(sample)).to(sample), sample], dim=1)",
        "baselines/test_golden_baselines.py::test_sd_inpainting",
    ),
    Fault(
        "Blended Latent Diffusion: the script's blending after the step left out", "baselines/blended_latent.py",
        'if variant == "script":', "if False:", "baselines/test_golden_baselines.py::test_blended_latent",
    ),
    Fault(
        "ControlNet: the hole at 0 instead of -1", "baselines/controlnet.py",
        "masked_fill(is_hole(hole), -1.0)", "masked_fill(is_hole(hole), 0.0)",
        "baselines/test_golden_baselines.py::test_controlnets_condition",
    ),
    Fault(
        "PowerPaint: the second prompt at full weight", "baselines/powerpaint_text.py",
        "rest = 1 - fitting_degree", "rest = 1",
        "baselines/test_golden_baselines.py::test_powerpaints_words",
    ),
    Fault(
        "PowerPaint v2: the base model's prompt without the scene", "baselines/powerpaint_text.py",
        'plain = f"{prompt} {scene}" if scene else prompt', "plain = prompt",
        "baselines/test_golden_baselines.py::test_powerpaint_2s_prompts",
    ),
    Fault(
        "HD-Painter: coefficients not clamped", "baselines/hd_painter/painta.py",
        "((fit - median) / greatest).clamp(0, 1)", "(fit - median) / greatest",
        "baselines/test_golden_baselines.py::test_hd_painters_attention",
    ),
    Fault(
        "HD-Painter: the gradient not scaled to deviation 1", "baselines/hd_painter/rasg.py",
        "spread * gradient / gradient.flatten(1).std(dim=1).view(-1, 1, 1, 1)", "spread * gradient",
        "baselines/test_golden_baselines.py::test_hd_painters_step",
    ),
    Fault(
        "BrushEdit: picture and mask reduced by the nearest pixel", "baselines/brushedit.py",
        "cv2.INTER_LINEAR", "cv2.INTER_NEAREST", "baselines/test_golden_baselines.py::test_brushedits_blending",
    ),
    Fault(
        "a worker leaves the batches out that others were working on", "brushbench/evaluation/generation.py",
        "self._generate_busy(busy, others)", "pass",
        "brushbench/test_run_resume.py::test_a_batch_that_another_process_works_on_is_waited_for_and_said_so",
    ),
    Fault(
        "a worker leaves out what lies before its beginning", "brushbench/engines/shard.py",
        "return mine[start:] + mine[:start]", "return mine[start:]",
        "brushbench/test_engines.py::test_workers_that_steal_begin_at_places_of_their_own_and_leave_nothing_out",
    ),
    Fault(
        "a batch counts as soon as one image is there", "brushbench/store.py",
        """        for row, picture in zip(rows, pictures, strict=True):
            if picture is not None:
                self.check_present()
""", """        write_atomically(self._batch_file(batch), dump([vars(row) for row in rows]))
        for row, picture in zip(rows, pictures, strict=True):
            if picture is not None:
                self.check_present()
""",
        "brushbench/test_engines.py::test_a_worker_killed_within_a_commit_leaves_the_batch_to_the_others",
    ),
    Fault(
        "a worker merges scores before the others have ended", "brushbench/evaluation/scoring.py",
        "        if not shard.stolen:\n", "        if True:\n",
        "brushbench/test_remedies_engines.py::test_two_workers_and_the_command_score_each_batch_once",
    ),
    Fault(
        "a worker does not look whose folder it has", "brushbench/cli/engines.py",
        "    _refuse_other_folder(place)\n", "",
        "brushbench/test_remedies_engines.py::test_a_worker_whose_machine_or_folder_is_another_makes_no_image",
    ),
)  # fmt: skip


def passes(folder: Path, test: str) -> bool:
    """Run a test in a copy of the project and say whether it passed."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"{TESTS}{test}"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode == 0


def main(word: str = "") -> int:
    """Plant the faults whose name or file holds a word, and print the table."""
    survived = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "copy"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        print("| fault | seen | by |\n|---|---|---|")
        for fault in (fault for fault in FAULTS if word in fault.what + fault.file):
            file = folder / fault.file
            text = file.read_text()
            if text.count(fault.right) != 1:
                print(f"| {fault.what} | PLACE NOT FOUND in {fault.file} | |")
                survived += 1
                continue
            clean = passes(folder, fault.test)
            file.write_text(text.replace(fault.right, fault.wrong))
            seen = clean and not passes(folder, fault.test)
            file.write_text(text)
            survived += not seen
            answer = "yes" if seen else "NO" if clean else "the test fails without the fault"
            print(f"| {fault.what} | {answer} | {fault.test} |", flush=True)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
