"""`python benchmarks --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "end_to_end"))  # has how processes are started
    from cli import main

    main()
