"""What can go wrong, in words for the person who has to act on it."""

REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED")
"""gRPC's answers to a certificate that may not do what it asked for (`federation.director.access`)."""


class FederationError(Exception):
    """A problem stated for its reader: what was given, what is allowed, what to do next."""


class SettingsError(FederationError):
    """A YAML file or command-line option that cannot be used; lists every problem found."""


class SubmissionRefused(FederationError):
    """The director did not accept an experiment."""


class ArchiveRefused(SubmissionRefused):
    """An experiment's archive holds what may not travel, or is too large; names the file."""


class DirectorLeaves(FederationError):
    """The director is stopped in the middle of an experiment that goes on when it is started again."""


class ExperimentFailed(FederationError):
    """An accepted experiment ended early; the text holds site, round, task and the remote traceback."""


def disk_problem(what: str, error: OSError) -> str:
    """A director's disk that does not take what it should, in words for the experimenter."""
    return (
        f"the director cannot keep {what} on its disk ({error}); its operator has to make room in the folder that "
        f"director.yaml names as `state`, then submit again"
    )
