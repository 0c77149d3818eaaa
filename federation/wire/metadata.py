"""What an envoy says beside a message, and the director reads: keys of gRPC metadata, and the form of a digest."""

import re

PROCESS = "envoy-process"
"""Metadata: an id of the calling envoy process."""
INSTEAD_OF = "instead-of-bin"
"""Metadata of WaitExperiment: the experiment that the envoy works on; it asks what to do when that is over."""
AWAITING_APPROVAL = "awaiting-approval"
"""Metadata of WaitExperiment: the digest of the submission that waits for the site's owner."""
DIGEST = re.compile(r"[0-9a-f]{64}")
"""The digest of a submission (`federation.site.review`)."""
SHORT = 12
"""Digits of a digest that people are shown."""
