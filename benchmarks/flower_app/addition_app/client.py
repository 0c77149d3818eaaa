"""A site: copies the model in, adds its number, and sends the model back."""

from addition import Job, SiteModel
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round."""
    job, site = Job.from_environment(), int(context.node_config["site"])
    model = SiteModel(job)
    model.load({name: array.numpy() for name, array in message.content["arrays"].items()})
    trained = model.train(site, message.content["config"]["server-round"])
    reply = {
        "arrays": ArrayRecord({name: Array(array) for name, array in trained.items()}),
        "metrics": MetricRecord({"num-examples": job.weight(site)}),
    }
    return Message(content=RecordDict(reply), reply_to=message)
