"""`unimo doctor preflight`: are the nodes of this job fit for a run? One task per GPU, on all nodes, before the trainer.

The first task of each node reports into a folder that all nodes see; rank 0 reads the reports, prints the verdict, and writes the
names of bad nodes, separated by commas, to REPORTS/bad_nodes. A node that is too broken to report is bad for that reason.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import socket
import time
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unimo_ds.preflight import node as node_checks
from unimo_ds.preflight.network import doorbell, try_network, unreachable
from unimo_ds.preflight.node import NodeReport
from unimo_ds.preflight.verdict import NetworkReport, clock_remarks, judge
from unimo_ds.utils import locations
from unimo_ds.utils.command_line import ArgumentParser
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.launchers import host_names, local_rank, rank_environment
from unimo_ds.utils.running import run_command
from unimo_ds.utils.whole_file import replace_file

BAD_NODES_FILE = "bad_nodes"
_POLL_SECONDS = 0.2
_EXAMPLE = """example:
  srun unimo doctor preflight --data data --run-dir runs/base_32xv100
  unimo doctor preflight --data demo_data"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `unimo doctor preflight`. Returns 0 if all nodes are fit (and on every rank but 0), 1 if some are not, 2 if none is,
    or on bad input."""
    parser = ArgumentParser(
        prog="unimo doctor preflight",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, action=locations.Repeated, help=locations.HELP)
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("runs"),
        help="run directory; must be writable from every node (default: runs)",
    )
    parser.add_argument(
        "--reports", type=Path, help="folder for the reports (default: RUN_DIR/preflight/JOB-START-STEP)"
    )
    parser.add_argument(
        "--gpus", type=int, help="GPUs that each node must have (default: as many as Slurm allocated; 0: CPU only)"
    )
    parser.add_argument(
        "--min-free-gib", type=float, default=10.0, help="free space required in the run directory (default 10)"
    )
    parser.add_argument(
        "--min-bandwidth",
        type=float,
        default=0.0,
        metavar="GB/S",
        help="bandwidth that the all-reduce must reach (default: no minimum)",
    )
    parser.add_argument(
        "--all-reduce-mib", type=float, help="size of the all-reduced tensor (default 256 on GPUs, 16 on CPUs)"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=180.0,
        metavar="SECONDS",
        help="how long to wait for a node's report (default 180)",
    )
    return run_command(lambda: run(parser.parse_args(arguments)))


def run(options: Namespace) -> int:
    """Carry out parsed arguments on this task."""
    os.environ.update(rank_environment(os.environ))
    if "RANK" not in os.environ:
        raise UserError("nothing says which of the job's tasks this is; start it with srun")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    me = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    expected = host_names(os.environ.get("SLURM_STEP_NODELIST", "")) or [me]
    if me not in expected or world_size % len(expected):
        raise UserError(
            f"{me} is not one of {expected}, or {world_size} ranks do not spread evenly; start it with srun"
        )
    # Reports of an earlier start or step of the job must not be taken for this one's.
    place = (("SLURM_JOB_ID", "local"), ("SLURM_RESTART_COUNT", "0"), ("SLURM_STEP_ID", "0"))
    start = "-".join(os.environ.get(name, otherwise) for name, otherwise in place)
    reports_dir = options.reports or options.run_dir / "preflight" / start
    with doorbell() as port:
        if local_rank(os.environ) == 0:
            _publish(reports_dir / f"{me}.json", dataclasses.asdict(_report(options, me, port)))
        reports = {
            node: NodeReport(**values) for node, values in _collect(reports_dir, expected, "", options.wait).items()
        }
        if local_rank(os.environ) == 0:
            missed = unreachable({node: report.address for node, report in reports.items() if node != me})
            _publish(reports_dir / f"{me}.unreached.json", missed)
        unreached = _collect(reports_dir, list(reports), ".unreached", options.wait)
        network = None
        if not judge(expected, reports, unreached, None):
            network = _network(options, expected, world_size)
    if rank != 0:
        return 0
    bad = judge(expected, reports, unreached, network, min_bandwidth=options.min_bandwidth)
    _publish(reports_dir / "verdict.json", {"bad": bad, "network": dataclasses.asdict(network or NetworkReport())})
    # If all are bad, there are no others to run on.
    blamed = [node for node in expected if node in bad]
    (reports_dir / BAD_NODES_FILE).write_text(",".join(blamed) if len(blamed) < len(expected) else "")
    print(to_text(expected, reports, network, bad), flush=True)
    if len(reports) == len(expected) and all(report.problems for report in reports.values()):
        raise UserError(f"no node is fit: {reports[expected[0]].problems[0]}")
    return 1 if bad else 0


def to_text(
    expected: Sequence[str],
    reports: Mapping[str, NodeReport],
    network: NetworkReport | None,
    bad: Mapping[str, Sequence[str]],
) -> str:
    """The verdict for people: a line per problem, then the measurements."""
    lines = [f"preflight: {len(expected) - len(set(expected) & set(bad))} of {len(expected)} nodes are fit"]
    lines += [f"  BAD {node or 'network'}: {text}" for node, texts in bad.items() for text in texts]
    lines += [f"  note {node}: {text}" for node, report in reports.items() for text in report.remarks]
    versions = next(iter(reports.values())).versions if reports else {}
    lines.append(f"  {', '.join(f'{name} {value}' for name, value in versions.items())}")
    if network is not None and not network.problem:
        lines += [f"  note: {text}" for text in clock_remarks(network.clocks)]
        if network.ranks > 1:
            lines.append(
                f"  all-reduce of {network.all_reduce_bytes / 2**20:.0f} MiB over {network.ranks} ranks: "
                f"{network.all_reduce_seconds * 1e3:.1f} ms, {network.bus_bandwidth:.2f} GB/s bus bandwidth"
            )
        if network.links:
            slowest = min(network.links, key=lambda link: link.gigabytes_per_second)
            lines.append(f"  slowest link {'-'.join(slowest.nodes)}: {slowest.gigabytes_per_second:.2f} GB/s")
    return "\n".join(lines)


def _report(options: Namespace, me: str, port: int) -> NodeReport:
    problems = (
        *node_checks.problems_of_gpus(_expected_gpus(options)),
        *(problem for place in locations.split(options.data) for problem in node_checks.problems_of_data(place)),
        *node_checks.problems_of_run_dir(options.run_dir, min_free_bytes=int(options.min_free_gib * 2**30)),
    )
    return NodeReport(
        node=me,
        address=f"{me if 'SLURMD_NODENAME' in os.environ else '127.0.0.1'}:{port}",
        problems=problems,
        remarks=tuple(node_checks.remarks_of_host()),
        versions=node_checks.versions_of_node(),
    )


def _expected_gpus(options: Namespace) -> int:
    if options.gpus is not None:
        return int(options.gpus)
    if os.environ.get("DS_ACCELERATOR") == "cpu":  # DeepSpeed's own switch
        return 0
    return int(os.environ.get("SLURM_GPUS_ON_NODE", torch.cuda.device_count()))


def _network(options: Namespace, expected: Sequence[str], world_size: int) -> NetworkReport:
    device = torch.device("cpu")
    if _expected_gpus(options):
        device = torch.device("cuda", local_rank(os.environ) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    size = options.all_reduce_mib or (256.0 if device.type == "cuda" else 16.0)
    # Tasks are numbered node by node (srun's block distribution, one node otherwise).
    node_of_rank = [node for node in expected for _ in range(world_size // len(expected))]
    timeout = datetime.timedelta(seconds=options.wait)
    return try_network(node_of_rank, device, num_bytes=int(size * 2**20), timeout=timeout)


def _publish(path: Path, values: Any) -> None:
    """Write atomically. A node that cannot write counts as not reporting."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(values))
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}); --run-dir must be on a file system of all nodes"
        ) from None


def _collect(folder: Path, nodes: Sequence[str], suffix: str, patience: float) -> dict[str, Any]:
    """What each node has published within `patience` seconds."""
    deadline = time.monotonic() + patience
    found: dict[str, Any] = {}
    while len(found) < len(nodes):
        for node in nodes:
            path = folder / f"{node}{suffix}.json"
            if node not in found and path.is_file():
                found[node] = json.loads(path.read_text())
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    return {node: found[node] for node in nodes if node in found}
