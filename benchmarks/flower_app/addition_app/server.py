"""The server: FedAvg over the job's arrays, and a checkpoint after each round."""

from addition import Job
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    job = Job.from_environment()

    def keep(round_number: int, arrays: ArrayRecord) -> None:
        if round_number:
            job.checkpoint({name: array.numpy() for name, array in arrays.items()})

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=job.sites, min_available_nodes=job.sites)
    initial = ArrayRecord({name: Array(array) for name, array in job.initial_model().items()})
    strategy.start(grid, initial, num_rounds=job.rounds, evaluate_fn=keep)
