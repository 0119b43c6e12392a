"""Ray's job server: hand over a command that runs on the cluster."""

from ray.job_submission import JobSubmissionClient

from hybridrl.errors import ResourceError


def submit(dashboard: str, entrypoint: str, working_dir: str | None) -> str:
    """Start a command on the cluster; the id of its job.

    Args:
        dashboard: http://host:port of the cluster.
        working_dir: folder that is uploaded for the command to run in; None: nothing is.

    Raises:
        ResourceError: nothing answers there, or it refuses the job.
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
