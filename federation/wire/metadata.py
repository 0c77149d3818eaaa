"""What an envoy says beside a message, and the director reads: keys of gRPC metadata, and the form of a digest."""

import re

PROCESS = "envoy-process"
"""Metadata: an id of the calling envoy process."""
INSTEAD_OF = "instead-of-bin"
"""Metadata of WaitExperiment: an experiment that the envoy has; the question is answered when that is over."""
RESTS = "rests"
"""Metadata of the answer to that: with "yes" the experiment is not over, but the round does not ask this site."""
AWAITING_APPROVAL = "awaiting-approval"
"""Metadata of WaitExperiment: the digest of the submission that waits for the site's owner."""
IN_HAND = "in-hand-bin"
"""Metadata of WaitExperiment without `INSTEAD_OF`: a JSON list of the names of all experiments that the envoy has,
those that wait for its owner among them; the answer is to be another one."""
SLOTS = "envoy-slots"
"""Metadata of an envoy's calls: how many experiments the site runs at a time, where that is not one."""
EXPERIMENTER = "experimenter-bin"
"""Metadata that the director sends before an experiment's archive: who has submitted it."""
AGGREGATOR = "aggregator"
"""Who a site's messages about a round are for, and who those of the director are from (the engine's header)."""
MOST_SLOTS = 64
REMOVE = "remove"
"""Metadata of RemoveExperimentData: with "yes" an experiment that is over is removed, with its models. Without it the
message is the engine's for ending an experiment, and removes nothing."""
DIGEST = re.compile(r"[0-9a-f]{64}")
"""The digest of a submission (`federation.site.review`)."""
SHORT = 12
"""Digits of a digest that people are shown."""
