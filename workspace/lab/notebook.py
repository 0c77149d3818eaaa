"""`python -m lab.notebook IN OUT`: run a notebook in a real kernel and save it with its output, finished or not."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError


def execute(source: Path, target: Path) -> str | None:
    """Run every cell of `source` in its own folder and save the result as `target`; what went wrong, or None."""
    notebook = nbformat.read(source, as_version=4)
    client = NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(source.parent)}}
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except (DeadKernelError, RuntimeError) as error:
        return f"the kernel has died: {error}"
    finally:
        nbformat.write(notebook, target)
    return None


if __name__ == "__main__":
    problem = execute(Path(sys.argv[1]), Path(sys.argv[2]))
    if problem:
        sys.exit(f"the notebook stopped with {problem}")
