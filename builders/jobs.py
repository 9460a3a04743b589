"""The models of a list as jobs of somebody else's scheduler: shell lines, to be read and then piped into `sh`."""

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Job:
    """One model.

    Args:
        name: its own.
        family: the script or file that builds it.
        gpu: it trains.
        hours: of one GPU, as estimated.
    """

    name: str
    family: str
    gpu: bool
    hours: float


def slurm(jobs: Sequence[Job], words: Sequence[str]) -> Iterator[str]:
    """An array for those that take a GPU and one for the others, run where `sbatch` is called.

    A job whose node dies is queued again and goes on, as the folder is shared.

    Args:
        jobs: one a model.
        words: of the command, behind family and model.
    """
    for gpu, group in groupby(sorted(jobs, key=lambda job: not job.gpu), key=lambda job: job.gpu):
        cases = [f"{number}) set -- {shlex.join([job.family, job.name])} ;;" for number, job in enumerate(group)]
        yield from ("sbatch <<'JOB'", "#!/bin/bash", "#SBATCH --job-name=builders", "#SBATCH --requeue")
        yield f"#SBATCH --array=0-{len(cases) - 1}"
        if gpu:
            yield from ("#SBATCH --gres=gpu:1", "#SBATCH --cpus-per-task=8")
        yield from ("case $SLURM_ARRAY_TASK_ID in", *cases, "esac")
        yield from (f'exec python -m builders "$@" {shlex.join(words)}', "JOB")


def hf_jobs(jobs: Sequence[Job], words: Sequence[str]) -> Iterator[str]:
    """A line for each job of Hugging Face, in an image that has this checkout; arguments as for `slurm`."""
    yield ': "${IMAGE:?an image whose working directory is this checkout, with its extra build installed}"'
    for job in jobs:
        limit = math.ceil(2 * job.hours) + 2  # for what estimates are worth; a job without one ends after half an hour
        place = ["--flavor", "a100-large" if job.gpu else "cpu-upgrade", "--timeout", f"{limit}h"]
        run = ["hf", "jobs", "run", "--detach", "--name", job.name, *place, "--secrets", "HF_TOKEN"]
        command = ["python", "-m", "builders", job.family, job.name, *words]
        yield f'{shlex.join(run)} "$IMAGE" {shlex.join(command)}'


JOBS: dict[str, Callable[[Sequence[Job], Sequence[str]], Iterator[str]]] = {"slurm": slurm, "hf-jobs": hf_jobs}
