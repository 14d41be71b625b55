"""The training loop: steps, and between them logging, evaluation, saving and stopping; the same on all ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from unimo_ds.config import RunConfig
from unimo_ds.data.schema import StepBatch
from unimo_ds.engine import checkpoint, checkpoint_folder, rollback
from unimo_ds.engine.judging import judge
from unimo_ds.engine.log import make_log
from unimo_ds.engine.metrics import Report, progress_line
from unimo_ds.engine.replicas import check_replicas
from unimo_ds.engine.saves import Saves
from unimo_ds.engine.schedule import learning_rate
from unimo_ds.engine.setup import Engine, how_to_save_memory
from unimo_ds.engine.signals import Stop, StopRequests
from unimo_ds.engine.speed import SpeedMeter
from unimo_ds.engine.state import Best, Progress
from unimo_ds.engine.step import StepMetrics
from unimo_ds.engine.stragglers import SlowRanks
from unimo_ds.engine.watchdog import Watchdog
from unimo_ds.utils import heartbeat
from unimo_ds.utils.agreement import fail_together
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.host_memory import return_freed_memory
from unimo_ds.utils.out_of_memory import out_of_memory_told

_TRIM_EVERY = 25


class TakeStep(Protocol):
    """One optimizer step of all ranks. is_wanted: as in `engine.step.train_step`."""

    def __call__(
        self, batch: StepBatch, /, *, learning_rate: float, is_wanted: Callable[[float], bool]
    ) -> StepMetrics: ...


class Loop:
    """One start of a run, from its newest checkpoint to its end or to a request to stop. Making it may raise UserError: a damaged
    or lost checkpoint, or no room for the next one.

    make_batches: (start step, stop step) -> this rank's batches of those steps. evaluate: measures the model, and leaves it in
    training; None: never. best_metric: name of the metric, higher is better, that decides the best checkpoint; measured_on: name
    of its data, which may change between starts. on_step: called after every step (data limits).
    """

    def __init__(
        self,
        engine: Engine,
        config: RunConfig,
        *,
        take_step: TakeStep,
        make_batches: Callable[[int, int], Iterable[StepBatch]],
        evaluate: Callable[[], Report] | None = None,
        best_metric: str = "",
        measured_on: str = "",
        on_step: Callable[[StepBatch, StepMetrics], None] = lambda batch, metrics: None,
    ) -> None:
        self.engine, self.config = engine, config
        self.run_dir = Path(config.run_dir)
        self._take_step, self._make_batches, self._on_step = take_step, make_batches, on_step
        self._evaluate = evaluate if config.evaluation.every_steps else None
        self._best_metric, self._measured_on = best_metric, measured_on
        self._log = make_log(config, rank=engine.communicator.rank)
        self._memory_cure = how_to_save_memory(config, engine.ds_config)
        self._saves = Saves(engine, self.run_dir, config, self._log)
        self.progress: Progress
        self._resume()
        if self._spans():
            self._saves.check_room()
        self._speed = SpeedMeter(config.model, device=engine.device, forward_time=engine.forward_time)
        self._slow_ranks = SlowRanks(engine.communicator)
        self._watchdog = Watchdog(engine.communicator, minutes=config.engine.hang_minutes)
        self._stops = StopRequests(self.run_dir, engine.communicator)
        self._stops.install()

    def run(self) -> int:
        """Train until `schedule.total_steps` or a request to stop. Returns the exit status.

        Raises:
            UserError: too many consecutive steps without an update, too many spikes, ranks with different weights, or the last
                checkpoint cannot be written.
        """
        status: int | None = None
        try:
            status = self._run()
        finally:
            self._watchdog.stop()
            self._log.finish(status)
        if self.config.logging.trackers:  # launchers kill rank 0 if another rank exits before it with a nonzero status
            self.engine.communicator.all_gather_object(None)
        return status

    def _run(self) -> int:
        total_steps = self.config.schedule.total_steps
        self._watchdog.alive()
        if self.progress.step == 0 and self.config.evaluation.at_start:
            self._measure()
            self.progress = dataclasses.replace(self.progress, best=None)  # there is no checkpoint of these weights
        elif self.progress.evaluation_is_due:
            self._measure()
            self.progress = dataclasses.replace(self.progress, evaluation_is_due=False)
            self._save(must_succeed=not self._spans(), again=True)  # with the new measurements
        if self.progress.step >= total_steps:
            self._log.say(f"nothing to do: {self.run_dir} has all {total_steps} steps (schedule.total_steps)")
        self.engine.module.train()
        self._speed.reset()
        while self._spans():
            stop = self._train(self._spans())
            if stop is not None:
                text = f"stopped at step {self.progress.step} ({stop.reason})"
                self._log.note(self.progress.step, "stopped", text=stop.reason, exit_status=stop.exit_status)
                self._log.say(f"{text}; the same command goes on from there")
                return stop.exit_status
        if self.progress.step < total_steps:
            self._pass_over(total_steps)
            self._after_step(is_last=True, stop=None)
        self._log.write_settings()
        return 0

    def _spans(self) -> list[range]:
        """Remaining steps."""
        return rollback.spans(self.progress.step, self.config.schedule.total_steps, self._rollbacks)

    def _train(self, spans: Sequence[range]) -> Stop | None:
        """Take steps until the last one, a rollback, or a request to stop, which it returns."""
        batches = itertools.chain.from_iterable(self._make_batches(span.start, span.stop) for span in spans)
        for batch in self._speed.waiting(batches):
            self._step(batch)
            stop = self._stops.check()
            most = self.config.spikes.most_in_a_row
            if most and self.progress.spikes_in_a_row >= most:
                self._roll_back()
                return None
            self._after_step(is_last=self.progress.step == self.config.schedule.total_steps, stop=stop)
            if stop is not None:
                return stop
        assert self.progress.step == spans[-1].stop, "batches for every step that was asked for"
        return None

    def _resume(self) -> None:
        """Continue from the newest good checkpoint, skipping the batches of all rollbacks. A collective."""
        communicator, problem = self.engine.communicator, ""
        rollbacks: tuple[rollback.Rollback, ...] = ()
        try:
            rollbacks = rollback.finish(self.run_dir) if communicator.rank == 0 else ()
        except (OSError, UserError) as error:
            problem = f"cannot continue {self.run_dir}: {error}"
        fail_together(communicator, problem)
        self._rollbacks = communicator.broadcast_object(rollbacks)
        loaded = checkpoint.load(self.engine, self.run_dir, self.config, say=self._log.say)
        self.progress = loaded.progress if loaded else Progress()
        if loaded:
            self._log.say(f"resuming from {loaded.folder} at step {self.progress.step}")
        best = self.progress.best
        if best and self._measured_on and best.measured_on not in ("", self._measured_on):
            self._log.say(f"the best value so far, of step {best.step}, was measured on other data: it counts no more")
            self.progress = dataclasses.replace(self.progress, best=None)
        saved_step = self.progress.step if loaded else -1
        self._saves.go_on_from(saved_step, self.progress.best)
        self._spiked: list[tuple[int, Any]] = []
        try:
            # After a crash before the first checkpoint, a fresh start drops all earlier records, step 0 included.
            self._log.resume(saved_step, measures_again=self.progress.evaluation_is_due)
        except OSError as error:
            problem = f"cannot continue the records of {self.run_dir}: {error}"
        fail_together(communicator, problem)

    def _roll_back(self) -> None:
        """Recover from a spike that does not end: go back to before it and skip its batches. A collective.

        Raises:
            UserError: on all ranks, after too many rollbacks, or if there is no checkpoint to go back to.
        """
        self.progress = self._saves.settle(self.progress)
        first, stop, limit = self.progress.first_spike, self.progress.step, self.config.spikes.max_rollbacks
        text = f"{stop - first} steps up to step {stop} had a loss or gradient norm far above the usual"
        cure = "lower optimizer.peak_learning_rate or look at their samples in metrics.jsonl, then resume"
        problem = ""
        if len(self._rollbacks) >= limit:
            problem = f"{text}, after {limit} rollbacks (spikes.max_rollbacks); {cure}"
        elif self.engine.communicator.rank == 0:
            try:
                if checkpoint_folder.has_good(self.run_dir / checkpoint_folder.FOLDER, up_to=first):
                    rollback.begin(self.run_dir, rollback.Rollback(first, stop, text, tuple(self._spiked)))
                else:
                    problem = f"{text}, and there is no checkpoint from before them to go back to; {cure}"
            except (OSError, UserError) as error:
                problem = f"{text}, and going back failed: {error}; {cure}"
        fail_together(self.engine.communicator, problem)
        self._log.say(f"{text}: going back; batches {first} to {stop - 1} are passed over from now on")
        self._resume()
        told = f"{text}; batches {first} to {stop - 1} are passed over"
        self._log.note(self.progress.step, "rolled_back", text=told)
        self._speed.reset()

    def _step(self, batch: StepBatch) -> None:
        self._watchdog.alive()
        spikes = self.config.spikes
        if batch.step > self.progress.step:
            self._pass_over(batch.step)
        rate = learning_rate(batch.step, peak=self.config.optimizer.peak_learning_rate, schedule=self.config.schedule)
        course = self.progress.loss_course
        with self._log.traced(batch.step + 1), self._memory_told(f"step {batch.step + 1}"):
            metrics = self._take_step(
                batch,
                learning_rate=rate,
                is_wanted=lambda loss: not (spikes.skip_update and course.is_spike(loss, spikes)),
            )
        judged = judge(self.progress, batch.step, metrics, spikes, loss_scale_floor=self.engine.loss_scale_floor)
        self.progress = judged.progress
        self._speed.add(
            batch, positions=metrics.positions, bytes_read=metrics.bytes_read, bad_samples=metrics.bad_samples
        )
        self._report(batch, metrics)
        if judged.is_broken:
            self._report_broken(batch, metrics)
        self._report_spike(batch, metrics, judged.spike)
        self._on_step(batch, metrics)
        if self.progress.step % _TRIM_EVERY == 0 and self.engine.device.type == "cpu":
            return_freed_memory()

    def _pass_over(self, step: int) -> None:
        self._log.say(f"batches {self.progress.step} to {step - 1} are passed over ({rollback.FILE})")
        self.progress = dataclasses.replace(self.progress, step=step)

    def _report(self, batch: StepBatch, metrics: StepMetrics) -> None:
        step, total_steps = self.progress.step, self.config.schedule.total_steps
        is_regular = step % self.config.logging.every_steps == 0 or step in (1, total_steps)
        if not is_regular and metrics.applied:
            return
        values = metrics.scalars() | {"skipped_steps": float(self.progress.skipped)}
        if is_regular:
            values |= self._speed.read()
            slowest, warning = self._slow_ranks.compare(values)
            values |= slowest
            self._log.say(progress_line(step, total_steps, values, seconds_per_step=values["speed/seconds_per_step"]))
            if warning:
                self._log.say(f"step {step}: {warning}")
                self._log.note(step, "slow_rank", text=warning)
        self._log.write(step, values)
        self._log.write_last_samples(step, [key for item in batch.micro_batches for key in item.keys])

    def _report_broken(self, batch: StepBatch, metrics: StepMetrics) -> None:
        self._note_samples(batch, "skipped", f"loss scale {metrics.loss_scale:g}")
        self._log.say(
            f"step {self.progress.step}: loss or gradient is not finite, no update; samples are in metrics.jsonl"
        )
        limit = self.config.engine.max_skipped_steps
        if self.progress.skipped_in_a_row >= limit:
            fail_together(
                self.engine.communicator,
                f"{limit} steps in a row up to step {self.progress.step} had a loss or gradient that is not finite "
                f"(engine.max_skipped_steps); their samples are in {self.run_dir}/metrics.jsonl; lower "
                "optimizer.peak_learning_rate or look at these samples, then resume",
            )

    def _report_spike(self, batch: StepBatch, metrics: StepMetrics, spike: str) -> None:
        """Log a spike and keep its samples for a rollback; if a series of spikes is over, drop its samples."""
        if not spike:
            self._spiked = self._spiked if self.progress.spikes_in_a_row else []
            return
        text = spike + ("" if metrics.applied else "; no update")
        keys = self._note_samples(batch, "spike", text)
        if self.config.spikes.most_in_a_row:  # only a rollback needs them, and it bounds the list
            self._spiked.append((batch.step, keys))
        self._log.say(f"step {self.progress.step}: {text}; samples are in metrics.jsonl")

    def _note_samples(self, batch: StepBatch, kind: str, text: str) -> list[list[str]]:
        """Log the sample keys of this step, by rank. A collective."""
        keys: list[list[str]] = self.engine.communicator.all_gather_object(
            [key for item in batch.micro_batches for key in item.keys]
        )
        self._log.note(self.progress.step, kind, text=text, samples_by_rank=keys)
        return keys

    def _after_step(self, *, is_last: bool, stop: Stop | None) -> None:
        step, evaluation = self.progress.step, self.config.evaluation
        is_best = False
        self._saves.report()
        is_due = self._evaluate is not None and (is_last or step % evaluation.every_steps == 0)
        if is_due and stop is None:
            is_best = self._measure()
        # A stop leaves no time for an evaluation; the next start makes up for it, as if the run had not stopped.
        self.progress = dataclasses.replace(self.progress, evaluation_is_due=is_due and stop is not None)
        if is_last or stop is not None or is_best or step % self.config.checkpoint.every_steps == 0:
            self._save(must_succeed=is_last or stop is not None)

    def _measure(self) -> bool:
        """Evaluate; returns whether this is the best so far."""
        if self._evaluate is None:
            return False
        self._watchdog.alive()
        told = self._memory_told(f"the evaluation after step {self.progress.step}")
        with told, heartbeat.heard_by(self._watchdog.working):
            report = self._evaluate()
        self._log.write_report(self.progress.step, report)
        # Use rank 0's value everywhere: saving is a collective, and the last bit may differ between machines.
        value = self.engine.communicator.broadcast_object(report.metrics.get(self._best_metric, math.nan))
        self._log.say(f"step {self.progress.step}: {self._best_metric} {value:.4f}")
        best = self.progress.best
        is_best = math.isfinite(value) and (best is None or value > best.value)
        if is_best:
            best = Best(self._best_metric, value, self.progress.step, self._measured_on)
            self.progress = dataclasses.replace(self.progress, best=best)
        self._speed.reset()
        return is_best

    def _save(self, *, must_succeed: bool, again: bool = False) -> None:
        if again or not self._saves.has(self.progress.step):
            self._watchdog.alive()
            check_replicas(self.engine)
            self.progress = self._saves.save(self.progress, must_succeed=must_succeed)
            self._speed.reset()

    def _memory_told(self, doing: str) -> contextlib.AbstractContextManager[None]:
        engine = self.engine
        return out_of_memory_told(doing, self._memory_cure, device=engine.device, rank=engine.communicator.rank)
