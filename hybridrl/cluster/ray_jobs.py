"""Ray's job server, which runs a command on the cluster."""

from ray.job_submission import JobSubmissionClient

from hybridrl.errors import ResourceError


def submit(dashboard: str, entrypoint: str, working_dir: str | None) -> str:
    """Start a command on the cluster; returns the id of its job.

    Args:
        dashboard: http://host:port of the job server.
        working_dir: folder to upload, in which the command runs; None uploads nothing.

    Raises:
        ResourceError: no job server answers, or it refuses the job.
    """
    try:
        client = JobSubmissionClient(dashboard)
        environment = {"working_dir": working_dir} if working_dir else None
        return client.submit_job(entrypoint=entrypoint, runtime_env=environment)
    except (ConnectionError, RuntimeError) as error:
        raise ResourceError(
            f"the job server at {dashboard} does not take the run: {str(error).splitlines()[0]}",
            fix="start the head with ray start --head --include-dashboard=true, of ray[default]",
        ) from error
