"""A request to stop has no time for an evaluation; the next start makes it up, and finds the same best checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.distributed.launching import started
from tests.distributed.test_train import arguments
from unimo_ds.data.prepare.scenes.writing import write_demo_corpus
from unimo_ds.engine import checkpoint_folder

STARTS = """if True:
    import json, sys
    from pathlib import Path
    from unimo_ds.train import main
    from unimo_ds.utils.errors import UserError

    straight, stopped = json.loads(sys.argv[1])
    assert main(straight) == 0
    stop = Path(stopped[stopped.index("--run-dir") + 1]) / "stop"
    stop.parent.mkdir()
    stop.touch()
    assert main(stopped) == 0, "one step, and stopped where it was to be measured"
    assert main(stopped) == 0, "the same with the last step"
    stop.unlink()
    assert main(stopped) == 0
    records = stop.with_name("metrics.jsonl")
    records.rename(stop.with_name("records"))
    records.mkdir()
    try:
        main(stopped)
    except UserError as error:
        assert "cannot continue the records" in str(error)
    else:
        raise AssertionError
    records.rmdir()
    stop.with_name("records").rename(records)
"""


def measured(run_dir: Path) -> list[tuple[int, str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], name, line[name]) for line in lines for name in line if name.startswith("held_out/")]


def test_a_run_stopped_where_it_was_to_be_measured_finds_what_a_straight_one_finds(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    write_demo_corpus(data, num_pairs=80, num_images=20, num_texts=20, num_held_out=8)
    runs = [tmp_path / "straight", tmp_path / "stopped"]
    changes = {
        "schedule__total_steps": 2,
        "evaluation__every_steps": 1,
        "data__num_workers": 0,
        "logging__trace_steps": "1,2",
    }
    starts = json.dumps([arguments(data, run, **changes) for run in runs])
    with started([sys.executable, "-c", STARTS, starts]) as process:
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    assert output.count("stopped at step") == 2
    found = [measured(run) for run in runs]
    assert {step for step, *_ in found[0]} == {0, 1, 2}
    assert found[0] == found[1]
    best = [(run / "checkpoints" / "best").read_text() for run in runs]
    assert best[0] == best[1]
    newest = [run / "checkpoints" / "step-2" for run in runs]
    progress = [json.loads((folder / "state.json").read_text())["progress"] for folder in newest]
    assert progress[0] == progress[1]
    assert [checkpoint_folder.problems_of(folder) for folder in newest] == [[], []]
    traces = [sorted(path.name for path in (run / "traces").iterdir()) for run in runs]
    assert traces == [["steps-1-2.json"], ["steps-1-1.json", "steps-2-2.json"]]
    assert '"aten::' in (runs[0] / "traces" / "steps-1-2.json").read_text()


def test_values_on_other_data_are_not_held_against_each_other(tmp_path: Path) -> None:
    """Among two images recall is two thirds at least, among all of them it is less."""
    data, run = tmp_path / "demo", tmp_path / "run"
    write_demo_corpus(data, num_pairs=80, num_images=20, num_texts=20, num_held_out=40)
    changes = {"schedule__total_steps": 3, "evaluation__every_steps": 1, "data__num_workers": 0}
    few = arguments(data, run, **changes, evaluation__num_pairs=2)
    run.mkdir()
    (run / "stop").touch()
    starts = "import json, sys; from unimo_ds.train import main; sys.exit(sum(map(main, json.loads(sys.argv[1]))))"

    def start(*of: list[str]) -> str:
        with started([sys.executable, "-c", starts, json.dumps(of)]) as process:
            output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]
        return output

    start(few, few)
    assert checkpoint_folder.completed_steps(run) == [1, 2]
    (run / "stop").unlink()
    output = start([argument.replace("num_pairs=2", "num_pairs=40") for argument in few])
    assert "the best value so far, of step 1, was measured on other data: it counts no more" in output
    values = {step: value for step, name, value in measured(run) if name == "held_out/retrieval/mean_recall"}
    assert max(values[2], values[3]) < min(values[0], values[1]), "step 2 was due, and measured on all"
    best = max((2, 3), key=values.__getitem__)
    assert (run / "checkpoints" / "best").read_text() == f"step-{best}\n"
