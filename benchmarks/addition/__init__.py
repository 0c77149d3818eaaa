"""The job that every system of the benchmark runs. Needs numpy alone, since each system has its own environment."""

from addition.job import Job, JobError, SiteModel

__all__ = ["Job", "JobError", "SiteModel"]
