"""A notebook as a process of its own: submits a toy experiment, or attaches to one, and follows it to its end.

`python notebook.py ADDRESS CERTIFICATE NAME FOLDER [--submit JSON]` writes a line of JSON per metric to standard output
as it comes, then the last weights to `FOLDER/NAME.npy`.
"""

import argparse
import json
import time
from dataclasses import astuple
from pathlib import Path

import numpy as np
from processes import TOYS

from federation.notebook.handle import FederationHandle
from federation.policy import RoundPolicy
from federation.settings import certificates_beside


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("certificate", type=Path)
    parser.add_argument("name")
    parser.add_argument("weights", type=Path)
    parser.add_argument(
        "--submit", type=json.loads, help="sites, length and rounds; policy is a RoundPolicy's settings"
    )
    options = parser.parse_args()
    host, _, port = options.address.rpartition(":")
    federation = FederationHandle(host, int(port), certificates_beside(options.certificate))
    if options.submit:
        while [site.name for site in federation.sites() if site.online] != options.submit["sites"]:
            time.sleep(0.1)
        experiment = federation.submit(
            options.name, package=TOYS / "toy", entry_point="toy.experiment:experiment",
            settings={"length": options.submit["length"]}, rounds=options.submit["rounds"], best_metric="accuracy",
            policy=RoundPolicy(**options.submit.get("policy", {})),
        )  # fmt: skip
    else:
        experiment = federation.attach(options.name)
    for metric in experiment.metrics():
        print(json.dumps(astuple(metric)), flush=True)
    np.save(options.weights, experiment.last_weights()["vector"])


if __name__ == "__main__":
    main()
