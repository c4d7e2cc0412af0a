"""Functions in processes of their own: forks of this one, which need not import anything again."""

import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback

_FORK = multiprocessing.get_context("fork")


class Fork:
    """A function that runs in a fork, as a program does: it has standard streams of its own."""

    def __init__(self, function, *arguments):
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 - until read
        self._process = _FORK.Process(target=self._run, args=(function, *arguments))
        self._process.start()
        self.pid = self._process.pid

    def _run(self, function, *arguments):
        for number, file in enumerate(self._files, start=1):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 - to the end
        sys.exit(function(*arguments))

    def wait(self):
        """Exit code, standard output and standard error, once it has ended."""
        self._process.join()
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        return self._process.exitcode, *texts


def run_torchrun(program, *arguments):
    """Run a file on two ranks of torchrun; exit code, standard output and standard error."""
    options = ["--standalone", "--nproc-per-node=2", "--start-method=fork", "--run-path"]
    return Fork(_launch, [*options, *map(str, (program, *arguments))]).wait()


def _launch(options):
    from torch.distributed import run

    run.run_script_path = _run_rank
    run.main(options)


def _run_rank(program, *arguments):
    sys.argv = [program, *arguments]
    try:
        runpy.run_path(program, run_name="__main__")
    except BaseException:
        traceback.print_exc()  # as of a program; torchrun tells one rank's alone
        raise
