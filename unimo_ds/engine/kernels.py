"""All ranks of a run compute with the CUDA kernels, or none does.

A rank without them would be several times slower, and all would wait for it; and vectors travel in the ring of the contrastive
loss as 16 bits with kernels, as 32 without.
"""

from __future__ import annotations

import torch

from unimo_ds.engine.patient_files import say
from unimo_ds.ops.native import library
from unimo_ds.utils.agreement import fail_together
from unimo_ds.utils.communicator import Communicator


def kernels_missing(device: torch.device, precision: str) -> str:
    """Why the kernels cannot run on this rank's GPU, in one line; empty if they can. Builds them if they are not built yet.

    precision: as in `ds_config.precision`; with fp32 weights the contrastive loss alone has kernels, for fp16.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return (library.refusal(torch.empty(0, dtype=dtype, device=device)) or "").partition("\n")[0]


def agree_on_kernels(missing: str, communicator: Communicator) -> None:
    """Tell that no rank has the kernels, or refuse ranks that differ. A collective. missing: from `kernels_missing`.

    Raises:
        UserError: on all ranks, naming those that lack the kernels.
    """
    of_ranks = communicator.all_gather_object(missing)
    if all(of_ranks) and communicator.rank == 0:
        say(f"note: the CUDA kernels are not used, and steps take longer: {missing}")
    fail_together(
        communicator,
        f"the CUDA kernels, which other ranks have, cannot run here: {missing}; cure that (`unimo kernels build` says more), or "
        "set UNIMO_KERNELS=off for all ranks"
        if missing and not all(of_ranks)
        else "",
    )
