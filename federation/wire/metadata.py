"""What an envoy says beside a message, and the director reads: keys of gRPC metadata, and the form of a digest."""

import re

PROCESS = "envoy-process"
"""Metadata: an id of the calling envoy process."""
INSTEAD_OF = "instead-of-bin"
"""Metadata of WaitExperiment: the experiment that the envoy works on; it asks what to do when that is over."""
AWAITING_APPROVAL = "awaiting-approval"
"""Metadata of WaitExperiment: the digest of the submission that waits for the site's owner."""
AT_WORK = "at-work-bin"
"""Metadata of WaitExperiment: names, a line each, of experiments that the site works on; it asks for another one."""
SLOTS = "slots"
"""Metadata of WaitExperiment: how many experiments the site works on at a time, where that is not one."""
MOST_SLOTS = 64
REMOVE = "remove"
"""Metadata of RemoveExperimentData: with "yes" an experiment that is over is removed, with its models. Without it the
message is the engine's for ending an experiment, and removes nothing."""
DIGEST = re.compile(r"[0-9a-f]{64}")
"""The digest of a submission (`federation.site.review`)."""
SHORT = 12
"""Digits of a digest that people are shown."""
