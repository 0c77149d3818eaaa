"""Submits FedAvg over the job's arrays with an administrator's startup kit, and waits for its end."""

import sys
import time
from pathlib import Path

from addition import Job
from addition_persistor import AdditionPersistor
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.recipe.fedavg import FedAvgRecipe
from nvflare.recipe.prod_env import ProdEnv


def main(kit: str, user: str) -> None:
    """Run the job to its end."""
    job = Job.from_environment()
    recipe = FedAvgRecipe(
        name="addition",
        model_persistor=AdditionPersistor(),
        min_clients=job.sites,
        num_rounds=job.rounds,
        train_script=str(Path(__file__).with_name("client.py")),
        framework=FrameworkType.NUMPY,
    )
    run = recipe.run(ProdEnv(kit, login_timeout=60, username=user))
    while not (status := str(run.get_status())).startswith("FINISHED"):
        time.sleep(2)
    print(status)
    if status != "FINISHED:COMPLETED":
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
