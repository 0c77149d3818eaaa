"""A site: copies the model in, adds its number, and sends the model back."""

import nvflare.client as flare
from addition import Job, SiteModel


def main() -> None:
    """All rounds."""
    flare.init()
    job, site = Job.from_environment(), int(flare.get_site_name().removeprefix("site-"))
    model = SiteModel(job)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        model.load(received.params)
        trained = model.train(site, received.current_round + 1)
        flare.send(flare.FLModel(params=trained, meta={"NUM_STEPS_CURRENT_ROUND": job.weight(site)}))


if __name__ == "__main__":
    main()
